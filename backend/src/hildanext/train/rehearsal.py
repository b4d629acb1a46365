# What the steps of a run take on this machine, from a few passes of a shallow copy of its network.
# Entry points: rehearse, Pace.
# Two depths are timed and the rest of the layers extrapolated; head and optimiser are timed by themselves. The least of
# a few tries counts, so the pace is that of a machine that does nothing else.
"""Timed rehearsal of a training step."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from hildanext.config import Config
from hildanext.core.batches import stacked
from hildanext.core.head import chunk_rows
from hildanext.core.linear_cross_entropy import weighted_cross_entropy
from hildanext.core.types import Batch, Objective
from hildanext.models.denoiser import HFDenoiser
from hildanext.models.load import choose_device, choose_dtype
from hildanext.models.lora import add_adapter
from hildanext.models.shallow import fewest_layers, shallow
from hildanext.models.support import recompute, recurrent_layers, text_config
from hildanext.train.optim import build_optimizer, freeze

OPERATIONS = 3e10
TRIES = 3
MORE = 2


@dataclass(frozen=True)
class Pace:
    """Seconds. pair, single: forward and backward of one row over [x_t ; x_0], and over its L tokens alone; head: of
    one scored position with its gradient; read: without; step: clipping and the optimiser's step."""

    pair: float
    single: float
    head: float
    read: float
    step: float

    def seconds(self, config: Config, objective: Objective, tokens: float, whole: bool) -> float:
        """Of an optimiser step. tokens: learnable ones of a row; whole: the block is the window, so that a forward has
        no clean half. A frozen companion reads each row once."""
        rows, made = config.train.batch, 0.0
        for one in objective.passes:
            body = self.single if one.causal or whole else self.pair
            body += one.drafts * body / 3
            beside = one.views if whole else one.rows
            made += rows * (beside * body + one.views * tokens * one.scored * (self.head + one.reads * self.read))
        made += rows * len(objective.companions) * self.single / 3
        return config.train.accumulate * made + self.step


@dataclass(frozen=True)
class _Copy:
    denoiser: HFDenoiser
    optimizer: torch.optim.Optimizer
    batch: Batch
    autocast: bool

    def backward(self, block: int) -> None:
        with torch.autocast(self.denoiser.device.type, torch.bfloat16, enabled=self.autocast):
            features = self.denoiser.noisy_features(self.batch.tokens, self.batch, block, self.batch.learn)
        features.backward(torch.ones_like(features))  # type: ignore[no-untyped-call]

    def step(self) -> None:
        held = [weight for group in self.optimizer.param_groups for weight in group["params"]]
        torch.nn.utils.clip_grad_norm_(held, 1.0)
        self.optimizer.step()

    def scored(self, rows: int, learn: bool) -> None:
        head = self.denoiser.head()
        with torch.autocast(head.device.type, torch.bfloat16, enabled=self.autocast), torch.set_grad_enabled(learn):
            features = torch.zeros(rows, head.shape[1], device=head.device, dtype=head.dtype, requires_grad=learn)
            targets = torch.zeros(rows, dtype=torch.long, device=head.device)
            total, _ = weighted_cross_entropy(features, head, targets, targets.float())
        if learn:
            total.backward()  # type: ignore[no-untyped-call]


def rehearse(config: Config, network: Any, window: int, block: int) -> Pace:
    """The pace of a run over rows of `window` tokens at this block size below the window. network: its Hugging Face
    configuration."""
    layers, fewest = int(text_config(network).num_hidden_layers), fewest_layers(network)
    more = fewest if recurrent_layers(network) else MORE
    depths = [layers] if layers <= fewest + more else [fewest, fewest + more]
    timed = [_timed(config, network, depth, (window, block)) for depth in depths]
    last = timed[-1]
    if len(depths) == 1:
        return Pace(*last)
    rest = (layers - depths[1]) / (depths[1] - depths[0])
    pair, single, step = (last[i] + rest * max(last[i] - timed[0][i], 0.0) for i in (0, 1, 4))
    return Pace(pair, single, last[2], last[3], step)


def _timed(config: Config, network: Any, depth: int, sizes: tuple[int, int]) -> tuple[float, ...]:
    window, block = sizes
    held = _copy(config, network, depth, window)
    rows, head = len(held.batch.tokens), held.denoiser.head()
    scored = min(rows * window, 2 * chunk_rows(head.shape[0]))
    device = held.denoiser.device
    single = _least(device, lambda: held.backward(window)) / rows
    pair = single if block >= window else _least(device, lambda: held.backward(block)) / rows
    head_seconds = _least(device, lambda: held.scored(scored, learn=True)) / scored
    read = _least(device, lambda: held.scored(scored, learn=False)) / scored
    return pair, single, head_seconds, read, _least(device, held.step)


def _copy(config: Config, network: Any, depth: int, window: int) -> _Copy:
    device = choose_device(config.model.device)
    dtype, _ = choose_dtype(config.model.dtype, device)
    with torch.random.fork_rng(devices=[]):
        denoiser = HFDenoiser(shallow(network, depth, dtype), 0, attention=config.model.attention).to(device)
    body = sum(weight.numel() for weight in denoiser.parameters()) - denoiser.head().numel()
    rows = max(1, min(config.train.batch, round(OPERATIONS / (12 * max(body, 1) * window))))
    if config.model.adapter.kind != "none":
        add_adapter(denoiser, config.model.adapter.model_copy(update={"kind": "lora"}), config.seed)
    freeze(denoiser, config.optimizer)
    if config.train.gradient_checkpointing:
        recompute(denoiser.model)
    row = (torch.zeros(window), torch.ones(window), torch.zeros(window))
    batch = stacked([row] * rows).to(device)
    optimizer = build_optimizer(denoiser, config.optimizer).optimizer
    return _Copy(denoiser.train(), optimizer, batch, config.train.autocast != "none")


def _least(device: torch.device, work: Callable[[], None]) -> float:
    taken = []
    for _ in range(1 + TRIES):
        begun = time.perf_counter()
        work()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        taken.append(time.perf_counter() - begun)
    return min(taken[1:])
