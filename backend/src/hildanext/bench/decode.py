# bench decode: forwards, modes, and the contest of a model with its AR parent; variants take turns.
# Entry points: run(config, console, args).
# A folder without weights is measured with random ones and a scripted policy of given TPF: speed without quality.
"""The decoding benchmark."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch

from hildanext.bench.decoding.contest import contest
from hildanext.bench.decoding.contest import show as show_contest
from hildanext.bench.decoding.modes import PER_FORWARD, compare, per_forward, show
from hildanext.bench.decoding.timing import script, time_autoregressive, time_engine, time_forwards
from hildanext.config import Config
from hildanext.models.denoiser import HFDenoiser
from hildanext.models.load import load_model
from hildanext.models.meta import HildaMeta
from hildanext.models.quantise import int8
from hildanext.progress import Console
from hildanext.report.plots import picture
from hildanext.run_dir import RunDir


def run(config: Config, console: Console, args: Any = None) -> dict[str, Any]:
    """Time what bench.decode.measures names; report.json and plots/decode.png in a run directory."""
    directory = RunDir.create(config, "bench-decode", getattr(args, "run_dir", None))
    with directory.running(console):
        loaded, trained = _load(config, console)
        wanted = config.bench.decode.measures if trained else ("forwards",)
        report = {
            "run": str(directory.path), "model": config.model.path, "trained": trained,
            "threads": torch.get_num_threads(), "device": str(loaded.denoiser.device),
            "workload": config.bench.decode.model_dump(),
        }  # fmt: skip
        # before the precisions: casting there and back would leave rounded weights
        if "modes" in wanted:
            report["modes"] = compare(loaded, config)
        if "forwards" in wanted:
            report |= _forwards(loaded, config, trained, directory, console)
        del loaded
        if "contest" in wanted:
            report["contest"] = contest(config, console)
        directory.environment(device=report["device"], dtype=list(config.bench.decode.precisions))
        directory.write_json("report.json", report)
    _show(report, console)
    return report


def _forwards(loaded: Any, config: Config, trained: bool, directory: RunDir, console: Console) -> dict[str, Any]:
    parts = {name: _precision(one, config, trained, console) for name, one in _precisions(loaded, config)}
    path = directory.plots / "decode.png"
    plot = picture(path, functools.partial(_draw, parts), (11, 4.5)) or str(path)
    return {"precisions": parts, "fastest": _fastest(parts), "plot": plot}


def _load(config: Config, console: Console) -> tuple[Any, bool]:
    folder = Path(config.model.path)
    if not (folder / "config.json").is_file() or list(folder.glob("*.safetensors")):
        return load_model(config.model.model_copy(update={"dtype": "float32"}), console), True
    from transformers import AutoConfig, AutoModelForCausalLM

    settings = AutoConfig.from_pretrained(folder, local_files_only=True)
    console.say(f"bench decode: {folder.name} has no weights; random ones and a scripted policy are used")
    with torch.random.fork_rng():
        torch.manual_seed(config.seed)
        model = AutoModelForCausalLM.from_config(settings, attn_implementation="sdpa").float().eval()
    device = "cuda" if torch.cuda.is_available() and config.model.device != "cpu" else "cpu"
    denoiser = HFDenoiser(model.to(device), settings.vocab_size - 1).eval()
    return SimpleNamespace(denoiser=denoiser, tokenizer=None, meta=HildaMeta()), False


def _precisions(loaded: Any, config: Config) -> Iterator[tuple[str, Any]]:
    for name in config.bench.decode.precisions:
        if name == "int8" and loaded.denoiser.device.type == "cpu":
            loaded.denoiser.to(torch.float32)
            yield name, int8(loaded)
        elif name != "int8":
            loaded.denoiser.to(getattr(torch, name))
            yield name, loaded


def _precision(loaded: Any, config: Config, trained: bool, console: Console) -> dict[str, Any]:
    bench = config.bench.decode
    threads = _by_threads(loaded, config)
    forwards = threads[torch.get_num_threads()]
    one_token = forwards["ar"]
    part: dict[str, Any] = {
        "forward_seconds": forwards,
        "break_even_tpf": {size: forwards[f"engine {size}"] / one_token for size in bench.blocks},
        "forward_against_bare": {size: forwards[f"engine {size}"] / forwards[f"bare {size}"] for size in bench.blocks},
        "threads": threads,
        "autoregressive": time_autoregressive(loaded, bench),
        "engine": {},
    }
    for size in bench.blocks:
        for rows in (1, bench.requests):
            fields = {"block": size, **script(size, bench.tokens_per_forward)}
            found = time_engine(loaded, config, fields, rows)
            part["engine"][f"block {size}, {rows} at once"] = {k: v for k, v in found.items() if k != "results"}
            console.say(f"block {size}, {rows} at once: {found['tokens_per_second']:.1f} tokens/s")
    return part


def _by_threads(loaded: Any, config: Config) -> dict[int, dict[str, float]]:
    found, own = {}, torch.get_num_threads()
    for threads in sorted({*config.bench.decode.threads, own}):
        torch.set_num_threads(threads)
        found[threads] = time_forwards(loaded, config.bench.decode)
    torch.set_num_threads(own)
    return found


def _fastest(parts: dict[str, Any]) -> dict[str, Any]:
    single = {
        (precision, name): row["tokens_per_second"]
        for precision, part in parts.items()
        for name, row in part["engine"].items()
    }
    (precision, name), speed = max(single.items(), key=_speed)
    forward = f"engine {name.split()[1].rstrip(',')}"
    seconds = {threads: timed[forward] for threads, timed in parts[precision]["threads"].items()}
    threads = min(seconds, key=seconds.__getitem__)
    return {"precision": precision, "setting": name, "tokens_per_second": speed, "threads": threads}


def _speed(item: tuple[tuple[str, str], float]) -> float:
    return item[1]


def _draw(parts: dict[str, Any], figure: Any) -> None:
    left, right = figure.subplots(1, 2)
    _speeds(left, parts)
    _break_even(right, parts)


def _speeds(axes: Any, parts: dict[str, Any]) -> None:
    names, speeds = [], []
    for precision, part in parts.items():
        names.append(f"{precision}: AR")
        speeds.append(part["autoregressive"]["tokens_per_second"])
        for name, row in part["engine"].items():
            names.append(f"{precision}: {name}")
            speeds.append(row["tokens_per_second"])
    axes.barh(range(len(names)), speeds, color=["#888888" if name.endswith("AR") else "#3b6ea5" for name in names])
    axes.set_yticks(range(len(names)), names, fontsize=7)
    axes.invert_yaxis()
    axes.set_xlabel("tokens/s")


def _break_even(axes: Any, parts: dict[str, Any]) -> None:
    for precision, part in parts.items():
        points = sorted((int(size), value) for size, value in part["break_even_tpf"].items())
        axes.plot(*zip(*points, strict=True), "o-", label=precision)
    axes.set_xlabel("block size, tokens")
    axes.set_ylabel("TPF above which block diffusion is faster than AR")
    axes.legend()


def _show(report: dict[str, Any], console: Console) -> None:
    if "precisions" in report:
        _show_forwards(report, console)
    if "modes" in report:
        show(report["modes"], console)
    console.say(f"report: {report['run']}")
    if "contest" in report:
        show_contest(report["contest"], console)


def _show_forwards(report: dict[str, Any], console: Console) -> None:
    rows = []
    for precision, part in report["precisions"].items():
        ar = part["autoregressive"]["tokens_per_second"]
        rows.append((precision, "AR, transformers generate", f"{ar:.2f}", "1.00", "1.00", "1.0", "", ""))
        for name, row in part["engine"].items():
            cells = (f"{row['tokens_per_second']:.2f}", *per_forward(row))
            rows.append(
                (precision, name, *cells, f"{row['forwards_per_second']:.2f}", f"{100 * row['overhead']:.1f} %")
            )
    console.table(rows, ("precision", "variant", "tokens/s", *PER_FORWARD, "forwards/s", "engine overhead"))
    for precision, part in report["precisions"].items():
        even = ", ".join(f"block {size}: {value:.2f}" for size, value in part["break_even_tpf"].items())
        console.say(f"{precision}: block diffusion is faster than AR above this TPF: {even}")
    best = report["fastest"]
    console.say(f"fastest forwards: {best['precision']}, {best['setting']}, threads {best['threads']}")
