# The benchmark of shared beginnings on the bundled child: what it counts, and that both engines write the same.
# Entry points: the tests.
# Speed itself is not tested: the machine that runs the tests is shared.
"""bench prefix."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from hildanext.bench.prefix import run
from hildanext.config import load_config
from hildanext.decoding.sharing import Sharing
from hildanext.errors import ConfigError
from hildanext.progress import Console


def bench(folder: Path, **more: Any) -> dict[str, Any]:
    values = [f"bench.prefix.{name}={json.dumps(value)}" for name, value in {"repeats": 1, **more}.items()]
    return run(load_config(None, [*values, f"paths.runs={folder}", "model.device=cpu"]), Console(quiet=True))


def test_what_was_there_is_counted_and_the_text_is_the_same(tmp_path: Path, monkeypatch: Any) -> None:
    questions = ["What pet did Lily have?", "What was its name?"]
    report = bench(tmp_path, prefix_tokens=70, question_tokens=6, questions=questions, turn_tokens=20)
    first, turns = report["first_block"], report["turns"]
    assert first["texts_equal"] == 1.0 and (first["prompt_tokens"], first["cached_tokens"]) == (76, 64)
    assert first["times_sooner"] == first["seconds"]["off"] / first["seconds"]["on"]
    assert turns[0]["cached_tokens"] == turns[0]["tokens_before"] == 0
    alike, block = turns[1]["rendered_alike"], first["block"]
    assert alike == turns[1]["tokens_before"] and turns[1]["cached_tokens"] == (alike - 1) // block * block
    assert json.loads((Path(report["run"]) / "report.json").read_text(encoding="utf-8"))["turns"] == turns
    with pytest.raises(ConfigError, match="set at most"):
        bench(tmp_path, prefix_tokens=5000)


def test_blocks_that_are_not_handed_over_are_seen_in_the_report(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr(Sharing, "hand", lambda *_: None)
    report = bench(tmp_path, prefix_tokens=40, question_tokens=6, questions=[])
    assert report["first_block"]["cached_tokens"] == 0 and report["turns"] == []
