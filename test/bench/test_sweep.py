# Steps against quality: as many forwards as were asked for, the parent's judgement by another way, a page.
# Entry points: pytest.
# The bundled pair on short texts; the parent's nats are summed again with transformers.
"""Tests of bench/sweep.py."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import hildanext
from hildanext.bench import sweep as module
from hildanext.bench.sweep import sweep
from hildanext.config import load_config
from hildanext.errors import ConfigError
from hildanext.models.load import place
from hildanext.progress import Console

GIVEN = ["model.path=tiny", "sweep.steps=[2,4,32]", "sweep.prompts=2", "sweep.new_tokens=32", "model.device=cpu"]


def test_more_steps_are_more_forwards_and_the_parent_judges(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    texts: dict[int, Any] = {}
    decoded = module._decoded

    def kept(*given: Any) -> dict[str, Any]:
        found = decoded(*given)
        texts[found["steps"]] = (given[2], found["texts"])
        return found

    monkeypatch.setattr(module, "_decoded", kept)
    report = sweep(load_config(None, GIVEN), Console(quiet=True), tmp_path)
    rows = {row["steps"]: row for row in report["rows"]}
    assert [row["of_a_block"] for row in rows.values()] == [1, 2, 16]
    assert rows[2]["tokens_per_forward"] > rows[4]["tokens_per_forward"] > rows[32]["tokens_per_forward"] > 0.8
    assert rows[32]["nats"] == pytest.approx(nats_by_hand(*texts[32]), rel=1e-3)
    assert rows[32]["nats"] < rows[2]["nats"] and rows[32]["tokens_per_second"] > 0
    assert "<svg" in (tmp_path / "sweep.html").read_text(encoding="utf-8")


def nats_by_hand(asks: Any, texts: Any) -> float:
    from transformers import AutoModelForCausalLM

    parent: Any = AutoModelForCausalLM.from_pretrained(place("tiny-parent"))
    total, count = 0.0, 0
    for ask, ids in zip(asks, texts, strict=True):
        said = [one for one in ids if one not in ask.ends]
        with torch.no_grad():
            logits = parent(torch.tensor([[*ask.ids, *said]])).logits[0, len(ask.ids) - 1 : -1]
        logits[:, hildanext.load("tiny").denoiser.mask_id] = -torch.inf
        total -= float(logits.log_softmax(-1).gather(1, torch.tensor(said)[:, None]).sum())
        count += len(said)
    return total / count


def test_steps_that_leave_a_block_out_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="1 steps for 2 blocks of 16"):
        sweep(load_config(None, [*GIVEN, "sweep.steps=[1]"]), Console(quiet=True), tmp_path)
