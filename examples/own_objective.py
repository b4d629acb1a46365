# A training signal of one's own as an object: half of the tokens masked, cross-entropy on them, one gradient step.
# Entry points: `python examples/own_objective.py`.
# An objective is a frozen pydantic model with `loss`; saved as core/objectives/NAME.py, convert-wsd trains with it.
"""A loss that no file registers."""

import torch
from pydantic import Field

import hildanext
from hildanext.core.likelihood import token_nll
from hildanext.core.noise import maskable
from hildanext.core.objective import BaseObjective
from hildanext.core.types import Batch, Denoiser, LossReport


class OneRate(BaseObjective):
    """Mean negative log-likelihood of the masked tokens, every token masked with the same probability."""

    rate: float = Field(0.5, gt=0, le=1, description="probability of masking a token")

    def loss(self, model: Denoiser, batch: Batch, block: int, rng: torch.Generator) -> LossReport:
        """Sums, not means: the trainer divides once per step, after all micro-batches and ranks."""
        drawn = torch.rand(batch.tokens.shape, generator=rng).to(batch.tokens.device) < self.rate
        masked = maskable(batch, model.mask_id) & drawn
        noisy = batch.tokens.masked_fill(masked, model.mask_id)
        total, count = token_nll(model, noisy, batch, block, masked).nll.sum(), masked.sum().float()
        return LossReport(total, count, {"m2t": total.detach()}, {"m2t": count})


if __name__ == "__main__":
    model = hildanext.load("tiny-parent")
    batch = model.batch(["Lily met a fox at the lake.", "Tom had a red ball."], block=4)
    optimizer = torch.optim.SGD(model.denoiser.parameters(), lr=0.01)
    for step in range(3):
        report = model.loss(batch, OneRate(rate=0.5), seed=0)
        print(f"step {step}: {float(report):.3f} nats per masked token")
        (report.total / report.normaliser).backward()
        optimizer.step()
        optimizer.zero_grad()
