# Training of edit actions: drafts with missing, surplus and wrong tokens, labelled with what repairs them.
# Entry points: EditActions.
# Turn 1 begins from masked and damaged text, every further turn from what the model's own actions make of the one
# before. Labels are core/levenshtein.py's, block by block; where a block's learnable positions are not one run (a gap),
# nothing is moved. Letters: B rows, L positions.
"""Objective `edit_actions`."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import groupby
from typing import Self

import torch
from pydantic import Field, PrivateAttr
from torch import Tensor

from hildanext.config.noise import NoiseConfig
from hildanext.core.head import HeadOptions
from hildanext.core.levenshtein import Controls, apply, controls_of, labels
from hildanext.core.linear_cross_entropy import TokenScores, weighted_cross_entropy
from hildanext.core.loss_report import merged
from hildanext.core.noise import corrupt, maskable, units
from hildanext.core.objective import BaseObjective
from hildanext.core.row_streams import row_uniforms
from hildanext.core.types import About, Batch, Denoiser, LossReport, Pass
from hildanext.errors import ConfigError

NOISE = NoiseConfig(draw="count", replace=0.02)
SETS = ("m2t", "keep", "substitute", "delete", "insert")


@dataclass(frozen=True)
class _Piece:
    row: int
    places: range
    after: list[int]


class EditActions(BaseObjective):
    """Mean over turns of the cross-entropy of each position's action: a token (written, kept or substituted), DELETE or
    INSERT. Source: LLaDA2.2 sec. 3.1, which publishes neither rates nor weights; ours, as are planted faults."""

    noise: NoiseConfig = Field(NOISE, description="mask rates and replaced tokens of the first draft")
    whole: float = Field(0.5, ge=0, le=1, description="share of the blocks whose first draft has no masks")
    missing: float = Field(0.03, ge=0, le=1, description="probability that a visible token is left out of a draft")
    surplus: float = Field(0.03, ge=0, le=1, description="probability that a random token stands before a position")
    turns: int = Field(2, ge=1, description="forwards per micro-batch, a count")
    fill: float = Field(0.5, ge=0, le=1, description="probability that a masked position is filled between turns")
    m2t_weight: float = Field(1.0, ge=0, description="factor of masked positions")
    action_weight: float = Field(1.0, ge=0, description="factor of SUBSTITUTE, DELETE and INSERT")
    keep_weight: float = Field(1.0, ge=0, description="factor of KEEP")

    _special: tuple[int, ...] = PrivateAttr(())

    @property
    def passes(self) -> tuple[Pass, ...]:
        """One for each turn."""
        return (Pass(),) * self.turns

    def prepare(self, about: About) -> Self:
        """The same objective drawing random tokens of the tokenizer's only, and never a special id."""
        barred = tuple(sorted({*self.noise.forbidden, *about.special}))
        noise = self.noise.model_copy(update={"vocabulary": about.vocabulary, "forbidden": barred})
        return self.model_copy(update={"noise": noise})

    def loss(self, model: Denoiser, batch: Batch, block: int, rng: torch.Generator) -> LossReport:
        """The report of one micro-batch; see core.types.Objective."""
        return merged(list(self.losses(model, batch, block, rng)))

    def losses(self, model: Denoiser, batch: Batch, block: int, rng: torch.Generator) -> Iterator[LossReport]:
        """A report for each turn; the first carries the normaliser, the learnable tokens."""
        controls = controls_of(model)
        if controls is None:
            raise ConfigError("objective edit_actions: the model has no rows for actions; set model.edit_actions=true")
        can = maskable(batch, model.mask_id)
        pieces = _pieces(units("block", batch, block, model.block_grid), can, batch)
        draft = self._damaged(model, batch, block, rng, pieces)
        normaliser = can.sum().float()
        for turn in range(self.turns):
            wanted = _labelled(draft, batch, pieces, controls)
            report, scores = self._scored(model, (draft, batch, wanted, can), block, controls)
            report = LossReport(report.total / self.turns, normaliser * (turn == 0), report.parts, report.counts)
            if turn + 1 < self.turns:
                (uniform,) = row_uniforms(batch, rng, 1)
                draft = self._acted(draft, (can, scores, uniform), pieces, controls)
            yield report

    def _damaged(self, model: Denoiser, batch: Batch, block: int, rng: torch.Generator, pieces: list[_Piece]) -> Tensor:
        view = corrupt(self.noise, model, batch, block, rng)[0]
        drawn = row_uniforms(batch, rng, 4).cpu()
        (random,) = corrupt(
            self.noise.model_copy(update={"replace": 1.0, "low": 0.0, "high": self.noise.minimum, "draw": "bernoulli"}),
            model, batch, block, rng,
        )  # fmt: skip
        tokens, clean, others = view.tokens.tolist(), batch.tokens.tolist(), random.tokens.tolist()
        for piece in pieces:
            row, chance = piece.row, drawn[:, piece.row].tolist()
            source = clean if chance[3][piece.places.start] < self.whole else tokens
            made = list[int]()
            for place in piece.places:
                if chance[1][place] < self.surplus and others[row][place] != model.mask_id:
                    made.append(others[row][place])
                token = source[row][place]
                if chance[0][place] >= self.missing or token == model.mask_id:
                    made.append(
                        token if source is not clean or not self._wrong(chance[2][place]) else others[row][place]
                    )
            size = len(piece.places)
            tokens[row][piece.places.start : piece.places.stop] = [*made, *piece.after, *[model.mask_id] * size][:size]
        return torch.tensor(tokens, device=batch.tokens.device)

    def _wrong(self, chance: float) -> bool:
        return chance < self.noise.replace

    def _scored(
        self, model: Denoiser, given: tuple[Tensor, Batch, Tensor, Tensor], block: int, controls: Controls
    ) -> tuple[LossReport, TokenScores]:
        draft, batch, wanted, can = given
        sets = _sets(draft, wanted, controls)
        factors = (self.m2t_weight, self.keep_weight, *[self.action_weight] * 3)
        weight = sum(
            (factor * one for factor, one in zip(factors, sets, strict=True)),
            torch.zeros(draft.shape, device=draft.device),
        )
        features = model.noisy_features(draft, batch, block, can)
        options = HeadOptions(model.mask_id)
        total, scores = weighted_cross_entropy(
            features, model.head(), wanted[can], weight.to(features.device)[can].float(), options
        )
        nll, right = scores.nll.detach().double(), scores.correct.double()
        parts, counts = dict[str, Tensor](), dict[str, Tensor]()
        for name, one in zip(SETS, sets, strict=True):
            own = one[can].double()
            parts |= {name: (nll * own).sum(), f"{name}_accuracy": (right * own).sum()}
            counts |= dict.fromkeys((name, f"{name}_accuracy"), own.sum())
        return LossReport(total.float(), can.sum().float(), parts, counts), scores

    def _acted(
        self, draft: Tensor, given: tuple[Tensor, TokenScores, Tensor], pieces: list[_Piece], controls: Controls
    ) -> Tensor:
        can, scores, uniform = given
        chosen = draft.masked_scatter(can, scores.best)
        open_still = (draft == controls.mask) & (uniform >= self.fill)
        actions, tokens = torch.where(open_still, draft, chosen).tolist(), draft.tolist()
        for piece in pieces:
            start, stop = piece.places.start, piece.places.stop
            done = apply(tokens[piece.row][start:stop], actions[piece.row][start:stop], controls)
            tokens[piece.row][start:stop] = done
        return torch.tensor(tokens, device=draft.device)


