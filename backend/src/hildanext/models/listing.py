# The models of this machine's project folders: what is here, where it came from, whether a conversion wrote it.
# Entry points: listing.
# Only small files are read (hildanext.json, the sizes of the weights), so that a hundred folders are listed at once. A
# folder that cannot be read stands in the list with its reason.
"""Listing models."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from hildanext.config.root import PathsConfig
from hildanext.errors import HildaError
from hildanext.models.load import BUNDLED, name_of, place
from hildanext.models.meta import META_FILE, HildaMeta

WEIGHTS = (".safetensors", ".gguf", ".onnx", ".data", ".bin")
MARKS = ("config.json", META_FILE, "adapter_config.json")


def listing(paths: PathsConfig) -> list[dict[str, Any]]:
    """Every model of the models folder, of the runs and the bundled pair, in that order, each by name: name, path (what
    model.path takes), kind, converted, block, mask_id, bytes of its weights, origin, problem ("" for none)."""
    rows = [_row(folder) for folder in _folders(Path(paths.models))]
    rows += [_row(folder) for folder in _of_runs(Path(paths.runs))]
    return rows + [_row(place(name)) | {"path": name, "origin": "bundled with hildanext"} for name in BUNDLED]


def _folders(root: Path) -> Iterator[Path]:
    for path in sorted(root.iterdir()) if root.is_dir() else ():
        if path.suffix.lower() == ".gguf" or path.is_dir() and _holds_model(path):
            yield path
        elif path.is_dir() and not path.name.startswith("."):
            yield from (below for below in sorted(path.iterdir()) if below.is_dir() and _holds_model(below))


def _holds_model(path: Path) -> bool:
    return any((path / mark).is_file() for mark in MARKS)


def _of_runs(root: Path) -> Iterator[Path]:
    for run in sorted(root.iterdir()) if root.is_dir() else ():
        if (run / "status.json").is_file():
            yield from (run / name for name in ("model", "merged") if _holds_model(run / name))


def _row(folder: Path) -> dict[str, Any]:
    facts: dict[str, Any] = {"name": name_of(folder), "path": str(folder), "bytes": _size(folder), "problem": ""}
    if folder.is_file():
        more = {"kind": "gguf", "converted": None, "block": None, "mask_id": None, "origin": "a GGUF file"}
        return facts | more | {"name": folder.stem}
    try:
        meta = HildaMeta.read(folder)
    except HildaError as error:
        unknown = {"kind": "", "converted": None, "block": None, "mask_id": None, "origin": ""}
        return facts | unknown | {"problem": str(error)}
    missing = facts["bytes"] == 0 and meta.kind == "hf"
    return facts | {
        "kind": meta.kind, "converted": meta.block is not None, "block": meta.block, "mask_id": meta.mask_id,
        "origin": _origin(meta), "problem": "no weights in the folder; fetch or copy it again" if missing else "",
    }  # fmt: skip


def _size(folder: Path) -> int:
    files = [folder] if folder.is_file() else [path for path in folder.iterdir() if path.suffix in WEIGHTS]
    return sum(path.stat().st_size for path in files if path.is_file())


def _origin(meta: HildaMeta) -> str:
    if meta.base is not None:
        return f"adapters over {meta.base.name}"
    if meta.parent is not None:
        return f"{meta.parent.partition('@')[0]}, by run {meta.run}" if meta.run else meta.parent
    fetched = [str(past["fetched"]) for past in meta.history if past.get("fetched")]
    return fetched[-1] if fetched else f"run {meta.run}" if meta.run else "put here by hand"
