# Cells of latent models in a grid: beside discrete ones, judged by their texts; beginnings of two cells trained once.
# Entry points: pytest.
# Models train a few steps on random text; the page's figures are held against the reports the cells left.
"""Tests of bench/grid on latent stages, of texts by number of steps and of shared stages."""

from __future__ import annotations

import json
import shutil
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
    assert rows["cola"][1:6] == ("-",) * 5 and "[" in rows["with proposals"][2]
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
    first, copied = longer["stages"][0], proposing["stages"][0]
    assert {**first, "model": ""} == {**copied, "model": ""} and plain["steps"] == longer["steps"]
    assert all(one["tokens"] == 512 for one in report["results"])
    own = tmp_path / "cells" / "with-proposals-0"
    assert Path(copied["model"]) == own / "stage-1" / "model" and not (own / "stage-1" / "checkpoints").exists()
    later = json.loads((own / "stage-2.json").read_text(encoding="utf-8"))
    assert later["model"]["path"] == copied["model"]
    weights = [(Path(one["model"]) / "model.safetensors").read_bytes() for one in (first, copied)]
    assert weights[0] == weights[1]
    assert (own / "stage-1" / "metrics.jsonl").exists(), "at equal tokens it is compared by these"


def test_a_cell_that_has_begun_goes_on_with_its_own(
    place: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, once = asked(place, {"proposing": BOTH["with proposals"]}, seeds=[0]), cells._train

    def stopped(command: str, config: Config, path: Path, console: Console) -> dict[str, Any]:
        if command == "latent":
            raise KeyboardInterrupt
        return once(command, config, path, console)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(cells, "_train", stopped)
        run_grid(config, QUIET, tmp_path)
    both = asked(place, {"longer": BOTH["longer"], "proposing": BOTH["with proposals"]}, seeds=[0])
    trained = list[str]()

    def watched(command: str, config: Config, path: Path, console: Console) -> dict[str, Any]:
        trained.append(str(path.relative_to(tmp_path / "cells")))
        return once(command, config, path, console)

    monkeypatch.setattr(cells, "_train", watched)
    report = run_grid(both, QUIET, tmp_path)
    assert trained == ["longer-0/stage-2", "proposing-0/stage-2"]
    models = [one["stages"][0]["model"] for one in report["results"]]
    assert models == [str(tmp_path / "cells" / name / "stage-1" / "model") for name in ("longer-0", "proposing-0")]
    shutil.rmtree(tmp_path / "cells" / "longer-0" / "stage-1")
    assert run_grid(both, QUIET, tmp_path)["results"] == report["results"]


def test_stages_that_read_their_own_cell_are_not_shared(place: tuple[Path, Path], tmp_path: Path) -> None:
    own = [{"set": {"objective": {"type": "mask_and_edit"}, "anchors": {"folder": "{cell}/anchors"}}}]
    recorded = [{"command": "trajectories"}, {}]
    for stages, number, shared in (([{}], 0, True), (own, 0, False), (recorded, 0, False), (recorded, 1, False)):
        config = grid(place, {"a": stages, "b": stages})
        cell = cells.Cell("a", 0, cells.folder_of(tmp_path, "a", 0), config)
        assert cell.begun_alike(number) == ([cells.folder_of(tmp_path, "b", 0)] if shared else [])


def told(value: float) -> dict[str, float]:
    return {"value": value, "low": (value - 2) * 1e-16, "high": value + 1}


def texts_of(*steps: int, nll: float = 2.0) -> dict[str, Any]:
    points = [{"steps": one, "forwards_per_text": float(one), "tokens_per_second": 9.0} for one in steps]
    labels = ["of_references", *(f"at_{one}_steps" for one in steps)]
    return {"series": {"forwards: steps": points}, "tasks": {f"forwards: nll {label}": told(nll) for label in labels}}


def test_cells_without_texts_are_left_out_by_name() -> None:
    assert texts_sections({"a": [{"tasks": {}, "series": {}}]}) == []
    assert texts_sections({"old": [{"tasks": {}}]}) == []
    cells_of = {
        "a": [texts_of(1, 4, nll=2), texts_of(4, nll=3)],
        "b": [texts_of(1), texts_of(2)],
        "old": [{"tasks": {}}],
    }
    (section,) = texts_sections(cells_of)
    assert [row[:2] for row in section.rows] == [("true texts", "-"), ("a", "4")]
    assert section.prose.endswith("three words: b, old.") and section.rows[1][3] == "2.5 ± 0.5 [0, 3.5]"
    assert section.rows[0][3] == "2 [0, 3]"
