# A grid of trainings: stages within a budget, results kept by cell, a page; the area under a curve by hand.
# Entry points: pytest.
# Cells train a few steps on random text; what is tested is who runs when, with which values, and what is made of it.
"""Tests of bench/grid."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from train.material import QUIET, configuration, make_shards, run

from hildanext.bench.grid import cell as cells
from hildanext.bench.grid import paired as paired_module
from hildanext.bench.grid import running
from hildanext.bench.grid.page import by_cell, header_of, table_of
from hildanext.bench.grid.paired import paired, paired_rows
from hildanext.bench.grid.running import run_grid
from hildanext.bench.grid.scoring import area
from hildanext.config import Config
from hildanext.errors import ConfigError, RunError

SECOND: list[dict[str, Any]] = [
    {"share": 1.0},
    {"command": "trajectories", "set": {"decode": {"tau_edit": None}, "trajectories": {"rows": 4}}},
    {
        "share": 3.0,
        "set": {"objective": {"type": "trajectory", "orders": "{cell}/trajectories", "unrecorded": "random"}},
    },
]
ALIGNED: list[dict[str, Any]] = [{"set": {"objective": {"type": "align", "parent": "{parent}", "weight": 2.0}}}]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    root = tmp_path_factory.mktemp("grid")
    shards = make_shards(root / "shards")
    run(root / "parent", shards, objective__type="autoregressive", train__steps=2)
    return shards, root / "parent" / "model"


def grid(place: tuple[Path, Path], cells: dict[str, Any], **more: Any) -> Config:
    budget = {"seconds": 0, "tokens": 512, "rows": 4, "samples": 2, "taus": [0.1, 0.9], "seeds": [0, 1], **more}
    return configuration(
        place[0], model__path=str(place[1]), ladder__fixed=8, train__parity=False, model__new={},
        grid={"cells": cells, **budget},
    )  # fmt: skip


def test_cells_share_a_budget_keep_their_results_and_a_new_one_is_an_entry(
    place: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    report = run_grid(grid(place, {"plain": [{}], "orders": SECOND}), QUIET, tmp_path)
    found = by_cell(report["results"])
    assert [one["steps"] for one in found["plain"]] == [8, 8]
    assert [stage.get("steps") for stage in found["orders"][0]["stages"]] == [2, None, 6]
    assert all(one["tokens"] == 512 and one["block"] == 8 and one["memory"] > 0 for one in report["results"])
    rows, header = table_of(report["results"]), header_of(report["results"])
    assert report["parent"]["value"] > 0 and len(rows[0]) == len(header) and header[4] == "right at 0.9"
    gaps = [one["bound"]["value"] - other["bound"]["value"] for one, other in zip(*found.values(), strict=True)]
    assert float(rows[1][2].split()[0]) == pytest.approx(-sum(gaps) / 2, abs=1e-3)
    assert "<svg" in (tmp_path / "grid.html").read_text() and "orders" in (tmp_path / "grid.html").read_text()

    assert report["paired"] == [] and "At equal tokens" not in (tmp_path / "grid.html").read_text()

    ran, once = list[str](), cells.run_cell
    monkeypatch.setattr(running, "run_cell", lambda cell, console: (ran.append(cell.name), once(cell, console))[1])
    more = run_grid(grid(place, {"plain": [{}], "orders": SECOND, "aligned": ALIGNED}), QUIET, tmp_path)
    assert ran == ["aligned", "aligned"] and len(more["results"]) == 6
    assert [(one["cell"], one["seed"], one["steps"]) for one in more["paired"]] == [("aligned", s, 8) for s in (0, 1)]
    assert "At equal tokens" in (tmp_path / "grid.html").read_text()
    stage = json.loads((tmp_path / "cells" / "aligned-1" / "stage-1.json").read_text())
    assert stage["objective"]["parent"] == str(place[1]) and stage["seed"] == 1
    assert more["results"][0] == report["results"][0]
    with pytest.raises(ConfigError, match="was run with other values"):
        run_grid(grid(place, {"plain": [{}]}, rows=3), QUIET, tmp_path)


def test_a_stopped_cell_goes_on_where_it_was(
    place: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, once = grid(place, {"orders": SECOND}, seeds=[0]), cells.write_trajectories

    def stopped(*given: Any) -> Any:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(cells, "write_trajectories", stopped)
        run_grid(config, QUIET, tmp_path)
    before = (tmp_path / "cells" / "orders-0" / "stage-1-done.json").stat().st_mtime_ns
    monkeypatch.setattr(cells, "write_trajectories", once)
    report = run_grid(config, QUIET, tmp_path)
    assert (tmp_path / "cells" / "orders-0" / "stage-1-done.json").stat().st_mtime_ns == before
    assert [stage.get("steps") for stage in report["results"][0]["stages"]] == [2, None, 6]


def test_a_cell_of_another_shift_is_scored_as_its_model_records(place: tuple[Path, Path], tmp_path: Path) -> None:
    cells_of = {"clean": [{"set": {"model": {"shift": "clean", "block_grid": "per_document"}}}], "none": [{}]}
    config = grid(place, cells_of, seeds=[0], tokens=64, taus=[0.5])
    config = config.model_copy(update={"model": config.model.model_copy(update={"shift": "none"})})
    report = run_grid(config, QUIET, tmp_path)
    metas = [json.loads((Path(one["model"]) / "hildanext.json").read_text()) for one in report["results"]]
    assert [(meta["shift"], meta["block_grid"]) for meta in metas] == [("clean", "per_document"), ("none", "global")]


def test_a_cell_stopped_in_its_probe_has_its_budget_still(
    place: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, once = grid(place, {"plain": [{}]}, seconds=0.2, tokens=0, seeds=[0], probe=3), cells._train

    def stopped(*given: Any) -> Any:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(cells, "_train", stopped)
        run_grid(config, QUIET, tmp_path)
    asked = list[int]()
    monkeypatch.setattr(
        cells,
        "_train",
        lambda command, config, *rest: (asked.append(config.train.steps), once(command, config, *rest))[1],
    )
    monkeypatch.setattr(cells, "_records", lambda path: [{"processor": 0.05, "seconds": 0.05}] * 3)
    assert run_grid(config, QUIET, tmp_path)["results"][0]["steps"] == 4
    assert asked == [3, 4]


def test_a_budget_of_seconds_becomes_steps_by_the_pace_of_the_probe(
    place: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    paces = [{"processor": pace} for pace in (9.0, 9.0, 0.5, 0.25, 0.75)]
    monkeypatch.setattr(cells, "_train", lambda command, config, path, console: path.mkdir(parents=True))
    monkeypatch.setattr(cells, "_records", lambda path: paces)
    own = cells.Cell("orders", 0, tmp_path, grid(place, {"orders": SECOND}, seconds=40.0))
    assert cells._steps(own, 0, own.config, [], QUIET) == 20
    assert cells._steps(own, 2, own.config, [{"processor": 10.0}, {"processor": 4.0}], QUIET) == 52
    with pytest.raises(RunError, match=r"took 41 of 40 processor seconds; record fewer rows"):
        cells._steps(own, 2, own.config, [{"processor": 10.0}, {"processor": 31.0}], QUIET)


def test_at_equal_tokens_only_steps_with_the_same_masks_and_rate_are_compared() -> None:
    same = {"lr": 0.1, "m2t_tokens": 5, "t2t_tokens": 1, "block": 8}
    noise = [0.3, -0.2, 0.1, 0.4, -0.3, 0.0, 0.2, -0.1, 0.3, -0.4, 0.1, 0.2]
    hers = [{"step": s, "m2t": 5 - 0.1 * s + noise[s], "processor": 2.0, **same} for s in range(12)]
    his = [{**one, "m2t": one["m2t"] - 0.2 - 0.01 * (one["step"] % 2), "processor": 3.0} for one in hers]
    found = paired(hers, his)
    assert found is not None and found["steps"] == 11 and found["pace"] == 1.5
    assert found["gap"] == pytest.approx(-0.205) and found["error"] == pytest.approx(
        np.std([0, 0.01] * 3, ddof=1) / 6**0.5
    )
    slope = np.polyfit(range(6, 12), [one["m2t"] for one in hers[6:]], 1)[0]
    assert found["ahead"] == pytest.approx(-0.205 / slope) and found["ahead"] > 0
    for name, value in {"lr": 0.05, "m2t_tokens": 6, "t2t_tokens": 0, "block": 4}.items():
        spoilt = [{**one, name: value, "m2t": 99.0} if one["step"] in (9, 11) else one for one in his]
        kept = paired(hers, spoilt)
        assert kept is not None and kept["steps"] == 10 and -0.21 < kept["gap"] < -0.2
    assert paired(hers, his[:7]) is None and paired(hers, [{"step": 3, "eval": {}}]) is None
    assert paired_rows([{"cell": "a", "seed": 0, **found}])[0][3:] == (
        f"-0.205 ± {found['error']:.3f}", f"{found['ahead']:+.1f}", "1.50 x",
    )  # fmt: skip


def test_a_planted_error_of_the_comparison_at_equal_tokens_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(paired_module, "SAME", ("block",))
    with pytest.raises(AssertionError):
        test_at_equal_tokens_only_steps_with_the_same_masks_and_rate_are_compared()


def test_the_area_is_that_under_the_best_share_at_each_speed() -> None:
    curve = [{"x": 2.0, "y": 0.9}, {"x": 4.0, "y": 0.5}, {"x": 3.0, "y": 0.4}]
    assert area(curve) == pytest.approx(1 * 0.9 + 1 * 0.5 + 1 * 0.5)
    assert area([{"x": 1.0, "y": 1.0}]) == 0.0
    assert area([*curve, {"x": 3.5, "y": 0.95}]) == pytest.approx(2.5 * 0.95 + 0.5 * 0.5)


def test_what_no_grid_can_be_is_said(place: tuple[Path, Path]) -> None:
    with pytest.raises(ConfigError, match="has no stage that trains"):
        grid(place, {"a": [{"command": "anchors"}]})
    with pytest.raises(ConfigError, match="seconds and tokens are both 0"):
        grid(place, {"a": [{}]}, tokens=0)


def test_a_cell_that_cannot_be_run_is_said_and_the_others_are_run(place: tuple[Path, Path], tmp_path: Path) -> None:
    orphan = [{"set": {"objective": {"type": "trajectory", "orders": "{cell}/nothing"}}}]
    with pytest.raises(RunError, match=r"1 of 2 cells have no result: orphan, seed 0: .*nothing"):
        run_grid(grid(place, {"orphan": orphan, "plain": [{}]}, seeds=[0]), QUIET, tmp_path)
    report = json.loads((tmp_path / "report.json").read_text(encoding="utf-8"))
    assert [one["cell"] for one in report["results"]] == ["plain"]
    with pytest.raises(ConfigError, match="was run with other values"):
        run_grid(grid(place, {"new": [{}], "plain": [{}]}, seeds=[0], tokens=640), QUIET, tmp_path)
    assert not (tmp_path / "cells" / "new-0").exists()
