# bench forward: one forward of a few positions behind cached tokens, by what runs it: PyTorch eager or onnxruntime.
# Entry points: run(config, console, args).
# Keys and values are those of a real text, and what agrees is counted on it: behind random ones every model is chaotic.
# The runners take turns in one process, each through our store; then each decodes the same prompts.
"""The benchmark of single forwards."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import dataclass
from statistics import median
from typing import Any

import torch
from torch import Tensor

from hildanext.bench.decoding.modes import prompts_for
from hildanext.bench.decoding.timing import CLOCKS, time_engine
from hildanext.config import Config
from hildanext.config.bench import ForwardBenchConfig
from hildanext.decoding.engine import DEFAULT_BLOCK
from hildanext.decoding.forward import ForwardRow, forward
from hildanext.decoding.store import StateStore
from hildanext.engines.onnx import Onnx
from hildanext.errors import RunError
from hildanext.models.hardware import slow_dtype
from hildanext.models.load import load_model
from hildanext.progress import Console
from hildanext.report.markdown import table
from hildanext.run_dir import RunDir

JUDGED = 96


@dataclass(frozen=True)
class Runner:
    """A denoiser with the text in its store, once up to each context length."""

    denoiser: Any
    ids: Tensor
    store: StateStore
    slots: dict[int, int]

    @classmethod
    def over(cls, denoiser: Any, ids: Tensor, contexts: tuple[int, ...], block: int) -> Runner:
        """Contexts [0, length) of ids committed in blocks."""
        store = StateStore()
        store.reserve(len(contexts), len(ids))
        made = cls(denoiser, ids, store, {length: store.add() for length in contexts})
        for length, slot in made.slots.items():
            nothing = torch.zeros(length, dtype=torch.bool)
            forward(denoiser, store, [ForwardRow(slot, 0, ids[:length], nothing, block)], denoiser.device)
            store.commit(slot, length)
        return made

    def logits(self, context: int, positions: int) -> Tensor:
        """[positions, V] behind a context, every second token masked."""
        tokens = self.ids[context : context + positions].clone()
        tokens[1::2] = self.denoiser.mask_id
        row = ForwardRow(self.slots[context], context, tokens, torch.ones(positions, dtype=torch.bool), positions)
        return forward(self.denoiser, self.store, [row], self.denoiser.device)[0]


def run(config: Config, console: Console, args: Any = None) -> dict[str, Any]:
    """Time every runner of bench.forward.runners; report.json in a run directory, a table on the console."""
    bench, directory = config.bench.forward, RunDir.create(config, "bench-forward", getattr(args, "run_dir", None))
    with directory.running(console):
        opened = dict(_opened(config, console))
        if not opened:
            raise RunError("bench forward: nothing of bench.forward.runners can be opened here; see the lines above")
        report: dict[str, Any] = {
            "run": str(directory.path), "model": config.model.path, "threads": torch.get_num_threads(),
            "workload": bench.model_dump(), "runners": _measured(opened, bench),
        }  # fmt: skip
        if bench.new_tokens:
            _decoded(opened, config, report)
        directory.environment(device="cpu", dtype=list(opened))
        directory.write_json("report.json", report)
    console.say(_table(report))
    return report


def _opened(config: Config, console: Console) -> Iterator[tuple[str, Any]]:
    model = config.model.model_copy(update={"device": "cpu", "dtype": "float32"})
    plain = load_model(model, console)
    for name in config.bench.forward.runners:
        runtime, _, kind = name.partition(" ")
        if runtime == "onnx":
            opening = Onnx(weights=kind, export=True).open(config, console)  # type: ignore[arg-type]
            if opening.capability.ok:
                yield name, opening.session.loaded
            else:
                console.warn(f"{name} is left out: {'; '.join(opening.capability.reasons)}")
        elif slow := slow_dtype(getattr(torch, kind), torch.device("cpu"), name):
            console.warn(f"{name} is left out: {slow}")
        else:
            yield name, plain if kind == "float32" else _cast(plain, getattr(torch, kind))


def _cast(loaded: Any, dtype: torch.dtype) -> Any:
    other = copy.copy(loaded)
    object.__setattr__(other, "denoiser", copy.deepcopy(loaded.denoiser).to(dtype))
    return other


@torch.no_grad()
def _measured(opened: dict[str, Any], bench: ForwardBenchConfig) -> dict[str, dict[str, Any]]:
    first = next(iter(opened.values()))
    shifts = {name: loaded.denoiser.shift for name, loaded in opened.items()}
    for loaded in opened.values():
        loaded.denoiser.shift = "none"  # of q positions all are read, whatever the model's shift
    ids = _text(first.tokenizer, max(bench.contexts) + max(JUDGED, *bench.positions))
    block = first.meta.block or DEFAULT_BLOCK
    runners = {name: Runner.over(one.denoiser, ids, bench.contexts, block) for name, one in opened.items()}
    found: dict[str, dict[str, Any]] = {name: {"milliseconds": {}} for name in runners}
    for context in bench.contexts:
        for positions in bench.positions:
            times = _taking_turns(runners, (context, positions), bench)
            for name, milliseconds in times.items():
                found[name]["milliseconds"][f"{context}+{positions}"] = milliseconds
    judged = {name: [runner.logits(context, JUDGED) for context in bench.contexts] for name, runner in runners.items()}
    best = {name: torch.cat([one.argmax(dim=1) for one in logits]) for name, logits in judged.items()}
    for name, runner in runners.items():
        found[name]["best_equal"] = float((best[name] == best[next(iter(best))]).float().mean())
        runner.denoiser.shift = shifts[name]
    return found


def _taking_turns(runners: dict[str, Runner], size: tuple[int, int], bench: ForwardBenchConfig) -> dict[str, float]:
    clock, times = CLOCKS[bench.clock], {name: list[float]() for name in runners}
    for turn in range(bench.repeats + 1):
        for name, runner in runners.items():
            started = clock()
            runner.logits(*size)
            if turn:  # the first is a warm-up
                times[name].append(1e3 * (clock() - started))
    return {name: median(found) for name, found in times.items()}


def _text(tokenizer: Any, length: int) -> Tensor:
    from hildanext.world import story

    ids: list[int] = []
    for number in range(length):
        if len(ids) >= length:
            break
        text = " ".join(story(f"bench:{number}").sentences) + " "
        ids += tokenizer(text, add_special_tokens=False)["input_ids"]
    return torch.tensor(ids[:length])


def _decoded(opened: dict[str, Any], config: Config, report: dict[str, Any]) -> None:
    bench = config.bench.forward
    timing = config.bench.decode.model_copy(update={"new_tokens": bench.new_tokens, "clock": bench.clock})
    config = config.model_copy(update={"bench": config.bench.model_copy(update={"decode": timing})})
    texts: dict[str, list[str]] = {}
    for name, loaded in opened.items():
        prompts = prompts_for(loaded.tokenizer, bench.prompts)
        results = [time_engine(loaded, config, {}, 1, (prompt,)) for prompt in prompts]
        texts[name] = [found["results"][0].text for found in results]
        seconds = sum(found["seconds"] for found in results)
        first = texts[next(iter(texts))]
        report["runners"][name] |= {
            "tokens_per_second": sum(found["tokens"] for found in results) / seconds,
            "texts_equal": sum(a == b for a, b in zip(texts[name], first, strict=True)) / len(first),
        }


def _table(report: dict[str, Any]) -> str:
    runners = report["runners"]
    cells = list(next(iter(runners.values()))["milliseconds"])
    decoded = "tokens_per_second" in next(iter(runners.values()))
    header = ["milliseconds", *cells, "best token equal", *(["tokens/s", "texts equal"] if decoded else [])]
    rows = []
    for name, found in runners.items():
        row = [name, *(f"{found['milliseconds'][cell]:.1f}" for cell in cells), f"{100 * found['best_equal']:.0f} %"]
        rows.append([*row, *_texts(found)])
    return table(header, rows)


def _texts(found: dict[str, Any]) -> list[str]:
    if "tokens_per_second" not in found:
        return []
    return [f"{found['tokens_per_second']:.1f}", f"{100 * found['texts_equal']:.0f} %"]
