# What a run works on, opened and checked before its first step: model, shards, ladder, the checkpoint it continues.
# Entry points: Training, open_training, shards_folder, is_causal, meta_of.
# An autoregressive parent takes the same way as a conversion, with one stage and no noise.
"""A training training."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hildanext.config import Config
from hildanext.config.model import ModelConfig
from hildanext.core.block_ladder import Ladder
from hildanext.data.shards import ShardSet, check_tokenizer
from hildanext.errors import DataError, HildaError
from hildanext.models.load import NEW, Loaded, load_model
from hildanext.models.meta import HildaMeta
from hildanext.models.preflight import estimate, require_memory
from hildanext.progress import Console
from hildanext.run_dir import RunDir
from hildanext.train.checkpoint import Checkpoints, read_state
from hildanext.train.distributed import Ranks
from hildanext.train.plan import make_ladder


@dataclass(frozen=True)
class Training:
    """Everything a run needs before its first step. resumed: the checkpoint it continues, with its state."""

    config: Config
    console: Console
    run: RunDir
    ranks: Ranks
    loaded: Loaded
    shards: ShardSet
    evaluation: ShardSet
    ladder: Ladder
    resumed: Path | None
    state: Mapping[str, Any]

    @property
    def causal(self) -> bool:
        """Whether a parent is trained."""
        return is_causal(self.config)

    @property
    def adapted(self) -> bool:
        """Whether adapters are trained instead of the weights."""
        return self.config.model.adapter.kind != "none"


def is_causal(config: Config) -> bool:
    """Whether the objective is ordinary next-token prediction."""
    return config.objective.type == "autoregressive"


def shards_folder(config: Config) -> Path:
    """Where the tokenised shards of a run are."""
    name = config.tokenize.name or config.data.name
    return Path(config.train.data or Path(config.paths.data) / "tokenized" / name)


def open_shards(config: Config, split: str) -> ShardSet:
    """One split of the run's shards. DataError where it is missing."""
    folder = shards_folder(config) / split
    if not folder.is_dir():
        raise DataError(f"train.data: no shards in {folder}; run `hildanext tokenize` first, or set train.data")
    return ShardSet.open(folder)


def _resumed(config: Config, run: RunDir) -> Path | None:
    if config.train.resume != "latest":
        return Path(config.train.resume) if config.train.resume else None
    newest = Checkpoints(run.checkpoints).newest()
    if newest is None:
        raise HildaError(f"train.resume: latest, but {run.checkpoints} holds no checkpoint; give --run-dir of the run")
    return newest


def _source(config: Config, resumed: Path | None, shards: ShardSet) -> ModelConfig:
    model = config.model
    if resumed is not None and model.adapter.kind == "none":
        return model.model_copy(update={"path": str(resumed)})
    if model.path == NEW and not model.new.tokenizer:
        tokenizer = str(shards.manifest.get("tokenizer", ""))
        return model.model_copy(update={"new": model.new.model_copy(update={"tokenizer": tokenizer})})
    return model


def open_training(config: Config, console: Console, run: RunDir, ranks: Ranks) -> Training:
    """Model, shards and ladder, checked against each other and against the memory of the device."""
    resumed = _resumed(config, run)
    state = read_state(resumed) if resumed is not None else {}
    shards, evaluation = open_shards(config, config.train.split), open_shards(config, config.train.eval_split)
    ladder = make_ladder(config, shards.window, ranks.size, is_causal(config))
    _same_run(state, ladder)
    source = _source(config, resumed, shards)
    memory = estimate(config.model_copy(update={"model": source}), shards.window, ranks=ranks.size)
    require_memory(memory)
    loaded = load_model(source, console)
    loaded.require("train")
    check_tokenizer(shards, loaded.tokenizer)
    return Training(config, console, run, ranks, loaded, shards, evaluation, ladder, resumed, state)


def _same_run(state: Mapping[str, Any], ladder: Ladder) -> None:
    saved = state.get("stages")
    if saved is not None and saved != [vars(stage) for stage in ladder.stages]:
        raise HildaError(
            "train.resume: the checkpoint's ladder differs from this configuration's (steps, window or block sizes);"
            " resume with --config runs/<id>/config.json, or start anew with model.path set to the checkpoint"
        )


def _named(folder: Path) -> str:
    return folder.absolute().parent.name if folder.name == "model" else folder.name


def meta_of(training: Training) -> HildaMeta:
    """hildanext.json of what the run saves."""
    meta, path = training.loaded.meta, training.loaded.path
    parent = meta.parent if meta.block or path is None else _named(path)
    run = training.run.path.name
    past = [*meta.history, {"run": run, "objective": training.config.objective.type, "steps": training.ladder.steps}]
    block = None if training.causal else training.ladder.last
    return meta.model_copy(update={"block": block, "parent": parent, "run": run, "history": past})
