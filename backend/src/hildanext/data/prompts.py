# A file of prompts: rows in any format that prepare-data reads, with or without their replies, or a text, one a line.
# Entry points: Prompt, PromptSet, read_prompts.
# A prompt that occurs again is asked once; what cannot be asked is counted by its reason, never dropped silently.
"""Prompts from files."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hildanext.data.archives import suffix_of
from hildanext.data.document import BadRow, Message
from hildanext.data.messages import Unusable
from hildanext.data.reading import KINDS, lines, rows
from hildanext.data.records import prompt_of
from hildanext.errors import DataError


@dataclass(frozen=True)
class Prompt:
    """What is asked: turns up to the reply. row: what the file had beside it (a reply too); {} for a line of text."""

    id: str
    messages: tuple[Message, ...]
    row: Mapping[str, Any]

    @property
    def key(self) -> str:
        """What identifies its turns, whatever file they stand in."""
        content = json.dumps(self.messages, sort_keys=True, ensure_ascii=False)
        return hashlib.blake2b(content.encode("utf-8", "surrogatepass"), digest_size=12).hexdigest()


@dataclass(frozen=True)
class PromptSet:
    """Prompts in the file's order; read: rows or lines met; skipped: how many of them, by reason."""

    prompts: tuple[Prompt, ...]
    read: int
    skipped: Mapping[str, int]


def read_prompts(named: str | Path, field: str = "", limit: int = 0, where: str = "answer.path") -> PromptSet:
    """The first `limit` (0: all) prompts of a file, each once. field: the one that is the prompt, empty: found; where:
    what the file is called in errors. DataError where there is no such file or nothing in it can be asked."""
    path = Path(named)
    if not path.is_file():
        state = "none is named" if not str(named) else "a folder" if path.is_dir() else "no such file"
        raise DataError(
            f"{where} {str(named)!r}: {state}; give a file, or write one: `hildanext answer --write-prompts 500`"
        )
    found, skipped, read = dict[str, Prompt](), Counter[str](), 0
    for number, row in _rows(path):
        if limit and len(found) >= limit:
            break
        read += 1
        try:
            prompt = _prompt(row, field, f"{path.name}:{number}")
        except (Unusable, RecursionError) as error:
            skipped[str(error) if isinstance(error, Unusable) else "nested too deeply"] += 1
            continue
        skipped["repeated"] += prompt.key in found
        found.setdefault(prompt.key, prompt)
    if not found:
        reasons = ", ".join(f"{reason}: {count}" for reason, count in (+skipped).items())
        raise DataError(f"{path}: no prompts ({reasons or 'an empty file'}); name their field with answer.field")
    return PromptSet(tuple(found.values()), read, dict(+skipped))


def _rows(path: Path) -> Iterator[tuple[int, Mapping[str, Any] | str | BadRow]]:
    if suffix_of(path) in KINDS:
        yield from rows(path)
        return
    for number, line in lines(path):
        if isinstance(line, BadRow):
            yield number, line
            continue
        try:
            yield number, line.decode("utf-8-sig").strip()
        except UnicodeDecodeError:
            yield number, BadRow("invalid UTF-8", str(path), number)


def _prompt(row: Mapping[str, Any] | str | BadRow, field: str, place: str) -> Prompt:
    if isinstance(row, BadRow):
        raise Unusable(row.reason)
    if isinstance(row, str):
        return Prompt(place, ({"role": "user", "content": row},), {})
    return Prompt(str(row.get("id") or place), prompt_of(row, field), row)
