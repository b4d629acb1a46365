# Conversions under objective distill: the parent is found, also after a resume and under adapters, and the KL falls.
# Entry points: pytest.
# Runs of a few steps on random text; the equality of a resumed run with an uninterrupted one is exact.
"""Training with a parent."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest
from train.material import losses, records, run, stop_after

from hildanext.errors import ConfigError, Interrupted

TAUGHT = {"objective": {"type": "distill", "noise": {"replace": 0.0}}, "train__steps": 6, "ladder__fixed": 4}


@pytest.mark.parametrize("adapter", ["none", "lora"])
def test_a_resumed_run_has_the_parent_it_began_from(
    adapter: str, shards: Path, parent: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if adapter == "lora":
        pytest.importorskip("peft")
    given = {**TAUGHT, "model__path": str(parent), "model__adapter__kind": adapter}
    run(tmp_path / "whole", shards, **given)
    lines = [record for record in records(tmp_path / "whole") if "loss" in record]
    assert all(record["kl"] > 0 for record in lines)
    with monkeypatch.context() as patch, pytest.raises(Interrupted):
        stop_after(patch, 2, signal.SIGTERM)
        run(tmp_path / "cut", shards, **given)
    run(tmp_path / "cut", shards, **given, train__resume="latest")
    assert losses(tmp_path / "cut") == losses(tmp_path / "whole")


def test_a_child_names_its_parent_and_the_divergence_falls(shards: Path, parent: Path, tmp_path: Path) -> None:
    alone = {"type": "distill", "m2t_weight": 0.0, "keep_weight": 0.0, "noise": {"replace": 0.0}}
    more = {"ladder__fixed": 4, "optimizer__lr": 0.02, "train__steps": 40}
    run(tmp_path / "child", shards, model__path=str(parent), objective=alone, **more)
    found = [record["kl"] for record in records(tmp_path / "child") if "loss" in record]
    assert sum(found[-10:]) < 0.9 * sum(found[:10])
    child = str(tmp_path / "child" / "model")
    with pytest.raises(ConfigError, match=r"objective\.parent: none is named"):
        run(tmp_path / "lost", shards, **TAUGHT, model__path=child)
    named = {**TAUGHT, "objective": {**TAUGHT["objective"], "parent": str(parent)}}
    run(tmp_path / "named", shards, **named, model__path=child)
