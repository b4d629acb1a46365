# bench forward on the bundled child: every runner that opens is timed and compared, what does not is said and left out.
# Entry points: pytest.
# Speed itself is not tested: the machine that runs the tests is shared.
"""bench forward."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from hildanext.bench import forward
from hildanext.bench.forward import Runner, run
from hildanext.config import load_config
from hildanext.errors import RunError
from hildanext.progress import Console

SMALL = {"positions": [1, 4], "contexts": [16, 40], "repeats": 1, "new_tokens": 8, "prompts": ["One day"]}


def bench(folder: Path, console: Console, **more: Any) -> dict[str, Any]:
    values = [f"bench.forward.{name}={json.dumps(value)}" for name, value in {**SMALL, **more}.items()]
    return run(load_config(None, [f"paths.runs={folder}", f"paths.models={folder}", *values]), console)


def without_units(dtype: torch.dtype, *_: Any) -> str:
    return "no units for bfloat16" if dtype == torch.bfloat16 else ""


def test_every_runner_is_timed_and_compared_with_the_first(tmp_path: Path, capsys: Any, monkeypatch: Any) -> None:
    pytest.importorskip("onnxruntime")
    monkeypatch.setattr(forward, "slow_dtype", without_units)
    report = bench(tmp_path, Console())
    runners, shown = report["runners"], "".join(capsys.readouterr())
    assert list(runners) == ["eager float32", "onnx float32", "onnx int8", "onnx int4"]
    assert "eager bfloat16 is left out: no units" in shown and "| onnx int4 |" in shown
    for found in runners.values():
        assert (
            list(found["milliseconds"]) == ["16+1", "16+4", "40+1", "40+4"] and min(found["milliseconds"].values()) > 0
        )
        assert found["tokens_per_second"] > 0
    for name in ("eager float32", "onnx float32"):
        assert runners[name]["best_equal"] == runners[name]["texts_equal"] == 1.0
    assert 0.5 < runners["onnx int4"]["best_equal"] < 1.0
    assert json.loads((Path(report["run"]) / "report.json").read_text())["runners"] == runners


def test_where_nothing_opens_it_is_said(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr(forward, "slow_dtype", without_units)
    with pytest.raises(RunError, match="nothing of bench.forward.runners"):
        bench(tmp_path, Console(quiet=True), runners=["eager bfloat16"])


def test_a_planted_runner_that_sees_other_text_is_noticed(tmp_path: Path, monkeypatch: Any) -> None:
    real = Runner.logits

    def shuffled(self: Runner, context: int, positions: int) -> Any:
        found = real(self, context, positions)
        return found.roll(1, 1) if type(self.denoiser).__name__ == "OnnxDenoiser" else found

    pytest.importorskip("onnxruntime")
    monkeypatch.setattr(Runner, "logits", shuffled)
    report = bench(tmp_path, Console(quiet=True), runners=["eager float32", "onnx float32"], new_tokens=0)
    assert report["runners"]["onnx float32"]["best_equal"] < 0.1
