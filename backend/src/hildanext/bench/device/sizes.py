# How large the measurements of bench gpu are, the networks they share, and seconds that wait for the device.
# Entry points: Sizes, network_of, seconds_of, rows_of.
# The default is Qwen3-0.6B's shape; tests run the same code on a CPU with a shape that takes a moment.
"""Sizes of the device benchmark."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from hildanext.config.model import NewModelConfig
from hildanext.core.batches import stacked
from hildanext.core.types import Batch
from hildanext.models.new import new_model


@dataclass(frozen=True)
class Sizes:
    """A network's shape (as NewModelConfig) and vocabulary; length: positions of a training row; blocks: block sizes;
    prompt, new: tokens of a generation; together: requests of the batched runs; repeats: timed turns."""

    shape: NewModelConfig = NewModelConfig(
        hidden=1024, layers=28, heads=16, kv_heads=8, head_dim=128, ffn=3072, window=4096, rope_theta=1e6
    )
    vocabulary: int = 151_936
    length: int = 1024
    blocks: tuple[int, ...] = (4, 32)
    prompt: int = 128
    new: int = 128
    together: int = 32
    repeats: int = 5


def network_of(sizes: Sizes, layers: int = 0) -> Any:
    """A network of that shape with random weights in float32, or of its first `layers` layers."""
    shape = sizes.shape.model_copy(update={"layers": layers}) if layers else sizes.shape
    return new_model(shape, sizes.vocabulary)


def rows_of(sizes: Sizes, rows: int, device: torch.device) -> Batch:
    """Rows of random tokens, each of three documents, all learned."""
    rng = torch.Generator().manual_seed(1)
    tokens = torch.randint(0, sizes.vocabulary - 1, (rows, sizes.length), generator=rng)
    docs = torch.arange(sizes.length) * 3 // sizes.length
    learn = torch.ones(sizes.length)
    return stacked([(row, learn, docs) for row in tokens]).to(device)


def seconds_of(work: Callable[[], Any], repeats: int, device: torch.device) -> float:
    """Median seconds of `repeats` calls after one that is not counted; the device has finished when the clock stops."""
    taken = []
    for _ in range(repeats + 1):
        started = time.perf_counter()
        work()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        taken.append(time.perf_counter() - started)
    return statistics.median(taken[1:])
