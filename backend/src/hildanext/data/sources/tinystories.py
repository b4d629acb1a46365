# Source `tinystories`: local .txt (cut at <|endoftext|> or by story), .jsonl or .json, or, opted in, the hub.
# Entry points: Tinystories, stories (the stories of one .txt).
# The hub's copy is roneneldan/TinyStories, licence CDLA-Sharing-1.0. In a .txt without the marker a story begins at a
# line that follows another line at once: inside a story, paragraphs of the public text stand apart by a blank line.
# Memory is bounded by one story.
"""Source plugin tinystories."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from hildanext.data.archives import opened, suffix_of
from hildanext.data.document import BadRow, Document
from hildanext.data.hub import Wanted, hub_rows
from hildanext.data.reading import KINDS, MAX_LINE_BYTES, bounded_lines, files_below, rows
from hildanext.data.source import Source, Unit, documents_of, local_path
from hildanext.errors import DataError

SUFFIXES = (".txt", *KINDS)
HUB = "roneneldan/TinyStories"
MARKER = "<|endoftext|>"
How = Literal["auto", "marker", "story", "line"]
PROBE_BYTES = 1 << 20


class Tinystories(Source):
    """Short stories, one document each."""

    path: str = Field("", description="file or folder; empty: HILDANEXT_TINYSTORIES, else data/raw/tinystories")
    split: How = Field("auto", description="how a .txt is cut: at <|endoftext|> (marker), by story, or one a line")
    download: bool = Field(False, description=f"stream {HUB} from the hub where there are no local files")
    limit: int = Field(0, ge=0, description="stories read from the hub at most; 0: all")
    max_story_bytes: int = Field(MAX_LINE_BYTES, ge=1, description="longer stories are counted as bad, bytes")

    def units(self) -> list[Unit]:
        """One per file, or one for the hub."""
        try:
            folder = local_path("tinystories", self.path, ", or set download=true to use the network")
        except DataError:
            if not self.download or self.path:
                raise
            return [Unit(HUB, count=self.limit)]
        return [Unit.of_file(file) for file in files_below(folder, SUFFIXES)]

    def read(self, unit: Unit) -> Iterator[Document | BadRow]:
        """The stories of one file or of the hub."""
        if unit.name == HUB:
            found = hub_rows(Wanted(HUB, limit=self.limit))
        elif suffix_of(unit.name) == ".txt":
            found = stories(Path(unit.name), self.split, self.max_story_bytes)
        else:
            found = rows(Path(unit.name), self.max_story_bytes)
        yield from documents_of(found, "tinystories", unit.name)


def _marked(path: Path) -> bool:
    with opened(path) as file:
        return MARKER.encode() in file.read(PROBE_BYTES)


def stories(path: Path, how: How, max_bytes: int) -> Iterator[tuple[int, dict[str, Any] | BadRow]]:
    """(line of its end, {"text": story}) of every story; damage and stories over `max_bytes` as BadRow."""
    found = ("marker" if _marked(path) else "story") if how == "auto" else how
    story, blank, number = _Story(str(path), max_bytes), True, 0
    with opened(path) as file:
        for number, raw in bounded_lines(file, max_bytes):
            try:
                line = (raw if raw is not None else b"").decode("utf-8-sig" if number == 1 else "utf-8")
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
