# Ranks of torchrun: process group, the model in its layout (layout.py) as a Denoiser, sums over ranks.
# Entry points: Ranks, open_ranks, leave, Replica.
# Both wrappers are torch.distributed's own; the objective sees the same Denoiser in every case.
"""Data parallelism."""

from __future__ import annotations

import os
import time
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from inspect import signature
from typing import Any, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn

from hildanext.config.train import LayoutConfig
from hildanext.core.types import Batch
from hildanext.errors import ConfigError
from hildanext.models.sequence import share
from hildanext.train.layout import Layout, sequence_group, shard, tensor_parallel

SETTLING = 0.2


@dataclass(frozen=True)
class Ranks:
    """This process among others. rank of size: which share of the rows is its own; under tp all processes have the same
    rows, rank 0 of 1, under sp as many as share them. process of processes: among all; local: on this machine."""

    layout: Layout = Layout()
    rank: int = 0
    size: int = 1
    local: int = 0
    process: int = 0
    processes: int = 1

    @property
    def kind(self) -> str:
        """none | ddp | fsdp2 | tp."""
        return self.layout.kind

    @property
    def first(self) -> bool:
        """Whether this is the rank that writes."""
        return self.process == 0

    @property
    def sharded(self) -> bool:
        """Whether a weight is not whole on one rank."""
        return self.kind in ("fsdp2", "tp")

    def sum(self, values: Tensor) -> Tensor:
        """Element-wise sum over what the ranks have of the rows, in place; values float64 [n] on the CPU or the rank's
        device. What ranks with the same rows have counts once; under tp the largest is taken: of a wish that one was
        told."""
        if self.processes > 1:
            dist.all_reduce(values, dist.ReduceOp.MAX if self.kind == "tp" else dist.ReduceOp.SUM)
        return values.div_(self.layout.sp)

    def tell(self, text: str) -> str:
        """The first rank's text, on every rank."""
        box = [text]
        if self.processes > 1:
            dist.broadcast_object_list(box, src=0)
        return box[0]

    def gathered(self, value: Any) -> list[Any]:
        """What every rank gives, plain values, in the order of the ranks, on every rank."""
        box: list[Any] = [value] * self.processes
        if self.processes > 1:
            dist.all_gather_object(box, value)
        return box

    def beside(self) -> Any:
        """A process group of all ranks over gloo, for a thread beside training; every rank calls it."""
        return dist.new_group(backend="gloo")

    def wait(self) -> None:
        """Return when every rank is here."""
        if self.processes > 1:
            dist.barrier()

    def sync(self, model: Any, last: bool) -> AbstractContextManager[Any]:
        """Context of one micro-batch's backward: gradients cross ranks only in the last of a step."""
        if self.kind == "ddp" and not last:
            return cast(AbstractContextManager[Any], model.wrapped.no_sync())
        if self.kind == "fsdp2":
            model.wrapped.set_requires_gradient_sync(last)
        return nullcontext()

    def close(self) -> None:
        """Leave the process group."""
        if self.processes > 1 and dist.is_initialized():
            leave()


def leave() -> None:
    """Leave the process group. Its threads still let go of the tensors of the last sum, for which they need the
    interpreter; what frees the group holds it and waits for them: so they get their moment before."""
    time.sleep(SETTLING)
    dist.destroy_process_group()


def open_ranks(parallel: str | LayoutConfig, device: str = "auto") -> Ranks:
    """Join the process group that torchrun announces in the environment. parallel: as train.parallel. ConfigError where
    it and the ranks disagree, and for a layout that does not run."""
    size = int(os.environ.get("WORLD_SIZE", "1"))
    layout = Layout.of(parallel, size)
    kind = layout.kind
    if kind == "none":
        if size > 1:
            raise ConfigError(f"train.parallel: none, but torchrun started {size} processes; set ddp or fsdp2")
        return Ranks()
    if "RANK" not in os.environ:
        raise ConfigError(f"train.parallel: {kind} needs torchrun (no RANK set); see docs/training.md")
    cuda = torch.cuda.is_available() and device != "cpu"
    local = int(os.environ.get("LOCAL_RANK", "0"))
    if cuda:
        torch.cuda.set_device(local)
    if not dist.is_initialized():
        dist.init_process_group("cpu:gloo,cuda:nccl" if cuda else "gloo")
    own, all_of_them = dist.get_rank(), dist.get_world_size()
    data = (0, 1) if kind == "tp" else (own // layout.sp, all_of_them // layout.sp)
    return Ranks(layout, *data, local, own, all_of_them)


class Replica:
    """A Denoiser whose forwards pass through DDP or FSDP2, and whose gradients are averaged over ranks."""

    def __init__(self, denoiser: Any, ranks: Ranks) -> None:
        self.denoiser, self.mask_id = denoiser, denoiser.mask_id
        self.wrapped = _wrap(denoiser, ranks)
        self.sharded = ranks.sharded

    def __call__(self, *args: Any, **keywords: Any) -> Tensor:
        """Logits."""
        return cast(Tensor, self.wrapped("logits", *args, **keywords))

    def noisy_features(self, noisy: Tensor, batch: Batch, block: int, select: Tensor) -> Tensor:
        """As Denoiser.noisy_features."""
        return cast(Tensor, self.wrapped("noisy_features", noisy, batch, block, select))

    def causal_features(self, batch: Batch, select: Tensor) -> Tensor:
        """As Denoiser.causal_features."""
        return cast(Tensor, self.wrapped("causal_features", batch, select))

    @property
    def training(self) -> bool:
        """As torch.nn.Module.training."""
        return bool(self.denoiser.training)

    def train(self, mode: bool = True) -> None:
        """As torch.nn.Module.train."""
        self.denoiser.train(mode)

    def head(self) -> Tensor:
        """As Denoiser.head; whole, also where its rows are sharded."""
        weight = self.denoiser.head()
        return cast(Tensor, weight.full_tensor() if hasattr(weight, "full_tensor") else weight)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.__dict__["denoiser"], name)


def _wrap(denoiser: Any, ranks: Ranks) -> nn.Module:
    if ranks.layout.sp > 1:
        share(denoiser, sequence_group(ranks.layout.sp))
    if ranks.kind == "ddp":
        taken = signature(nn.parallel.DistributedDataParallel).parameters
        name = "forward_sync_buffers" if "forward_sync_buffers" in taken else "broadcast_buffers"  # before torch 2.13
        still: dict[str, Any] = {name: False}
        return nn.parallel.DistributedDataParallel(denoiser, **still)
    if ranks.kind == "fsdp2":
        return shard(denoiser, ranks.layout)
    if ranks.kind == "tp":
        return tensor_parallel(denoiser)
    return cast(nn.Module, denoiser)
