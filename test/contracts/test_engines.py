# What every engine keeps: opening says yes with a session or no with reasons, and an open session works and forgets.
# Entry points: pytest. A new engine is found by its file.
# This machine lacks what most engines need, which is the point of half of the contract.
"""Contract of the engines."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from models.gguf_file import HERE

from hildanext.config import Config
from hildanext.config.model import ModelConfig
from hildanext.decoding.events import Done
from hildanext.decoding.request import Request
from hildanext.engines.protocol import Capability, EnginePlugin, Opening
from hildanext.errors import DecodeError
from hildanext.models.gguf_writing import write_gguf
from hildanext.models.load import load_model
from hildanext.models.onnx.folder import missing_packages
from hildanext.progress import Console
from hildanext.registry import build, names

NAMES = names("engines")
QUIET = Console(quiet=True)


def opening_of(engine: Any, path: str) -> Opening:
    """The outcome of opening an engine over a model."""
    made: Opening = engine.open(Config.model_validate({"model": {"path": path}}), QUIET)
    return made


def broken_promises(opening: Opening) -> list[str]:
    """What is wrong with an opening, and with its session before any request."""
    if not opening.capability.ok:
        found = [] if opening.session is None else ["refused with a session"]
        reasons = opening.capability.reasons
        return found + ([] if reasons and all(reason.strip() for reason in reasons) else ["refused without a reason"])
    session, found = opening.session, []
    if session.capability != opening.capability or not opening.capability.devices:
        found.append("capability differs from the session's, or names no device")
    facts = session.facts
    if not (facts.model and facts.device and facts.dtype and facts.window >= 0 and facts.block > 0):
        found.append(f"facts say too little: {facts}")
    return found + ([] if session.pending == 0 and not list(session.step()) else ["a fresh session has work"])


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("path", ["tiny", "no/such/folder"])
def test_opening_gives_a_session_or_reasons_and_never_raises(name: str, path: str) -> None:
    opening = opening_of(build("engines", {"type": name}), path)
    assert broken_promises(opening) == []
    if opening.session is not None:
        assert opening.session.name == name
        opening.session.close()


def opened(story_model: Path) -> list[Any]:
    """Every session that opens here over a folder or over the bundled model."""
    found = [
        opening_of(build("engines", {"type": name}), path) for name in NAMES for path in ("tiny", str(story_model))
    ]
    if not missing_packages():
        graph = {"type": "onnx", "export": True, "folder": str(story_model.with_name("graph"))}
        found.append(opening_of(build("engines", graph), str(story_model)))
        assert found[-1].capability.ok
    if find_spec("llama_cpp") is not None and HERE:
        write_gguf(load_model(ModelConfig(path=str(story_model))), story_model.with_name("file"), "f32")
        file = {"type": "llamacpp", "file": str(story_model.with_name("file") / "file.gguf")}
        found.append(opening_of(build("engines", file), str(story_model)))
        assert found[-1].capability.ok, found[-1].capability.reasons
    return [opening.session for opening in found if opening.capability.ok]


def results(session: Any) -> dict[int, Any]:
    """Drive a session until nothing is pending."""
    found = {}
    while session.pending:
        found |= {event.request: event.result for event in session.step() if isinstance(event, Done)}
    return found


def test_an_open_session_serves_cancels_resets_and_closes(story_model: Path) -> None:
    sessions = opened(story_model)
    assert {session.name for session in sessions} >= {"tiny", "transformers"}
    for session in sessions:
        numbers = [session.submit(Request.of(prompt=text, max_new_tokens=6)) for text in ("Tom ran", "One day")]
        done = results(session)
        assert sorted(done) == sorted(numbers) and all(len(done[number].token_ids) <= 6 for number in numbers)
        again = session.submit(Request.of(prompt="Tom ran", max_new_tokens=6))
        assert again not in numbers and results(session)[again].token_ids == done[numbers[0]].token_ids
        cancelled = session.cancel(session.submit(Request.of(prompt="Tom ran", max_new_tokens=6)))
        assert cancelled.finish_reason == "cancelled" and session.pending == 0 and session.cancel(99) is None
        session.submit(Request.of(prompt="Tom ran", max_new_tokens=6))
        session.reset()
        assert session.pending == 0 and not list(session.step())
        session.close()


def test_an_open_session_refuses_what_it_cannot_serve_and_keeps_nothing_of_it(story_model: Path) -> None:
    for session in opened(story_model):
        with pytest.raises(DecodeError):
            session.submit(Request.of(prompt="Tom ran", mode="NO_SUCH_MODE"))
        with pytest.raises(DecodeError):
            session.submit(Request.of(prompt_ids=(1 << 40,)))
        assert session.pending == 0
        session.close()


def test_planted_openings_without_reasons_or_with_another_capability_are_seen() -> None:
    class Silent(EnginePlugin):
        """Refuses and does not say why."""

        def open(self, config: Config, console: Console) -> Opening:
            return Opening(Capability(False))

    assert broken_promises(opening_of(Silent(), "tiny")) == ["refused without a reason"]
    real = opening_of(build("engines", {"type": "tiny"}), "tiny")
    assert broken_promises(Opening(Capability(True), real.session)) == [
        "capability differs from the session's, or names no device"
    ]
