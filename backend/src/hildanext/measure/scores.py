# What a model says of given texts: nats of each behind its context, and of each of its tokens. Several at once.
# Entry points: Scoring (how), scores (pieces of work, one after the other), Score, TokenNats.
# Short texts with one context share its forward (endings.py), which is what labels of one question and rerankers need;
# a long one takes a forward per draw.
"""Scores of given texts."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch

from hildanext.core.batches import document_batch
from hildanext.core.likelihood import drawn_terms
from hildanext.decoding.engine import DEFAULT_BLOCK
from hildanext.decoding.text import TextStream
from hildanext.errors import DataError, WindowError, first_line
from hildanext.measure.endings import Bound, Ending, bounds, causal_tokens
from hildanext.measure.scoring import pair_batch
from hildanext.models.denoiser import hugging_face

Kind = Literal["bound", "autoregressive"]
PIECE, LONG = 8, 1024
"""Texts of a piece at most, and positions, noisy copies included, from which a text is scored draw by draw."""
MOST_EXACT, MOST_PATTERNS = 8, 4096


@dataclass(frozen=True)
class Scoring:
    """How texts are scored. kind: the block bound (negative ELBO), or the model read left to right; samples: draws of
    noise per block, an even count, which a block of few tokens does not need; 0: exact, to 8 scored tokens of a block;
    block: its size, tokens, 0: the model's own."""

    kind: Kind = "bound"
    samples: int = 16
    block: int = 0


@dataclass(frozen=True)
class TokenNats:
    """A token of a scored text and its term, nats: of the bound, the mean over orders in which its block is filled."""

    id: int
    text: str
    nats: float


@dataclass(frozen=True)
class Score:
    """nats: of the text behind its context, -log p or an upper bound on it; standard_error: of nats, from the draws, 0
    where exact, None of a single pair of draws; values: of each token, they add up to nats."""

    nats: float
    tokens: int
    standard_error: float | None
    exact: bool
    values: tuple[TokenNats, ...] = ()

    @property
    def nats_per_token(self) -> float:
        """nats / tokens."""
        return self.nats / self.tokens


def scores(loaded: Any, pairs: Sequence[tuple[str | Sequence[int], str]], how: Scoring) -> Iterator[list[Score]]:
    """The scores of (context, text) pairs, in order, a few per piece so that others can work between. A score does not
    depend on which texts share its request. DataError for a text without tokens or one the tokenizer cannot read,
    WindowError for one that is too long, ModelError for a kind of model that cannot be scored."""
    hugging_face(loaded.denoiser)
    size = how.block or loaded.meta.block or DEFAULT_BLOCK
    endings = [_ending(loaded, index, *pair) for index, pair in enumerate(pairs)]
    if how.kind == "bound" and how.samples == 0:
        for index, own in enumerate(endings):
            _enumerable(index, own, size)
    return _pieces(loaded, endings, how, size)


def _enumerable(index: int, own: Ending, block: int) -> None:
    scored, most = len(own.ids) - own.first, max(len(places) for _, places in own.blocks(block, -1))
    if most > MOST_EXACT or scored << most > MOST_PATTERNS:
        raise DataError(
            f"samples: 0 enumerates blocks of at most {MOST_EXACT} scored tokens, and {MOST_PATTERNS >> most} tokens of"
            f" such a text; texts[{index}] has {scored}, {most} in a block; give samples, or a smaller block"
        )


def _pieces(loaded: Any, endings: Sequence[Ending], how: Scoring, block: int) -> Iterator[list[Score]]:
    start = 0
    while start < len(endings):
        stop = start + 1
        if how.kind == "bound" and how.samples and _width(endings[start], how) > LONG:
            yield from _drawn(loaded, endings[start], how, block)
        else:
            while stop < min(len(endings), start + PIECE) and _width(endings[stop], how) <= LONG:
                stop += 1
            part = endings[start:stop]
            yield [_score(loaded, *each) for each in zip(part, _found(loaded, part, how, block), strict=True)]
        start = stop


def _width(ending: Ending, how: Scoring) -> int:
    return len(ending.ids) + (len(ending.ids) - ending.first) * how.samples * (how.kind == "bound")


def _drawn(loaded: Any, ending: Ending, how: Scoring, block: int) -> Iterator[list[Score]]:
    batch = document_batch([(ending.ids, ending.first)], 0, block, (0,)).to(loaded.denoiser.device)
    terms, totals = torch.zeros(batch.tokens.shape[1], dtype=torch.float64), []
    rng = torch.Generator().manual_seed(0)
    for masked, nats in drawn_terms(loaded.denoiser, batch, block, rng, how.samples):
        terms[masked[0].cpu()] += nats.cpu() / how.samples
        totals.append(float(nats.sum()))
        yield []
    error = float(torch.tensor(totals, dtype=torch.float64).std()) / len(totals) ** 0.5
    known = {at: float(terms[at]) for at in range(ending.first, len(ending.ids))}
    yield [_score(loaded, ending, Bound(sum(known.values()), error, block == 1, known))]


def _found(loaded: Any, part: Sequence[Ending], how: Scoring, block: int) -> list[Bound]:
    if how.kind == "autoregressive":
        return [Bound(sum(own.values()), 0.0, True, own) for own in causal_tokens(loaded.denoiser, part)]
    return bounds(loaded.denoiser, part, block, how.samples or 2, 0 if how.samples else MOST_EXACT)


def _ending(loaded: Any, index: int, context: str | Sequence[int], text: str) -> Ending:
    window, mask = loaded.denoiser.window, loaded.denoiser.mask_id
    try:
        batch = pair_batch(loaded.tokenizer, context, text, 0)
    except Exception as error:  # tokenizers raises plain ones, for a word it has no token for
        raise DataError(f"texts[{index}]: the tokenizer cannot encode it ({first_line(error)}); change it") from error
    ids = tuple(batch.tokens[0].tolist())
    first = int((~batch.learn[0]).sum())
    if first >= len(ids):
        raise DataError(f"texts[{index}]: {text!r} has no token of its own; leave it out, or give a text")
    if mask in ids or max(ids) >= loaded.denoiser.vocab_size:
        raise DataError(f"texts[{index}]: holds [MASK] or an id that is none of this model's; change it")
    if window and len(ids) > window:
        raise WindowError(
            f"texts[{index}]: the model's maximum context length (its window) is {window} tokens, context and text"
            f" have {len(ids)}; shorten them by {len(ids) - window}"
        )
    return Ending(ids, first, len(text))


def _score(loaded: Any, ending: Ending, found: Bound) -> Score:
    shown = TextStream(loaded.tokenizer, ending.ids[: ending.first])
    values = tuple(
        TokenNats(ending.ids[at], shown.piece(ending.ids[at]), found.tokens[at])
        for at in range(ending.first, len(ending.ids))
    )
    error = found.standard_error
    return Score(found.nats, len(values), None if error != error else error, found.exact, values)
