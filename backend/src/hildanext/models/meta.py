# hildanext.json: what a model folder must say beyond Hugging Face's files to be decoded as it was trained.
# Entry points: HildaMeta (read, text), Base, Recommended, META_FILE.
# A folder without the file is a plain AR checkpoint; its mask id is chosen at load.
"""Metadata of a converted model."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from hildanext.errors import ModelError

META_FILE = "hildanext.json"


class Base(BaseModel):
    """The folder whose weights adapters are added to: its name, and the digest of the matrices they change."""

    model_config = ConfigDict(extra="forbid")
    name: str
    sha256: str


class Recommended(BaseModel):
    """What `tune` found: configuration values by dotted place, the machine they hold for, and what was measured."""

    model_config = ConfigDict(extra="forbid")
    values: dict[str, Any]
    machine: str
    about: dict[str, Any] = Field(default_factory=dict)


class HildaMeta(BaseModel):
    """Facts of a conversion. decode: calibrated presets by mode name; history: the runs that made the weights."""

    model_config = ConfigDict(extra="forbid", protected_namespaces=())
    format: Literal[1] = 1
    kind: str = Field("hf", description="plugin of hildanext.models.kinds that loads and saves the folder")
    mask_id: int | None = Field(None, description="token id of [MASK]")
    edit_ids: tuple[int, int] | None = Field(None, description="ids of the edit actions DELETE and INSERT")
    shift: Literal["none", "clean"] = Field("none", description="whether logit i predicts token i or i+1")
    block: int | None = Field(None, description="block size decoding should use, tokens")
    block_grid: Literal["global", "per_document"] = "global"
    document_start: list[int] | None = Field(
        None,
        description="ids that begin a document in training and a text prompt; null: those the tokenizer puts there",
    )
    parent: str | None = Field(None, description="the AR checkpoint this came from, with its hash")
    base: Base | None = Field(None, description="kind adapters: the model they are added to")
    run: str | None = Field(None, description="id of the run that wrote it")
    decode: dict[str, dict[str, Any]] = Field(default_factory=dict, description="decoding presets by mode")
    recommended: Recommended | None = Field(None, description="settings that `tune` found for these weights")
    history: list[dict[str, Any]] = Field(default_factory=list, description="earlier runs, oldest first")

    @classmethod
    def read(cls, folder: Path) -> HildaMeta:
        """The metadata of a model folder, defaults where it has none. ModelError where the file is malformed."""
        path = folder / META_FILE
        if not path.is_file():
            return cls()
        try:
            return cls.model_validate_json(path.read_bytes())
        except ValidationError as error:
            first = error.errors()[0]
            place = ".".join(str(part) for part in first["loc"]) or "the file"
            raise ModelError(f"{path}: {place}: {first['msg']} (found {first['input']!r}); restore the file") from error

    def cautions(self, block: int) -> tuple[str, ...]:
        """What a reader of text decoded in blocks of `block` tokens must know: nothing where the block is the folder's
        own, or where the folder is read left to right (shift clean, block 1), which is exact for every checkpoint."""
        if self.shift == "clean" and block == 1 or self.block == block:
            return ()
        if self.block:
            return (f"block {block} is not the {self.block} this model was made for; its text may be worse",)
        return (
            f"no conversion wrote this model: it reads left to right, and decoded as diffusion (block {block}) its text"
            " is poor; convert it with `hildanext convert-wsd`, or read it left to right: `hildanext generate --ar`,"
            " or model.shift=clean with decode.block=1",
        )

    def text(self) -> str:
        """The file's content."""
        return self.model_dump_json(indent=2) + "\n"
