# One line for a conversion: look at the model and the data, choose, write the choice down, prepare, train, report.
# Entry points: convert.
# The choice lies as convert.json in the run directory and is an ordinary configuration of convert-wsd: a second start
# reads it and goes on, and whoever edits it repeats it with other values.
"""Converting a model in one command."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from itertools import islice
from pathlib import Path
from statistics import mean
from typing import Any

import torch

from hildanext.config import Config
from hildanext.config.for_command import command_config
from hildanext.config.loader import merge
from hildanext.data.prepare import prepare
from hildanext.data.shards import ShardSet
from hildanext.data.tokenize import tokenize
from hildanext.data.tokenizers import encode_texts, load_tokenizer
from hildanext.disk import write_atomic
from hildanext.errors import ConfigError, DataError, ModelError
from hildanext.models.hardware import multiplies, total_memory
from hildanext.models.inspection import inspect
from hildanext.models.load import choose_device, located, model_folder, name_of
from hildanext.models.meta import HildaMeta
from hildanext.models.preflight import estimate
from hildanext.progress import Console
from hildanext.registry import plugin_problems
from hildanext.run_dir import step_folders
from hildanext.train.choice import Decision, Facts, as_values, choose, kept, steps_for
from hildanext.train.recipes.conversion import train_command
from hildanext.train.training import shards_folder, tokens_per_step

CHOICE, WHY, PROBE = "convert.json", "why.json", ".probe"
SAMPLED = 200
INFORMATION = Path("/proc/meminfo")


Sources = Sequence[Mapping[str, Any]]


def convert(config: Config, data: Sources, seconds: float, root: Path | None, console: Console) -> dict[str, Any]:
    """The report of the conversion of model.path on sources of rows {"type", "path", "weight"} within about `seconds`;
    what `config` sets itself is kept. A run that was begun goes on, one that is done is shown. root: its directory,
    default one below paths.runs named after model and data. ConfigError where the directory is of other inputs."""
    folder = model_folder(config.model.path)
    asked = _Asked(config.model.path, data, seconds)
    root = root or Path(config.paths.runs) / f"convert-{name_of(folder)}-{asked.name}"
    if (root / CHOICE).is_file():
        _require_same(root, asked.record())
    else:
        _chosen(config, folder, asked, root, console)
    final = command_config("convert-wsd", root / CHOICE, (), plugin_problems)
    if (root / "report.json").is_file() and (root / "model").is_dir():
        console.say(f"{root}: is done; nothing was trained. Name another directory with --run-dir to convert anew")
    else:
        begun = bool(step_folders(root / "checkpoints"))
        console.say(f"{root / CHOICE}: {'goes on' if begun else 'begins'} with it")
        train = final.train.model_copy(update={"resume": "latest" if begun else ""})
        train_command(final.model_copy(update={"train": train}), console, "convert-wsd", root)
    report = json.loads((root / "report.json").read_text(encoding="utf-8"))
    return _told(report, root, final, console)


@dataclass(frozen=True)
class _Asked:
    model: str
    data: Sources
    seconds: float

    @property
    def name(self) -> str:
        return "-".join(Path(source["path"]).name.split(".")[0] for source in self.data)[:60]

    def record(self) -> dict[str, Any]:
        said = [
            f"{one['path']}={one['weight']:g}" if one.get("weight") else str(Path(one["path"])) for one in self.data
        ]
        size = sum(_bytes(Path(source["path"])) for source in self.data)
        return {"model": self.model, "data": ", ".join(said), "bytes": size}


def _bytes(data: Path) -> int:
    if not data.exists():
        raise DataError(f"--data {data}: no such file or folder; give rows as JSON lines, JSON, CSV or Parquet")
    return sum(path.stat().st_size for path in (data.rglob("*") if data.is_dir() else [data]) if path.is_file())


def _require_same(root: Path, asked: Mapping[str, Any]) -> None:
    why = root / WHY
    known = json.loads(why.read_text(encoding="utf-8"))["asked"] if why.is_file() else {}
    other = [f"{name} {known[name]}, now {asked[name]}" for name in known if known[name] != asked[name]]
    if other:
        raise ConfigError(f"{root}: is a conversion of other things ({'; '.join(other)}); name another with --run-dir")


def _chosen(config: Config, folder: Path, asked: _Asked, root: Path, console: Console) -> None:
    begun, record = time.monotonic(), asked.record()
    report = inspect(str(folder))
    if not report["architecture"]["supported"]:
        raise ModelError(f"{folder}: {report['architecture']['reason']}")
    given = config.model_dump(mode="json", exclude_unset=True)
    named: list[Decision] = [
        Decision("description", f"conversion of {name_of(folder)} on {asked.name}", "what it is"),
        Decision("model.path", str(config.model.path), "as asked"),
        Decision("data.name", root.resolve().name, "the run's name"),
        Decision("data.sources", [dict(one) for one in asked.data], "as asked"),
        Decision("train.prepare", True, "the rows are made where they are missing"),
    ]
    prepared, named = _prepared(given, named, console)
    facts = _facts(prepared, folder, report, asked.seconds, console)
    flat = dict(_leaves(given))
    decisions = [*named, *choose(facts, lambda values: _fits(_config(given, named, values)), flat)]
    final = _config(given, decisions, {})
    tokenize(located(final), console)
    tokens = _tokens(final)
    per_step = _step_seconds(final, root, console)
    each = tokens_per_step(final, final.tokenize.window, 1)
    decisions += kept(steps_for(asked.seconds - (time.monotonic() - begun), per_step, tokens, each), flat)
    _written(given, decisions, root, record, console)


def _leaves(values: Mapping[str, Any], place: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in values.items():
        here = f"{place}.{name}" if place else name
        yield from _leaves(value, here) if isinstance(value, Mapping) else [(here, value)]


def _config(given: Mapping[str, Any], decisions: Sequence[Decision], more: Mapping[str, Any]) -> Config:
    return Config.model_validate(_nested(given, {**as_values(decisions), **more}))


def _nested(given: Mapping[str, Any], values: Mapping[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for place, value in values.items():
        *sections, name = place.split(".")
        here = found
        for section in sections:
            here = here.setdefault(section, {})
        here[name] = value
    return merge(found, given)


def _prepared(
    given: Mapping[str, Any], named: list[Decision], console: Console
) -> tuple[Config, list[Decision]]:  # fmt: skip
    config = _config(given, named, {})
    files = prepare(config, console)["files"]
    if not files["eval"]["documents"] and not files["sft_eval"]["documents"]:
        named = [*named, Decision("data.eval_share", 0.2, "so few documents that a twentieth is none")]
        config = _config(given, named, {})
        files = prepare(config, console)["files"]
        if not files["eval"]["documents"] and not files["sft_eval"]["documents"]:
            raise DataError(f"{config.data.name}: too few documents to hold any out for a measurement; give more")
    return config, named


def _facts(config: Config, folder: Path, report: Mapping[str, Any], seconds: float, console: Console) -> Facts:
    source = Path(config.paths.data) / "processed" / config.data.name
    sizes = {name: (source / f"{name}.jsonl").stat().st_size for name in ("train", "sft_train")}
    chats = sizes["sft_train"] > sizes["train"]
    if all(sizes.values()):
        used = "chats" if chats else "texts"
        console.warn(f"{source}: holds chats and plain texts; the larger part, the {used}, is used")
    device = choose_device(config.model.device)
    return Facts(
        int(report["parameters"]), int(report["architecture"]["max_position_embeddings"] or 0),
        HildaMeta.read(folder).block, device.type == "cuda", multiplies(torch.bfloat16, device),
        find_spec("peft") is not None, find_spec("bitsandbytes") is not None, chats,
        _lengths(source / ("sft_train.jsonl" if chats else "train.jsonl"), folder), seconds,
    )  # fmt: skip


def _lengths(file: Path, folder: Path) -> list[int]:
    with file.open(encoding="utf-8") as lines:
        rows = [json.loads(line) for line in islice(lines, SAMPLED)]
    texts = [row.get("text") or json.dumps(row.get("messages") or "", ensure_ascii=False) for row in rows]
    return [len(ids) for ids in encode_texts(load_tokenizer(folder), texts)]


def _fits(config: Config) -> bool:
    found = estimate(config, config.tokenize.window, available=_free(choose_device(config.model.device)))
    return bool(found["fits"])


def _free(device: torch.device) -> int:
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    lines = INFORMATION.read_text(encoding="ascii").splitlines() if INFORMATION.exists() else []
    free = next((int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable")), 0)
    return free or total_memory()


def _tokens(config: Config) -> int:
    shards = ShardSet.open(shards_folder(config) / config.train.split)
    return len(shards) * shards.window


def _step_seconds(config: Config, root: Path, console: Console) -> float:
    place, train = root / PROBE, {"steps": 3, "eval_every": 0, "checkpoint_every": 0, "parity": False, "eval_rows": 1}
    shutil.rmtree(place, ignore_errors=True)
    short = config.train.model_copy(update={**train, "eval_samples": 1, "tokens": 0})
    console.say("three steps, to know what one takes")
    train_command(config.model_copy(update={"train": short}), Console(quiet=True), "convert-wsd", place)
    lines = (place / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    shutil.rmtree(place)
    taken = [float(record["seconds"]) for record in map(json.loads, lines) if "seconds" in record]
    return mean(taken[1:])


def _written(
    given: Mapping[str, Any], decisions: Sequence[Decision], root: Path, asked: Mapping[str, Any], console: Console
) -> None:  # fmt: skip
    rows = [(one.place, json.dumps(one.value), one.reason) for one in decisions if one.place != "description"]
    console.table(rows, ("chosen", "value", "because"))
    why = {"asked": dict(asked), "decisions": [vars(one) for one in decisions]}
    write_atomic(root / WHY, json.dumps(why, indent=2) + "\n")
    write_atomic(root / CHOICE, json.dumps(_nested(given, as_values(decisions)), indent=2) + "\n")
    console.say(f"{root / CHOICE}: all of this; edited, it is repeated by")
    console.say(f"  hildanext convert-wsd --config {root / CHOICE}")


def _told(report: dict[str, Any], root: Path, config: Config, console: Console) -> dict[str, Any]:
    before, after, parent = (report[name] for name in ("first", "last", "parent_nll"))
    console.say(
        f"parent {parent:.3f} nats per token, read left to right; as diffusion at block {config.ladder.fixed}"
        f" {before['eval_nll']:.3f} before, {after['eval_nll']:.3f} after {report['steps']} steps"
    )
    chat = config.train.split.startswith("sft_")
    console.say(f'hildanext generate --model {root}{" --chat" if chat else ""} --prompt "..."')
    console.say(f"hildanext compare {config.model.path} {root}")
    return {**report, "config": str(root / CHOICE)}
