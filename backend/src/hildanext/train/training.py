# A run opened and checked before its first step: ranks, run directory, model, shards, ladder, checkpoint it continues.
# Entry points: open_training, Training, trainable, make_ladder, tokens_per_step, open_shards, open_splits, is_causal.
# Only the first rank owns the run directory; the others learn its path from it. An autoregressive parent takes the same
# way as a conversion, with one stage and no noise.
"""The opened run."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from hildanext.config import Config
from hildanext.config.model import ModelConfig
from hildanext.core.block_ladder import Ladder
from hildanext.data.prepare import prepare
from hildanext.data.shards import ShardSet, check_tokenizer
from hildanext.data.storage import fetched, joined
from hildanext.data.tokenize import tokenize
from hildanext.errors import ConfigError, DataError, HildaError, ModelError
from hildanext.models.adapter_folder import start_from
from hildanext.models.denoiser import hugging_face, module, network
from hildanext.models.hardware import slow_dtype
from hildanext.models.kind import Footprint
from hildanext.models.load import NEW, Loaded, load_model, located, name_of
from hildanext.models.lora import adapter_note, add_adapter
from hildanext.models.meta import HildaMeta
from hildanext.models.policy_footprint import policy_footprint
from hildanext.models.preflight import estimate, require_memory
from hildanext.models.support import recompute
from hildanext.progress import Console
from hildanext.run_dir import RunDir, step_folders
from hildanext.train.agreement import facts, require_same
from hildanext.train.checkpoint import Checkpoints, read_state, read_tensors
from hildanext.train.distributed import Ranks, Replica, open_ranks
from hildanext.train.evaluation import held_out
from hildanext.train.layout import require_experts, require_tensor_parallel
from hildanext.train.optim import OptimizerChoice, build_optimizer, freeze
from hildanext.train.resume import AUTO, Changes, find_checkpoint


@dataclass(frozen=True)
class Training:
    """Everything a run needs before its first step. resumed: the checkpoint it continues, with its state; changes: what
    the settings have otherwise than it; command: whose section holds the objective, where it has one."""

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
    changes: Changes = Changes()
    command: str = ""

    @property
    def causal(self) -> bool:
        """Whether a parent is trained."""
        return is_causal(self.config)

    @property
    def adapted(self) -> bool:
        """Whether adapters are trained instead of the weights."""
        return self.config.model.adapter.kind != "none"

    @property
    def meta(self) -> HildaMeta:
        """hildanext.json of what the run saves."""
        meta, path, run = self.loaded.meta, self.loaded.path, self.run.path.name
        parent = meta.parent if meta.block or path is None else name_of(path)
        config = self.config
        past = [*meta.history, {"run": run, "objective": _objective(config, self.command), "steps": self.ladder.steps}]
        block = None if self.causal else self.ladder.last
        start = self.shards.manifest.get("document_start", [])
        facts = {"block": block, "document_start": start, "parent": parent, "run": run, "history": past}
        return meta.model_copy(update=facts)


def _objective(config: Config, command: str) -> str:
    own = config.rl if command == "rl" else config.dpo if command == "dpo" else config
    return config.latent.model.type if command == "latent" else own.objective.type


def is_causal(config: Config) -> bool:
    """Whether the objective is ordinary next-token prediction."""
    return config.objective.type == "autoregressive"


def shards_folder(config: Config) -> Path:
    """Where the tokenised shards of a run are; those of a storage are fetched into the cache of this machine first."""
    name = config.tokenize.name or config.data.name
    return fetched(config.train.data or joined(config.paths.data, "tokenized", name))


def _unprepared(config: Config) -> bool:
    try:
        return not shards_folder(config).is_dir()
    except DataError:
        return True


def open_shards(config: Config, split: str) -> ShardSet:
    """One split of the run's shards. DataError where it is missing."""
    folder = shards_folder(config) / split
    if not folder.is_dir():
        raise DataError(f"train.data: {_without(folder.parent, split)}")
    return ShardSet.open(folder)


