# What has been answered so far, one line each, in a hidden file beside the answers: a killed run goes on from there.
# Entry points: Journal (open, has, add, close), Answered.
# The first line holds the settings that decide a text; a journal of other settings is refused, not mixed. It is only
# ever appended to; a line that a kill cut off is taken back, and its answer is written again.
"""Journal of answers."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, BinaryIO

from hildanext.disk import hold
from hildanext.errors import DataError

FORMAT = 1


@dataclass(frozen=True)
class Answered:
    """One answer: the prompt's key, which sample of it (greedy: not drawn), the text, its tokens (with the one that
    ended it), and how it ended (eos, length)."""

    prompt: str
    sample: int
    greedy: bool
    text: str
    tokens: int
    finish: str


class Journal:
    """Answers by (prompt key, sample, greedy), each appended as it is given. resumed, damaged: answers and lines that
    could not be read when it was opened."""

    def __init__(
        self, path: Path, answers: dict[tuple[str, int, bool], Answered], damaged: int, file: BinaryIO
    ) -> None:
        self.path, self.answers, self.damaged = path, answers, damaged
        self.resumed, self._file = len(answers), file

    @classmethod
    def open(cls, output: Path, settings: Mapping[str, Any]) -> Journal:
        """The journal of an output file, a new one where there is none. DataError where another process writes it,
        where it was kept under other settings, which are named, or where a file stands that it does not belong to."""
        path = output.with_name(f".{output.name}.journal")
        if output.exists() and not path.exists():
            raise DataError(f"{output}: something stands there that was not answered here; name another --out")
        path.parent.mkdir(parents=True, exist_ok=True)
        file = hold(path)
        if file is None:
            raise DataError(f"{output}: another process is answering into it; wait for it or name another --out")
        held = path.read_bytes()
        whole = held[: held.rfind(b"\n") + 1]
        head, answers, damaged = _read(path, whole)
        if head is not None and head != dict(settings):
            file.close()
            raise DataError(f"{output}: {_differences(head, settings)}; name another --out, or remove {path}")
        file.truncate(len(whole))  # a line that was cut off
        if head is None:
            file.write(json.dumps({"format": FORMAT, "settings": dict(settings)}).encode() + b"\n")
            file.flush()
        damaged += len(whole) < len(held)
        return cls(path, answers, damaged, file)

    def has(self, prompt: str, sample: int, greedy: bool) -> bool:
        """Whether this answer is there."""
        return (prompt, sample, greedy) in self.answers

    def add(self, answer: Answered) -> None:
        """Keep an answer; it outlives this process."""
        self.answers[answer.prompt, answer.sample, answer.greedy] = answer
        self._file.write(f"{_line(answer)}\n".encode())
        self._file.flush()

    def close(self) -> None:
        """Let another process have it."""
        self._file.close()


def _line(answer: Answered) -> str:
    return json.dumps(asdict(answer), separators=(",", ":"))


def _read(path: Path, held: bytes) -> tuple[dict[str, Any] | None, dict[tuple[str, int, bool], Answered], int]:
    head: dict[str, Any] | None = None
    found, damaged = dict[tuple[str, int, bool], Answered](), 0
    for number, line in enumerate(held.splitlines()):
        try:
            row = json.loads(line)
            if number == 0:
                head = dict(row["settings"]) | ({} if row["format"] == FORMAT else {"format": row["format"]})
                continue
            answer = Answered(**row)
            found[answer.prompt, answer.sample, answer.greedy] = answer
        except (ValueError, TypeError, KeyError):
            damaged += 1
    if head is None and (found or damaged):
        raise DataError(f"{path}: its first line, the settings of its answers, is damaged; restore or remove it")
    return head, found, damaged


def _differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> str:
    names = [name for name in dict.fromkeys((*old, *new)) if old.get(name) != new.get(name)]
    return "its answers were given with other settings (" + ", ".join(
        f"{name} {old.get(name)!r}, now {new.get(name)!r}" for name in names
    ) + ")"  # fmt: skip
