# The memory of rollouts and updates, by part, against the parts of training and of decoding; and that presets fit.
# Entry points: pytest.
# No model is loaded: shapes come from a configuration.
"""Tests of models/policy_footprint.py and train/recipes/reinforce_plan.py."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from hildanext.cli import main
from hildanext.config import Config, load_config
from hildanext.models import preflight
from hildanext.models.load import kind_at
from hildanext.models.policy_footprint import policy_footprint
from hildanext.models.preflight import estimate

CONFIGS = Path(__file__).resolve().parents[2] / "runs" / "configs"
TINY = ["model.path=tiny", "tokenize.window=128", "decode.prefix_bytes=0"]


def needed(config: Config, command: str) -> dict[str, Any]:
    return estimate(config, 128, footprint=policy_footprint(config, command))


def test_a_rollout_is_counted_where_it_takes_more_than_the_update_and_only_what_is_more() -> None:
    small = load_config(None, [*TINY, "decode.requests=1", "decode.step_tokens=16"])
    assert needed(small, "rl")["rollout"] == 0
    large = load_config(None, [*TINY, "decode.requests=4096"])
    found, decoding = needed(large, "rl"), kind_at("tiny").footprint(large.model).decoding(large, 128)
    update = found["activations"] + found["logits"] + found["gradients"]
    whole = decoding["activations"] + decoding["logits"] + decoding["kv"]
    assert found["rollout"] == pytest.approx(whole - update, abs=4) and found["rollout"] > 0
    assert "rollout" not in needed(large, "dpo") and policy_footprint(large, "sft") is None


def test_a_reference_that_is_a_copy_is_counted_and_adapters_need_none() -> None:
    def companions(*changes: str, command: str = "rl") -> float:
        return needed(load_config(None, [*TINY, *changes]), command).get("companions", 0)

    weights = kind_at("tiny").footprint(load_config(None, TINY).model).total * 4
    assert companions() == weights == companions(command="dpo")
    assert companions("model.adapter.kind=lora") == 0
    assert companions("model.adapter.kind=lora", "rl.reference=tiny-parent") > 0
    assert companions('rl.objective={"type": "ebpo", "kl_weight": 0.0}') == 0
    assert companions('rl.objective={"type": "trace"}') == 0


def test_an_update_holds_the_graph_of_one_view_and_pairs_are_two_rows() -> None:
    config = load_config(None, [*TINY, "train.batch=4"])
    twice = load_config(None, [*TINY, "train.batch=8"])
    views = load_config(None, [*TINY, "train.batch=4", 'rl.objective={"type": "ebpo", "draws": 8}'])
    assert needed(config, "rl")["activations"] == needed(views, "rl")["activations"]
    assert needed(config, "dpo")["activations"] == needed(twice, "rl")["activations"]


@pytest.mark.parametrize("gigabytes", [8, 24, 80])
def test_the_presets_of_qwen_fit_and_full_weights_do_not_on_the_smallest(
    gigabytes: int, assets: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HILDANEXT_MODEL", str(assets / "qwen3-0.6b-config"))
    monkeypatch.setenv("HILDANEXT_DATA", "nowhere")
    monkeypatch.setenv("HILDANEXT_ROWS", "nowhere")
    monkeypatch.setattr(preflight, "_around", lambda *given: {})  # a GPU has neither this process nor a C heap
    config = load_config(CONFIGS / f"qwen3_0.6b_rl_{gigabytes}gb.json")
    window = config.tokenize.window

    def fits(config: Config) -> bool:
        found = estimate(config, window, available=gigabytes * 10**9, footprint=policy_footprint(config, "rl"))
        return bool(found["fits"])

    assert fits(config)
    adapter = load_config().model.adapter
    assert gigabytes > 8 or not fits(
        config.model_copy(update={"model": config.model.model_copy(update={"adapter": adapter})})
    )


def test_the_plan_says_steps_rollouts_and_memory(capsys: pytest.CaptureFixture[str]) -> None:
    given = ["rl", "--config", str(CONFIGS / "rl_tiny.json"), "--print-plan", "--json", "--set", "train.steps=41"]
    assert main(given) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["rollouts"] == 41 and found["updates"] == 1 and found["answers"] == 41 * 32
    assert found["memory"]["fits"] and found["memory"]["total"] > found["memory"]["parameters"] > 4e6
