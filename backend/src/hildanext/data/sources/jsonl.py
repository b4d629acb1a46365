# Source `jsonl`: local files of rows (JSON lines, JSON, CSV, TSV, Parquet, Arrow; packed too): texts, chats, token ids.
# Entry points: Jsonl.
# Each row shows its own format; a row that shows none is counted as bad.
"""Source plugin jsonl."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from pydantic import Field

from hildanext.data.document import BadRow, Document
from hildanext.data.reading import KINDS, MAX_LINE_BYTES, files_below, rows
from hildanext.data.source import Source, Unit, documents_of, local_path


class Jsonl(Source):
    """Rows of local files: text (named or found), messages, conversations, prompt/response, instruction/output."""

    path: str = Field("", description="file or folder; empty: HILDANEXT_JSONL, else data/raw/jsonl")
    name: str = Field("jsonl", description="what documents and manifest call this source")
    format: str = Field("", description="chat format, text:<field> or tokens:<field>; empty: found row by row")
    max_line_bytes: int = Field(MAX_LINE_BYTES, ge=1, description="longer lines are counted as bad, bytes")

    def units(self) -> list[Unit]:
        """One per file."""
        return [Unit.of_file(file) for file in files_below(local_path("jsonl", self.path, ""), KINDS)]

    def read(self, unit: Unit) -> Iterator[Document | BadRow]:
        """The rows of one file."""
        found = rows(Path(unit.name), self.max_line_bytes)
        yield from documents_of(found, self.name, unit.name, self.format)
