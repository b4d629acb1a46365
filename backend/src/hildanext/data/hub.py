# Rows by name: of a local file, of a data set in a local folder, or of the hub where download is allowed.
# Entry points: named_rows, hub_rows, is_local, ask_network.
# The network is used only where `download` says so: ask_network is called before every use of the hub.
# Only this file imports `datasets`; its JSON loader is not used for Dolma (see reading.py).
"""Datasets by name."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hildanext.data.document import BadRow
from hildanext.data.reading import rows
from hildanext.errors import DataError

HUB = "hub:"


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


def ask_network(name: str, download: bool, serves: str) -> None:
    """DataError, with what would serve instead, unless the network was asked for."""
    if not download:
        raise DataError(f"{name} is not local and download is off; {serves}, or set download=true to use the network")


def named_rows(name: str, download: bool = False) -> Iterator[tuple[int, dict[str, Any] | BadRow]]:
    """(number, row) of a local file (reading.py tells the kinds) or of hub:<owner>/<name>[/<subset>]:<split>, split
    `test` where none is given. DataError where there is no such file, or the hub is named and download is off."""
    if not name.startswith(HUB):
        if not Path(name).is_file():
            raise DataError(f"{name or 'path'}: no such file; give a local file or hub:<owner>/<name>:<split>")
        return rows(Path(name))
    dataset, _, split = name[len(HUB) :].partition(":")
    owner, _, rest = dataset.partition("/")
    own, _, subset = rest.partition("/")
    ask_network(name, download, "give a local file")
    return hub_rows(Wanted(f"{owner}/{own}" if own else owner, subset, split or "test"))


def hub_rows(wanted: Wanted) -> Iterator[tuple[int, dict[str, Any] | BadRow]]:
    """(row number from 1, row). DataError where the dataset cannot be opened, with the reason."""
    from datasets.exceptions import DatasetsError

    try:
        for number, row in enumerate(_opened(wanted), 1):
            if wanted.limit and number > wanted.limit:
                return
            yield number, dict(row)
    except (OSError, ValueError, KeyError, DatasetsError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise DataError(
            f"data set {wanted.dataset}: cannot be opened ({reason}); check name, subset {wanted.subset!r} and split "
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
