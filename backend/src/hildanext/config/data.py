# Settings of prepare-data and tokenize: sources and cleaning, chat, packing.
# Entry points: DataConfig, TokenizeConfig, SourceSection.
# Sizes are in documents, characters or tokens as each description says.
"""Data sections of the configuration."""

from typing import ClassVar

from pydantic import Field

from hildanext.config.base import PluginSection, Section


class SourceSection(PluginSection):
    """One source of documents: {"type": plugin of data/sources, "weight": share, ...fields}."""

    kind: ClassVar[str] = "sources"


class DataConfig(Section):
    """prepare-data: which documents, how they are cleaned and split, and where they go."""

    name: str = Field("storyworld", description="name of the set: written to <paths.data>/processed/<name>")
    sources: tuple[SourceSection, ...] = Field(
        (SourceSection(type="storyworld"),), description="sources, mixed by weight"
    )


class TokenizeConfig(Section):
    """tokenize: the tokenizer, the window and how documents are packed into it."""

    name: str = Field("", description="name of the shards: <paths.data>/tokenized/<name>; empty: the data set's name")
    window: int = Field(512, ge=2, description="packed sequence length L, tokens")
