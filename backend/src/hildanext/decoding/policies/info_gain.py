# Info-gain: of several ways to fill the next masks, the one after which the model knows most about the rest.
# Entry points: InfoGain.
# The candidates of a step are one batched forward, and the chosen one's logits are the next step's, so a step costs one
# forward of several rows; where a mask is sure enough nothing is compared.
"""Policy `info_gain`."""

from __future__ import annotations

import torch
from pydantic import Field
from torch import Tensor

from hildanext.core.types import Canvas
from hildanext.decoding.policy import best_first, quota
from hildanext.decoding.search import Course, Draws, Search


class InfoGain(Search):
    """Masks above `bypass` are filled at once; else of `candidates` sets of positions the one with the largest drop of
    mean entropy over the masks, minus the sum of the entropies it filled, is taken.
    Source: the public Information-Gain sampler, in docs/decoding-methods.md."""

    candidates: int = Field(8, ge=1, le=4096, description="sets of positions compared, a count; 1: the likeliest")
    bypass: float = Field(0.8, ge=0.0, le=1.0, description="probability above which masks are filled without comparing")
    position_temperature: float = Field(0.1, gt=0.0, le=100.0, description="of the draw of positions by probability")

    def search(self, canvas: Canvas, draws: Draws) -> Course:
        """The steps of one block."""
        tokens, step = canvas.tokens, 0
        logs = (yield tokens[None]).log_softmax(dim=2)[0]
        while True:
            hidden, best = tokens == canvas.mask_id, logs.argmax(dim=1)
            probability = logs.amax(dim=1).exp()
            count = max(1, quota(canvas.masks, self.steps or max(1, canvas.masks), step))
            sure = hidden & (probability > self.bypass)
            sets = [sure] if bool(sure.any()) else self._sets(hidden, probability, count, draws, step)
            tried = [torch.where(one, best, tokens) for one in sets]
            if bool((tried[0] != canvas.mask_id).all()):
                return tried[0]
            found = (yield torch.stack(tried)).log_softmax(dim=2)
            chosen = 0 if len(sets) == 1 else self._chosen(sets, hidden, _entropy(logs), _entropy(found))
            tokens, logs, step = tried[chosen], found[chosen], step + 1

    def _sets(self, hidden: Tensor, probability: Tensor, count: int, draws: Draws, step: int) -> list[Tensor]:
        found = {tuple(best_first(probability, hidden, count).tolist()): None}
        for number in range(self.candidates - 1):
            gumbel = -torch.log(-torch.log(draws(step, number).clamp(1e-300, 1 - 1e-16)))
            score = probability.double() + self.position_temperature * gumbel
            found[tuple(best_first(score, hidden, count).tolist())] = None
        return [torch.tensor(one) for one in found]

    def _chosen(self, sets: list[Tensor], hidden: Tensor, before: Tensor, after: Tensor) -> int:
        gains = list[float]()
        for one, entropy in zip(sets, after, strict=True):
            rest = hidden & ~one
            left = float(entropy[rest].mean()) if bool(rest.any()) else 0.0
            gains.append(float(before[hidden].mean()) - left - float(before[one].sum()))
        return max(range(len(gains)), key=lambda place: (gains[place], -place))


def _entropy(logs: Tensor) -> Tensor:
    return -(logs.exp() * logs.clamp(min=-1e4)).sum(dim=-1)
