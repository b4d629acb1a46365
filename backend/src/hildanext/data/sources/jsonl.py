# Source `jsonl`: local files of rows (JSON lines, JSON, CSV, TSV, Parquet, Arrow; packed too): texts, chats, token ids.
# Entry points: Jsonl.
# Each row shows its own format; a row that shows none is counted as bad.
"""Source plugin jsonl."""

from __future__ import annotations

from collections.abc import Iterator

from pydantic import Field

from hildanext.data.document import BadRow, Document
from hildanext.data.reading import KINDS, MAX_LINE_BYTES
from hildanext.data.source import Source, Unit, documents_of, file_rows, file_units


class Jsonl(Source):
    """Rows of local files: text (named or found), messages, conversations, prompt/response, instruction/output."""

    path: str = Field(
        "", description="file, folder or place for fsspec (s3://...); empty: HILDANEXT_JSONL, else data/raw/jsonl"
    )
    name: str = Field("jsonl", description="what documents and manifest call this source")
    format: str = Field("", description="chat format, text:<field> or tokens:<field>; empty: found row by row")
    max_line_bytes: int = Field(MAX_LINE_BYTES, ge=1, description="longer lines are counted as bad, bytes")

    def units(self) -> list[Unit]:
        """One per file."""
        return file_units("jsonl", self.path, KINDS)

    def read(self, unit: Unit) -> Iterator[Document | BadRow]:
        """The rows of one file."""
        yield from documents_of(file_rows(unit, self.max_line_bytes), self.name, unit.name, self.format)
