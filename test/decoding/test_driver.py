# Driving an engine: one request as a stream, many to their end, and what becomes of the others' events.
# Entry points: the tests.
# The engine is a stand-in whose requests end after as many steps as their seed says.
"""Driver."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from decoding.test_engine import ask
from decoding.test_engine import engine as scripted_engine

from hildanext.decoding.driver import Driver
from hildanext.decoding.events import Commit, Done, Event, Failed
from hildanext.decoding.request import Metrics, Request, Result
from hildanext.errors import DecodeError, RunError


class Counting:
    """A request commits one token per step, fails in its last where its prompt says so, and is refused without one."""

    def __init__(self) -> None:
        self.left: dict[int, int] = {}
        self.fails: set[int] = set()
        self.count = 0

    @property
    def pending(self) -> int:
        return len(self.left)

    def submit(self, request: Request, drafts: bool = False) -> int:
        if not request.prompt:
            raise DecodeError("prompt: empty")
        self.count += 1
        self.left[self.count] = request.seed or 1
        self.fails |= {self.count} if request.prompt == "fail" else set()
        return self.count

    def step(self) -> Sequence[Event | Failed]:
        events: list[Event | Failed] = []
        for number in list(self.left):
            self.left[number] -= 1
            events.append(Commit(number, "x", (number,)))
            if self.left[number] == 0:
                del self.left[number]
                failed = Failed(number, RunError("planted"))
                events.append(failed if number in self.fails else Done(number, result(str(number))))
        return events

    def cancel(self, number: int) -> Result | None:
        return result("") if self.left.pop(number, None) else None


def result(text: str) -> Result:
    return Result(text, (), "length", Metrics())


def steps(count: int, prompt: str = "go") -> Request:
    return Request(prompt=prompt, seed=count)


def test_results_come_in_the_order_of_the_requests_whatever_ends_first() -> None:
    assert [found.text for found in Driver(Counting()).run([steps(3), steps(1), steps(2)])] == ["1", "2", "3"]
    assert Driver(Counting()).run([]) == []


def test_events_of_the_others_wait_for_their_reader() -> None:
    driver = Driver(Counting())
    number = driver.submit(steps(2))
    assert driver.generate(steps(3)).text == "2" and driver.pending == 0
    assert [(event.request, event.kind) for event in driver.step()] == [
        (number, k) for k in ("commit", "commit", "done")
    ]
    assert driver.step() == []


def test_a_stream_that_others_have_finished_still_gives_everything() -> None:
    driver = Driver(Counting())
    stream = driver.stream(steps(2))
    begun = next(stream)
    assert driver.generate(steps(5)).text == "2"
    assert [event.kind for event in (begun, *stream)] == ["commit", "commit", "done"]


def test_closing_a_stream_cancels_its_request_and_drops_its_events() -> None:
    driver = Driver(Counting())
    stream = driver.stream(steps(9))
    next(stream)
    driver.generate(steps(2))
    stream.close()
    assert driver.pending == 0 and driver.step() == []


def test_a_failure_raises_and_leaves_nothing_of_the_run_behind() -> None:
    driver = Driver(Counting())
    with pytest.raises(RunError, match="planted"):
        driver.run([steps(9), steps(1, "fail")])
    assert driver.pending == 0 and driver.step() == []


def test_a_refusal_ends_what_was_submitted_before_it() -> None:
    driver = Driver(Counting())
    other = driver.submit(steps(1))
    with pytest.raises(DecodeError, match="empty"):
        driver.run([steps(9), Request()])
    assert [event.request for event in driver.step()] == [other, other] and driver.pending == 0


def test_a_request_that_vanishes_is_an_error() -> None:
    engine = Counting()
    driver = Driver(engine)
    stream = driver.stream(steps(3))
    next(stream)
    engine.left.clear()
    assert list(stream) == []
    engine.step = lambda: engine.left.clear() or []  # type: ignore[method-assign,func-returns-value]
    with pytest.raises(RunError, match="without a result"):
        driver.generate(steps(3))


def test_an_engine_generates_alone_only() -> None:
    made = scripted_engine()
    made.submit(ask())
    with pytest.raises(ValueError, match="beside 1 pending"):
        made.generate(ask())
