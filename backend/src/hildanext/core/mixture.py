# Inputs that are no tokens: at chosen positions a weighted mean of embeddings takes the place of one row of the matrix.
# Entry points: Mixture, mixed, MixtureHook (a context in which an embedding layer gives mixtures), Mixes.
# Letters: B rows, Q positions, n mixed positions, k ids of each, D hidden width.
"""Mixtures of embeddings."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor
from torch.nn.functional import pad


@dataclass(frozen=True)
class Mixture:
    """At (rows, columns) [n] int64 of the input the sum of weights [n, k] float32 times the embeddings of ids [n, k]
    int64; where norms [n] bool, rescaled to the same sum of their norms."""

    rows: Tensor
    columns: Tensor
    ids: Tensor
    weights: Tensor
    norms: Tensor

    def moved(self, rows: int, columns: int) -> Mixture:
        """The same, so many rows and columns on."""
        return Mixture(self.rows + rows, self.columns + columns, self.ids, self.weights, self.norms)

    @classmethod
    def joined(cls, parts: Sequence[Mixture]) -> Mixture:
        """Several as one; the shorter lists of ids are filled with weight 0."""
        widest = max(part.ids.shape[1] for part in parts)
        more = [(0, widest - part.ids.shape[1]) for part in parts]
        return cls(
            torch.cat([part.rows for part in parts]),
            torch.cat([part.columns for part in parts]),
            torch.cat([pad(part.ids, by) for part, by in zip(parts, more, strict=True)]),
            torch.cat([pad(part.weights, by) for part, by in zip(parts, more, strict=True)]),
            torch.cat([part.norms for part in parts]),
        )


def mixed(embedded: Tensor, embed: Callable[[Tensor], Tensor], mixture: Mixture) -> Tensor:
    """embedded [B, Q, D] with the mixture's rows in it; embed(ids) gives the embeddings of ids. A weight of 1 beside
    zeros gives the row of its id to the bit. Source: arXiv:2601.22954 eq. 1; norms: DMax arXiv:2604.08302."""
    device = embedded.device
    own, weights = embed(mixture.ids.to(device)), mixture.weights.to(device, torch.float32)
    sums = (weights[..., None] * own.float()).sum(dim=1)
    wanted = (weights * own.float().norm(dim=2)).sum(dim=1)
    scale = torch.where(mixture.norms.to(device), wanted / sums.norm(dim=1).clamp(min=1e-12), 1.0)
    return embedded.index_put(
        (mixture.rows.to(device), mixture.columns.to(device)), (sums * scale[:, None]).to(embedded.dtype)
    )


class MixtureHook:
    """A context in which an embedding module's output holds the mixture, whatever calls it."""

    def __init__(self, module: Any, mixture: Mixture) -> None:
        self.module, self.mixture, self._hook = module, mixture, None

    def __enter__(self) -> None:
        self._hook = self.module.register_forward_hook(self._mix)

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self._hook.remove()  # type: ignore[attr-defined]

    def _mix(self, module: Any, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        return mixed(output, module.forward, self.mixture)


@runtime_checkable
class Mixes(Protocol):
    """A denoiser whose inputs may be mixtures."""

    def mixing(self, mixture: Mixture) -> AbstractContextManager[None]:
        """A context in which every forward has the mixture in its input."""
        ...