def _sets(draft: Tensor, wanted: Tensor, controls: Controls) -> tuple[Tensor, ...]:
    hidden = draft == controls.mask
    delete, insert = wanted == controls.delete, wanted == controls.insert
    keep = ~hidden & (wanted == draft)
    return hidden, keep, ~hidden & ~keep & ~delete & ~insert, ~hidden & delete, ~hidden & insert


def _pieces(unit: Tensor, can: Tensor, batch: Batch) -> list[_Piece]:
    found, docs, tokens = list[_Piece](), batch.docs.tolist(), batch.tokens.tolist()
    for row, (ids, free) in enumerate(zip(unit.tolist(), can.tolist(), strict=True)):
        for _, group in groupby(range(len(ids)), key=ids.__getitem__):
            places = [place for place in group if free[place]]
            if places and places[-1] - places[0] + 1 == len(places):
                end = places[-1] + 1
                near = range(end, min(end + len(places), len(ids)))
                after = [tokens[row][place] for place in near if docs[row][place] == docs[row][places[0]]]
                found.append(_Piece(row, range(places[0], end), after))
    return found


def _labelled(draft: Tensor, batch: Batch, pieces: list[_Piece], controls: Controls) -> Tensor:
    wanted, tokens, clean = batch.tokens.tolist(), draft.tolist(), batch.tokens.tolist()
    for piece in pieces:
        row, start, stop = piece.row, piece.places.start, piece.places.stop
        wanted[row][start:stop] = labels(tokens[row][start:stop], clean[row][start:stop], controls)
    return torch.tensor(wanted, device=draft.device)
