# Decoded answers of a rollout as rows: tokens, the round each came in, what counts; and the batches made of them.
# Entry points: Answers (of, filled, played), first_end.
# Behind the end that counts there is [MASK] in the text that is scored: the model is not told where an answer ends.
"""Rows of a rollout."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from hildanext.config.decode import DecodeConfig
from hildanext.core.likelihood import token_nll
from hildanext.core.policy_objective import PolicyObjective
from hildanext.core.policy_views import Played
from hildanext.core.types import Batch
from hildanext.decoding.trajectory import Trajectory
from hildanext.errors import ConfigError
from hildanext.train.loop import evaluating
from hildanext.train.recipes.rollout import Numbered


@dataclass(frozen=True)
class Answers(Numbered):
    """tokens, canvas, steps [N, W] int64 and surprisal [N, W] as in core.policy_views.Played; spans [N, 3] int64: of
    what counts, start and stop, and length of the row; advantage [N]; kept [N] bool; ids: of the prompts; drawing:
    temperature, top_k, top_p; facts: plain values for the metrics, among them its number `rollout` and its `block`."""

    tokens: Tensor
    canvas: Tensor
    steps: Tensor
    surprisal: Tensor
    spans: Tensor
    advantage: Tensor
    kept: Tensor
    ids: tuple[int, ...]
    drawing: tuple[float, int, float]
    facts: dict[str, Any]

    @classmethod
    def of(
        cls, found: list[Trajectory], objective: PolicyObjective, eos: str, mask_id: int, decode: DecodeConfig
    ) -> Answers:
        """Without advantages. ConfigError where an answer was rewritten and the objective scores its rounds."""
        width = max(len(one.tokens) for one in found)
        canvas, tokens, steps = (torch.zeros(len(found), width, dtype=torch.long) for _ in range(3))
        surprisal = torch.zeros(len(found), width, dtype=torch.float64)
        stops = [one.stop if eos == "mask" else len(one.tokens) for one in found]
        for row, (one, stop) in enumerate(zip(found, stops, strict=True)):
            length = len(one.tokens)
            canvas[row, :length] = tokens[row, :length] = one.tokens
            tokens[row, stop:length] = mask_id
            steps[row] = -1
            steps[row, :length] = _steps(one) if objective.rounds else -1
            surprisal[row, :length] = -one.probability.clamp(min=1e-30).log()
        spans = torch.tensor([[one.first, stop, len(one.tokens)] for one, stop in zip(found, stops, strict=True)])
        nothing = torch.zeros(len(found), dtype=torch.float64)
        drawing = (decode.temperature, decode.top_k, decode.top_p)
        return cls(tokens, canvas, steps, surprisal, spans, nothing, nothing == 0, (), drawing, {})

    def filled(self, advantage: Tensor, kept: Tensor, ids: list[int], facts: dict[str, Any]) -> Answers:
        """With what the rewards say."""
        return replace(self, advantage=advantage, kept=kept, ids=tuple(ids), facts=facts)

    def learned(self, rows: int) -> int:
        """Positions of a step over so many rows, a count."""
        return int(self.spans[:, 2].double().mean() * rows)

    def mean_surprisal(self) -> float:
        """Mean -log p of the tokens drawn, nats: the entropy of the policy where it was asked."""
        counts = self._counts(slice(None), self.tokens.shape[1])
        return float(self.surprisal[counts].mean()) if bool(counts.any()) else 0.0

    def _counts(self, chosen: slice, width: int) -> Tensor:
        first, stop = self.spans[chosen, :1], self.spans[chosen, 1:2]
        index = torch.arange(width)[None]
        return (index >= first) & (index < stop)

    def played(self, chosen: slice, pad_id: int) -> Played:
        """Some answers, cut to the longest, in whole blocks; row ids are their places."""
        length = self.spans[chosen, 2:]
        width = -(-int(length.max()) // self.block) * self.block
        inside = torch.arange(width)[None] < length

        def cut(values: Tensor, fill: float) -> Tensor:
            own = values[chosen, :width]
            return torch.where(inside, torch.nn.functional.pad(own, (0, width - own.shape[1])), fill)

        places = tuple(range(len(self.tokens)))[chosen]
        batch = Batch(cut(self.tokens, pad_id), self._counts(chosen, width), (~inside).long(), places)
        return Played(
            batch, cut(self.canvas, pad_id), cut(self.steps, -1), cut(self.surprisal, 0.0), self.advantage[chosen],
            self.kept[chosen], *self.drawing,
        )  # fmt: skip


def _steps(one: Trajectory) -> Tensor:
    try:
        return one.steps()
    except ValueError:
        raise ConfigError(
            "decode: an answer was rewritten while it was decoded, and this rl.objective scores what stood at every"
            " round; set decode.tau_edit=null and a policy that does not mask again, or take ebpo"
        ) from None


@torch.no_grad()
def first_end(model: Any, answers: Answers, end: int, device: torch.device) -> float:
    """Mean probability that the first token of an answer is its end, asked of the first answer of each prompt with
    nothing of it known: what rises before a model falls silent."""
    groups = len(answers.tokens) // max(1, len(answers.ids))
    played = answers.played(slice(0, None, groups), 0).to(device)
    first = played.batch.learn & (played.batch.learn.cumsum(dim=1) == 1)
    noisy = played.batch.tokens.masked_fill(played.batch.learn, model.mask_id)
    asked = Batch(played.batch.tokens.masked_fill(first, end), first, played.batch.docs)
    with evaluating(model):
        return float((-token_nll(model, noisy, asked, answers.block, first).nll).exp().mean())
