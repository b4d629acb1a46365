# What every source plugin is: a list of units, each read on its own, so cores share the work and a run can resume.
# Entry points: Source, Unit, local_path; file_units and file_rows for sources of files, on this machine or for fsspec.
# A unit is a file or a range of generated records; the list of units does not depend on the number of workers.
"""Base of the source plugins."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any

from pydantic import Field

from hildanext.data.archives import PACKED, suffix_of
from hildanext.data.document import BadRow, Document
from hildanext.data.messages import Unusable
from hildanext.data.reading import NO_DATA, files_below, rows
from hildanext.data.records import detect, to_document
from hildanext.data.storage import at_hand, is_remote, listed
from hildanext.errors import DataError
from hildanext.registry import Plugin


@dataclass(frozen=True)
class Unit:
    """One independent part of a source: a file with its size and time, or records start .. start + count - 1."""

    name: str
    start: int = 0
    count: int = 0
    size: int = 0
    modified_ns: int = 0

    @classmethod
    def of_file(cls, path: Path) -> Unit:
        """The unit of a whole file."""
        stat = path.stat()
        return cls(str(path), 0, 0, stat.st_size, stat.st_mtime_ns)


class Source(Plugin):
    """Base of the sources: units() finds the parts or fails with what would serve, read(unit) yields their rows."""

    weight: float | None = Field(
        None, gt=0, description="share of this source among the weighted ones, by characters; null: keep everything"
    )

    def units(self) -> list[Unit]:
        """Every part, in a fixed order. DataError names the path or environment variable that would serve."""
        raise TypeError(f"{type(self).__name__} does not define units()")

    def read(self, unit: Unit) -> Iterator[Document | BadRow]:
        """The rows of one part, good and bad."""
        raise TypeError(f"{type(self).__name__} does not define read()")

    def version(self) -> dict[str, Any]:
        """What identifies the data: files with sizes, or generator settings."""
        units = self.units()
        return {"units": len(units), "bytes": sum(unit.size for unit in units), "first": Path(units[0].name).name}

    def documents(self) -> Iterator[Document]:
        """Every good row of every part, in order."""
        for unit in self.units():
            yield from (row for row in self.read(unit) if isinstance(row, Document))


def local_path(name: str, path: str, advice: str) -> Path:
    """The path given, else environment variable HILDANEXT_<NAME>, else data/raw/<name>. DataError where none exists."""
    variable = f"HILDANEXT_{name.upper()}"
    given = path or os.environ.get(variable, "")
    found = Path(given or f"data/raw/{name}").expanduser()
    if not found.exists():
        how = f"{found} does not exist" if given else "no local files"
        raise DataError(
            f"source {name}: {how}; put them under data/raw/{name}, set the source's `path` or {variable}{advice}"
        )
    return found


def file_units(name: str, path: str, suffixes: tuple[str, ...], advice: str = "") -> list[Unit]:
    """One unit for each file of a source: below the path given, as local_path finds it, or below a place for fsspec
    (s3://bucket/folder), in the same order. DataError where there is none."""
    given = path or os.environ.get(f"HILDANEXT_{name.upper()}", "")
    if not is_remote(given):
        return [Unit.of_file(file) for file in files_below(local_path(name, path, advice), suffixes)]
    found = [one for one in listed(given) if one[0] == given or _wanted(one[0], suffixes)]
    if not found:
        raise DataError(f"{given}: no such file or folder, or none of {', '.join(suffixes)}, or these with {PACKED[0]}")
    return [Unit(place, 0, 0, size, changed) for place, size, changed in found]


def _wanted(place: str, suffixes: tuple[str, ...]) -> bool:
    return suffix_of(place) in suffixes and PurePosixPath(place).name not in NO_DATA


def file_rows(unit: Unit, max_line_bytes: int) -> Iterator[tuple[int, dict[str, Any] | BadRow]]:
    """As reading.rows, of the file of a unit; a remote one is copied here for as long as it is read."""
    with at_hand(unit.name) as path:
        for number, row in rows(path, max_line_bytes):
            yield number, replace(row, file=unit.name) if isinstance(row, BadRow) else row


def documents_of(
    rows: Iterator[tuple[int, dict[str, Any] | BadRow]], source: str, file: str, form: str = ""
) -> Iterator[Document | BadRow]:
    """Documents of rows, each in the format it shows, or all in `form`; the rest are BadRows."""
    name, seen = Path(file).name, form
    for number, row in rows:
        if isinstance(row, BadRow):
            yield row
            continue
        try:
            seen = form or detect(row) or seen
            if not seen:
                raise Unusable("no known text or chat field")
            yield to_document(row, seen, source, f"{name}:{number}")
        except Unusable as error:
            yield BadRow(str(error), file, number)
        except RecursionError:
            yield BadRow("nested too deeply", file, number)
