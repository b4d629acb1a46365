# What several data tests build: configurations, row files, a two-word tokenizer.
# Entry points: configuration, write_rows, QUIET, chat_tokenizer.
# Not a test file.
"""Material of the data tests."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from hildanext.config import Config, load_config
from hildanext.progress import Console

QUIET = Console(quiet=True)


def configuration(
    root: Path, sources: Iterable[Mapping[str, Any]], tokenize: Mapping[str, Any] | None = None, **data: Any
) -> Config:
    """A configuration whose data folder is `root`, read in this process unless `workers` says otherwise."""
    values = {"name": "set", "sources": list(sources), "workers": 1, **data}
    return load_config(base={"paths": {"data": str(root)}, "data": values, "tokenize": dict(tokenize or {})})


def write_rows(path: Path, rows: Iterable[Any]) -> Path:
    """A JSON-lines file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def read_rows(path: Path) -> list[Any]:
    """The rows of a JSON-lines file."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
