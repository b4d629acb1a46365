# What a decoder says while it works: replaceable drafts, immutable commits, the end.
# Entry points: DraftToken, Draft, Commit, Done, Event; Failed. `kind` tells them apart in JSON.
# Only commits may be shown as final text.
"""Events of a generation."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from hildanext.decoding.request import CallDelta, Result, TokenRecord
from hildanext.errors import HildaError

TokenState = Literal["mask", "new", "edited", "kept", "given"]


@dataclass(frozen=True)
class DraftToken:
    """One position of an opened block. pos: absolute position; confidence: probability of the token just predicted
    there, 0 where none was asked for."""

    pos: int
    id: int
    text: str
    confidence: float
    state: TokenState


@dataclass(frozen=True)
class Draft:
    """The opened blocks after a step, usually one, in order of position; all of it may still change. Blocks are
    absolute: block k holds the positions [k * block, (k + 1) * block)."""

    request: int
    step: int
    tokens: tuple[DraftToken, ...]
    kind: Literal["draft"] = "draft"


@dataclass(frozen=True)
class Commit:
    """Text that will not change, to be appended. record: of each of token_ids, where it was asked for; told: what the
    text means in a chat with tools."""

    request: int
    text: str
    token_ids: tuple[int, ...]
    record: tuple[TokenRecord, ...] | None = None
    told: tuple[CallDelta, ...] | None = None
    kind: Literal["commit"] = "commit"


@dataclass(frozen=True)
class Done:
    """The request is finished."""

    request: int
    result: Result
    kind: Literal["done"] = "done"


Event = Draft | Commit | Done


@dataclass(frozen=True)
class Failed:
    """One request failed in an engine that goes on with the others; the engine has forgotten it."""

    request: int
    error: HildaError
    kind: Literal["failed"] = "failed"
