# bench train: one optimiser step against the plain form (dense 2L mask, logits of every position), taking turns.
# Entry points: run(config, console, args), compare, followed (peak memory over steps that score other positions).
# Both compute the same loss from the same corrupted row, which the report shows; then the cost of each block size
# relative to the MDLM stage, and what compaction saves on a row that is an answer. Weights are random. Memory is
# followed first, before the plain form has taken any.
"""The training benchmark."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from hildanext.config import Config
from hildanext.config.bench import TrainBenchConfig
from hildanext.config.model import NewModelConfig
from hildanext.config.noise import NoiseConfig
from hildanext.config.train import ObjectiveSection
from hildanext.core.batches import stacked
from hildanext.core.masks import block_diffusion_mask
from hildanext.core.objectives.mask_and_edit import MaskAndEdit
from hildanext.core.types import Batch
from hildanext.models.denoiser import HFDenoiser
from hildanext.models.footprint import NetworkFootprint
from hildanext.models.hardware import peak_memory, restart_peak
from hildanext.models.load import choose_device
from hildanext.models.new import new_model
from hildanext.models.preflight import estimate
from hildanext.progress import Console
from hildanext.run_dir import RunDir

OBJECTIVE = MaskAndEdit()
CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}


@dataclass(frozen=True)
class Bench:
    """A model, its optimiser, one row, the clock, and whether products are in bfloat16 (train.autocast)."""

    denoiser: HFDenoiser
    optimizer: torch.optim.Optimizer
    batch: Batch
    clock: Callable[[], float]
    autocast: bool = False

    def ours(self, block: int) -> Tensor:
        """The loss as training computes it."""
        report = OBJECTIVE.loss(self.denoiser, self.batch, block, torch.Generator().manual_seed(0))
        return report.total / report.normaliser.clamp(min=1)

    def plain(self, block: int) -> Tensor:
        """The same loss from a dense mask and the logits of all 2L positions."""
        model, batch, length = self.denoiser, self.batch, self.batch.tokens.shape[1]
        views = OBJECTIVE.views(model, batch, block, torch.Generator().manual_seed(0))
        mask = block_diffusion_mask(length, block, batch.docs)
        tokens, positions = torch.cat([views[0].tokens, batch.tokens], 1), batch.positions().repeat(1, 2)
        logits = model.body(tokens, positions, mask) @ model.head().T
        logits = logits.index_fill(2, torch.tensor([model.mask_id], device=logits.device), -torch.inf)
        nll = functional.cross_entropy(logits[0, :length].float(), batch.tokens[0], reduction="none")
        total = (OBJECTIVE.weights(views[0], batch)[0] * nll).sum()
        return total / OBJECTIVE.denominator(views, batch).clamp(min=1)

    def pair(self, beside: bool) -> Callable[[int], Tensor]:
        """The loss of both views of a complementary pair, beside one clean half or in a forward each."""
        objective = MaskAndEdit(noise=NoiseConfig(complementary=True), views_beside=beside)

        def loss(block: int) -> Tensor:
            reports = list(objective.losses(self.denoiser, self.batch, block, torch.Generator().manual_seed(0)))
            return torch.stack([one.total for one in reports]).sum() / reports[0].normaliser.clamp(min=1)

        return loss

    def whole(self, block: int) -> Tensor:
        """The loss from a forward over every noised block."""
        with self.denoiser.whole():
            return self.ours(block)

    def timed(self, form: Callable[[int], Tensor], block: int) -> tuple[float, float]:
        """(seconds of one optimiser step, loss)."""
        begun = self.clock()
        with torch.autocast(self.denoiser.device.type, torch.bfloat16, enabled=self.autocast):
            loss = form(block)
        loss.backward()  # type: ignore[no-untyped-call]
        self.optimizer.step()
        self.optimizer.zero_grad()
        value = float(loss.detach())
        return self.clock() - begun, value


def _network(shape: TrainBenchConfig) -> Any:
    settings = NewModelConfig(
        hidden=shape.hidden, layers=shape.layers, heads=shape.heads, kv_heads=max(1, shape.heads // 2),
        head_dim=shape.head_dim, ffn=shape.ffn, window=shape.length,
    )  # fmt: skip
    return new_model(settings, shape.vocabulary)


def open_bench(config: Config) -> Bench:
    """The model of bench.train on the configured device, with AdamW at a rate of 0, so that every step is the same."""
    shape, device = config.bench.train, choose_device(config.model.device)
    denoiser = HFDenoiser(_network(shape), shape.vocabulary - 1, attention=config.model.attention)
    denoiser = denoiser.to(device).train()
    tokens = torch.randint(0, shape.vocabulary - 1, (1, shape.length), generator=torch.Generator().manual_seed(1))
    row = (tokens[0], torch.ones(shape.length), torch.zeros(shape.length))
    batch = stacked([row], (0,)).to(device)
    optimizer = torch.optim.AdamW(denoiser.parameters(), lr=0.0, weight_decay=0.0, fused=True)
    return Bench(denoiser, optimizer, batch, CLOCKS[shape.clock], config.train.autocast == "bfloat16")


def foretold(config: Config) -> int:
    """The peak that the preflight promises for these steps, bytes; asked before the model is there."""
    shape = config.bench.train
    with torch.device("meta"):
        footprint = NetworkFootprint.of_network(_network(shape))
    plan = config.model_copy(update={
        "train": config.train.model_copy(update={"batch": 1}),
        "ladder": config.ladder.model_copy(update={"fixed": shape.block}),
        "objective": ObjectiveSection(type="mask_and_edit"), "optimizer": type(config.optimizer)(),
    })  # fmt: skip
    return int(estimate(plan, shape.length, footprint=footprint)["total"])


def followed(bench: Bench, shape: TrainBenchConfig) -> dict[str, int]:
    """Peak bytes after step 1, 20 and the last of shape.steps, each over a row of which another share is learned."""
    rng, found = torch.Generator().manual_seed(2), {}
    restart_peak(bench.denoiser.device)
    for step in range(1, shape.steps + 1):
        learn = bench.batch.learn & (torch.rand(shape.length, generator=rng) < torch.rand(1, generator=rng)).to(
            bench.batch.learn.device
        )
        one = replace(bench, batch=replace(bench.batch, learn=learn))
        one.timed(one.ours, shape.block)
        if step in (1, 20, shape.steps):
            found["last" if step == shape.steps else str(step)] = peak_memory(bench.denoiser.device)
    return found


def compare(bench: Bench, shape: TrainBenchConfig) -> dict[str, Any]:
    """Seconds, tokens/s and loss of both forms at shape.block, seconds of ours at each of shape.blocks, and on a row of
    which shape.learned is learned, with and without compaction (core/compaction.py)."""
    sizes = sorted({min(block or shape.length, shape.length) for block in (*shape.blocks, 0)})
    learn = torch.arange(shape.length, device=bench.batch.learn.device) >= (1 - shape.learned) * shape.length
    answer = replace(bench, batch=replace(bench.batch, learn=bench.batch.learn & learn))
    compacted = {
        "answer, whole": answer.whole, "answer": answer.ours, "answer, a pair of views apart": answer.pair(False),
        "answer, a pair of views beside one clean half": answer.pair(True),
    }  # fmt: skip
    bench.timed(bench.ours, shape.block)
    seconds: dict[str, list[float]] = {}
    losses: dict[str, float] = {}
    for _ in range(shape.repeats):
        for name, form in (("plain", bench.plain), ("ours", bench.ours)):
            taken, losses[name] = bench.timed(form, shape.block)
            seconds.setdefault(name, []).append(taken)
        for block in sizes:
            seconds.setdefault(f"block {block}", []).append(bench.timed(bench.ours, block)[0])
        for name, compact in compacted.items():
            seconds.setdefault(name, []).append(answer.timed(compact, shape.block)[0])
    best = {name: min(values) for name, values in seconds.items()}
    return {
        "seconds": best, "tokens_per_second": {name: shape.length / best[name] for name in ("plain", "ours")},
        "speedup": best["plain"] / best["ours"], "losses": losses,
        "relative_to_mdlm": {str(block): best[f"block {block}"] / best[f"block {max(sizes)}"] for block in sizes},
    }  # fmt: skip


def run(config: Config, console: Console, args: Any = None) -> dict[str, Any]:
    """Compare at the shape of bench.train; report.json in a run directory."""
    directory, shape = RunDir.create(config, "bench-train", getattr(args, "run_dir", None)), config.bench.train
    with directory.running(console):
        promised = foretold(config) if shape.steps else 0
        bench = open_bench(config)
        memory = followed(bench, shape) | {"foretold": promised} if shape.steps else {}
        found = compare(bench, shape)
        device = bench.denoiser.device
        backend = bench.denoiser.backend(shape.length, shape.block)
        report = {
            "run": str(directory.path), "threads": torch.get_num_threads(), "device": str(device), "clock": shape.clock,
            "attention": backend.name, "attention_reason": backend.reason, "memory": memory,
            "parameters": sum(p.numel() for p in bench.denoiser.parameters()), "autocast": config.train.autocast,
            **found,
        }  # fmt: skip
        directory.environment(device=str(device), dtype="float32")
        directory.write_json("report.json", report)
    rows = [(name, f"{seconds:.3f}") for name, seconds in found["seconds"].items()]
    console.table(rows, ("one step", f"seconds ({shape.clock})"))
    if memory:
        said = ", ".join(f"{name} {value / 2**30:.2f}" for name, value in memory.items())
        console.say(f"peak memory after step, GiB: {said}")
    console.say(f"plain / ours at block {shape.block}: {found['speedup']:.2f}x, losses {found['losses']}")
    return report
