# What a command leaves behind and what it calls things: log.txt, no run after a failure, the dtype and names of models.
# Entry points: pytest.
# Each is the walk of a new user with a model of their own.
"""Runs, names and messages around a training."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from train.material import overrides, run

from hildanext.cli import main
from hildanext.config import Config
from hildanext.config.model import ModelConfig
from hildanext.engines.choose import choose
from hildanext.errors import ModelError
from hildanext.models.load import load_model, name_of
from hildanext.models.save import save_model
from hildanext.models.tensors import stored_dtype
from hildanext.progress import Console

TINY = Path(load_model(ModelConfig(path="tiny")).path or "")


def command(*words: str, runs: Path) -> list[str]:
    return [*words, "--set", f"paths.runs={runs}"]


def settings(shards: Path, **changes: object) -> list[str]:
    return [word for value in overrides(shards, **changes) for word in ("--set", value)]


def test_a_bf16_parent_gives_a_bf16_child_called_after_its_run(shards: Path, parent: Path, tmp_path: Path) -> None:
    loaded = load_model(ModelConfig(path=str(parent)))
    loaded.denoiser.to(torch.bfloat16)  # type: ignore[attr-defined]
    half = save_model(loaded.denoiser, loaded.tokenizer, tmp_path / "half", loaded.meta)
    run(tmp_path / "child", shards, model__path=str(half))
    run(tmp_path / "whole", shards, model__path=str(half), model__dtype="float32")
    assert stored_dtype(tmp_path / "child" / "model") == torch.bfloat16
    assert stored_dtype(tmp_path / "whole" / "model") == torch.float32
    assert {path.name: name_of(path) for path in (tmp_path / "child" / "model", half, TINY)} == {
        "model": "child", "half": "half", "child": "tiny",
    }  # fmt: skip


@pytest.fixture
def ran(tmp_path: Path) -> Path:
    """A run that wrote the bundled child as its model."""
    (tmp_path / "sft-7").mkdir()
    (tmp_path / "sft-7" / "status.json").write_text('{"state": "done"}')
    (tmp_path / "sft-7" / "config.json").write_text("{}")
    shutil.copytree(TINY, tmp_path / "sft-7" / "model")
    return tmp_path / "sft-7"


def test_a_run_stands_for_the_model_it_wrote(ran: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = Config.model_validate({"model": {"path": str(ran)}, "serve": {"engines": [{"type": "transformers"}]}})
    assert choose(config, Console(quiet=True))[0].facts.model == "sft-7"
    assert main(["generate", "--model", str(ran), "--prompt", "the fox", "--max-new-tokens", "4"]) == 0
    shutil.rmtree(ran / "model")
    (ran / "checkpoints" / "step-000004").mkdir(parents=True)
    with pytest.raises(ModelError, match="not written its model yet; its newest checkpoint is .*step-000004"):
        choose(config, Console(quiet=True))


@pytest.mark.parametrize("name", ["nowhere", "empty", "file"])
def test_a_wrong_path_is_said_once(tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("x")
    path = str(tmp_path / name)
    for words in (["generate", "--model", path, "--prompt", "a"], ["inspect", path], ["eval", "--model", path]):
        assert main(command(*words, runs=tmp_path / "runs")) == 2
        said = capsys.readouterr().err
        assert said.count(path) == 1 and said.count("\n") == 1 and "dinfer" not in said, said
    assert not list((tmp_path / "runs").glob("*"))


def test_failed_commands_and_inspect_leave_no_run_directory(
    shards: Path, parent: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    runs = tmp_path / "runs"
    chats = shutil.copytree(shards, tmp_path / "chats")
    shutil.rmtree(chats / "train")
    shutil.rmtree(chats / "eval")
    assert main(command("convert-wsd", *settings(chats, model__path=str(parent)), runs=runs)) == 2
    said = capsys.readouterr().err
    assert "sft_eval, sft_train" in said and "hildanext sft" in said and "Traceback" not in said
    assert main(command("inspect", str(parent), "--no-parity", runs=runs)) == 0
    assert not list(runs.glob("*"))
    assert main(command("inspect", str(parent), "--no-parity", "--run-dir", str(tmp_path / "kept"), runs=runs)) == 0
    assert "parameters" in (tmp_path / "kept" / "log.txt").read_text()


def test_the_console_of_a_run_is_kept_in_its_log(
    shards: Path, parent: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["convert-wsd", "--quiet", *settings(shards, model__path=str(parent))]
    assert main([*words, "--run-dir", str(tmp_path / "run")]) == 0
    log = (tmp_path / "run" / "log.txt").read_text()
    assert (
        "evaluation NLL" in log
        and f"model: {tmp_path / 'run' / 'model'}" in log
        and "model: " not in capsys.readouterr().err
    )
    failed = ["convert-wsd", *settings(tmp_path / "none", model__path=str(parent))]
    assert main([*failed, "--run-dir", str(tmp_path / "failed")]) == 2
    assert "failed: DataError" in (tmp_path / "failed" / "log.txt").read_text()


@pytest.mark.parametrize(
    ("words", "code"), [(["--mode", "q_mode"], 0), (["--mode", "FAST"], 2), (["--policy", "x"], 2)]
)
def test_a_mode_is_understood_before_anything_is_loaded(
    words: list[str], code: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    opened: list[str] = []

    def refuse(*values: object, **named: object) -> None:
        opened.append("engine")
        raise ModelError("planted: stop here")

    monkeypatch.setattr("hildanext.engines.opening.open_engine", refuse)
    assert main(["generate", "--prompt", "a", *words]) == 2
    assert opened == ([] if code else ["engine"])
    assert ("planted" in capsys.readouterr().err) == (code == 0)


@pytest.mark.parametrize(("adapter", "lr"), [([], "1e-05"), (["--set", "model.adapter.kind=lora"], "0.0002")])
def test_the_learning_rate_of_sft_depends_on_what_trains(
    adapter: list[str], lr: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["sft", "--print-config", *adapter]) == 0
    assert f'"lr": {lr}' in capsys.readouterr().out


def undecodable(start: Callable[[], int], capsys: pytest.CaptureFixture[str]) -> str:
    assert start() == 2
    return capsys.readouterr().err


def test_words_that_are_not_utf8_are_one_line(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    said = undecodable(lambda: main(["generate", "--prompt", "caf\udce9"]), capsys)
    assert "not UTF-8" in said and said.count("\n") == 1
    (tmp_path / "latin").write_bytes("café".encode("latin-1"))
    with (tmp_path / "latin").open(encoding="utf-8") as stdin:
        monkeypatch.setattr("sys.stdin", stdin)
        said = undecodable(lambda: main(["generate", "--prompt", "-"]), capsys)
    assert "stdin is not UTF-8 (byte 3)" in said and said.count("\n") == 1
