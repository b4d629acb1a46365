# What the parity probe asks our own engine to do: the server's settings, whatever the model folder was calibrated to.
# Entry points: pytest.
# The native engine is a recorder; the server repeats its tokens.
"""Settings of the sglang probe."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import pytest

from hildanext.config.decode import DecodeConfig
from hildanext.decoding.modes import resolve_mode
from hildanext.decoding.request import Request
from hildanext.engines.sglang import PROBES, Client, Sglang
from hildanext.models.meta import HildaMeta

CALIBRATED = {"Q_MODE": {"max_post_steps": 0, "tau_mask": 0.9}}


class Recorder:
    """Stands for a native session and keeps the requests it is given."""

    def __init__(self) -> None:
        self.asked: list[Request] = []
        self.engine, self.facts = self, SimpleNamespace(block=4)
        self.loaded = SimpleNamespace(tokenizer=lambda text, **_: {"input_ids": [1, 2]}, meta=HildaMeta())

    def generate(self, request: Request) -> Any:
        self.asked.append(request)
        return SimpleNamespace(token_ids=(7,))


class Echo:
    """Stands for the server's client."""

    def call(self, method: str, path: str, body: Any) -> dict[str, Any]:
        return {"output_ids": [7]}


@pytest.mark.parametrize(("steps", "expected"), [({}, 16), ({"max_post_edit_steps": 3}, 3)])
def test_the_probe_decodes_as_the_server_is_set_not_as_the_folder_is(steps: dict[str, int], expected: int) -> None:
    native, engine = Recorder(), Sglang.model_validate({"threshold": 0.6, "edit_threshold": 0.4, **steps})
    assert engine._differences(cast(Client, Echo()), cast(Any, native)) == []
    presets = [resolve_mode(request, DecodeConfig(), CALIBRATED).preset for request in native.asked]
    assert len(presets) == len(PROBES)
    for preset in presets:
        assert (preset["tau_mask"], preset["tau_edit"], preset["max_post_steps"]) == (0.6, 0.4, expected)
