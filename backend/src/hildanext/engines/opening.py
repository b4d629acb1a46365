# Generation for callers without a server: open the configured engine, run one request, or stream it.
# Entry points: open_engine, OpenEngine (submit, step, cancel, stream, generate, run, close), generate.
# generate() keeps its engine open for the life of the process.
"""Functions over an open engine."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Literal

from hildanext.config import Config
from hildanext.decoding.driver import Driver
from hildanext.decoding.events import Event, Failed
from hildanext.decoding.request import Request
from hildanext.engines.choose import choose
from hildanext.engines.protocol import Session, signed
from hildanext.progress import Console


class OpenEngine(Driver):
    """A session, driven, and why the engines before it in the order did not open; its results say both."""

    def __init__(self, session: Session, reasons: tuple[str, ...] = (), backlog: Sequence[Event | Failed] = ()) -> None:
        super().__init__(session, backlog)
        self.session, self.reasons = session, reasons

    def _moved(self) -> list[Event | Failed]:
        name, reasons = self.session.name, self.reasons
        return [event if isinstance(event, Failed) else signed(event, name, reasons) for event in self.session.step()]

    def close(self) -> None:
        """Close the session."""
        self.session.close()


def open_engine(config: Config | None = None, console: Console | None = None) -> OpenEngine:
    """The engine the configuration (None: the default one) chooses. EngineError with every reason when none opens."""
    return OpenEngine(*choose(config or Config(), console or Console(quiet=True)))


@cache
def _default() -> OpenEngine:
    return open_engine()


def generate(
    prompt: str,
    mode: str = "Q_MODE",
    tau_mask: float | Literal["preset"] = "preset",
    tau_edit: float | Literal["preset"] | None = "preset",
    max_new_tokens: int = 128,
    seed: int = 0,
) -> str:
    """The text that follows `prompt`, by the default configuration's engine. tau_*: probabilities; tau_edit None: no
    editing; "preset": the mode's value. DecodeError for values out of range."""
    values = {"mode": mode, "tau_mask": tau_mask, "tau_edit": tau_edit, "max_new_tokens": max_new_tokens, "seed": seed}
    return _default().generate(Request.of(prompt=prompt, **values)).text
