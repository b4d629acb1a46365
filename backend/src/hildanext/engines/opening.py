# Generation for callers without a server: open the configured engine, run one request, or stream it.
# Entry points: open_engine, run, stream, generate.
# generate() keeps its engine open for the life of the process.
"""Functions over an open engine."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from typing import Literal

from hildanext.config import Config
from hildanext.decoding.events import Done, Event
from hildanext.decoding.request import Request, Result
from hildanext.engines.choose import choose
from hildanext.engines.protocol import Failed, Session, signed
from hildanext.errors import RunError
from hildanext.progress import Console


@dataclass(frozen=True)
class OpenEngine:
    """A session and why the engines before it in the order did not open."""

    session: Session
    reasons: tuple[str, ...] = ()

    def stream(self, request: Request, drafts: bool = True) -> Iterator[Event]:
        """Events of one request up to its end; closing the iterator cancels it. RunError where it fails."""
        number = self.session.submit(request, drafts)
        try:
            while self.session.pending:
                for event in self.session.step():
                    if event.request != number:
                        continue
                    if isinstance(event, Failed):
                        raise event.error
                    yield signed(event, self.session.name, self.reasons)
        finally:
            self.session.cancel(number)

    def generate(self, request: Request) -> Result:
        """The result of one request."""
        for event in self.stream(request, drafts=False):
            if isinstance(event, Done):
                return event.result
        raise RunError(f"engine {self.session.name}: the request ended without a result; see the log")

    def close(self) -> None:
        """Close the session."""
        self.session.close()


def open_engine(config: Config, console: Console) -> OpenEngine:
    """The engine the configuration chooses. EngineError with every reason when none opens."""
    return OpenEngine(*choose(config, console))


@cache
def _default() -> OpenEngine:
    return open_engine(Config(), Console(quiet=True))


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
