# The smoke test's stages, a failure that names its stage, and the demo without the bundled pair.
# Entry points: pytest.
# The whole smoke test is one command of README and runs there.
"""Tests of selftest/smoke.py and selftest/demo."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from hildanext import cli
from hildanext.config import Config
from hildanext.errors import RunError
from hildanext.progress import Console
from hildanext.report.losses import Plot
from hildanext.selftest import smoke
from hildanext.selftest.demo import decoding, toy_training
from hildanext.selftest.demo import run as demo
from hildanext.selftest.demo.part import Sizes
from hildanext.selftest.demo.toy_training import ToyTraining
from hildanext.train import recorder


@pytest.fixture(autouse=True)
def undrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Trainings draw no picture."""
    monkeypatch.setattr(recorder, "plot_losses", lambda run, ladder: Plot(run / "plots" / "loss.png", ""))


def _light(monkeypatch: pytest.MonkeyPatch, *left_out: str) -> None:
    stages = {name: stage for name, stage in smoke.STAGES.items() if name not in left_out}
    monkeypatch.setattr(smoke, "STAGES", stages)


def test_every_stage_but_the_server_passes_on_a_random_model(
    story_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    _light(monkeypatch, "server")
    assert cli.main(["smoke-test", "--model", str(story_model), "--run-dir", str(tmp_path / "run")]) == 0
    assert "OK, " in capsys.readouterr().err
    assert len(json.loads((tmp_path / "run" / "report.json").read_text())["stages"]) == len(smoke.STAGES)


def test_a_failure_names_its_stage_and_ends_with_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code = cli.main(["smoke-test", "--model", str(tmp_path / "nowhere"), "--run-dir", str(tmp_path / "run")])
    assert code == 1 and "stage load" in capsys.readouterr().err


def test_an_unexpected_error_is_also_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(bench: Any) -> str:
        raise ZeroDivisionError("planted")

    monkeypatch.setattr(smoke, "STAGES", {"planted": broken})
    with pytest.raises(RunError, match="stage planted: ZeroDivisionError: planted"):
        smoke.smoke_test(Config(), Console(quiet=True), tmp_path / "run")


def test_a_server_that_ends_at_once_is_reported_with_its_words(tmp_path: Path) -> None:
    from hildanext.selftest.served import Served

    with Served(str(tmp_path / "nowhere"), tmp_path / "log.txt") as served, pytest.raises(RunError, match="it said"):
        served.ready()


def test_the_demo_names_every_part_it_cannot_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(
        "hildanext.models.load.BUNDLED", {"tiny": str(tmp_path / "x"), "tiny-parent": str(tmp_path / "y")}
    )
    monkeypatch.setattr(demo, "QUICK", Sizes(toy_steps=1, toy_items=1))
    monkeypatch.setattr(toy_training, "usable_cores", lambda: 1)
    found = demo.demo(Config(), Console(quiet=True), tmp_path / "run", quick=True)
    said = capsys.readouterr().err
    for name in ("conversion", "likelihood", "frontier", "speed", "fastest", "repair", "story"):
        assert f"demo part '{name}' is not run" in said and "skipped" in found.report["parts"][name]
    text = found.page.read_text(encoding="utf-8")
    assert text.count("Not run: ") == 7 and "reverse 8 letters" in text


def test_the_demo_runs_every_part_on_a_pair(story_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hildanext.models.load.BUNDLED", {"tiny": str(story_model), "tiny-parent": str(story_model)})
    sizes = Sizes(3, 1, 7, 1, 1, 1, 1, 8, (0.5,), 160, 0.3)
    monkeypatch.setattr(demo, "QUICK", sizes)
    monkeypatch.setattr(toy_training, "usable_cores", lambda: 2)
    monkeypatch.setattr(decoding, "WATCHED", 2)
    found = demo.demo(Config(), Console(quiet=True), tmp_path / "run", quick=True)
    assert not [name for name, part in found.report["parts"].items() if "skipped" in part]
    here = ToyTraining(3).trained(Console(quiet=True))[1]
    assert found.report["parts"]["toy"]["training"]["loss"] == pytest.approx(here.loss, rel=1e-4)
    text = found.page.read_text(encoding="utf-8")
    assert text.count("<section>") == 8 and "quick run" in text and "forward by forward" in text


class _Ended:
    exitcode = 3

    def is_alive(self) -> bool:
        return False


def test_a_toy_whose_process_failed_ends_the_demo_in_one_line() -> None:
    with pytest.raises(RunError, match="the toy's training ended with code 3"):
        ToyTraining(1, process=_Ended()).trained(Console(quiet=True))