def open_splits(config: Config, console: Console) -> tuple[ShardSet, ShardSet]:
    """The rows a run trains on and those it is evaluated on. DataError where a split is missing, or both are empty."""
    shards, evaluation, words = held_out(
        open_shards(config, config.train.split), open_shards(config, config.train.eval_split), config.train.eval_rows
    )
    if words:
        console.warn(words)
    rows = config.train.rows
    return shards.part(0, min(rows, len(shards))) if rows else shards, evaluation


def _without(folder: Path, split: str) -> str:
    has = sorted(path.name for path in folder.iterdir() if path.is_dir()) if folder.is_dir() else []
    chats = not split.startswith("sft_")
    if chats and "sft_train" in has:
        return (
            f"{folder} holds chats only ({', '.join(has)}), no {split} rows; run `hildanext sft`, or tokenize them as"
            " text with data.chat_in_text=true, or say train.split=sft_train and train.eval_split=sft_eval"
        )
    if not chats and "train" in has:
        return f"{folder} holds no chats, only {', '.join(has)}; run `hildanext convert-wsd`, or prepare chats"
    return f"no {split} shards in {folder}; run `hildanext tokenize` first, or set train.data"


def tokens_per_step(config: Config, window: int, ranks: int) -> int:
    """Tokens of an optimiser step, all ranks together."""
    return config.train.batch * config.train.accumulate * ranks * window


def make_ladder(config: Config, window: int, ranks: int) -> Ladder:
    """The ladder of a run, over train.steps or the steps that train.tokens make; one stage for an AR parent."""
    tokens = config.train.tokens
    steps = max(1, round(tokens / tokens_per_step(config, window, ranks))) if tokens else config.train.steps
    return Ladder.causal(window, steps) if is_causal(config) else Ladder.of(config.ladder, window, steps)


@contextmanager
def open_training(config: Config, console: Console, command: str, path: Path | None) -> Iterator[Training]:
    """A run inside its run directory (`path`, or a new one named after the command): model, shards and ladder, checked
    against each other and against the memory of the device. The directory's state follows what happens inside; of a
    run that goes on it stays as it was until run.begin()."""
    check_adapters(config)
    ranks = open_ranks(config.train.parallel, config.model.device)
    try:
        created = RunDir.create(config, command, path, _goes_on(config, path)) if ranks.first else None
        told = ranks.tell(str(created.path) if created else "")
        run, quiet = created or RunDir(Path(told)), console if ranks.first else Console(quiet=True)
        with run.running(quiet) if ranks.first else nullcontext():
            if ranks.first:
                Checkpoints(run.checkpoints).clear()
            if config.train.prepare and ranks.first and _unprepared(config):
                prepare(config, quiet)
                tokenize(located(config), quiet)
            ranks.wait()
            yield _opened(config, quiet, run, ranks, command)
    finally:
        ranks.close()


def _opened(config: Config, console: Console, run: RunDir, ranks: Ranks, command: str) -> Training:
    found = find_checkpoint(config.train.resume, run.checkpoints, console) if ranks.first else None
    told = ranks.tell(str(found or ""))
    resumed = Path(told) if told else None
    state = read_state(resumed) | read_tensors(resumed) if resumed is not None else {}
    shards, evaluation = open_splits(config, console)
    require_same(ranks, facts(config, shards, evaluation) if ranks.processes > 1 else {})
    if ranks.first:
        shards.require_whole()
        evaluation.require_whole()
    ladder = make_ladder(config, shards.window, ranks.size)
    _same_run(state, ladder)
    changes = Changes.of(state, resumed, config) if resumed is not None else Changes()
    if resumed is not None:
        changes.require(resumed, config.train.override_recorded)
    source = _source(config, resumed, shards)
    own = config.model_copy(update={"model": source})
    memory = estimate(own, shards.window, ranks=ranks.size, footprint=_footprint(config, own, command))
    if memory["unsure"]:
        console.warn(memory["unsure"])
    require_memory(memory)
    loaded = load_model(source, console)
    if config.train.autocast != "none":
        slow = slow_dtype(getattr(torch, config.train.autocast), loaded.device, "train.autocast")
        if slow:
            console.warn(slow)
    loaded.require("train")
    check_tokenizer(shards, loaded.tokenizer)
    check_window(loaded, shards.window)
    return Training(config, console, run, ranks, loaded, shards, evaluation, ladder, resumed, state, changes, command)


