# What reinforcement learning asks: rows of a file or of the story world as prompt ids, with all that rewards need.
# Entry points: Question, rows_of, file_rows, questions_of.
# The prompt is made by the chat template, as every request's is; rows whose prompt is too long are counted and said.
"""Questions with their rows."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hildanext.config.rl import RlConfig
from hildanext.data.chat import generation_prompt
from hildanext.data.document import BadRow
from hildanext.data.messages import Unusable
from hildanext.data.reading import rows
from hildanext.data.records import prompt_of
from hildanext.errors import ConfigError, DataError
from hildanext.progress import Console
from hildanext.world.corpus import KINDS, corpus

WORLD = "world:"
FIELD = re.compile(r"\{(\w+)\}")
MOST_WORLD = 2000


@dataclass(frozen=True)
class Question:
    """ids: of the prompt up to the reply; row: what the rewards read; turns: what is asked."""

    ids: tuple[int, ...]
    row: Mapping[str, Any]
    turns: Sequence[Mapping[str, Any]] = ()


def rows_of(settings: RlConfig) -> list[dict[str, Any]]:
    """The rows of rl.rows. ConfigError, DataError where there is no such register or file, or a row is damaged."""
    found = list[dict[str, Any]]()
    for row in _read(settings):
        found.append(row)
        if settings.limit and len(found) == settings.limit:
            break
    if len(found) <= settings.held_out:
        raise DataError(
            f"rl.rows {settings.rows}: {len(found)} rows and rl.held_out={settings.held_out} of them are kept"
            " apart; give more rows, or hold out fewer"
        )
    return found


def _read(settings: RlConfig) -> Iterator[dict[str, Any]]:
    if settings.rows.startswith(WORLD):
        register, _, seed = settings.rows.removeprefix(WORLD).partition(":")
        asking = sorted(set(KINDS) - {"stories"})
        if register not in asking or not (seed or "0").isdigit():
            raise ConfigError(f"rl.rows {settings.rows}: give world:<register>[:<seed>] of {', '.join(asking)}")
        yield from corpus(register, int(seed or 0), settings.limit or MOST_WORLD)
        return
    yield from file_rows("rl.rows", settings.rows, "give a file of rows, or world:arithmetic")


def file_rows(name: str, path: str, instead: str) -> Iterator[dict[str, Any]]:
    """The rows of a file that the setting `name` gives. DataError where there is none, with what to do instead, or at a
    damaged row."""
    if not Path(path).is_file():
        raise DataError(f"{name} {path!r}: no such file; {instead}")
    for number, row in rows(Path(path)):
        if isinstance(row, BadRow):
            raise DataError(f"{path}:{number}: {row.reason}; repair the file")
        yield dict(row)


def questions_of(
    found: Sequence[Mapping[str, Any]], settings: RlConfig, tokenizer: Any, most: int, console: Console
) -> list[Question]:
    """The rows whose prompt has at most `most` tokens, in order. DataError where a row asks nothing or none is left."""
    made, longer = list[Question](), 0
    for number, row in enumerate(found, 1):
        turns = _turns(row, settings, number)
        ids = tuple(generation_prompt(turns, tokenizer))
        longer += len(ids) > most
        made += [Question(ids, row, turns)] if len(ids) <= most else []
    if longer:
        console.warn(f"rl.rows: {longer} of {len(found)} prompts are longer than {most} tokens and left out")
    if len(made) <= settings.held_out:
        raise DataError(
            f"rl.rows {settings.rows}: {len(made)} prompts of at most {most} tokens, {settings.held_out} of them"
            " held out; give shorter ones, a longer tokenize.window or a smaller rl.answer"
        )
    return made


def _turns(row: Mapping[str, Any], settings: RlConfig, number: int) -> Sequence[Mapping[str, Any]]:
    if not settings.ask:
        try:
            return prompt_of(dict(row))
        except Unusable as error:
            raise DataError(f"rl.rows: row {number}: {error}; say what is asked with rl.ask") from None
    try:
        asked = FIELD.sub(lambda found: str(row[found[1]]), settings.ask)
        return ({"role": "user", "content": asked},)
    except KeyError as error:
        raise ConfigError(
            f"rl.ask: {error} in {settings.ask[:60]!r}; the fields of a row are {', '.join(sorted(map(str, row)))}"
        ) from None
