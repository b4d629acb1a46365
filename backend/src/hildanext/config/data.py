# Settings of prepare-data and tokenize: sources and cleaning, chat, packing.
# Entry points: DataConfig, CleaningConfig, NearConfig, TokenizeConfig, SourceSection, ExecutorSection.
# Sizes are in documents, characters, bytes or tokens as each description says.
"""Data sections of the configuration."""

from typing import ClassVar, Literal

from pydantic import Field

from hildanext.config.base import PluginSection, Section


class SourceSection(PluginSection):
    """One source of documents: {"type": plugin of data/sources, "weight": share, ...fields}."""

    kind: ClassVar[str] = "sources"


class ExecutorSection(PluginSection):
    """Where the parts of prepare-data and tokenize are done: {"type": plugin of data/executors, ...fields}."""

    kind: ClassVar[str] = "executors"


class NearConfig(Section):
    """Near-duplicates: of texts whose word n-grams are alike, one stays. Source: MinHash by datatrove's steps, which
    made FineWeb (arXiv:2406.17557 sec. 3.4); needs the extra cluster."""

    words: int = Field(0, ge=0, description="words of an n-gram; 0: near-duplicates stay (FineWeb: 5)")
    buckets: int = Field(14, ge=1, description="bands of hashes; two texts alike in one are near-duplicates")
    hashes: int = Field(
        8, ge=1, description="hashes of a band; a likeness of (1/buckets)^(1/hashes) is found at about half"
    )
    seed: int = Field(1, ge=0, lt=1 << 32, description="seed of the hash functions")


class CleaningConfig(Section):
    """What is normalised and what is dropped; every drop is counted by its reason."""

    normalization: Literal["NFC", "NFKC", "none"] = Field(
        "NFC", description="Unicode normal form of every text; Qwen tokenizers apply NFC"
    )
    min_chars: int = Field(1, ge=1, description="shortest document kept, characters")
    max_chars: int = Field(0, ge=0, description="longest document kept, characters; 0: no bound")
    deduplicate: bool = Field(True, description="drop every document whose text was seen before in the set")
    languages: tuple[str, ...] = Field(
        (), description="codes kept, compared with the row's own language field; rows without one are kept"
    )
    require: tuple[str, ...] = Field((), description="regular expressions; a document must match each somewhere")
    forbid: tuple[str, ...] = Field((), description="regular expressions; a document that matches one is dropped")


class DataConfig(Section):
    """prepare-data: which documents, how they are cleaned and split, and where they go."""

    name: str = Field(
        "storyworld", pattern=r"^[\w][\w.-]*$", description="name of the set: written to <paths.data>/processed/<name>"
    )
    sources: tuple[SourceSection, ...] = Field(
        (SourceSection(type="storyworld"),), min_length=1, description="sources, mixed by weight"
    )
    cleaning: CleaningConfig = CleaningConfig()
    near_duplicates: NearConfig = NearConfig()
    chat_in_text: bool = Field(
        False, description="chats also go to train.jsonl and eval.jsonl, where all their tokens are learned"
    )
    eval_share: float = Field(0.05, ge=0, lt=1, description="share of documents in the evaluation split, by hash")
    max_bad_rows: int = Field(100, ge=0, description="unreadable rows that are skipped before the command fails")
    allow_damaged: bool = Field(False, description="take what can be read of files that break off; off: they fail")
    workers: int = Field(0, ge=0, description="processes, or tasks at a time of a cluster; 0: usable cores, or all")
    executor: ExecutorSection = Field(
        ExecutorSection(type="processes"), description="where parts are done: processes, local, ray, slurm"
    )


class TokenizeConfig(Section):
    """tokenize: the tokenizer, the window and how documents are packed into it."""

    name: str = Field(
        "", pattern=r"^([\w][\w.-]*)?$",
        description="name of the shards: <paths.data>/tokenized/<name>; empty: the data set's name",
    )  # fmt: skip
    tokenizer: str = Field(
        "auto",
        description="folder of a Hugging Face tokenizer, 'storyworld' (built from its vocabulary), or 'auto': the "
        "folder of model.path or model.new.tokenizer if it holds one, else storyworld",
    )
    window: int = Field(512, ge=2, description="packed sequence length L, tokens")
    packing: Literal["first_fit", "concat"] = Field(
        "first_fit", description="first_fit: whole documents, padded rows; concat: rows are cut from one long text"
    )
    lookahead: int = Field(64, ge=1, description="open rows that first_fit chooses from")
    append_eos: bool = Field(True, description="end every document with the end-of-document token, trained")
    pad_to_block: int | None = Field(
        None, ge=0,
        description="chats are filled to a multiple of this with trained end tokens, tokens; 0: off; null: the block "
        "the run is decoded with, ladder.fixed or else ladder.decay_to",
    )  # fmt: skip
    pad_text_to_block: int = Field(
        0, ge=0, description="the same for plain documents, for model.block_grid=per_document; 0: off"
    )
    turns: Literal["all", "last", "each"] = Field(
        "all", description="assistant turns that are learned; each: one document per turn, with what came before it"
    )
    over_length: Literal["drop", "truncate_left_turns", "truncate_response"] = Field(
        "truncate_left_turns", description="what happens to a chat longer than the window"
    )
    out_of_range: Literal["refuse", "replace"] = Field(
        "refuse", description="token ids of pre-tokenised rows outside the vocabulary; replace: by the end token"
    )
    batch_documents: int = Field(512, ge=1, description="documents read and encoded at a time")
