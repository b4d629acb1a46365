# Rows of JSON lines, JSON arrays, pretty-printed or nested JSON and tables, plain or packed, one at a time.
# Entry points: lines(path), rows(path), bounded_lines(file), files_below(path, suffixes), KINDS.
# Own reader and not the JSON loader of `datasets`: that one fails on Dolma shards whose metadata differ between files.
# A (file, line) pair names each row; a row that cannot be read is a BadRow, one where the file breaks off is `damaged`.
# Memory is bounded by max_line_bytes; only JSON that is not one object a line is read whole.
"""Reading files row by row."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from hildanext.data.archives import DAMAGE, PACKED, opened, suffix_of
from hildanext.data.document import BadRow
from hildanext.data.messages import Unusable, is_turn
from hildanext.data.records import ASKING, detect
from hildanext.data.tables import TABLES, table_rows
from hildanext.errors import DataError, first_line

MAX_LINE_BYTES = 32 << 20
KINDS = (".jsonl", ".json", ".ndjson", *TABLES)
NO_DATA = ("dataset_infos.json", "dataset_info.json", "dataset_dict.json", "state.json")
HOLDING = ("data", "rows", "train", "test", "validation", "examples", "items", "instances", "records", "samples")
VALUE = re.compile(r"\s*\S")
Rows = Iterator[tuple[int, dict[str, Any] | BadRow]]


def lines(path: Path, max_line_bytes: int = MAX_LINE_BYTES) -> Iterator[tuple[int, bytes | BadRow]]:
    """(line number from 1, the line without its end) of every non-blank line; damage comes as a BadRow.
    A damaged archive ends there; a line over `max_line_bytes` is skipped without being held in memory."""
    number = 0
    try:
        with opened(path) as file:
            for number, line in bounded_lines(file, max_line_bytes):
                if line is None:
                    yield number, BadRow(f"line over {max_line_bytes >> 20} MiB", str(path), number)
                elif line.strip():
                    yield number, line
    except DAMAGE as error:
        reason = f"truncated or damaged archive ({type(error).__name__})"
        yield number + 1, BadRow(reason, str(path), number + 1, True)
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


def rows(path: Path, max_line_bytes: int = MAX_LINE_BYTES) -> Rows:
    """(line number, object) of every row of a JSON-lines file; (row number, object) of a table (tables.py), and of a
    JSON file that is an array, pretty-printed objects, or one object that holds the list of rows."""
    kind = suffix_of(path)
    if kind in TABLES:
        yield from table_rows(path, kind)
    elif (whole := _whole(path, kind, max_line_bytes)) is not None:
        for number, row in enumerate(whole, 1):
            yield number, row if isinstance(row, dict) else BadRow("not a JSON object", str(path), number)
    else:
        for number, line in lines(path, max_line_bytes):
            yield number, line if isinstance(line, BadRow) else _parsed(line, path, number)


def _parsed(line: bytes, path: Path, number: int) -> dict[str, Any] | BadRow:
    try:
        row = json.loads(line.decode("utf-8-sig"))
    except UnicodeDecodeError:
        return BadRow("invalid UTF-8", str(path), number)
    except json.JSONDecodeError:
        return BadRow("invalid JSON", str(path), number)
    except RecursionError:
        return BadRow("JSON nested too deeply", str(path), number)
    except ValueError:
        return BadRow("a number of too many digits", str(path), number)
    return row if isinstance(row, dict) else BadRow("not a JSON object", str(path), number)


def _whole(path: Path, kind: str, limit: int) -> list[Any] | None:
    array = _is_array(path)
    if not array:
        found = [line for _, (_, line) in zip(range(2), lines(path, limit), strict=False)]
        parsed = _parsed(found[0], path, 1) if found and not isinstance(found[0], BadRow) else None
        if isinstance(parsed, dict):
            return _nested(parsed) if len(found) == 1 else None
        if parsed is None or (kind != ".json" and isinstance(found[0], bytes) and found[0].strip() != b"{"):
            return None
    try:
        with opened(path) as file:
            values = _values(file.read().decode("utf-8-sig"))
    except (ValueError, RecursionError, *DAMAGE) as error:
        if kind == ".json" and array:
            raise DataError(
                f"{path}: not a valid JSON array ({first_line(error)}); repair it or give JSON lines"
            ) from error
        return None
    if len(values) == 1 and isinstance(values[0], dict):
        return _nested(values[0]) or values
    return values[0] if len(values) == 1 and isinstance(values[0], list) else values


def _is_array(path: Path) -> bool:
    try:
        with opened(path) as file:
            return file.read(4096).lstrip(b" \t\r\n\xef\xbb\xbf").startswith(b"[")
    except (OSError, *DAMAGE):
        return False


def _values(text: str) -> list[Any]:
    decoder, found, place = json.JSONDecoder(), list[Any](), 0
    while match := VALUE.match(text, place):
        value, place = decoder.raw_decode(text, match.end() - 1)
        found.append(value)
    return found


def _nested(row: dict[str, Any]) -> list[Any] | None:
    lists = {
        key: value for key, value in row.items() if isinstance(value, list) and value and isinstance(value[0], dict)
    }
    try:
        if detect(row) is not None or len(lists) != 1:
            return None
        key, value = lists.popitem()
        if key in ASKING and is_turn(value[0]):
            return None
        return value if key.lower() in HOLDING or (len(row) == 1 and detect(value[0])) else None
    except Unusable:
        return None


def files_below(path: Path, suffixes: tuple[str, ...]) -> list[Path]:
    """The file itself, or every file below a folder (linked folders too) of one of the endings, packed or not, sorted;
    hidden files and a data set's own descriptions are left out. DataError where there is none."""
    if path.is_file():
        return [path]
    found = sorted(file for file in _below(path) if suffix_of(file) in suffixes and file.is_file())
    if not found:
        state = "no such file or folder" if not path.exists() else "no file of a known kind below it"
        raise DataError(f"{path}: {state}; expected files ending in {', '.join(suffixes)}, or these with {PACKED[0]}")
    return found


def _below(path: Path) -> Iterator[Path]:
    seen = set[str]()
    for folder, folders, files in os.walk(path, followlinks=True):
        real = os.path.realpath(folder)
        again, hidden = real in seen, [name for name in folders if name.startswith((".", "__MACOSX"))]
        seen.add(real)
        folders[:] = [] if again else sorted(set(folders) - set(hidden))
        if not again:
            yield from (Path(folder) / name for name in files if not name.startswith(".") and name not in NO_DATA)
