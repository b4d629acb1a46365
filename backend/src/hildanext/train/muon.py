# Muon with a choice of the dtype its orthogonalisation multiplies in: torch.optim.Muon knows bfloat16 alone.
# Entry points: TypedMuon, orthogonal.
# In bfloat16 every number is torch's own; the state is torch's too, so checkpoints fit both. Needs torch >= 2.9.
"""Muon in float32."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor


def orthogonal(update: Tensor, group: dict[str, Any], dtype: torch.dtype) -> Tensor:
    """U S' V^T of update = U S V^T with S' near 1, by Newton-Schulz steps in `dtype`; [m, n] -> [m, n]. Source: Muon is
    Scalable arXiv:2502.16982 sec. 2; operations in the order of torch.optim.Muon."""
    a, b, c = group["ns_coefficients"]
    wide = update.to(dtype, copy=True)
    tall = wide.size(0) > wide.size(1)
    wide = wide.T if tall else wide
    wide.div_(wide.norm().clamp(min=group["eps"]))
    for _ in range(group["ns_steps"]):
        gram = wide @ wide.T
        wide = torch.addmm(wide, torch.addmm(gram, gram, gram, beta=b, alpha=c), wide, beta=a)
    return wide.T if tall else wide


class TypedMuon(torch.optim.Muon):
    """torch.optim.Muon whose orthogonalisation multiplies in `dtype`."""

    def __init__(self, groups: Sequence[dict[str, Any]], dtype: torch.dtype) -> None:
        super().__init__(groups)
        self.dtype = dtype

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """One update."""
        if closure is not None:
            raise ValueError("muon: closures are not supported")
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._update(parameter, parameter.grad, group)

    def _update(self, parameter: Tensor, gradient: Tensor, group: dict[str, Any]) -> None:
        state = self.state[parameter]
        if "momentum_buffer" not in state:
            state["momentum_buffer"] = torch.zeros_like(gradient, memory_format=torch.preserve_format)
        moment = state["momentum_buffer"].lerp_(gradient, 1 - group["momentum"])
        update = gradient.lerp(moment, group["momentum"]) if group["nesterov"] else moment
        rows, columns = parameter.shape
        rate = float(group["lr"]) * max(1.0, rows / columns) ** 0.5
        parameter.mul_(1 - float(group["lr"]) * group["weight_decay"])
        parameter.add_(orthogonal(update, group, self.dtype), alpha=-rate)
