# The smoke test: every part once, small, on this machine, in under a minute; the first failure names its stage.
# Entry points: smoke_test, STAGES.
# Works in a folder of its own below the run directory; the model is the configured one, by default the bundled child.
"""Smoke test."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

from hildanext.config import Config
from hildanext.config.data import DataConfig, SourceSection, TokenizeConfig
from hildanext.config.train import LadderConfig, ObjectiveSection, TrainConfig
from hildanext.decoding.request import Request
from hildanext.errors import HildaError, RunError
from hildanext.progress import Console
from hildanext.run_dir import RunDir
from hildanext.selftest.served import Served

COUNTS = {"stories": 40, "chat": 24, "arithmetic": 8, "coding": 8}
NEW_TOKENS = 32


@dataclass
class Setup:
    """What the stages share: configuration, folder, console, and what earlier stages made."""

    config: Config
    folder: Path
    quiet: Console
    made: dict[str, Any] = field(default_factory=dict)


class _Stage:
    def __init__(self, name: str) -> None:
        self.name = name

    def __enter__(self) -> _Stage:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        if isinstance(error, HildaError):
            raise RunError(f"smoke-test, stage {self.name}: {error}") from error
        if isinstance(error, Exception):
            raise RunError(f"smoke-test, stage {self.name}: {type(error).__name__}: {error}") from error


def smoke_test(config: Config, console: Console, run_dir: Path | None = None) -> dict[str, Any]:
    """Run every stage in order; a table and OK at the end, RunError naming the stage at the first failure."""
    run = RunDir.create(config, "smoke-test", run_dir)
    setup = Setup(_small(config, run.path / "work"), run.path / "work", Console(quiet=True))
    rows: list[dict[str, Any]] = []
    started = time.monotonic()
    with run.running(console):
        for name, stage in STAGES.items():
            before = time.monotonic()
            with _Stage(name):
                detail = stage(setup)
            rows.append({"stage": name, "seconds": round(time.monotonic() - before, 2), "detail": detail})
            console.say(f"{name}: {detail}")
    seconds = round(time.monotonic() - started, 1)
    report = {"ok": True, "seconds": seconds, "stages": rows, "run": str(run.path)}
    run.write_json("report.json", report)
    console.table(
        [(row["stage"], f"{row['seconds']:.1f}", row["detail"]) for row in rows], ("stage", "seconds", "what")
    )
    console.say(f"OK, {seconds} s")
    return report


def _small(config: Config, folder: Path) -> Config:
    paths = config.paths.model_copy(update={"data": str(folder / "data"), "runs": str(folder / "runs")})
    sources = (SourceSection(type="storyworld", seed=11, **COUNTS),)
    data = DataConfig(name="smoke", sources=sources, eval_share=0.2, workers=1)
    train = TrainConfig(steps=1, batch=2, eval_rows=2, eval_samples=1, checkpoint_every=0, eval_every=0, parity=False)
    return config.model_copy(
        update={
            "paths": paths, "data": data, "train": train, "ladder": LadderConfig(fixed=32),
            "tokenize": TokenizeConfig(window=256), "objective": ObjectiveSection(type="mask_and_edit"),
        }
    )  # fmt: skip


def _load(setup: Setup) -> str:
    from hildanext.models.denoiser import module
    from hildanext.models.load import load_model

    loaded = setup.made["loaded"] = load_model(setup.config.model)
    size = sum(parameter.numel() for parameter in module(loaded.denoiser).parameters())
    name = str(loaded.dtype).removeprefix("torch.")
    return f"{setup.config.model.path}: {size:,} parameters, {name} ({loaded.dtype_reason})"


def _data(setup: Setup) -> str:
    from hildanext.data.prepare import prepare
    from hildanext.data.tokenize import tokenize

    prepare(setup.config, setup.quiet)
    splits = tokenize(setup.config, setup.quiet)["splits"]
    return ", ".join(f"{name} {found['rows']} rows" for name, found in splits.items())


def _train(setup: Setup, command: str, train: dict[str, Any]) -> str:
    from hildanext.train.recipes.conversion import train_command

    config = setup.config.model_copy(update={"train": setup.config.train.model_copy(update=train)})
    report = train_command(config, setup.quiet, command, None)
    lines = (Path(report["run"]) / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    loss = next(found["loss"] for found in map(_json, lines) if "loss" in found)
    if not math.isfinite(loss):
        raise RunError(f"the loss is {loss}")
    return f"1 step, loss {loss:.3f}, saved {Path(report['model']).name}/"


def _json(line: str) -> dict[str, Any]:
    import json

    found: dict[str, Any] = json.loads(line)
    return found


def _convert(setup: Setup) -> str:
    return _train(setup, "convert-wsd", {})


def _sft(setup: Setup) -> str:
    return _train(setup, "sft", {"split": "sft_train", "eval_split": "sft_eval"})


def _generate(setup: Setup) -> str:
    from hildanext.decoding.engine import BlockEngine

    shown = []
    for mode in setup.config.decode.modes:
        engine = BlockEngine(setup.made["loaded"], setup.config.decode)
        metrics = engine.generate(Request(prompt="One day", mode=mode, max_new_tokens=NEW_TOKENS)).metrics
        if metrics.tokens < 1:
            raise RunError(f"{mode} generated nothing")
        shown.append(f"{mode} {metrics.tokens} tokens in {metrics.forwards} forwards")
    return ", ".join(shown)


def _server(setup: Setup) -> str:
    with Served(setup.config.model.path, setup.folder / "serve.txt") as served:
        health = served.ready()
        reply = served.post("/generate", {"prompt": "One day", "max_new_tokens": NEW_TOKENS})
    if not reply.get("token_ids"):
        raise RunError(f"/generate answered {reply}")
    return f"{served.address}: engine {health['engine']}, {len(reply['token_ids'])} tokens"


def _fallback(setup: Setup) -> str:
    from hildanext.config.serve import EngineSection
    from hildanext.engines.opening import open_engine

    asked = (EngineSection(type="dinfer"), EngineSection(type="transformers"), EngineSection(type="tiny"))
    serve = setup.config.serve.model_copy(update={"engines": asked})
    engine = open_engine(setup.config.model_copy(update={"serve": serve}), setup.quiet)
    result = engine.generate(Request(prompt="One day", max_new_tokens=8))
    engine.close()
    if result.engine != "dinfer" and not result.reasons:
        raise RunError(f"engine {result.engine} stood in for dinfer without a reason in its result")
    why = result.reasons[0] if result.reasons else "no fallback was needed"
    return f"{result.engine} served instead of dinfer, and says so ({why[:90]})"


STAGES: dict[str, Callable[[Setup], str]] = {
    "load": _load, "data": _data, "conversion step": _convert, "sft step": _sft, "generate": _generate,
    "server": _server, "fallback": _fallback,
}  # fmt: skip
