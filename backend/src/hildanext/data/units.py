# The parallel half of prepare-data: one unit of a source -> cleaned lines and a table of hashes, on any core.
# Entry points: UnitJob, run_unit, Report. A finished unit is not done again by a run with the same settings.
# The table has one record per line: document hash, places of the document in [0, 1) for split and mixture, size, kind.
"""Work on one unit."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from io import BufferedWriter
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from hildanext.config.data import CleaningConfig
from hildanext.data.cleaning import Cleaner
from hildanext.data.document import BadRow, Document, as_json
from hildanext.data.source import Source, Unit
from hildanext.errors import DataError
from hildanext.run_dir import write_atomic

TABLE = np.dtype([("hash", "<u8", 2), ("split", "<u8"), ("mix", "<u8"), ("chars", "<u4"), ("chat", "u1")])
BAD_EXAMPLES = 20
WARNED = 5
FLUSH_RECORDS = 4096


@dataclass(frozen=True)
class UnitJob:
    """One unit to do: its source, where its files go (`stem`.jsonl, .table, .json) and the most bad rows allowed."""

    parts: ClassVar[tuple[str, ...]] = (".jsonl", ".table")
    source: Source
    unit: Unit
    cleaning: CleaningConfig
    stem: Path
    max_bad_rows: int

    def run(self) -> Report:
        """As run_unit."""
        return run_unit(self)


Report = dict[str, Any]


def run_unit(job: UnitJob) -> Report:
    """Read and clean one unit. Returns counts: read, kept, dropped by reason, bad rows with the first examples, and
    where files break off. DataError for a file that cannot be read at all."""
    done = job.stem.with_suffix(".json")
    if done.exists():
        report: Report = json.loads(done.read_text(encoding="utf-8"))
        return report
    cleaner, dropped, bad, damaged = Cleaner(job.cleaning), Counter[str](), list[list[Any]](), list[list[Any]]()
    read, kept = 0, _Output(job.stem)
    with kept:
        for row in _rows(job):
            read += 1
            if isinstance(row, BadRow):
                dropped[f"bad row: {row.reason}"] += 1
                bad.append([row.file, row.line, row.reason])
                damaged += bad[-1:] if row.damaged else []
                if len(bad) > job.max_bad_rows:
                    break
                continue
            cleaned = cleaner.clean(row)
            if isinstance(cleaned, Document):
                kept.write(cleaned)
            else:
                dropped[cleaned] += 1
    report = {"unit": job.unit.name, "read": read, "kept": kept.count, "dropped": dict(dropped), "bad": len(bad)}
    report |= {"rows": bad[:BAD_EXAMPLES], "damaged": damaged}
    write_atomic(done, json.dumps(report))
    return report


def _rows(job: UnitJob) -> Iterator[Document | BadRow]:
    try:
        yield from job.source.read(job.unit)
    except OSError as error:
        raise DataError(f"{job.unit.name}: cannot be read ({error.strerror or error}); check the file") from error


class _Output:
    def __init__(self, stem: Path) -> None:
        self.stem, self.count = stem, 0
        self._records: list[tuple[Any, ...]] = []
        self._lines: BufferedWriter | None = None
        self._table: BufferedWriter | None = None

    def __enter__(self) -> _Output:
        self._lines = self.stem.with_suffix(".jsonl").open("wb")
        self._table = self.stem.with_suffix(".table").open("wb")
        return self

    def __exit__(self, *error: object) -> None:
        self._flush()
        for file in (self._lines, self._table):
            if file is not None:
                file.close()

    def write(self, document: Document) -> None:
        assert self._lines is not None
        content = document.content().encode("utf-8", "surrogatepass")
        words = np.frombuffer(hashlib.blake2b(content, digest_size=32).digest(), dtype="<u8")
        self._lines.write(as_json(document).encode("utf-8", "replace") + b"\n")
        self._records.append(((words[0], words[1]), words[2], words[3], min(len(content), 2**32 - 1), document.is_chat))
        self.count += 1
        if len(self._records) >= FLUSH_RECORDS:
            self._flush()

    def _flush(self) -> None:
        if self._table is not None and self._records:
            self._table.write(np.array(self._records, dtype=TABLE).tobytes())
            self._records.clear()
