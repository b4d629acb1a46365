# Items of benchmarks: rows of a local file or of the hub, checked for their fields, and a drawn part of them.
# Entry points: read_items, chosen.
# The rows come from data/hub.py, as those of the data sources do; the network is asked for with download=true.
"""Reading benchmark items."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

from hildanext.data.document import BadRow
from hildanext.data.hub import named_rows
from hildanext.errors import DataError

Item = dict[str, Any]


def read_items(source: str, needed: Sequence[str], download: bool = False) -> list[Item]:
    """All items of a file (.jsonl, .json, .csv, each also .gz or .zst) or of hub:<owner>/<name>[/<subset>]:<split>.
    DataError where it is missing, cannot be read, or an item lacks a needed field."""
    items: list[Item] = []
    for number, row in named_rows(source, download):
        if isinstance(row, BadRow):
            raise DataError(f"{source}:{row.line}: {row.reason}; repair the file")
        missing = [name for name in needed if name not in row]
        if missing:
            raise DataError(f"{source}: item {number} lacks {', '.join(missing)}; it has {', '.join(sorted(row))}")
        items.append(row)
    return items


def chosen(items: Sequence[Item], limit: int, seed: int) -> list[Item]:
    """`limit` items drawn without replacement by seed, in file order; all of them when limit is 0 or too large."""
    if not limit or limit >= len(items):
        return list(items)
    return [items[index] for index in sorted(random.Random(seed).sample(range(len(items)), limit))]
