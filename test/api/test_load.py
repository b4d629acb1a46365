# Many streaming clients at once over a real model: every answer equals the same request alone, and nothing is lost.
# Entry points: pytest; `python -m api.soak` runs it longer by hand.
# A random model over single characters: gibberish, but the same gibberish every time.
"""Load."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from api.live import live_server, wait_ready
from api.soak import soak
from engines.toy import toy_folder

from hildanext.config import Config


def test_thirty_two_streams_each_get_what_they_get_alone(tmp_path: Path, random_model: Callable[..., Any]) -> None:
    folder = toy_folder(tmp_path / "toy", random_model)
    config = Config.model_validate(
        {
            "paths": {name: str(tmp_path / name) for name in ("data", "models", "runs")},
            "model": {"path": str(folder), "dtype": "float32", "device": "cpu"},
            "decode": {"block": 8, "requests": 32, "max_new_tokens": 24},
            "serve": {"engines": [{"type": "transformers"}], "queue": 64},
        }
    )
    with live_server(config) as (url, app):
        wait_ready(url)
        report = soak(url, clients=32, seconds=1.5, new_tokens=16, rules=False)
        assert app.state.server.worker.queued == 0
    assert report["wrong"] == [] and report["lost"] == [] and report["answers"] >= 32
