# Source `dolma`: shards in Dolma's schema (id, text, source, added, created, metadata), plain, .gz or .zst.
# Entry points: Dolma.
# Every shard is read on its own by (file, line), so shards whose metadata differ go together. Nothing is downloaded.
"""Source plugin dolma."""

from __future__ import annotations

from collections.abc import Iterator

from pydantic import Field

from hildanext.data.document import BadRow, Document
from hildanext.data.reading import MAX_LINE_BYTES
from hildanext.data.source import Source, Unit, documents_of, file_rows, file_units

SUFFIXES = (".json", ".jsonl", ".ndjson", ".parquet")


class Dolma(Source):
    """Documents of Dolma shards: the field `text`, or token ids (`input_ids`) of shards tokenised beforehand."""

    path: str = Field(
        "",
        description="shard, folder of them or place for fsspec (s3://...); empty: HILDANEXT_DOLMA, else data/raw/dolma",
    )
    max_line_bytes: int = Field(MAX_LINE_BYTES, ge=1, description="longer lines are counted as bad, bytes")

    def units(self) -> list[Unit]:
        """One per shard."""
        advice = "; the dataset allenai/dolma lists the shards"
        return file_units("dolma", self.path, SUFFIXES, advice)

    def read(self, unit: Unit) -> Iterator[Document | BadRow]:
        """The rows of one shard."""
        yield from documents_of(file_rows(unit, self.max_line_bytes), "dolma", unit.name)
