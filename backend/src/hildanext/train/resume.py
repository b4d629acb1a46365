# What a run goes on from, and what may differ from the run that wrote it.
# Entry points: find_checkpoint, settings, Changes (of, on, require, told, anew).
# Three kinds of change: without effect on the losses (said), with one (said, loudly), and of what the checkpoint's
# numbers were made with, which is refused unless train.override_recorded says otherwise.
"""Resuming a run."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hildanext.config import Config, load_config
from hildanext.errors import HildaError
from hildanext.models.load import place
from hildanext.progress import Console
from hildanext.registry import build
from hildanext.run_dir import step_folders
from hildanext.train.checkpoint import ADVICE, require_whole

AUTO = "auto"
OVERRIDE = "train.override_recorded=true"
SECTIONS = ("model", "objective", "ladder", "optimizer", "train", "seed")
RECORDED = ("optimizer", "dtype", "model.path", "train.autocast")
"""What the weights and the optimiser of a checkpoint were made with, and all below it."""
ELSEWHERE = ("model.device", "model.dtype", "model.attention", "train.batch", "train.accumulate")
"""Settings whose effect stands in the record of the machine, which is compared too."""
SILENT = ("train.resume", "train.override_recorded", "train.prepare")
EVALUATION = ("train.eval_split", "train.eval_rows", "train.eval_samples")
EXACT = (
    *EVALUATION, "train.eval_every", "train.checkpoint_every", "train.checkpoint_beside", "train.keep_last",
    "train.keep_best", "train.workers",
    "train.trackers", "train.parity", "train.skip_nonfinite", "train.data", "train.split", "model.max_vram_pct",
    "model.trust_remote_code", "model.override_recorded", "train.steps", "train.tokens", "ladder",
)  # fmt: skip
FACTORS = ("optimizer.attention", "optimizer.mlp", "optimizer.embedding")


def find_checkpoint(resume: str, checkpoints: Path, console: Console) -> Path | None:
    """The checkpoint `train.resume` names, whole; of `latest` the newest that is, said loudly where a newer one is
    damaged; `auto`: as `latest` where there is one. None where nothing is resumed. HildaError where there is none, or
    none is whole."""
    if resume == AUTO:
        resume = "latest" if step_folders(checkpoints) else ""
    if resume != "latest":
        folder = Path(resume).expanduser() if resume else None
        if folder is not None:
            require_whole(folder)
        return folder
    damaged: list[str] = []
    for folder in reversed(step_folders(checkpoints)):
        try:
            require_whole(folder)
        except HildaError as error:
            damaged.append(str(error).removesuffix(f"; {ADVICE}"))
            continue
        if damaged:
            console.warn(f"train.resume: latest: {'; '.join(damaged)}; going on from the older {folder}")
        return folder
    if damaged:
        raise HildaError(f"train.resume: latest, but no checkpoint is whole: {'; '.join(damaged)}; restore one")
    raise HildaError(f"train.resume: latest, but {checkpoints} holds no checkpoint; give --run-dir of the run")


def settings(config: Config) -> dict[str, Any]:
    """What a run is trained with, by dotted place, the objective's defaults written out: kept in every checkpoint."""
    values = config.model_dump(mode="json", include=set(SECTIONS))
    made = build("objectives", config.objective, "objective")
    values["objective"] = {"type": config.objective.type, **made.model_dump(mode="json")}
    return dict(_leaves(values, ""))


def _leaves(value: Any, place: str) -> Iterator[tuple[str, Any]]:
    if not isinstance(value, dict):
        yield place, value
        return
    for name, inner in value.items():
        yield from _leaves(inner, f"{place}.{name}".lstrip("."))


@dataclass(frozen=True)
class Changes:
    """What a resumed run has otherwise than its checkpoint: {name: (before, now)}; unknown: why nothing is known."""

    found: Mapping[str, tuple[Any, Any]] = field(default_factory=dict)
    unknown: str = ""

    @classmethod
    def of(cls, state: Mapping[str, Any], folder: Path, config: Config) -> Changes:
        """Against the settings in the checkpoint's state; of one from before they stood there, in its run's
        config.json."""
        now, was, own = settings(config), state.get("settings"), _config_of(folder)
        if was is None:
            try:
                was = settings(load_config(own)) if own.is_file() else None
            except HildaError as error:
                return cls(unknown=f"{own}: {error}")
            if was is None:
                return cls(unknown=f"{folder} does not record the settings it was trained with")
        names = [name for name in {**was, **now} if name not in (*SILENT, *ELSEWHERE)]
        changed = {name: (was.get(name, "unset"), now.get(name, "unset")) for name in names}
        return cls({name: pair for name, pair in changed.items() if not _same(name, *pair)})

    def on(self, was: Mapping[str, Any], now: Mapping[str, Any]) -> Changes:
        """With what differs in the machine and in what it made of the settings."""
        more = {name: (was[name], now[name]) for name in now if was.get(name, now[name]) != now[name]}
        if "optimizer.name" in self.found:
            more.pop("optimizer", None)
        return Changes({**self.found, **more}, self.unknown)

    def require(self, folder: Path, allowed: bool) -> None:
        """HildaError where something changed that the checkpoint's numbers were made with, and nothing says it may."""
        if "model.adapter.kind" in self.found:
            was, now = self.found["model.adapter.kind"]
            raise HildaError(
                f"train.resume: {folder} was trained with model.adapter.kind={was}, here it is {now}; say {was}, or"
                " begin another run with model.path set to a model folder (hildanext merge-checkpoints makes one)"
            )
        wrong = [name for name in self.found if _is(name, RECORDED)]
        if wrong and not allowed:
            raise HildaError(
                f"train.resume: {folder} was trained otherwise: {self._words(wrong)}; resume with --config"
                f" {_config_of(folder)}, or say {OVERRIDE} to change it all the same"
            )

    def told(self, console: Console) -> None:
        """Say every change: loudly those after which the run is not what it would have been."""
        if self.unknown:
            console.warn(f"train.resume: {self.unknown}; whether they have changed is not known")
        harmless = [name for name in self.found if _is(name, EXACT)]
        inexact = [name for name in self.found if name not in harmless]
        if inexact:
            words = self._words(inexact)
            console.warn(f"train.resume: {words}: the run goes on, but not bit for bit as it would have")
        if harmless:
            console.say(f"train.resume: {self._words(harmless)}: the losses stay what they would have been")
        if any(name in EVALUATION for name in harmless):
            console.warn("train.resume: evaluations before and after this point are not of the same rows and noise")

    def anew(self) -> bool:
        """Whether the optimiser's state does not fit what trains now, so that its moments begin anew."""
        kinds = any(name in self.found for name in ("optimizer", "optimizer.name", "optimizer.freeze_embeddings"))
        return kinds or any(name in self.found and 0 in self.found[name] for name in FACTORS)

    def _words(self, names: list[str]) -> str:
        return "; ".join(f"{name} {self.found[name][0]} before, {self.found[name][1]} now" for name in names)


def _config_of(folder: Path) -> Path:
    return folder.absolute().parent.parent / "config.json"


def _is(name: str, places: tuple[str, ...]) -> bool:
    return any(name == place or name.startswith(f"{place}.") for place in places)


def _same(name: str, was: Any, now: Any) -> bool:
    if name == "model.path" and was != now and "new" not in (was, now):
        return place(str(was)).resolve() == place(str(now)).resolve()
    return bool(was == now)
