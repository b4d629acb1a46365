# Rows of JSON lines, JSON arrays and CSV, each plain, .gz or .zst, one at a time, every kind of damage as a BadRow.
# Entry points: lines(path), rows(path), bounded_lines(file), files_below(path, suffixes).
# Own reader and not the JSON loader of `datasets`: that one fails on Dolma shards whose metadata differ between files.
# A (file, line) pair names each row; memory is bounded by max_line_bytes. Only a .json array is read whole.
"""Reading files row by row."""

from __future__ import annotations

import csv
import gzip
import io
import json
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from hildanext.data.document import BadRow
from hildanext.errors import DataError

MAX_LINE_BYTES = 32 << 20
PACKED = (".gz", ".zst", ".zstd")
DAMAGE = (EOFError, gzip.BadGzipFile, zlib.error)


@contextmanager
def _opened(path: Path) -> Iterator[BinaryIO]:
    if path.suffix == ".gz":
        with gzip.open(path, "rb") as file:
            yield io.BufferedReader(file)
    elif path.suffix in (".zst", ".zstd"):
        with _zstd(path) as stream:
            yield stream
    else:
        with path.open("rb") as plain:
            yield plain


@contextmanager
def _zstd(path: Path) -> Iterator[BinaryIO]:
    try:
        import zstandard
    except ImportError:
        raise DataError(f"{path}: reading .zst needs the package zstandard; pip install 'hildanext[zstd]'") from None
    with path.open("rb") as file, zstandard.ZstdDecompressor().stream_reader(file) as stream:
        try:
            yield io.BufferedReader(stream)
        except zstandard.ZstdError as error:
            raise EOFError(str(error)) from error


def lines(path: Path, max_line_bytes: int = MAX_LINE_BYTES) -> Iterator[tuple[int, bytes | BadRow]]:
    """(line number from 1, the line without its end) of every non-blank line; damage comes as a BadRow.
    A damaged archive ends there; a line over `max_line_bytes` is skipped without being held in memory."""
    number = 0
    try:
        with _opened(path) as file:
            for number, line in bounded_lines(file, max_line_bytes):
                if line is None:
                    yield number, BadRow(f"line over {max_line_bytes >> 20} MiB", str(path), number)
                elif line.strip():
                    yield number, line
    except DAMAGE as error:
        yield number + 1, BadRow(f"truncated or damaged archive ({type(error).__name__})", str(path), number + 1)
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror or error}); check the path and its rights") from error


def bounded_lines(file: BinaryIO, limit: int) -> Iterator[tuple[int, bytes | None]]:
    """(number from 1, line without its end, or None for one over `limit` bytes) of every line."""
    number = 0
    while line := file.readline(limit + 1):
        number += 1
        if len(line) <= limit or line.endswith(b"\n"):
            yield number, line.rstrip(b"\r\n")
            continue
        while (rest := file.readline(1 << 20)) and not rest.endswith(b"\n"):
            pass
        yield number, None


def rows(path: Path, max_line_bytes: int = MAX_LINE_BYTES) -> Iterator[tuple[int, dict[str, Any] | BadRow]]:
    """(line number, object) of every row of a JSON-lines file, or of a .csv file with a header, all cells text; (place,
    object) of a .json array."""
    kind = Path(path.stem).suffix if path.suffix in PACKED else path.suffix
    if kind == ".csv" or (kind == ".json" and _is_array(path)):
        yield from _table(path) if kind == ".csv" else _array(path)
        return
    for number, line in lines(path, max_line_bytes):
        yield number, line if isinstance(line, BadRow) else _parsed(line, path, number)


def _parsed(line: bytes, path: Path, number: int) -> dict[str, Any] | BadRow:
    try:
        row = json.loads(line.decode("utf-8-sig"))
    except UnicodeDecodeError:
        return BadRow("invalid UTF-8", str(path), number)
    except (json.JSONDecodeError, RecursionError):
        return BadRow("invalid JSON", str(path), number)
    return row if isinstance(row, dict) else BadRow("not a JSON object", str(path), number)


def _is_array(path: Path) -> bool:
    try:
        with _opened(path) as file:
            return file.read(4096).lstrip(b" \t\r\n\xef\xbb\xbf").startswith(b"[")
    except DAMAGE:
        return False


def _array(path: Path) -> Iterator[tuple[int, dict[str, Any] | BadRow]]:
    try:
        with _opened(path) as file:
            found = json.loads(file.read().decode("utf-8-sig"))
    except (UnicodeDecodeError, json.JSONDecodeError, *DAMAGE) as error:
        raise DataError(f"{path}: not a valid JSON array ({error}); repair it or give JSON lines") from error
    for number, row in enumerate(found, 1):
        yield number, row if isinstance(row, dict) else BadRow("not a JSON object", str(path), number)


def _table(path: Path) -> Iterator[tuple[int, dict[str, Any] | BadRow]]:
    number = 0
    try:
        with _opened(path) as file:
            table = csv.DictReader(io.TextIOWrapper(file, "utf-8-sig", newline=""))
            for row in table:
                number = table.line_num
                fits = None not in row and None not in row.values()
                yield number, row if fits else BadRow("cells do not fit the header", str(path), number)
    except (UnicodeDecodeError, csv.Error, *DAMAGE) as error:
        yield number + 1, BadRow(f"not valid CSV from here on ({error})", str(path), number + 1)


def files_below(path: Path, suffixes: tuple[str, ...]) -> list[Path]:
    """The file itself, or every file below a folder whose name ends so, sorted. DataError where there is none."""
    if path.is_file():
        return [path]
    found = sorted(file for file in path.rglob("*") if file.is_file() and file.name.endswith(suffixes))
    if not found:
        state = "no such file or folder" if not path.exists() else "no file of a known kind below it"
        raise DataError(f"{path}: {state}; expected files ending in {', '.join(suffixes)}")
    return found
