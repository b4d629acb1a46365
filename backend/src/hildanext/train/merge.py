# Averages checkpoints: the plain mean of every parameter, accumulated in float64 and rounded once.
# Entry points: merge_folders (average), merge_run (choose members, average, evaluate), Choice.
# One file of one member is read at a time. A tied matrix is stored once, so it stays tied; optimisers are not merged.
# Adapters are added into the weights of their base first, so that one checkpoint of adapters becomes a model.
"""Checkpoint merging."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from hildanext.config import Config
from hildanext.config.model import AdapterConfig, ModelConfig
from hildanext.data.shards import ShardSet
from hildanext.disk import RECORD, replacing, require_replaceable, write_atomic
from hildanext.errors import HildaError, ModelError
from hildanext.models.load import Loaded, choose_device, choose_dtype, load_model
from hildanext.models.meta import META_FILE, HildaMeta
from hildanext.models.save import write_model
from hildanext.models.tensors import weight_files
from hildanext.progress import Console
from hildanext.run_dir import read_status
from hildanext.train.checkpoint import STATE, Checkpoints, read_state, require_whole
from hildanext.train.evaluation import Evaluator
from hildanext.train.model_files import ADAPTER, folded, written_dtype
from hildanext.train.training import is_causal, make_ladder, open_shards, open_splits


def _shapes(folder: Path) -> dict[str, dict[str, tuple[int, ...]]]:
    if not list(folder.glob("*.safetensors")):
        raise ModelError(f"merge: {folder} holds no *.safetensors; members are checkpoints or model folders")
    files = weight_files(folder)
    found: dict[str, dict[str, tuple[int, ...]]] = {}
    for file in files:
        with safe_open(file, framework="pt") as handle:
            found[file.name] = {name: tuple(handle.get_slice(name).get_shape()) for name in handle.keys()}  # noqa: SIM118
    return found


def _same(folders: Sequence[Path]) -> dict[str, dict[str, tuple[int, ...]]]:
    first = _shapes(folders[0])
    ours = {name: shape for part in first.values() for name, shape in part.items()}
    for folder in folders[1:]:
        theirs = {name: shape for part in _shapes(folder).values() for name, shape in part.items()}
        wrong = sorted(name for name in {*ours, *theirs} if ours.get(name) != theirs.get(name))
        if wrong or _shapes(folder).keys() != first.keys():
            name = wrong[0] if wrong else "file layout"
            raise ModelError(
                f"merge: {folder} and {folders[0]} differ in {len(wrong)} tensors, first {name}"
                f" ({theirs.get(name)} against {ours.get(name)}); merge checkpoints of one architecture"
            )
        _same_meta(folders[0], folder)
    return first


def _same_meta(first: Path, other: Path) -> None:
    ours, theirs = HildaMeta.read(first), HildaMeta.read(other)
    for name in ("mask_id", "shift"):
        if getattr(ours, name) != getattr(theirs, name):
            raise ModelError(f"merge: {other}: {name} is {getattr(theirs, name)}, {getattr(ours, name)} in {first}")


def _require_tensors_alone(folders: Sequence[Path]) -> None:
    other = [folder for folder in folders if HildaMeta.read(folder).kind == "latent"]
    if other:
        raise ModelError(
            f"merge: {other[0]} is a latent model, whose averages of latents belong to its own weights; use one of"
            " them as it is"
        )


def _mean(folders: Sequence[Path], file: str, name: str, dtype: torch.dtype | None) -> Tensor:
    total: Tensor | None = None
    for folder in folders:
        with safe_open(folder / file, framework="pt") as handle:
            value = handle.get_tensor(name)
        total = value.double() if total is None else total + value.double()
    assert total is not None
    return (total / len(folders)).to(dtype if dtype and value.is_floating_point() else value.dtype)


def merge_folders(
    folders: Sequence[Path],
    output: Path,
    fold: Callable[[Path, Path], None] | None = None,
    dtype: torch.dtype | None = None,
) -> Path:
    """Write the equal-weight mean of model folders to `output`, as `dtype` (None: the members'). One member is copied;
    `fold` writes one that holds adapters as a plain model into another folder. ModelError where names, shapes, file
    layout or mask token differ, or the output is a member. Source: LLaDA2.0 arXiv:2512.15745 sec. 4.3; sums in float64
    are ours."""
    if output.resolve() in [folder.resolve() for folder in folders]:
        raise ModelError(f"merge: {output} is a member and would be replaced; name another folder with --output")
    kept = shutil.ignore_patterns("trainer", "*.safetensors", RECORD)
    with replacing(output) as fresh:
        plain, scratch = list(folders), fresh / "folded"
        for number, folder in enumerate(folders):
            if fold is not None and (folder / ADAPTER).is_file():
                plain[number] = scratch / str(number)
                fold(folder, plain[number])
        _require_tensors_alone(plain)
        parts = _same(plain)
        shutil.copytree(plain[0], fresh, ignore=kept, dirs_exist_ok=True)
        for file, shapes in parts.items():
            save_file({name: _mean(plain, file, name, dtype) for name in shapes}, fresh / file, {"format": "pt"})
        shutil.rmtree(scratch, ignore_errors=True)
        if dtype is not None:
            _say_dtype(fresh / "config.json", dtype)
        _note(fresh, folders)
    return output


def _say_dtype(file: Path, dtype: torch.dtype) -> None:
    known = json.loads(file.read_text(encoding="utf-8"))
    said = {name: str(dtype).removeprefix("torch.") for name in ("dtype", "torch_dtype") if name in known}
    write_atomic(file, json.dumps(known | said, indent=2) + "\n")


def _note(folder: Path, members: Sequence[Path]) -> None:
    meta = HildaMeta.read(folder)
    past = [*meta.history, {"merged": [_label(path) for path in members]}]
    write_atomic(folder / META_FILE, meta.model_copy(update={"history": past}).text())


@dataclass(frozen=True)
class Choice:
    """Which checkpoints of a run: those named, or model folders; else the `last` newest; else the `best` of lowest
    evaluation NLL."""

    members: Sequence[str] = ()
    best: int = 3
    last: int = 0

    def folders(self, run: Path, console: Console) -> list[Path]:
        """Their folders. ModelError where there is none, HildaError where one that is named is damaged."""
        checkpoints = Checkpoints(run / "checkpoints")
        if self.members:
            named = [_member(checkpoints.folder, name) for name in self.members]
            for folder in named:
                if (folder / STATE).is_file():
                    require_whole(folder)
            return named
        whole = [path for path in checkpoints.all() if _whole(path, console)]
        if not whole:
            raise ModelError(f"merge: {checkpoints.folder} holds no whole checkpoint; {_instead(run)}")
        newest = whole[::-1]
        if self.last:
            return newest[: self.last]
        best = [path for path in checkpoints.best(len(whole)) if path in whole]
        if not best:
            console.warn(f"merge: no checkpoint of {run} was evaluated; the newest are taken instead of the best")
        return (best or newest)[: self.best]


def _instead(run: Path) -> str:
    if not (run / "status.json").is_file():
        return "that is no run; give a run directory, or name the members"
    if read_status(run)["state"] == "running":
        return "the run is in training and has saved none yet (train.checkpoint_every); come back when it has"
    return "name the members"


def _whole(folder: Path, console: Console) -> bool:
    try:
        require_whole(folder)
    except HildaError as error:
        console.warn(f"merge: {error}; it is left out")
        return False
    return True


def merge_run(config: Config, console: Console, run: Path, choice: Choice, output: Path | None) -> dict[str, Any]:
    """Average the chosen checkpoints of a run and evaluate every member and the mean. The first one's tokenizer and
    metadata are kept."""
    require_replaceable(output or run / "merged")
    folders = choice.folders(run, console)
    held, _ = choose_dtype(config.model.dtype, choose_device(config.model.device))
    dtype = written_dtype(config.model, held, console)
    try:
        merged = merge_folders(folders, output or run / "merged", partial(_fold, config), dtype)
    except (HildaError, OSError) as error:
        if gone := [folder.name for folder in folders if not folder.is_dir()]:
            raise ModelError(
                f"merge: {run} is in training and removed {', '.join(gone)} meanwhile (train.keep_last);"
                " merge again, which takes newer ones, or when it has ended"
            ) from error
        raise
    every = [*folders, merged]
    own = open_shards(config, config.train.eval_split)
    evaluation = own if len(own) else open_splits(config, console)[1]
    scores = {name: _score(config, evaluation, path) for name, path in zip(_labels(every), every, strict=True)}
    rows = [(name, f"{score:.4f}") for name, score in scores.items()]
    console.table(rows, ("model", "evaluation NLL, nats/token"))
    report = {"model": str(merged), "members": [str(path) for path in folders], "eval_nll": scores}
    write_atomic(run / "merge.json", json.dumps(report, indent=2) + "\n")
    return report


def _member(checkpoints: Path, name: str) -> Path:
    folder = next((path for path in (checkpoints / name, Path(name)) if path.is_dir()), None)
    if folder is None:
        raise ModelError(
            f"merge: no checkpoint {name} in {checkpoints} and no such folder; name a checkpoint or a folder"
        )
    return folder


def _label(folder: Path) -> str:
    return f"{folder.absolute().parent.name}/{folder.name}" if folder.name == "model" else folder.name


def _labels(folders: Sequence[Path]) -> list[str]:
    names = [_label(folder) for folder in folders]
    return [name if names.count(name) == 1 else str(folder) for name, folder in zip(names, folders, strict=True)]


def _fold(config: Config, folder: Path, output: Path) -> None:
    loaded = _plain(config, folder)
    write_model(loaded.denoiser, loaded.tokenizer, output, loaded.meta, loaded.path)


def _plain(config: Config, folder: Path) -> Loaded:
    if (folder / ADAPTER).is_file():
        return folded(_trained_with(config, folder), folder, config.seed)
    return load_model(config.model.model_copy(update={"path": str(folder), "adapter": AdapterConfig()}))


def _trained_with(config: Config, folder: Path) -> ModelConfig:
    known, model = read_state(folder).get("settings", {}), config.model
    if model.adapter.kind != "none" or not known:
        return model
    adapter = {name: value for name, value in known.items() if name.startswith("model.adapter.")}
    section = AdapterConfig.model_validate({name.rsplit(".", 1)[-1]: value for name, value in adapter.items()})
    return model.model_copy(update={"path": known["model.path"], "adapter": section})


def _score(config: Config, shards: ShardSet, folder: Path) -> float:
    loaded = _plain(config, folder)
    chosen = make_ladder(config, shards.window, 1).last
    evaluator = Evaluator.of(config, loaded, shards, (chosen,), chosen)
    if is_causal(config):
        return float(evaluator.causal(loaded.denoiser)[0] or 0.0)
    return float(evaluator.measure(loaded.denoiser)["eval_nll"])
