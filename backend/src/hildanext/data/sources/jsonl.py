# Source `jsonl`: JSON lines (plain, .gz, .zst) or .json arrays of texts, chats or token ids.
# Entry points: Jsonl.
# The format of a file is that of its first row that shows one; a row without it is counted as bad.
"""Source plugin jsonl."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from pydantic import Field

from hildanext.data.document import BadRow, Document
from hildanext.data.reading import MAX_LINE_BYTES, files_below, rows
from hildanext.data.source import Source, Unit, documents_of, local_path

SUFFIXES = (".jsonl", ".jsonl.gz", ".json", ".json.gz", ".jsonl.zst", ".json.zst")


class Jsonl(Source):
    """Rows of local files: text (named or found), messages, conversations, prompt/response, instruction/output."""

    path: str = Field("", description="file or folder; empty: HILDANEXT_JSONL, else data/raw/jsonl")
    name: str = Field("jsonl", description="what documents and manifest call this source")
    format: str = Field("", description="chat format, text:<field> or tokens:<field>; empty: found per file")
    max_line_bytes: int = Field(MAX_LINE_BYTES, ge=1, description="longer lines are counted as bad, bytes")

    def units(self) -> list[Unit]:
        """One per file."""
        return [Unit.of_file(file) for file in files_below(local_path("jsonl", self.path, ""), SUFFIXES)]

    def read(self, unit: Unit) -> Iterator[Document | BadRow]:
        """The rows of one file."""
        found = rows(Path(unit.name), self.max_line_bytes)
        yield from documents_of(found, self.name, unit.name, self.format)
