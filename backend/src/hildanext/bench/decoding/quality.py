# What continuations are worth beside those of the AR parent: equal texts, words in common, likelihood, repetition.
# Entry points: Quality (of, of_texts, own), Agreement.
# The parent reads in float32, greedily; its own texts are scored by the same code. Ends of text are not scored.
"""Quality of continuations, for the decoding benchmark."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher
from typing import Any

from hildanext.bench.decoding.asks import Ask
from hildanext.bench.decoding.readers import LeftToRight
from hildanext.measure.endings import Ending, causal
from hildanext.measure.tasks.chat import token_f1
from hildanext.measure.tasks.tinystories import repetition
from hildanext.world import check

ROWS = 8
Ids = tuple[int, ...]


@dataclass(frozen=True)
class Quality:
    """The parent, what it was asked, and its greedy texts."""

    parent: Any
    asks: Sequence[Ask]
    texts: Sequence[Ids]
    worlds: bool
    about: str = (
        "equal: share of texts with the ids of the parent's greedy ones in float32; token F1 with those; nats per token"
        " under the parent; repetition; valid: share of stories that the story world's checker accepts, of a"
        " story that was cut its whole sentences"
    )

    @classmethod
    def of(cls, parent: Any, asks: Sequence[Ask], new: int) -> Quality:
        """With the parent's own texts of at most `new` tokens."""
        reader = LeftToRight(parent, "wall")
        worlds = all(check(ask.text, partial=True).valid for ask in asks)
        return cls(parent, asks, [reader.read(ask, new).ids for ask in asks], worlds)

    def own(self) -> dict[str, float | None]:
        """The parent's own texts by the same measures."""
        return self.of_texts(self.texts)

    def of_texts(self, texts: Sequence[Ids]) -> dict[str, float | None]:
        """The measures of one text per prompt, in [0, 1] but for `nats`, nats per token, None where nothing was said;
        `valid` None where the prompts are no stories."""
        said = [self._bare(ask, ids) for ask, ids in zip(self.asks, texts, strict=True)]
        words = [self._words(ids) for ids in said]
        theirs = [self._words(self._bare(ask, ids)) for ask, ids in zip(self.asks, self.texts, strict=True)]
        count = len(texts)
        return {
            "tokens": float(sum(map(len, said))),
            "equal": sum(tuple(a) == tuple(b) for a, b in zip(texts, self.texts, strict=True)) / count,
            "token_f1": sum(map(token_f1, words, theirs)) / count,
            "nats": self._nats(said),
            "repetition": sum(map(repetition, words)) / count,
            "valid": self._valid(texts, words),
        }

    def _bare(self, ask: Ask, ids: Ids) -> Ids:
        return tuple(one for one in ids if one not in ask.ends)

    def _words(self, ids: Ids) -> str:
        return str(self.parent.tokenizer.decode(list(ids)))

    def _nats(self, said: Sequence[Ids]) -> float | None:
        endings = [
            Ending((*ask.ids, *ids), len(ask.ids), 0) for ask, ids in zip(self.asks, said, strict=True) if ids
        ]  # fmt: skip
        tokens = sum(map(len, said))
        return sum(causal(self.parent.denoiser, endings, ROWS)) / tokens if tokens else None

    def _valid(self, texts: Sequence[Ids], words: Sequence[str]) -> float | None:
        if not self.worlds:
            return None
        whole = [bool(ask.ends & set(ids)) for ask, ids in zip(self.asks, texts, strict=True)]
        said = [text if ended else text[: text.rfind(".") + 1] for text, ended in zip(words, whole, strict=True)]
        stories = [f"{ask.text} {text.lstrip()}" for ask, text in zip(self.asks, said, strict=True)]
        return sum(check(story, not ended).valid for story, ended in zip(stories, whole, strict=True)) / len(stories)


@dataclass(frozen=True)
class Agreement:
    """What is measured where no parent is known: how much of the texts the reference's texts have in the same order."""

    texts: Sequence[Ids]
    about: str = "agreement: share of tokens in common order with the texts of the reference; no parent is known"

    def of_texts(self, texts: Sequence[Ids]) -> dict[str, float | None]:
        """The share, in [0, 1], of the tokens of both sides."""
        pairs = list(zip(texts, self.texts, strict=True))
        found = [SequenceMatcher(None, one, other, autojunk=False) for one, other in pairs]
        shared = sum(block.size for one in found for block in one.get_matching_blocks())
        both = sum(len(one) + len(other) for one, other in pairs)
        return {"agreement": 2 * shared / both if both else 1.0}
