# Generation for callers without a server: open the configured engine, run one request, or stream it.
# Entry points: open_engine, OpenEngine (submit, step, cancel, stream, generate, run, close).
# hildanext.generate, which is text in and text out, is in model.py.
"""Functions over an open engine."""

from __future__ import annotations

from collections.abc import Sequence

from hildanext.config import Config
from hildanext.decoding.driver import Driver
from hildanext.decoding.events import Event, Failed
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
