# Stories of a plain .txt file: cut at <|endoftext|>, at the file's own story breaks, or one a line.
# Entry points: stories(path, how), marked(path).
# Without a marker a story begins at a line that follows another line at once: inside a story, paragraphs of the public
# TinyStories text stand apart by a blank line. Memory is bounded by one story.
"""Cutting plain text into stories."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from hildanext.data.document import BadRow
from hildanext.data.reading import bounded_lines

MARKER = "<|endoftext|>"
How = Literal["auto", "marker", "story", "line"]
PROBE_BYTES = 1 << 20


def marked(path: Path) -> bool:
    """Whether the first MiB holds the marker."""
    with path.open("rb") as file:
        return MARKER.encode() in file.read(PROBE_BYTES)


def stories(path: Path, how: How, max_bytes: int) -> Iterator[tuple[int, dict[str, Any] | BadRow]]:
    """(line of its end, {"text": story}) of every story; damage and stories over `max_bytes` as BadRow."""
    found = ("marker" if marked(path) else "story") if how == "auto" else how
    story, blank, number = _Story(str(path), max_bytes), True, 0
    with path.open("rb") as file:
        for number, raw in bounded_lines(file, max_bytes):
            try:
                line = (raw if raw is not None else b"").decode("utf-8")
            except UnicodeDecodeError:
                yield number, BadRow("invalid UTF-8", str(path), number)
                continue
            before, *starts = _cut(line, found, blank)
            story.add(before, raw is None)
            for start in starts:
                yield from story.finished(number)
                story.add(start, False)
            blank = not line.strip()
    yield from story.finished(number)


def _cut(line: str, how: str, after_blank: bool) -> list[str]:
    if how == "marker":
        return line.split(MARKER)
    return ["", line] if line.strip() and (how == "line" or not after_blank) else [line]


@dataclass
class _Story:
    path: str
    max_bytes: int
    lines: list[str] = field(default_factory=list)
    size: int = 0

    def add(self, line: str, too_long: bool) -> None:
        self.size += self.max_bytes + 1 if too_long else len(line) + 1
        if self.size <= self.max_bytes:
            self.lines.append(line)

    def finished(self, number: int) -> Iterator[tuple[int, dict[str, Any] | BadRow]]:
        text, size = "\n".join(self.lines).strip(), self.size
        self.lines, self.size = [], 0
        if size > self.max_bytes:
            yield number, BadRow(f"story over {self.max_bytes} bytes", self.path, number)
        elif text:
            yield number, {"text": text}
