# bench objective: the plain loss (logits of all 2L positions, F.cross_entropy) against the chunked one, taking turns.
# Entry points: run(config, console, args), compare(shape), Shape.
# Features are random: only the head and the loss are timed, where the two forms differ. Peak memory is the process's
# resident high-water mark over one forward and backward on CPU, the allocator's on CUDA.
"""The objective benchmark."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from hildanext.config import Config
from hildanext.core.head import chunk_rows
from hildanext.core.linear_cross_entropy import weighted_cross_entropy
from hildanext.models.hardware import peak_memory, restart_peak
from hildanext.progress import Console
from hildanext.run_dir import RunDir

Step = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Shape:
    """One measurement: L tokens of one row, V, D; supervised: share of the L positions with loss; frozen: the head gets
    no gradient; repeats: timed turns of each form."""

    name: str
    length: int = 512
    vocabulary: int = 151_936
    width: int = 1024
    supervised: float = 1.0
    frozen: bool = False
    repeats: int = 3


SHAPES = (
    Shape("every position supervised"), Shape("half of them", supervised=0.5), Shape("frozen head", frozen=True),
    Shape("small vocabulary", length=1024, vocabulary=400, width=128, repeats=20),
)  # fmt: skip


def run(config: Config, console: Console, args: Any = None) -> dict[str, Any]:
    """Compare both forms at each of SHAPES; report.json in a run directory."""
    directory = RunDir.create(config, "bench-objective", getattr(args, "run_dir", None))
    with directory.running(console):
        device = "cuda" if torch.cuda.is_available() and config.model.device != "cpu" else "cpu"
        found = {shape.name: compare(shape, device) for shape in SHAPES}
        report = {"run": str(directory.path), "threads": torch.get_num_threads(), "device": device, "shapes": found}
        directory.environment(device=device, dtype="float32")
        directory.write_json("report.json", report)
    header = (
        "shape",
        "plain s",
        "chunked s",
        "time ratio",
        "processor ratio",
        "plain MB",
        "chunked MB",
        "memory ratio",
        "with gradients",
    )
    console.table([_row(name, one) for name, one in found.items()], header)
    return report


def _row(name: str, one: dict[str, Any]) -> tuple[str, ...]:
    plain, ours = one["plain"], one["chunked"]
    return (
        name, f"{plain['seconds']:.3f}", f"{ours['seconds']:.3f}",
        f"{one['time_ratio']:.2f}", f"{one['processor_ratio']:.2f}",
        f"{plain['beyond_gradients'] / 1e6:.0f}", f"{ours['beyond_gradients'] / 1e6:.0f}",
        f"{one['memory_ratio']:.2f}", f"{one['memory_ratio_with_gradients']:.2f}",
    )  # fmt: skip


def compare(shape: Shape, device: str = "cpu") -> dict[str, Any]:
    """Seconds (median of turns; `processor`: time of this process's threads) and peak bytes of both forms, their
    ratios, and the largest difference of their gradients relative to the largest entry. beyond_gradients: the peak
    without the gradients that both must return."""
    features, weight, targets, weights = _inputs(shape, device)
    forms: dict[str, Step] = {"plain": _plain, "chunked": _chunked}
    turns: dict[str, list[tuple[float, float, int]]] = {name: [] for name in forms}
    for _ in range(shape.repeats):
        for name, form in forms.items():
            features.grad = weight.grad = None
            turns[name].append(_measured(form, (features, weight, targets, weights)))
    made = sum(part.numel() * part.element_size() for part in (features, weight) if part.requires_grad)
    report: dict[str, Any] = {"shape": asdict(shape), "chunk": chunk_rows(shape.vocabulary), "gradients": made}
    for name in forms:
        wall, processor, peaks = zip(*turns[name], strict=True)
        report[name] = {
            "seconds": statistics.median(wall), "processor": statistics.median(processor), "peak": max(peaks),
            "beyond_gradients": max(max(peaks) - made, 0),
        }  # fmt: skip
    plain, ours = report["plain"], report["chunked"]
    report["time_ratio"] = ours["seconds"] / plain["seconds"]
    report["processor_ratio"] = ours["processor"] / plain["processor"]
    report["memory_ratio"] = ours["beyond_gradients"] / max(plain["beyond_gradients"], 1)
    report["memory_ratio_with_gradients"] = ours["peak"] / max(plain["peak"], 1)
    report["gradient_difference"] = _difference(forms, (features, weight, targets, weights))
    return report


def _inputs(shape: Shape, device: str) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    rng = torch.Generator().manual_seed(0)
    features = torch.randn(2 * shape.length, shape.width, generator=rng)
    weight = torch.randn(shape.vocabulary, shape.width, generator=rng) / shape.width**0.5
    targets = torch.randint(0, shape.vocabulary, (shape.length,), generator=rng)
    chosen = torch.rand(shape.length, generator=rng) < shape.supervised
    weights = torch.where(chosen, 1 / torch.rand(shape.length, generator=rng).clamp(min=0.1), 0.0)
    features, weight = features.to(device).requires_grad_(), weight.to(device).requires_grad_(not shape.frozen)
    return features, weight, targets.to(device), weights.to(device)


def _plain(features: Tensor, weight: Tensor, targets: Tensor, weights: Tensor) -> Tensor:
    logits = (features @ weight.T).float()
    nll = functional.cross_entropy(logits[: len(targets)], targets, reduction="none")
    return (nll * weights).sum()


def _chunked(features: Tensor, weight: Tensor, targets: Tensor, weights: Tensor) -> Tensor:
    chosen = weights > 0
    rows = features[: len(targets)][chosen]
    return weighted_cross_entropy(rows, weight, targets[chosen], weights[chosen])[0]


def _difference(forms: dict[str, Step], inputs: tuple[Tensor, Tensor, Tensor, Tensor]) -> float:
    wanted = [part for part in inputs[:2] if part.requires_grad]
    plain, ours = (torch.autograd.grad(form(*inputs), wanted) for form in forms.values())
    gaps = [((one - other).abs().max() / one.abs().max()).item() for one, other in zip(plain, ours, strict=True)]
    return float(max(gaps))


def _measured(form: Step, inputs: tuple[Tensor, Tensor, Tensor, Tensor]) -> tuple[float, float, int]:
    before = restart_peak(inputs[0].device)
    start, spent = time.perf_counter(), time.process_time()
    form(*inputs).backward()  # type: ignore[no-untyped-call]
    if inputs[0].device.type == "cuda":
        torch.cuda.synchronize()
    took = time.perf_counter() - start
    return took, time.process_time() - spent, peak_memory(inputs[0].device) - before
