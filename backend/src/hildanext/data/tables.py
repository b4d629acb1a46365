# Rows of tables: CSV and TSV with a header (all cells text), Parquet and Arrow.
# Entry points: table_rows(path, kind), TABLES.
# Tables are read in batches, so memory does not grow with the file.
"""Reading tables."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from hildanext.data.archives import DAMAGE, looks_like, opened
from hildanext.data.document import BadRow
from hildanext.errors import DataError, first_line

TABLES = (".csv", ".tsv", ".parquet", ".arrow")
Rows = Iterator[tuple[int, dict[str, Any] | BadRow]]
BATCH_ROWS = 1024
CELL_BYTES = 32 << 20


def table_rows(path: Path, kind: str) -> Rows:
    """(line or row number from 1, row) of a table of one of the kinds TABLES."""
    return _columns(path, kind) if kind in (".parquet", ".arrow") else _cells(path, kind)


def _cells(path: Path, kind: str) -> Rows:
    number = 0
    csv.field_size_limit(max(CELL_BYTES, csv.field_size_limit()))
    try:
        with opened(path) as file:
            text = io.TextIOWrapper(file, "utf-8-sig", newline="")
            header = text.readline()
            mark = "\t" if kind == ".tsv" else max(",;\t", key=header.count)
            table = csv.DictReader(_with(header, text), delimiter=mark)
            for row in table:
                number = table.line_num
                fits = None not in row and None not in row.values()
                yield number, row if fits else BadRow("cells do not fit the header", str(path), number)
    except (UnicodeDecodeError, csv.Error, *DAMAGE) as error:
        yield number + 1, BadRow(f"not valid CSV from here on ({first_line(error)})", str(path), number + 1, True)


def _with(header: str, rest: Iterator[str]) -> Iterator[str]:
    yield header
    yield from rest


def _columns(path: Path, kind: str) -> Rows:
    import pyarrow

    number = 0
    try:
        for batch in _batches(path, kind):
            for row in batch.to_pylist():
                number += 1
                yield number, row
    except (pyarrow.ArrowException, OSError, *DAMAGE) as error:
        if isinstance(error, OSError) and error.errno:
            raise
        if number:
            yield number + 1, BadRow(f"damaged from here on ({first_line(error)})", str(path), number + 1, True)
            return
        raise DataError(
            f"{path}: cannot be read as {kind[1:]} ({first_line(error)}); it looks like {looks_like(path)}; restore it"
        ) from error


def _batches(path: Path, kind: str) -> Iterator[Any]:
    import pyarrow
    import pyarrow.parquet

    with opened(path) as file:
        whole = file if path.suffix.lower() == kind else io.BytesIO(file.read())
        if kind == ".parquet":
            yield from pyarrow.parquet.ParquetFile(whole).iter_batches(BATCH_ROWS)
            return
        marked = whole.read(6) == b"ARROW1"
        whole.seek(0)
        if not marked:
            yield from pyarrow.ipc.open_stream(whole)
            return
        reader = pyarrow.ipc.open_file(whole)
        yield from (reader.get_batch(place) for place in range(reader.num_record_batches))
