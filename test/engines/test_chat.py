# A conversation: its history, an answer that is stopped, a window that is full; and the command over a pipe.
# Entry points: pytest.
# The engine is the bundled child where a text is needed, and a script where the order of events is what counts.
"""Tests of engines/conversation.py and the command chat."""

from __future__ import annotations

import io
import json
import os
import signal
import sys
from dataclasses import dataclass, field
from typing import Any

import pytest

from hildanext.cli import main
from hildanext.decoding.events import Commit, Done
from hildanext.decoding.request import Metrics, Request, Result
from hildanext.engines import opening
from hildanext.engines.conversation import Conversation
from hildanext.engines.opening import OpenEngine
from hildanext.engines.protocol import Capability
from hildanext.errors import DecodeError, WindowError

SAID = ("One", " two", " three")


@dataclass
class Scripted:
    """A session that says three words a request, one a step; a prompt of more than `window` turns does not fit."""

    window: int = 99
    name: str = "scripted"
    capability: Capability = Capability(True)
    asked: list[Request] = field(default_factory=list)
    left: dict[int, int] = field(default_factory=dict)

    @property
    def pending(self) -> int:
        return len(self.left)

    def submit(self, request: Request, drafts: bool = False) -> int:
        if len(request.messages or ()) > self.window:
            raise WindowError("too long")
        self.asked.append(request)
        self.left[len(self.asked)] = 0
        return len(self.asked)

    def step(self) -> list[Any]:
        found: list[Any] = []
        for number, count in list(self.left.items()):
            self.left[number] += 1
            found += [Commit(number, SAID[count], (count,))]
            if count == 2:
                del self.left[number]
                found += [Done(number, Result("".join(SAID), (0, 1, 2), "eos", Metrics()))]
        return found

    def cancel(self, number: int) -> Result | None:
        count = self.left.pop(number, None)
        return None if count is None else Result("".join(SAID[:count]), (), "cancelled", Metrics())

    def close(self) -> None:
        pass


def conversation(**fields: Any) -> tuple[Conversation, Scripted]:
    session: Any = Scripted(**fields)
    return Conversation(OpenEngine(session), {"seed": 3}, "Be brief."), session


def roles(request: Request) -> list[str]:
    return [str(turn["role"]) for turn in request.messages or ()]


def test_every_turn_is_asked_with_those_before_it_and_a_reset_forgets_them() -> None:
    talk, session = conversation()
    for text in ("a", "b"):
        assert [event.kind for event in talk.ask(text)] == ["commit", "commit", "commit", "done"]
    assert roles(session.asked[1]) == ["system", "user", "assistant", "user"] and session.asked[1].seed == 3
    assert talk.turns[1] == {"role": "assistant", "content": "One two three"} and len(talk.turns) == 4
    talk.reset()
    next(iter(talk.ask("c")))
    assert roles(session.asked[2]) == ["system", "user"]


def test_an_answer_that_is_stopped_keeps_what_was_said_and_leaves_the_engine_free() -> None:
    talk, session = conversation()
    heard: list[Any] = []
    for event in talk.ask("a", lambda: len(heard) == 2):
        heard.append(event)
    assert heard[-1].result.finish_reason == "cancelled" and session.pending == 0
    assert [turn["content"] for turn in talk.turns] == ["a", "One two"]
    assert [event.kind for event in talk.ask("b", lambda: True)] == ["done"]
    assert len(talk.turns) == 2, "nothing was said, nothing is kept"


def test_a_full_window_forgets_the_oldest_turns_and_one_turn_that_does_not_fit_is_an_error() -> None:
    talk, session = conversation(window=4)
    for text in ("a", "b", "c"):
        list(talk.ask(text))
    assert talk.forgotten == 2 and roles(session.asked[-1]) == ["system", "user", "assistant", "user"]
    assert [turn["content"] for turn in talk.turns[::2]] == ["b", "c"]
    talk, session = conversation(window=1)
    with pytest.raises(DecodeError, match="too long"):
        list(talk.ask("a"))


def test_a_piped_chat_answers_line_by_line_and_says_what_it_kept(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO("Hello\n\n/help\nand \\\nmore\n/reset\nagain\n/quit\nnever\n"))
    asked = ["chat", "--max-new-tokens", "6", "--temperature", "0"]
    assert main([*asked, "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert [turn["role"] for turn in told["turns"]] == ["user", "assistant"] and told["turns"][0]["content"] == "again"
    monkeypatch.setattr(sys, "stdin", io.StringIO("again"))
    assert main(asked) == 0
    out, err = capsys.readouterr()
    assert out.strip() == told["turns"][1]["content"] and "per forward" in err


def test_ctrl_c_ends_the_answer_and_the_chat_goes_on(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    session: Any = Scripted()
    step, words = session.step, iter(["first", KeyboardInterrupt, "second", EOFError])

    def typed(*_: Any) -> str:
        word = next(words)
        if not isinstance(word, str):
            raise word
        return word

    def interrupted() -> list[Any]:
        if len(session.asked) == 1:
            os.kill(os.getpid(), signal.SIGINT)
        return list(step())

    session.step = interrupted
    monkeypatch.setattr(opening, "open_engine", lambda config, console: OpenEngine(session))
    monkeypatch.setattr("builtins.input", typed)
    monkeypatch.setattr(sys.stdin, "isatty", lambda: True, raising=False)
    assert main(["chat"]) == 0
    out, err = capsys.readouterr()
    assert out == "One\nOne two three\n" and "cancelled" in err and "once more to leave" in err
    assert [turn["content"] for turn in session.asked[1].messages] == ["first", "One", "second"]


def test_a_mistake_on_a_pipe_ends_with_its_exit_code(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO("Hello\n"))
    assert main(["chat", "--max-new-tokens", "100000"]) == 2
    assert "window" in capsys.readouterr().err
