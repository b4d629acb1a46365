# Modes are configuration: one of the user's own works in every interface, a result names a mode only where it is due.
# Entry points: pytest.
# The real engine is the bundled pair's child; the values of the three built-in modes are written out here.
"""Modes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import httpx
import pytest
from api.live import config_in, live_server, wait_ready
from api.scripted import ScriptedSession

from hildanext.cli import main
from hildanext.config import Config, load_config
from hildanext.decoding.modes import resolve_mode
from hildanext.decoding.request import Request
from hildanext.engines.opening import open_engine
from hildanext.errors import ConfigError, DecodeError
from hildanext.registry import plugin_problems

BUILT_IN = {
    "S_MODE": {"tau_mask": 0.5, "tau_edit": 0.0, "max_post_steps": 16},
    "Q_MODE": {"tau_mask": 0.7, "tau_edit": 0.5, "max_post_steps": 16},
    "CONSERVATIVE": {"tau_mask": 0.95, "tau_edit": 0.9, "max_post_steps": 16},
}
MINE = "decode.modes.MINE.tau_mask=0.31"


def preset(sets: list[str], calibrated: Any = None, **asked: Any) -> Any:
    config = load_config(None, sets, check=plugin_problems).decode
    return resolve_mode(Request.of(prompt="a", **asked), config, calibrated or {}).preset


def test_the_built_in_modes_are_the_default() -> None:
    assert {name: section.values() for name, section in Config().decode.modes.items()} == BUILT_IN


def test_an_own_mode_stands_beside_them_and_an_own_value_over_one_of_theirs() -> None:
    modes = load_config(None, [MINE, "decode.modes.Q_MODE.tau_mask=0.6"]).decode.modes
    assert {name: section.values() for name, section in modes.items()} == {
        **BUILT_IN, "Q_MODE": BUILT_IN["Q_MODE"] | {"tau_mask": 0.6}, "MINE": {"tau_mask": 0.31},
    }  # fmt: skip


def test_every_wrong_value_of_every_mode_is_named_when_the_configuration_is_loaded() -> None:
    wrong = ["decode.modes.A.tau_mask=7", "decode.modes.B.tau=0.1", "decode.modes.C.type=nothing", "seeed=1"]
    with pytest.raises(ConfigError) as caught:
        load_config(None, wrong, check=plugin_problems)
    text = str(caught.value)
    assert all(place in text for place in ("decode.modes.A.tau_mask", "decode.modes.B.tau", "decode.modes.C", "seeed"))


def test_windows_come_from_the_mode_the_model_folder_the_configuration_and_the_request() -> None:
    mine, folder = ["decode.modes.MINE.window_blocks=2"], {"MINE": {"window_blocks": 3, "tau_add": 0.4}}
    both = [*mine, "decode.window_blocks=4", "decode.tau_semi=0.3"]
    asked = {"mode": "MINE", "window_blocks": 5, "tau_stable": 0.2}
    names = ("window_blocks", "tau_add", "tau_semi", "tau_stable")

    def found(sets: list[str], calibrated: Any, **given: Any) -> list[Any]:
        return [preset(sets, calibrated, **given).get(name) for name in names]

    assert found([], {}) == [None] * 4
    assert found(mine, {}, mode="MINE") == [2, None, None, None]
    assert found(mine, folder, mode="MINE") == [3, 0.4, None, None]
    assert found(both, folder, mode="MINE") == [4, 0.4, 0.3, None]
    assert found(both, folder, **asked) == [5, 0.4, 0.3, 0.2]
    assert found(both, {}, policy={"type": "factor", "tau_add": 0.6}) == [4, 0.6, 0.3, None]
    with pytest.raises(DecodeError, match="window_blocks"):
        preset([], {}, overrides={"window_blocks": 0})


def test_a_mode_may_name_another_policy() -> None:
    found = preset(["decode.modes.MINE.type=factor", "decode.modes.MINE.factor=2.0"], mode="MINE")
    assert (found["mode"], found["type"], found["factor"]) == ("MINE", "factor", 2.0)


def test_the_model_folders_values_lie_over_the_configured_mode() -> None:
    found = preset([MINE], {"MINE": {"tau_mask": 0.4}}, mode="MINE")
    assert (found["mode"], found["source"], found["tau_mask"]) == ("MINE", "model folder", 0.4)


def test_a_mode_that_gives_one_value_is_named() -> None:
    found = preset([], mode="S_MODE", tau_mask=0.3, tau_edit=None)
    assert (found["mode"], found["source"], found["max_post_steps"]) == ("S_MODE", "table", 16)


@pytest.mark.parametrize(
    ("sets", "asked", "source"),
    [
        ([], {"policy": "factor"}, "policy section"),
        (["decode.policy.type=factor"], {}, "policy section"),
        ([], {"tau_mask": 0.3, "tau_edit": None, "overrides": {"max_post_steps": 2}}, "explicit values"),
        (["decode.max_post_steps=0", "decode.tau_edit=0.5", "decode.tau_mask=0.5"], {}, "explicit values"),
        ([], {"policy": {"type": "threshold_edit", **BUILT_IN["Q_MODE"]}}, "policy section"),
    ],
)  # fmt: skip
def test_a_mode_that_gave_nothing_is_not_named(sets: list[str], asked: dict[str, Any], source: str) -> None:
    found = preset(sets, mode="S_MODE", **asked)
    assert (found["mode"], found["source"]) == (None, source)


def test_an_unknown_mode_is_refused_with_the_nearest_of_the_configured_ones() -> None:
    with pytest.raises(DecodeError, match="did you mean 'MINE'"):
        preset([MINE], mode="MIEN")


def test_an_own_mode_works_in_python_and_on_the_command_line(capsys: pytest.CaptureFixture[str]) -> None:
    sets = [MINE, "model.path=tiny", 'serve.engines=[{"type": "tiny"}]']
    words = ["generate", "--prompt", "Lily", "--max-new-tokens", "4", "--mode", "MINE", "--json"]
    assert main([*words, *(word for value in sets for word in ("--set", value))]) == 0
    told = json.loads(capsys.readouterr().out)
    asked = Request.of(prompt="Lily", max_new_tokens=4, mode="MINE")
    same = open_engine(load_config(None, sets)).generate(asked)
    assert (told["preset"]["mode"], told["preset"]["tau_mask"]) == ("MINE", 0.31)
    assert tuple(told["token_ids"]) == same.token_ids and same.preset is not None and same.preset["mode"] == "MINE"


def test_an_own_mode_works_over_http_and_is_listed(tmp_path: Path) -> None:
    config = config_in(tmp_path)
    config = config.model_copy(update={"decode": load_config(None, [MINE]).decode})
    with live_server(config, ScriptedSession()) as (url, _):
        wait_ready(url)
        assert httpx.get(f"{url}/modes").json()["modes"] == {**BUILT_IN, "MINE": {"tau_mask": 0.31}}
        body: dict[str, Any] = {"prompt": "a", "max_new_tokens": 2, "mode": "MINE"}
        assert httpx.post(f"{url}/generate", json=body).status_code == 200
        chat = {"model": "scripted", "prompt": "a", "max_tokens": 2, "mode": "MINE"}
        assert httpx.post(f"{url}/v1/completions", json=chat).status_code == 200
        refused = httpx.post(f"{url}/generate", json=body | {"mode": "MIEN"})
        assert refused.status_code == 422 and "did you mean 'MINE'" in refused.json()["error"]["message"]
        assert refused.json()["error"]["param"] == "mode"
