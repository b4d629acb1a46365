# Every configuration file parses, and the presets name only what exists.
# Entry points: pytest.
# The planted fault is a file with an unknown key.
"""Guards of runs/configs."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from hildanext.config import load_config
from hildanext.errors import ConfigError
from hildanext.registry import plugin_problems

CONFIGS = sorted((Path(__file__).resolve().parents[2] / "runs" / "configs").glob("*.json"))
EXPECTED = {"default", "tiny_cpu", "qwen3_0.6b_8gb", "qwen3_0.6b_gpu", "qwen3_0.6b_multigpu"}


@pytest.fixture
def variables(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (
        "HILDANEXT_MODEL",
        "HILDANEXT_DATA",
        "HILDANEXT_ROWS",
        "HILDANEXT_DOLMA",
        "HILDANEXT_TINYSTORIES",
        "HILDANEXT_ASSETS",
        "HILDANEXT_ANCHORS",
    ):
        monkeypatch.setenv(name, "somewhere")


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_the_file_parses(path: Path, variables: None) -> None:
    assert load_config(path, check=plugin_problems).description


def test_every_target_has_a_preset() -> None:
    assert {path.stem for path in CONFIGS} >= EXPECTED


def test_the_default_file_is_the_default_configuration(project: Path) -> None:
    from_file = load_config(project / "runs" / "configs" / "default.json")
    assert from_file.model_copy(update={"description": ""}) == load_config()


def test_a_planted_unknown_key_is_seen(tmp_path: Path) -> None:
    path = tmp_path / "bad.json"
    path.write_text(json.dumps({"description": "x", "train": {"stepz": 1}}))
    with pytest.raises(ConfigError, match="steps"):
        load_config(path)
