# An open engine keeps the events that wait for their reader, also when a step fails.
# Entry points: pytest.
# The session is a stand-in whose steps are scripted.
"""Open engine."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest

from hildanext.decoding.events import Commit
from hildanext.engines.opening import OpenEngine


@dataclass
class Scripted:
    """Raises in its first step, has nothing to say afterwards."""

    name: str = "scripted"
    steps: int = 0

    def step(self) -> list[Any]:
        self.steps += 1
        if self.steps == 1:
            raise RuntimeError("planted")
        return []


def test_a_step_that_raises_loses_no_event_that_waits() -> None:
    waiting = Commit(0, "text", (5,))
    session: Any = Scripted()
    engine = OpenEngine(session, backlog=[waiting])
    with pytest.raises(RuntimeError, match="planted"):
        engine.step()
    assert engine.step() == [waiting] and engine.step() == []