def _footprint(config: Config, own: Config, command: str) -> Footprint | None:
    if command != "latent":
        return policy_footprint(own, command)
    from hildanext.models.latent_footprint import latent_footprint

    return latent_footprint(config)  # of the parent, also where a checkpoint is gone on from


def check_adapters(config: Config) -> None:
    """ModelError for adapters under FSDP2."""
    if config.train.shared_by(2) > 1 and config.model.adapter.kind != "none":
        raise ModelError(
            "train.parallel fsdp2: adapters cannot be gathered from sharded weights for a checkpoint; use ddp, which"
            " holds the frozen weights once per rank, or model.adapter.kind=none"
        )


def check_window(loaded: Loaded, window: int) -> None:
    """ModelError where rows of `window` tokens are longer than the positions the model has."""
    most = loaded.denoiser.window
    if most and window > most:
        raise ModelError(
            f"model {loaded.path or NEW}: max_position_embeddings is {most}, the shards have rows of {window} tokens;"
            f" tokenize with tokenize.window={most} or less, or use a model with a longer window"
        )


def _goes_on(config: Config, path: Path | None) -> bool:
    named = config.train.resume
    if named == AUTO:
        return path is not None and bool(step_folders(path / "checkpoints"))
    if named == "latest" or not named or path is None:
        return bool(named)
    return Path(named).expanduser().resolve().parent == (path / "checkpoints").resolve()


def _same_run(state: Mapping[str, Any], ladder: Ladder) -> None:
    saved = state.get("stages")
    if saved is not None and saved != [vars(stage) for stage in ladder.stages]:
        raise HildaError(
            "train.resume: the checkpoint's ladder differs from this configuration's (steps, window or block sizes);"
            " resume with --config runs/<id>/config.json, or start anew with model.path set to the checkpoint"
        )


def _source(config: Config, resumed: Path | None, shards: ShardSet) -> ModelConfig:
    model = config.model
    if resumed is not None and model.adapter.kind == "none":
        return model.model_copy(update={"path": str(resumed)})
    if model.path == NEW and not model.new.tokenizer:
        tokenizer = shards.tokenizer
        return model.model_copy(update={"new": model.new.model_copy(update={"tokenizer": tokenizer})})
    return model


def trainable(training: Training) -> tuple[Any, OptimizerChoice]:
    """(model, optimiser): the denoiser with its adapters, its frozen parts frozen, behind DDP or FSDP2 where there are
    ranks; and the optimiser over what trains."""
    config, ranks, denoiser = training.config, training.ranks, training.loaded.denoiser
    if training.adapted:
        add_adapter(denoiser, config.model.adapter, config.seed)
        if config.model.adapter.start and training.resumed is None:
            start_from(denoiser, Path(config.model.adapter.start), training.loaded.path)
        note = adapter_note(denoiser)
        training.console.say(note)
    trained = module(denoiser)
    freeze(trained, config.optimizer)
    if config.train.gradient_checkpointing:
        recompute(network(denoiser))
    if ranks.kind == "tp":
        require_tensor_parallel(hugging_face(denoiser), ranks.processes, training.adapted, config.optimizer.name)
    if ranks.layout.ep > 1:
        require_experts(hugging_face(denoiser), ranks.layout.ep, config.optimizer.name)
    if ranks.layout.sp > 1 and config.model.embedding_noise.steps:
        raise ConfigError("train.parallel.sp: not with model.embedding_noise, whose draws are of whole rows; use fsdp")
    model = denoiser if ranks.kind == "none" else Replica(denoiser, ranks)
    choice = build_optimizer(trained, config.optimizer)
    if choice.reason:
        training.console.warn(choice.reason)
    return model, choice
