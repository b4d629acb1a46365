# A conversation with an engine: the turns so far, the next answer as events, and an end to it at any moment.
# Entry points: Conversation (ask, reset).
# What an answer said before it was stopped stays. Where a conversation outgrows the window its oldest turns are
# forgotten, two at a time, and counted.
"""Conversations."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from hildanext.decoding.events import Commit, Done, Event, Failed
from hildanext.decoding.request import Metrics, Request, Result
from hildanext.engines.opening import OpenEngine
from hildanext.errors import WindowError


@dataclass
class Conversation:
    """fields: of every request; system: its first turn, "" for none; turns: the user's and the assistant's, as {role,
    content}; forgotten: turns that no longer fitted, a count."""

    engine: OpenEngine
    fields: Mapping[str, Any] = field(default_factory=dict)
    system: str = ""
    turns: list[dict[str, str]] = field(default_factory=list)
    forgotten: int = 0

    def reset(self) -> None:
        """Begin anew."""
        self.turns, self.forgotten = [], 0

    def ask(self, text: str, stopped: Callable[[], bool] = lambda: False) -> Iterator[Event]:
        """The events of the answer to a user's turn, Done last; `stopped` is asked after every step, and ends it with
        what was said. Both turns are kept unless nothing was said. DecodeError where it cannot be asked."""
        number, said = self._submit(text), ""
        try:
            while not stopped():
                for event in self.engine.step():
                    if event.request != number:
                        continue
                    if isinstance(event, Failed):
                        raise event.error
                    if isinstance(event, Done):
                        self._keep(text, event.result)
                    yield event
                    if isinstance(event, Done):
                        return
                    said += event.text if isinstance(event, Commit) else ""
            result = self.engine.cancel(number) or Result(said, (), "cancelled", Metrics())
            self._keep(text, result)
            yield Done(number, result)
        finally:
            self.engine.cancel(number)

    def _keep(self, text: str, result: Result) -> None:
        said = result.text.strip()
        if said:
            self.turns += [{"role": "user", "content": text}, {"role": "assistant", "content": said}]

    def _submit(self, text: str) -> int:
        while True:
            head = [{"role": "system", "content": self.system}] if self.system else []
            messages = (*head, *self.turns, {"role": "user", "content": text})
            try:
                return self.engine.submit(Request.of(messages=messages, **self.fields), drafts=True)
            except WindowError:
                if not self.turns:
                    raise
                self.turns, self.forgotten = self.turns[2:], self.forgotten + 2
