# A decoding policy of one's own as an object: fill what is surer than a bar that falls with every look at the block.
# Entry points: `python examples/own_policy.py`.
# A policy is a frozen pydantic model with a pure `step`; saved as decoding/policies/NAME.py it has the name NAME.
"""Decoding with a policy that no file registers."""

from pydantic import Field

import hildanext
from hildanext.core.types import Canvas, Stats, Update
from hildanext.decoding.policy import BlockPolicy, best_first, fill, masked


class Falling(BlockPolicy):
    """The masked positions whose probability exceeds start - fall * step, and always the surest one."""

    start: float = Field(0.9, ge=0, le=1, description="the bar at a block's first forward, a probability")
    fall: float = Field(0.1, ge=0, le=1, description="what the bar loses with every forward")

    def step(self, stats: Stats, canvas: Canvas) -> Update:
        """The update of one block."""
        sure = stats.probability > self.start - self.fall * canvas.step
        surest = best_first(stats.probability, masked(canvas), 1)
        return fill(stats, canvas, sure | surest)


if __name__ == "__main__":
    model = hildanext.load("tiny")
    prompts = ["One day", "Lily had a little cat."]
    for policy in ("threshold_edit", Falling(), Falling(start=0.5)):
        for result in model.generate(prompts, policy=policy, max_new_tokens=48):
            metrics = result.metrics
            print(f"{metrics.policy}, {metrics.tokens_per_forward:.1f} tokens per forward:{result.text}")
