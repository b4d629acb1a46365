# The configuration: precedence, extends, overrides typed by the schema, placeholders, all problems at once.
# Entry points: pytest.
# Files are written into a temporary folder.
"""Tests of hildanext.config."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from hildanext import registry
from hildanext.config import Config, config_schema, load_config, resolved_json
from hildanext.errors import ConfigError
from hildanext.registry import plugin_problems


def write(folder: Path, name: str, values: Any) -> Path:
    """A JSON file in `folder`."""
    path = folder / name
    path.write_text(json.dumps(values))
    return path


def test_the_file_beats_what_it_extends_and_an_override_beats_the_file(tmp_path: Path) -> None:
    write(tmp_path, "base.json", {"seed": 1, "train": {"steps": 10, "batch": 3}})
    path = write(tmp_path, "child.json", {"extends": "base.json", "train": {"steps": 20}})
    config = load_config(path, ["train.steps=30"])
    assert (config.seed, config.train.batch, config.train.steps) == (1, 3, 30)


def test_later_parents_beat_earlier_ones(tmp_path: Path) -> None:
    write(tmp_path, "a.json", {"seed": 1})
    write(tmp_path, "b.json", {"seed": 2})
    assert load_config(write(tmp_path, "c.json", {"extends": ["a.json", "b.json"]})).seed == 2


def test_a_circle_of_extends_is_refused(tmp_path: Path) -> None:
    write(tmp_path, "a.json", {"extends": "b.json"})
    with pytest.raises(ConfigError, match="circle"):
        load_config(write(tmp_path, "b.json", {"extends": "a.json"}))


def test_overrides_take_their_type_from_the_schema() -> None:
    config = load_config(
        None, ["data.name=123", "train.steps=7", "ladder.warmup=[1,8]", "model.trust_remote_code=true"]
    )
    assert (config.data.name, config.train.steps, config.ladder.warmup) == ("123", 7, (1, 8))
    assert config.model.trust_remote_code is True


def test_another_plugin_type_replaces_the_section_whole(tmp_path: Path) -> None:
    write(tmp_path, "a.json", {"objective": {"type": "one", "x": 1}})
    config = load_config(write(tmp_path, "b.json", {"extends": "a.json", "objective": {"type": "two"}}))
    assert config.objective.model_dump() == {"type": "two"}
    assert load_config(tmp_path / "a.json", ["objective.y=2"]).objective.model_dump() == {"type": "one", "x": 1, "y": 2}


def test_an_override_inside_a_plugin_section_keeps_the_default_plugin() -> None:
    assert load_config(None, ["export.format.dtype=float16"]).export.format.model_dump() == {
        "type": "huggingface",
        "dtype": "float16",
    }


def test_every_problem_is_reported_with_the_nearest_key(tmp_path: Path) -> None:
    path = write(tmp_path, "bad.json", {"seeed": 1, "train": {"stepz": 1, "batch": 0}, "model": {"dtype": "fp8"}})
    with pytest.raises(ConfigError) as caught:
        load_config(path, ["no_equals_sign", "objective.type=mask_and_edti"], check=plugin_problems)
    text = str(caught.value)
    assert all(word in text for word in ("'seed'", "'steps'", "train.batch", "fp8", "a.b=value", "mask_and_edit"))


def test_placeholders_come_from_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HILDANEXT_MODEL", "/somewhere")
    path = write(tmp_path, "c.json", {"model": {"path": "${HILDANEXT_MODEL}/qwen"}})
    assert load_config(path).model.path == "/somewhere/qwen"


def test_a_placeholder_that_is_not_set_or_not_ours_is_named(tmp_path: Path) -> None:
    path = write(tmp_path, "c.json", {"model": {"path": "${HILDANEXT_NOT_SET}"}, "paths": {"data": "${HOME}"}})
    with pytest.raises(ConfigError, match=r"(?s)HILDANEXT_NOT_SET.*HOME|HOME.*HILDANEXT_NOT_SET"):
        load_config(path)


@pytest.mark.parametrize("text", ["{", "[1]", "\x00"])
def test_a_file_that_is_no_object_is_one_clear_line(text: str, tmp_path: Path) -> None:
    (tmp_path / "c.json").write_text(text)
    with pytest.raises(ConfigError, match=r"c\.json"):
        load_config(tmp_path / "c.json")


def test_a_resolved_config_loads_to_itself(tmp_path: Path) -> None:
    config = load_config(None, ["seed=5", "train.steps=9"])
    path = tmp_path / "config.json"
    path.write_text(resolved_json(config))
    assert load_config(path) == config


def test_the_configuration_is_frozen() -> None:
    with pytest.raises(ValidationError):
        Config().seed = 1  # type: ignore[misc]


def test_every_field_of_the_schema_has_a_description_or_is_a_section() -> None:
    def fields(schema: dict[str, Any]) -> list[str]:
        parts = [schema, *schema["$defs"].values()]
        return [n for p in parts for n, f in p.get("properties", {}).items() if not {"description", "$ref"} & set(f)]

    assert [name for name in fields(config_schema()) if name != "type"] == []


def test_a_value_that_fits_none_of_several_types_is_one_problem_at_its_own_place() -> None:
    with pytest.raises(ConfigError) as caught:
        load_config(None, ["decode.tau_mask=7", "decode.max_post_steps=-1", "decode.block=-1"])
    lines = str(caught.value).splitlines()[1:]
    assert [line.strip() for line in lines] == [
        "decode.tau_mask: input should be less than or equal to 1, or 'preset' (found 7)",
        "decode.max_post_steps: input should be greater than or equal to 0, or 'preset' (found -1)",
        "decode.block: input should be greater than or equal to 0 (found -1)",
    ]


def test_an_unknown_key_is_named_also_where_it_reads_like_a_type() -> None:
    with pytest.raises(ConfigError, match=r"decode\.float: unknown key"):
        load_config(None, ["decode.float=1"])
    with pytest.raises(ConfigError, match="int: unknown key"):
        registry.build("policies", {"type": "threshold_edit", "int": 1}, "policy")


@pytest.mark.parametrize(
    "value",
    [
        "optimizer.betas=[1.0,0.9]", "optimizer.betas=[0.9,-0.1]", "optimizer.betas=[0.9,NaN]", "optimizer.clip=1e-300",
        "optimizer.clip=-1", "optimizer.eps=1e300", "optimizer.eps=0", "optimizer.lr=1e-300", "optimizer.lr=Infinity",
        "optimizer.weight_decay=1e300", "seed=9223372036854775808", "model.new.seed=99999999999999999999",
    ],
)  # fmt: skip
def test_values_that_crash_or_train_nothing_are_refused_by_name(value: str) -> None:
    with pytest.raises(ConfigError, match=value.partition("=")[0]) as refused:
        load_config(None, [value])
    assert len(str(refused.value).splitlines()) <= 2


@pytest.mark.parametrize(
    "value", ["optimizer.betas=[0,0]", "optimizer.clip=0", "optimizer.clip=1e-6", "seed=9223372036854775807"]
)
def test_values_at_the_bounds_are_taken(value: str) -> None:
    place, _, text = value.partition("=")
    found: Any = load_config(None, [value]).model_dump(mode="json")
    for key in place.split("."):
        found = found[key]
    assert found == json.loads(text)
