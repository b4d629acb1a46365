# Preference training: it begins at ln 2, prefers what was chosen on unseen pairs, goes on exactly when stopped.
# Entry points: pytest.
# The planted fault exchanges chosen and rejected, which must end below where it began.
"""Tests of train/recipes/pairs.py."""

from __future__ import annotations

import json
import math
import signal
from pathlib import Path
from typing import Any

import pytest
from train.material import QUIET, losses, overrides, records, stop_after

from hildanext.commands.dpo import BASE
from hildanext.config import load_config
from hildanext.data.tokenizers import load_tokenizer
from hildanext.errors import ConfigError, DataError, Interrupted
from hildanext.train.recipes.pairs import dpo_command, pairs_of

CHANGES = {
    "ladder": {"fixed": 4}, "train__steps": 12, "train__batch": 4, "train__eval_rows": 1, "optimizer__lr": 0.01,
    "optimizer__schedule": "constant",
}  # fmt: skip


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("pairs") / "pairs.json"
    words = ["cat", "dog", "mat", "bird", "house", "day", "sun", "road", "all", "long", "red", "where"]
    rows = [{"instruction": f"the {w}", "input": "", "chosen": f"{w} sat", "rejected": f"{w} ran"} for w in words]
    path.write_text(json.dumps(rows))
    return path


def run(path: Path, shards: Path, parent: Path, pairs: Path, dpo: Any = None, **changes: Any) -> dict[str, Any]:
    given = {
        **CHANGES,
        "model__path": str(parent),
        "dpo": {"pairs": str(pairs), "held_out": 4, **(dpo or {})},
        **changes,
    }
    return dpo_command(load_config(None, overrides(shards, **given), BASE), QUIET, path)


def assert_prefers(report: dict[str, Any], path: Path) -> None:
    before, after = report["held_out"]["before"], report["held_out"]["after"]
    assert before["margin"] == 0.0 and abs(before["loss"] - math.log(2)) < 1e-6
    assert abs(losses(path)[0] - math.log(2)) < 1e-6
    assert after["margin"] > 0.05 and after["preferred"] > 0.7


def test_chosen_answers_are_preferred_on_pairs_that_were_not_seen(
    shards: Path, parent: Path, pairs: Path, tmp_path: Path
) -> None:
    report = run(tmp_path / "a", shards, parent, pairs)
    assert_prefers(report, tmp_path / "a")
    assert json.loads((tmp_path / "a" / "report.json").read_text())["held_out"] == report["held_out"]
    exchanged = {"chosen": "rejected", "rejected": "chosen"}
    rows = [{**row, **{name: row[other] for name, other in exchanged.items()}} for row in json.loads(pairs.read_text())]
    trained = tmp_path / "exchanged.json"
    trained.write_text(json.dumps([*rows[:8], *json.loads(pairs.read_text())[8:]]))
    with pytest.raises(AssertionError):
        assert_prefers(run(tmp_path / "b", shards, parent, trained), tmp_path / "b")


def test_a_stopped_run_goes_on_exactly_under_adapters(shards: Path, parent: Path, pairs: Path, tmp_path: Path) -> None:
    changes = {"model__adapter": {"kind": "lora", "rank": 2}, "train__steps": 4}
    run(tmp_path / "whole", shards, parent, pairs, **changes)
    with pytest.MonkeyPatch.context() as patch:
        stop_after(patch, 1, signal.SIGTERM)
        with pytest.raises(Interrupted, match="step 2"):
            run(tmp_path / "cut", shards, parent, pairs, **changes)
    run(tmp_path / "cut", shards, parent, pairs, **changes, train__resume="latest")
    assert losses(tmp_path / "cut") == losses(tmp_path / "whole")
    assert records(tmp_path / "whole")[1]["margin"] == 0.0


def test_real_pairs_are_read(assets: Path, shards: Path) -> None:
    from hildanext.config.rl import DpoConfig

    path = assets / "rasbt-instruct" / "instruction-data-with-preference.json"
    found = json.loads(path.read_text())[:60]
    made = pairs_of(found, DpoConfig(pairs=str(path)), load_tokenizer(shards / "tokenizer"), 4096, QUIET)
    assert 50 <= len(made) <= 60 and all(pair.chosen[1] == pair.rejected[1] for pair in made)


def test_what_cannot_be_preferred_is_one_clear_line(shards: Path, parent: Path, pairs: Path, tmp_path: Path) -> None:
    for number, (dpo, kind, words) in enumerate((
        ({"pairs": "nowhere.json"}, DataError, "no such file"),
        ({"rejected": "worse"}, DataError, "row 1 has no text in 'worse'"),
        ({"held_out": 12}, DataError, "12 pairs, 12 of them held out"),
        ({"objective": {"type": "espo"}}, ConfigError, "use `hildanext rl`"),
    )):  # fmt: skip
        with pytest.raises(kind, match=words):
            run(tmp_path / str(number), shards, parent, pairs, dpo)
