# How far the n-grams of some texts are from those of a corpus, and how sure that is.
# Entry points: Profile (n-grams of a corpus), divergence.
# A finite sample is far from its own source, too: stand the value of as many texts of the corpus beside it.
"""Divergence of n-grams."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hildanext.measure.tasks.tinystories import words
from hildanext.report.intervals import Measure

RESAMPLES = 200


def grams(text: str, size: int) -> list[tuple[str, ...]]:
    """The n-grams of a text's words (measure/tasks/tinystories.py), a mark being a word.
    Source: docs/latents.md#measures."""
    pieces = words(text)
    return [tuple(pieces[start : start + size]) for start in range(len(pieces) - size + 1)]


@dataclass(frozen=True)
class Profile:
    """Counts of the n-grams of a corpus; size: n."""

    counts: Counter[tuple[str, ...]]
    size: int

    @classmethod
    def of(cls, texts: Iterable[str], size: int = 3) -> Profile:
        """Of the texts of a corpus."""
        return cls(Counter(gram for text in texts for gram in grams(text, size)), size)

    def log_shares(self, found: Sequence[tuple[str, ...]], added: float) -> dict[tuple[str, ...], float]:
        """log q of n-grams: (count + added) / (sum + added T), T the different ones of the corpus and of found."""
        total = sum(self.counts.values()) + added * len(self.counts.keys() | set(found))
        return {gram: float(np.log((self.counts[gram] + added) / total)) for gram in found}


def divergence(texts: Sequence[str], corpus: Profile, added: float = 0.5) -> Measure:
    """KL(p || q) in nats of the texts' n-gram shares p from the corpus's smoothed ones q, with a bootstrap interval
    over texts, moved so that the mean of the resamples is the value. ValueError where no text has an n-gram.
    Source: docs/latents.md#measures."""
    own = [Counter(grams(text, corpus.size)) for text in texts]
    known = sorted(set().union(*own))
    if not known:
        raise ValueError(f"divergence: no text has {corpus.size} words")
    shares = corpus.log_shares(known, added)
    logs, place = np.array([shares[gram] for gram in known]), {gram: index for index, gram in enumerate(known)}
    table = np.zeros((len(own), len(known)))
    for row, counts in enumerate(own):
        table[row, [place[gram] for gram in counts]] = list(counts.values())
    rng = np.random.default_rng(0)
    value = _kl(table.sum(0), logs)
    drawn = rng.multinomial(len(own), np.full(len(own), 1 / len(own)), size=RESAMPLES) @ table
    again = np.array([_kl(row, logs) for row in drawn if row.sum()])
    low, high = value + np.quantile(again, [0.025, 0.975]) - again.mean()  # resamples repeat texts: all lie too high
    return Measure(value, min(value, float(low)), max(value, float(high)), len(texts), "nats")


def _kl(counts: NDArray[np.float64], logs: NDArray[np.float64]) -> float:
    share = counts / counts.sum()
    seen = share > 0
    return float((share[seen] * (np.log(share[seen]) - logs[seen])).sum())
