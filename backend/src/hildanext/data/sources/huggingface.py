# Source `huggingface`: any dataset of the `datasets` library, from a local folder or, opted in, from the hub.
# Entry points: Huggingface.
# Streams by default, so nothing is stored. Several of these sources are mixed by their weights.
"""Source plugin huggingface."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

from pydantic import Field

from hildanext.data.document import BadRow, Document
from hildanext.data.hub import Wanted, ask_network, hub_rows, is_local
from hildanext.data.source import Source, Unit, documents_of


class Huggingface(Source):
    """Rows of one split of one dataset; texts and chats are found as in `jsonl`."""

    dataset: str = Field("", description="local folder or hub name; empty: HILDANEXT_HUGGINGFACE")
    subset: str = Field("", description="configuration of the dataset")
    split: str = Field("train", description="split of the dataset")
    revision: str = Field("", description="commit or tag on the hub; empty: the newest")
    streaming: bool = Field(True, description="read row by row without storing the dataset")
    limit: int = Field(0, ge=0, description="rows read at most; 0: all")
    format: str = Field("", description="chat format, text:<field> or tokens:<field>; empty: found")
    download: bool = Field(False, description="allow the network")

    def units(self) -> list[Unit]:
        """One for the split. DataError where the dataset is not local and download is off."""
        name = self.dataset or os.environ.get("HILDANEXT_HUGGINGFACE", "")
        serves = "set `dataset` or HILDANEXT_HUGGINGFACE to a folder"
        if not is_local(name):
            ask_network(f"source huggingface: {name or 'no dataset'}", self.download and bool(name), serves)
        return [Unit(name, count=self.limit)]

    def read(self, unit: Unit) -> Iterator[Document | BadRow]:
        """The rows of the split."""
        wanted = Wanted(unit.name, self.subset, self.split, self.revision, self.streaming, self.limit)
        yield from documents_of(hub_rows(wanted), "huggingface", unit.name, self.format)

    def version(self) -> dict[str, Any]:
        """Dataset, subset, split and revision."""
        return {"dataset": self.units()[0].name, **self.model_dump(include={"subset", "split", "revision", "limit"})}
