# How a text was decoded, block by block: what stood in a block before each of its forwards, and what it became.
# Entry points: Trajectory (of a traced Result).
# What training on the decoder's own states needs: a state and the finished text before it are what the model has seen.
"""The trajectory of a decoded answer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from hildanext.decoding.request import Result


@dataclass(frozen=True)
class Trajectory:
    """A prompt with its answer. tokens [length] int64: finished, up to the end of the last block decoded; first, stop:
    of the answer, with the token that ended it; stopped: it ended by itself; looks: by start of a block, its tokens
    before each forward [looks, size] int64, [MASK] where nothing was; probability [length] float64: of each token when
    it was filled in, 1 where it was given."""

    tokens: Tensor
    first: int
    stop: int
    stopped: bool
    looks: Mapping[int, Tensor]
    probability: Tensor

    @classmethod
    def of(cls, prompt: Sequence[int], result: Result, mask_id: int) -> Trajectory:
        """From a result decoded with trace=True, whose canvas began with `prompt` ids and nothing else was given.
        ValueError without a trace."""
        if not result.trace:
            raise ValueError("trajectory: the result has no trace; ask with trace=True")
        states, sure = dict[int, list[list[int]]](), dict[int, float]()
        for seen in result.trace:
            for start, block in _by_block(seen["tokens"], result.metrics.block).items():
                blank = [token["id"] if token["state"] == "given" else mask_id for token in block]
                states.setdefault(start, [blank]).append([token["id"] for token in block])
                sure |= {token["pos"]: token.get("confidence", 1.0) for token in block if token["state"] == "new"}
        last = max(len(prompt), len(prompt) + len(result.token_ids) - 1)
        # behind the end a window may have begun a block that nobody finished
        states = {start: rows for start, rows in states.items() if start <= last}
        final = {start: rows[-1] for start, rows in states.items()}
        length = max(start + len(row) for start, row in final.items())
        tokens = torch.tensor([*prompt, *[mask_id] * (length - len(prompt))])
        for start, row in final.items():
            tokens[start : start + len(row)] = torch.tensor(row)
        first, stop = len(prompt), len(prompt) + len(result.token_ids)
        looks = {start: torch.tensor(rows[:-1]) for start, rows in states.items()}
        probability = torch.tensor([sure.get(place, 1.0) for place in range(length)], dtype=torch.float64)
        return cls(tokens, first, stop, result.finish_reason == "eos", looks, probability)

    def steps(self) -> Tensor:
        """[length] int64: the forward of its block that filled each position, from 0; -1 where it was given. ValueError
        where a token was rewritten or masked again, since no such number then says what stood where."""
        made = torch.full_like(self.tokens, -1)
        for start, rows in self.looks.items():
            final, place = self.tokens[start : start + rows.shape[1]], torch.arange(len(rows) + 1)[:, None]
            given = rows[0] == final
            steps = torch.where(given, -1, (rows != final).sum(dim=0) - 1)
            if not torch.equal(rows == final, (steps < place)[:-1]):
                raise ValueError("trajectory: tokens were rewritten while the answer was decoded")
            made[start : start + rows.shape[1]] = steps
        return made

    def state(self, chosen: Mapping[int, int]) -> Tensor:
        """[length] int64: the tokens with each block as it was before its forward number chosen[start]."""
        made = self.tokens.clone()
        for start, look in chosen.items():
            rows = self.looks[start]
            made[start : start + rows.shape[1]] = rows[look]
        return made


def _by_block(tokens: Sequence[Mapping[str, Any]], block: int) -> dict[int, list[Mapping[str, Any]]]:
    found: dict[int, list[Mapping[str, Any]]] = {}
    for token in tokens:
        found.setdefault(int(token["pos"]) // block * block, []).append(token)
    return found
