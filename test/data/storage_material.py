# What the tests of storages and clusters have in common: files of rows, both commands over them, what they wrote.
# Entry points: rows_of, raw_files, made, rows_in.
# Not a test file.
"""Material of the tests of storages and clusters."""

from __future__ import annotations

import gzip
from pathlib import Path
from typing import Any

from data.material import QUIET, configuration, write_rows

from hildanext.config import Config
from hildanext.data.prepare import prepare
from hildanext.data.tokenize import tokenize

WORDS = ("the", "a", "red", "blue", "ball", "dog", "cat", "ran", "saw", "met")


def rows_of(file: int) -> list[dict[str, Any]]:
    """20 texts and 4 chats; the fourth text of each file is in every file."""
    said = [" ".join(WORDS[(file * 7 + i * i + k * (i + 1)) % 10] for k in range(6 + i)) for i in range(20)]
    said[3] = "Tom had a red ball and a dog."
    chats = [
        {"messages": [{"role": "user", "content": said[i]}, {"role": "assistant", "content": said[i + 1]}]}
        for i in range(4, 8)
    ]
    return [{"text": text} for text in said] + chats + [{"text": 7}]


def raw_files(folder: Path) -> Path:
    """Four files of rows, one of them packed, one deeper."""
    for number, name in enumerate(("b.jsonl", "a.jsonl", "deeper/c.jsonl", "d.jsonl.gz")):
        file = write_rows(folder / name.removesuffix(".gz"), rows_of(number))
        if name.endswith(".gz"):
            (folder / name).write_bytes(gzip.compress(file.read_bytes()))
            file.unlink()
    (folder / ".hidden.jsonl").write_text('{"text": "not to be read"}\n')
    return folder


def made(data: str | Path, raw: str | Path, **more: Any) -> tuple[Config, dict[str, Any], dict[str, Any]]:
    """prepare-data and tokenize: the configuration and both manifests."""
    config = configuration(data, [{"type": "jsonl", "path": str(raw)}], {"window": 64}, **more)  # type: ignore[arg-type]
    return config, prepare(config, QUIET), tokenize(config, QUIET)


def rows_in(folder: Path) -> dict[str, bytes]:
    """Every file of rows below a folder of prepared or tokenised data."""
    kept = (".jsonl", ".bin")
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.suffix in kept}
