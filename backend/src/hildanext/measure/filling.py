# How long a gap is: several lengths are filled, the whole texts scored, and the shortest good one is taken.
# Entry points: ladder (lengths worth trying), shortest_good (which of them), Choice (how), nats_of (what texts score);
# shrunk (a middle without what a model with edit actions deletes).
# A gap of masks has no end token, so its length is part of the question. Texts of different lengths are compared by
# their nats behind the same prefix, suffix included: -log p(middle, suffix | prefix), or a bound on it.
"""Choosing the length of a gap."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from hildanext.core.levenshtein import controls_of
from hildanext.errors import ModelError
from hildanext.measure.scores import Kind, Scoring, scores

TRIES = 12


@dataclass(frozen=True)
class Choice:
    """How filled texts are compared. kind, samples, block: of the score, as of Scoring; slack: nats by which a shorter
    text may be worse than the best and is taken all the same."""

    kind: Kind = "bound"
    samples: int = 4
    block: int = 0
    slack: float = 1.0


def ladder(most: int, tries: int = TRIES) -> tuple[int, ...]:
    """At most `tries` lengths of 1..most, rising: every one while they fit, else in about equal ratios, ends included.
    ValueError for a length or a count below 1."""
    if most < 1 or tries < 1:
        raise ValueError(f"ladder: most {most}, tries {tries}; both must be 1 or more")
    if most <= tries:
        return tuple(range(1, most + 1))
    found, last = [], 0
    for left in range(tries, 0, -1):
        last = max(last + 1, round(max(last, 1) * (most / max(last, 1)) ** (1 / left)))
        found.append(last)
    return tuple(found)


def shortest_good(lengths: Sequence[int], nats: Sequence[float], slack: float) -> int:
    """The index of the shortest text whose nats exceed the least by at most `slack`; of equal lengths the better one.
    ValueError where there is none, or as many nats as lengths are not given."""
    if not lengths or len(lengths) != len(nats):
        raise ValueError(f"shortest_good: {len(lengths)} lengths and {len(nats)} scores; expected one of each, or more")
    least = min(nats)
    good = [index for index, each in enumerate(nats) if each <= least + slack]
    return min(good, key=lambda index: (lengths[index], nats[index]))


def nats_of(loaded: Any, prefix: str | Sequence[int], middles: Sequence[str], suffix: str, how: Choice) -> list[float]:
    """Nats of each middle with the suffix behind the prefix, all of them in one batch. Errors: those of scores."""
    pairs = [(prefix, middle + suffix) for middle in middles]
    found = scores(loaded, pairs, Scoring(how.kind, how.samples, how.block))
    return [one.nats for piece in found for one in piece]


@torch.no_grad()
def shrunk(loaded: Any, before: Sequence[int], middle: Sequence[int], after: Sequence[int], tau: float) -> list[int]:
    """The ids of a middle without those the model deletes: the likeliest DELETE above `tau` goes, one a forward over
    the whole text as one block, until there is none. Source: LLaDA2.2 sec. 3.2, its rule; one at a time is ours.
    ModelError for a model without edit actions."""
    controls, kept = controls_of(loaded.denoiser), list(middle)
    if controls is None or loaded.denoiser.shift != "none":
        raise ModelError(
            "infill.editor: a model with edit actions, unshifted, is needed; train it with model.edit_actions"
        )
    while kept:
        ids = [*before, *kept, *after]
        places = torch.arange(len(ids))
        tokens, select = torch.tensor([ids]), ((places >= len(before)) & (places < len(before) + len(kept)))[None]
        seen = torch.ones(1, 1, len(ids), len(ids), dtype=torch.bool)
        moved = [each.to(loaded.denoiser.device) for each in (tokens, places[None], seen, select)]
        logits = loaded.denoiser(moved[0], moved[1], moved[2], select=moved[3])
        delete = logits.float().softmax(-1)[:, controls.delete]
        if float(delete.max()) <= tau:
            break
        del kept[int(delete.argmax())]
    return kept
