# Source `storyworld`: generated stories, chats, word problems and micro coding tasks; needs no files.
# Entry points: Storyworld.
# Record i of a register depends on (seed, i) alone, so any part can be made on any core.
"""Source plugin storyworld."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from pydantic import Field

from hildanext.config.base import SEEDS
from hildanext.data.document import BadRow, Document
from hildanext.data.source import Source, Unit

UNIT_RECORDS = 2000
KEPT = ("register", "log_probability", "check")


class Storyworld(Source):
    """Records of the story world, by register. The metadata hold the record's check and log-probability in nats."""

    seed: int = Field(0, ge=0, lt=SEEDS, description="seed of the generator")
    stories: int = Field(8000, ge=0, description="plain stories, documents")
    chat: int = Field(2000, ge=0, description="chats about stories, documents")
    arithmetic: int = Field(1000, ge=0, description="word problems, documents")
    coding: int = Field(500, ge=0, description="micro coding tasks, documents")

    def units(self) -> list[Unit]:
        """Ranges of at most 2,000 records of one register."""
        counts = {"stories": self.stories, "chat": self.chat, "arithmetic": self.arithmetic, "coding": self.coding}
        return [
            Unit(register, start, min(UNIT_RECORDS, count - start))
            for register, count in counts.items()
            for start in range(0, count, UNIT_RECORDS)
        ]

    def read(self, unit: Unit) -> Iterator[Document | BadRow]:
        """The records of one range."""
        from hildanext.world import corpus

        for record in corpus(unit.name, self.seed, unit.count, unit.start):
            yield _document(record)

    def version(self) -> dict[str, Any]:
        """Settings and the vocabulary's size, which changes when the grammar does."""
        from hildanext.world import VOCABULARY

        return {"generator": "storyworld", "vocabulary": len(VOCABULARY), "seed": self.seed}


def _document(record: dict[str, Any]) -> Document:
    metadata: dict[str, Any] = {
        name: record[name] for name in ("register", "log_probability", "check") if name in record
    }
    messages = record.get("messages")
    return Document(
        id=record["id"],
        source="storyworld",
        text=record.get("text"),
        messages=None if messages is None else tuple(messages),
        metadata=metadata,
    )
