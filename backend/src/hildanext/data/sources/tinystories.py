# Source `tinystories`: local .txt (cut at <|endoftext|> or by story), .jsonl or .json, or, opted in, the hub.
# Entry points: Tinystories.
# The hub's copy is roneneldan/TinyStories, licence CDLA-Sharing-1.0.
"""Source plugin tinystories."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from pydantic import Field

from hildanext.data.document import BadRow, Document
from hildanext.data.hub import Wanted, hub_rows
from hildanext.data.reading import MAX_LINE_BYTES, files_below, rows
from hildanext.data.source import Source, Unit, documents_of, local_path
from hildanext.data.stories import How, stories
from hildanext.errors import DataError

SUFFIXES = (".txt", ".jsonl", ".jsonl.gz", ".json")
HUB = "roneneldan/TinyStories"


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
        elif unit.name.endswith(".txt"):
            found = stories(Path(unit.name), self.split, self.max_story_bytes)
        else:
            found = rows(Path(unit.name), self.max_story_bytes)
        yield from documents_of(found, "tinystories", unit.name)
