# Items of benchmark files: local JSON lines, JSON or CSV, gzipped or not; or a data set of the hub by name.
# Entry points: read_items, chosen.
# A local path is tried first; the hub is asked only for names written hub:<owner>/<name>:<split>.
"""Reading benchmark items."""

from __future__ import annotations

import csv
import gzip
import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hildanext.errors import DataError

Item = dict[str, Any]
HUB = "hub:"


def read_items(source: str, needed: Sequence[str]) -> list[Item]:
    """All items of a file (.jsonl, .json, .csv, each also .gz) or of `hub:<name>:<split>`.
    DataError where it is missing, cannot be read, or an item lacks a needed field."""
    if source.startswith(HUB):
        items = _from_hub(source[len(HUB) :])
    else:
        path = Path(source)
        if not source or not path.is_file():
            raise DataError(f"{source or 'path'}: no such file; give a local file or hub:<owner>/<name>:<split>")
        items = _parse(path)
    for number, item in enumerate(items):
        missing = [name for name in needed if name not in item]
        if missing:
            raise DataError(f"{source}: item {number} lacks {', '.join(missing)}; it has {', '.join(sorted(item))}")
    return items


def _parse(path: Path) -> list[Item]:
    opener = gzip.open if path.suffix == ".gz" else open
    kind = path.with_suffix("").suffix if path.suffix == ".gz" else path.suffix
    try:
        with opener(path, "rt", encoding="utf-8") as file:
            if kind == ".csv":
                return [dict(row) for row in csv.DictReader(file)]
            if kind == ".json":
                return [dict(item) for item in json.load(file)]
            return [dict(json.loads(line)) for line in file if line.strip()]
    except (json.JSONDecodeError, UnicodeDecodeError, TypeError, ValueError) as error:
        raise DataError(f"{path}: cannot be read as {kind or 'jsonl'} ({error}); check the file") from error


def _from_hub(name: str) -> list[Item]:
    import datasets

    owner, _, split = name.partition(":")
    try:
        return [dict(row) for row in datasets.load_dataset(owner, split=split or "test")]
    except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
        raise DataError(f"hub:{name}: {error}; download the file and give its path") from error


def chosen(items: Sequence[Item], limit: int, seed: int) -> list[Item]:
    """`limit` items drawn without replacement by seed, in file order; all of them when limit is 0 or too large."""
    if not limit or limit >= len(items):
        return list(items)
    return [items[index] for index in sorted(random.Random(seed).sample(range(len(items)), limit))]
