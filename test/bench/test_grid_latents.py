# Cells of latent models in a grid: beside discrete ones, judged by their texts; beginnings of two cells trained once.
# Entry points: pytest.
# Models train a few steps on random text; the page's figures are held against the reports the cells left.
"""Tests of bench/grid on latent stages, of texts by number of steps and of shared stages."""

from __future__ import annotations

import json
from pathlib import Path
from statistics import mean
from typing import Any

import pytest
from bench.test_grid import grid
from train.material import QUIET, make_shards, run, texts

from hildanext.bench.grid import cell as cells
from hildanext.bench.grid.page import by_cell, table_of
from hildanext.bench.grid.running import run_grid
from hildanext.bench.grid.texts import TEXTS, texts_rows, texts_sections
from hildanext.config import Config
from hildanext.progress import Console

COLA = {"type": "cola", "block": 8, "latent": 4, "heads": 2, "vae_layers": 1, "layers": 1}
VFM = {"type": "vfm", "block": 8, "width": 8, "heads": 2, "layers": 1}
BOTH: dict[str, Any] = {
    "plain": [{"share": 3.0}],
    "with proposals": [
        {"share": 3.0},
        {"command": "latent", "share": 1.0, "set": {"latent": {"model": VFM}}},
    ],
    "longer": [{"share": 3.0}, {"share": 1.0, "set": {"optimizer": {"lr": 0.0001}}}],
    "cola": [{"command": "latent", "set": {"latent": {"model": COLA}}}],
}  # fmt: skip


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    root = tmp_path_factory.mktemp("grid")
    shards = make_shards(root / "shards")
    run(root / "parent", shards, objective__type="autoregressive", train__steps=2)
    lines = [json.dumps({"text": text}) for text in texts(12, 9)]
    (root / "texts.jsonl").write_text("\n".join(lines), encoding="utf-8")
    return shards, root / "parent" / "model"


def asked(place: tuple[Path, Path], chosen: dict[str, Any], **more: Any) -> Config:
    task = {
        "type": "forwards", "path": str(place[0].parent / "texts.jsonl"), "limit": 3, "words": 3, "corpus": 9,
        "parent": str(place[1]), "steps": [1, 2], "max_new_tokens": 24,
    }  # fmt: skip
    return grid(place, chosen, tasks=[task], **more)


def test_cells_of_latent_models_stand_beside_discrete_ones(place: tuple[Path, Path], tmp_path: Path) -> None:
    names = ("plain", "with proposals", "cola")
    report = run_grid(asked(place, {name: BOTH[name] for name in names}), QUIET, tmp_path)
    found = by_cell(report["results"])
    assert [one["block"] for one in found["cola"]] == [0, 0] and "bound" not in found["cola"][0]
    assert all(one["block"] == 8 and one["bound"]["value"] > 0 for name in names[:2] for one in found[name])
    assert all(one["tokens"] == 512 for one in report["results"])

    rows = {row[0]: row for row in table_of(report["results"])}
    assert rows["cola"][1:6] == ("-",) * 5 and rows["with proposals"][2].startswith(("+", "-"))
    written = {row[:2]: row for row in texts_rows(found)}
    both = [{point["steps"] for point in one["series"]["forwards: steps"]} for one in found["cola"]]
    assert (
        {steps for name, steps in written if name == "cola"}
        == {str(steps) for steps in both[0] & both[1]}
        == {"1", "2"}
    )
    assert written["true texts", "-"][-2:] == ("-", "-")
    nll = [one["tasks"]["forwards: nll at_2_steps"]["value"] for one in found["cola"]]
    told = written["cola", "2"][TEXTS.index("NLL under the parent")]
    assert float(told.split()[0]) == pytest.approx(mean(nll), rel=0.01)
    assert float(told.split()[2]) == pytest.approx(abs(nll[0] - nll[1]) / 2, rel=0.05, abs=1e-3)
    page = (tmp_path / "grid.html").read_text(encoding="utf-8")
    assert "Texts by number of steps" in page and written["cola", "2"][3] in page and page.count("<svg") >= 5


def test_what_two_cells_begin_with_is_trained_once(
    place: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trained, once = list[Path](), cells._train

    def watched(command: str, config: Config, path: Path, console: Console) -> dict[str, Any]:
        trained.append(path)
        return once(command, config, path, console)

    monkeypatch.setattr(cells, "_train", watched)
    alike = {name: BOTH[name] for name in ("longer", "with proposals", "plain")}
    report = run_grid(asked(place, alike, seeds=[0]), QUIET, tmp_path)
    names = [str(path.relative_to(tmp_path / "cells")) for path in trained]
    assert names == ["longer-0/stage-1", "longer-0/stage-2", "with-proposals-0/stage-2", "plain-0/stage-1"]
    longer, proposing, plain = report["results"]
    assert longer["stages"][0] == proposing["stages"][0] and plain["steps"] == longer["steps"]
    assert all(one["tokens"] == 512 for one in report["results"])


def test_stages_that_read_their_own_cell_are_not_shared(place: tuple[Path, Path], tmp_path: Path) -> None:
    own = [{"set": {"objective": {"type": "mask_and_edit"}, "anchors": {"folder": "{cell}/anchors"}}}]
    recorded = [{"command": "trajectories"}, {}]
    for stages, number, shared in (([{}], 0, True), (own, 0, False), (recorded, 0, False), (recorded, 1, False)):
        config = grid(place, {"a": stages, "b": stages})
        cell = cells.Cell("a", 0, cells.folder_of(tmp_path, "a", 0), config)
        assert cell.begun_alike(number) == ([cells.folder_of(tmp_path, "b", 0)] if shared else [])


def test_a_grid_without_texts_has_no_such_section() -> None:
    assert texts_sections({"a": [{"tasks": {}, "series": {}}]}) == []
