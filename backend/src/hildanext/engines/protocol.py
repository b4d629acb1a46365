# What every engine says about itself and how it is driven.
# Entry points: Capability, Facts, Session, Failed, Opening, EnginePlugin, signed.
# An engine plugin is settings plus open(); what it opens is a Session, which one thread drives step by step.
"""Protocol of the engines."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal, Protocol

from hildanext.config import Config
from hildanext.decoding.driver import Steps
from hildanext.decoding.events import Done, Event
from hildanext.decoding.events import Failed as Failed
from hildanext.progress import Console
from hildanext.registry import Plugin


@dataclass(frozen=True)
class Capability:
    """What an engine can do here. ok: it opened; reasons: why not, or what a reader must know; cache: keys and values
    of committed blocks are reused; batch: requests decoded together at most; edit: visible tokens may be rewritten;
    stream: the smallest unit it reports; exact: equals uncached decoding token for token; devices: where it runs."""

    ok: bool
    reasons: tuple[str, ...] = ()
    cache: bool = False
    batch: int = 1
    edit: bool = False
    stream: Literal["step", "block", "end"] = "end"
    exact: bool = False
    devices: tuple[str, ...] = ()


@dataclass(frozen=True)
class Facts:
    """The model behind a session. window: prompt plus new tokens at most, 0 unknown; block: its block size, tokens;
    about: what its folder says of it, plain values by name (kind, parameters, mask_id, parent, history)."""

    model: str
    device: str
    dtype: str
    dtype_reason: str = ""
    window: int = 0
    block: int = 0
    about: Mapping[str, Any] = field(default_factory=dict)


class Session(Steps, Protocol):
    """An open engine: what a driver drives, and what it says about itself. One thread submits, steps and cancels."""

    @property
    def name(self) -> str:
        """Registry name of the engine."""
        ...

    @property
    def capability(self) -> Capability:
        """What it can do."""
        ...

    @property
    def facts(self) -> Facts:
        """What it serves."""
        ...

    def reset(self) -> None:
        """Forget every request, as after a step that failed; the session stays usable."""
        ...

    def close(self) -> None:
        """Free memory, threads and connections."""
        ...


@dataclass(frozen=True)
class Opening:
    """The outcome of open(): a session when capability.ok, None otherwise."""

    capability: Capability
    session: Any = None


class EnginePlugin(Plugin):
    """Base of the engines. Fields are settings; open() never raises for what is missing on this machine."""

    def trials(self, config: Config) -> list[Mapping[str, Any]]:
        """What `tune` tries this engine with on this machine: configuration values by dotted place, slowest and surest
        first; {} is as configured. `serve.engines` among them stands for fields of this engine."""
        return [{}]

    def open(self, config: Config, console: Console) -> Opening:
        """Try to open; reasons say what is missing, which version was found and which is needed."""
        raise ValueError(f"engine {type(self).__name__} defines no open")


def refused(*reasons: str) -> Opening:
    """An opening that failed, with its reasons."""
    return Opening(Capability(False, reasons))


def signed(event: Event, name: str, reasons: tuple[str, ...]) -> Event:
    """The event; a finished result carries the engine that served it and why earlier ones did not."""
    if not isinstance(event, Done):
        return event
    return replace(event, result=replace(event.result, engine=name, reasons=(*reasons, *event.result.reasons)))
