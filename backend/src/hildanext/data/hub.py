# Rows of a dataset through the `datasets` library: a local folder, or the hub where download is allowed.
# Entry points: hub_rows, is_local.
# Only this file imports `datasets`; its JSON loader is not used for Dolma (see reading.py).
"""Datasets by name."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hildanext.data.document import BadRow
from hildanext.errors import DataError


@dataclass(frozen=True)
class Wanted:
    """Which rows: dataset (folder or hub name), subset, split, revision (hub only), at most `limit` rows (0: all)."""

    dataset: str
    subset: str = ""
    split: str = "train"
    revision: str = ""
    streaming: bool = True
    limit: int = 0


def is_local(dataset: str) -> bool:
    """Whether it names an existing folder."""
    return bool(dataset) and Path(dataset).expanduser().is_dir()


def hub_rows(wanted: Wanted) -> Iterator[tuple[int, dict[str, Any] | BadRow]]:
    """(row number from 1, row). DataError where the dataset cannot be opened, with the reason."""
    try:
        for number, row in enumerate(_opened(wanted), 1):
            if wanted.limit and number > wanted.limit:
                return
            yield number, dict(row)
    except (OSError, ValueError, KeyError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise DataError(
            f"source {wanted.dataset}: cannot be opened ({reason}); check name, subset {wanted.subset!r} and split "
            f"{wanted.split!r}, or give a local folder"
        ) from error


def _opened(wanted: Wanted) -> Any:
    from datasets import load_dataset, load_from_disk

    folder = Path(wanted.dataset).expanduser()
    if (folder / "dataset_dict.json").exists():
        return load_from_disk(str(folder))[wanted.split]
    if (folder / "state.json").exists():
        return load_from_disk(str(folder))
    where = str(folder) if folder.is_dir() else wanted.dataset
    revision = None if folder.is_dir() else wanted.revision or None
    return load_dataset(
        where, name=wanted.subset or None, split=wanted.split, streaming=wanted.streaming, revision=revision
    )
