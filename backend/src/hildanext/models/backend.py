# Which attention backend a training forward uses, and the mask or layout it then needs.
# Entry points: choose_backend, plan_diffusion, plan_causal, dense_kernel.
# dense: SDPA with a mask, everywhere. sliced: no mask, slices of keys. flex: FlexAttention, compiled, GPUs only.
"""Choice of the attention backend, with its reason."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from hildanext.core.annealing import opened_only
from hildanext.core.masks import block_diffusion_mask, causal_mask, document_mask
from hildanext.errors import ModelError
from hildanext.models.attention import causal_slices, diffusion_slices, document_slices, flex_layout

BACKENDS = ("dense", "sliced", "flex")
SLICED_FROM_BLOCK = 16
SLICED_FROM_AREA = 8192
FLEX_FROM_LENGTH = 2048


@dataclass(frozen=True)
class Backend:
    """A backend's name and why it was taken."""

    name: str
    reason: str


def capability(device: torch.device) -> tuple[int, int] | None:
    """CUDA compute capability of a device, None off CUDA."""
    return torch.cuda.get_device_capability(device) if device.type == "cuda" else None


def choose_backend(wanted: str, device: torch.device, length: int, block: int) -> Backend:
    """The backend for rows of `length` tokens at this block size. ModelError where a forced one cannot run."""
    if wanted not in ("auto", *BACKENDS):
        raise ValueError(f"attention: {wanted!r}, expected auto or one of {BACKENDS}")
    level = capability(device)
    compiles = level is not None and level >= (7, 0)
    if wanted == "flex" and not compiles:
        raise ModelError(
            f"model.attention: flex needs a GPU of compute capability 7.0 or more, this is {device}"
            f"{'' if level is None else f' {level[0]}.{level[1]}'}; use sliced or dense"
        )
    if wanted != "auto":
        return Backend(wanted, "asked for")
    return _gpu_backend(length, block) if compiles else _plain_backend(device, length, block)


def _gpu_backend(length: int, block: int) -> Backend:
    if length > FLEX_FROM_LENGTH and block < length:
        return Backend("flex", f"length {length}: a dense mask would have (2L)^2 entries, flex skips empty tiles")
    return Backend("dense", f"length {length}, block {block}: the dense mask is small enough for fused kernels")


def _plain_backend(device: torch.device, length: int, block: int) -> Backend:
    if block >= length or block < SLICED_FROM_BLOCK or length * block < SLICED_FROM_AREA:
        gain = (
            f"slices gain where block >= {SLICED_FROM_BLOCK}, block < length and length x block >= {SLICED_FROM_AREA}"
        )
        return Backend("dense", f"length {length}, block {block}: {gain}")
    return Backend("sliced", f"length {length}, block {block} on {device.type}: no 2L x 2L mask")


def dense_kernel(device: torch.device) -> AbstractContextManager[Any]:
    """SDPA's math kernel only below compute capability 7.0; all kernels elsewhere."""
    level = capability(device)
    return sdpa_kernel(SDPBackend.MATH) if level is not None and level < (7, 0) else nullcontext()


def _no_mask(docs: Tensor) -> Tensor:
    return torch.ones(1, 1, 1, 1, dtype=torch.bool, device=docs.device)


def plan_causal(backend: Backend, docs: Tensor) -> tuple[Tensor, Any]:
    """(mask, layout) of the AR model over rows of documents; docs [B, L] int."""
    if backend.name == "sliced":
        return _no_mask(docs), causal_slices(docs)
    return causal_mask(docs), None


def plan_diffusion(
    backend: Backend, docs: Tensor, block: int, grid: str, groups: Tensor | None = None, opened: Tensor | None = None
) -> tuple[Tensor, Any]:
    """(mask, layout) over [noisy | clean], over the noisy half alone when block equals the length; groups, opened:
    Batch.groups and Batch.opened, or None. ModelError where only some positions are open and no mask is used."""
    whole = block == docs.shape[1]
    if opened is not None and backend.name != "dense":
        raise ModelError(
            f"model.attention: {backend.name} ({backend.reason}) cannot follow an annealed mask; set"
            " model.attention=dense, or objective.anneal=0"
        )
    if backend.name == "flex" and not whole:
        return _no_mask(docs), flex_layout(docs, block, grid, groups)
    if backend.name == "sliced":
        return _no_mask(docs), document_slices(docs) if whole else diffusion_slices(docs, block, grid, groups)
    mask = document_mask(docs) if whole else block_diffusion_mask(docs.shape[1], block, docs, grid, groups)
    return opened_only(mask, opened), None
