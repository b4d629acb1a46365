# What a job may name: checked where it is used, against the server's own folders and nothing else.
# Entry points: pytest.
# The hostile values are in test_hostile.py; here is what must stay possible.
"""Confinement of jobs."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from api.live import config_in

from hildanext.api.confine import Confinement
from hildanext.api.replies import ApiError
from hildanext.config import Config, load_config, resolved_json


def test_a_server_with_its_own_folders_takes_a_configuration_file(tmp_path: Path) -> None:
    config = config_in(tmp_path)
    plain, full, other = (tmp_path / "runs" / f"{name}.json" for name in ("plain", "full", "other"))
    plain.write_text('{"train": {"steps": 3}}')
    full.write_text(resolved_json(config))
    other.write_text(json.dumps({"paths": {"runs": str(tmp_path / "elsewhere")}}))
    allowed = Confinement(config)
    for file in (plain, full):
        assert allowed.resolved(str(file), []).paths == config.paths
    assert allowed.resolved(str(plain), ["seed=4"]).train.steps == 3
    with pytest.raises(ApiError, match=r"paths.runs: a job uses the server's own paths"):
        allowed.resolved(str(other), [])
    with pytest.raises(ApiError, match="paths.data"):
        allowed.resolved(str(plain), ["paths.data=data"])


def test_relative_folders_of_the_server_are_known_by_any_spelling(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("data", "models/child", "runs/a"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "models" / "out").symlink_to(tmp_path / "runs")
    allowed = Confinement(load_config())
    for good in ("models/new", "./models/exports/x", "runs/../models/new", str(tmp_path / "models" / "n"), "data/x"):
        allowed.resolved(None, [f"export.output={good}"])
    for bad in (
        "models",
        "./models/",
        "models/../data",
        "runs",
        ".",
        "models/out",
        "models/out/x",
        "runs/a",
        "notes/x",
    ):
        with pytest.raises(ApiError, match="export.output"):
            allowed.resolved(None, [f"export.output={bad}"])
    allowed.resolved(None, ["merge.run=runs/a", "merge.output=runs/a/merged"])
    allowed.resolved(None, ["merge.run=runs/a", 'merge.members=["step-000002", "models/child"]'])


def test_a_hub_name_is_taken_where_a_data_set_is_read(tmp_path: Path) -> None:
    allowed = Confinement(config_in(tmp_path))
    allowed.resolved(None, ['data.sources=[{"type": "huggingface", "dataset": "some/where"}]'])
    allowed.resolved(None, ['eval.tasks=[{"type": "gsm8k", "path": "hub:openai/gsm8k/main:test"}]'])
    with pytest.raises(ApiError, match="inspect.against"):
        allowed.resolved(None, ["inspect.against=some/where"])


def test_what_the_server_trusts_in_one_place_is_not_trusted_in_another(tmp_path: Path) -> None:
    secret = str(tmp_path / "elsewhere" / "model")
    own = config_in(tmp_path / "project").model_dump() | {"model": {"path": secret}}
    allowed = Confinement(Config.model_validate(own))
    allowed.resolved(None, [f"model.path={secret}"])
    for place in (
        "export.output",
        "answer.output",
        "answer.path",
        "inspect.against",
        "train.data",
        "tokenize.tokenizer",
    ):
        with pytest.raises(ApiError, match=place):
            allowed.resolved(None, [f"{place}={secret}"])


@pytest.mark.parametrize(
    "said",
    [
        'data.sources=[{"type": "jsonl", "path": "s3://bucket/rows"}]',
        'data.sources=[{"type": "jsonl", "path": "http://169.254.169.254/latest"}]',
        "train.data=file:///etc",
        'data.executor={"type": "slurm", "setup": "touch owned"}',
        'data.executor={"type": "local"}',
    ],
)
def test_a_job_reaches_no_storage_and_no_cluster(said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    here = Confinement(load_config(overrides=["paths.data=."]))
    with pytest.raises(ApiError):
        here.resolved(None, [said])
