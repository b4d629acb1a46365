# Log-probabilities in OpenAI's two shapes, from the records of tokens; step and edits of each stand beside them.
# Entry points: chat_logprobs, Offsets (completions, whose entries count characters from the beginning).
# They are conditional on the canvas of a token's step, not left to right: docs/serving.md says what that means.
"""Log-probabilities for OpenAI clients."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from hildanext.decoding.request import Alternative, TokenRecord

Records = Sequence[TokenRecord]


def chat_logprobs(record: Records) -> dict[str, Any]:
    """The `logprobs` of a choice or of a chunk. Tokens without text, as the one that ends a reply, are left out."""
    entries = [
        _entry(one) | {"top_logprobs": [_entry(other) for other in one.top], "step": one.step, "edits": one.edits}
        for one in record
        if one.text
    ]
    return {"content": entries, "refusal": None}


def _entry(one: TokenRecord | Alternative) -> dict[str, Any]:
    known = list(one.text.encode("utf-8", "replace")) if one.raw is None else list(one.raw)
    return {"token": one.text, "bytes": known, "logprob": one.logprob}


@dataclass
class Offsets:
    """Where the next token of a completion begins, in characters of its text."""

    place: int = 0

    def logprobs(self, record: Records) -> dict[str, Any]:
        """The `logprobs` of the choice that these tokens go on with."""
        kept = [one for one in record if one.text]
        places = []
        for one in kept:
            places.append(self.place)
            self.place += len(one.text)
        tops = [{other.text: other.logprob for other in one.top} for one in kept]
        return {
            "tokens": [one.text for one in kept], "token_logprobs": [one.logprob for one in kept],
            "top_logprobs": tops if any(tops) else None, "text_offset": places,
            "steps": [one.step for one in kept], "edits": [one.edits for one in kept],
        }  # fmt: skip
