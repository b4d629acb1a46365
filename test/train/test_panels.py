# Panels of a run: files and images in the trackers at their steps, what they show, and a training they leave alone.
# Entry points: pytest.
# Colours and marks of the figures are read back; the PNG itself is looked at by people.
"""Tests of report/panels.py and train/panels.py."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from train.material import losses, run

from hildanext.report import panels
from hildanext.report.panels import Decoding, Strip, draw_decoding, draw_history, draw_strip

pytest.importorskip("matplotlib")


def figure() -> Any:
    from matplotlib.figure import Figure

    return Figure()


def test_panels_are_drawn_every_so_often_go_to_the_trackers_and_change_no_loss(
    shards: Path, parent: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    logged: list[Any] = []
    fake = SimpleNamespace(
        init=lambda **values: None, finish=lambda: None, Image=lambda path: Path(path).name,
        log=lambda values, step: logged.append((values, step)),
    )  # fmt: skip
    monkeypatch.setitem(sys.modules, "wandb", fake)
    given: dict[str, Any] = {
        "model__path": str(parent), "ladder__fixed": 8, "train__steps": 4, "train__parity": False,
        "model__embedding_noise__steps": 3,
    }  # fmt: skip
    trackers = ["wandb", "tensorboard"] if __import__("importlib.util").util.find_spec("tensorboard") else ["wandb"]
    run(tmp_path / "drawn", shards, **given, train__panels_every=2, train__trackers=trackers)
    run(tmp_path / "plain", shards, **given)
    kinds = [f"{kind}-00000{step}.png" for kind in ("decoding", "history", "prediction") for step in (2, 4)]
    files = sorted((tmp_path / "drawn" / "panels").iterdir())
    assert [path.name for path in files] == sorted(kinds)
    assert all(path.read_bytes().startswith(b"\x89PNG") and path.stat().st_size > 5000 for path in files)
    pictures = [(values, step) for values, step in logged if any(name.startswith("panels/") for name in values)]
    assert ({"panels/decoding": "decoding-000002.png"}, 2) in pictures and len(pictures) == 6
    assert losses(tmp_path / "drawn") == losses(tmp_path / "plain")
    assert not (tmp_path / "plain" / "panels").exists()
    if "tensorboard" in trackers:
        assert set(images(tmp_path / "drawn" / "tensorboard")) == {
            "panels/decoding", "panels/history", "panels/prediction"
        }  # fmt: skip


def images(folder: Path) -> list[str]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    found = EventAccumulator(str(folder))
    found.Reload()
    return list(found.Tags()["images"])


def test_a_strip_is_green_red_or_grey_by_what_happened_there() -> None:
    one = Strip(
        ["a", "$b", "c"], torch.tensor([True, True, False]), torch.tensor([True, False, False]),
        torch.tensor([0.9, 0.5, 0.0]),
    )  # fmt: skip
    drawn = figure()
    draw_strip(drawn, one, "title")
    from matplotlib.colors import to_hex

    (axes,) = drawn.axes
    assert [to_hex(patch.get_facecolor()) for patch in axes.patches] == [panels.RIGHT, panels.WRONG, panels.VISIBLE]
    assert [text.get_text() for text in axes.texts] == ["a\n0.90", r"\$b" + "\n0.50", "c"]


def test_a_decoding_shows_entropy_where_masked_and_its_mean_beside() -> None:
    entropy = torch.tensor([[2.0, 1.0, torch.nan], [torch.nan, 3.0, torch.nan]])
    drawn = figure()
    draw_decoding(drawn, Decoding(entropy, torch.tensor([True, False, True]), [0, 2]), "title")
    left, side = drawn.axes[:2]
    assert [bar.get_width() for bar in side.patches] == [1.5, 3.0]
    assert left.images[0].get_array().mask.tolist() == [[False, False, True], [True, False, True]]
    assert len(left.lines) == 1 and len(left.collections[0].get_facecolors()) == 3


def test_history_scatters_loss_by_mask_rate_and_draws_what_is_there() -> None:
    records = [{"step": s, "loss": 2.0 / s, "align": 0.5, "rate_0.0_0.2": 1.0 / s, "rate_0.8_1.0": 3.0} for s in (1, 2)]
    drawn = figure()
    draw_history(drawn, records, "title")
    scatter, curves = drawn.axes[:2]
    assert scatter.collections[0].get_offsets()[:2].tolist() == [[0.1, 1.0], [0.9, 3.0]]
    assert [line.get_label() for line in curves.lines] == ["loss", "align"]
    draw_history(figure(), [], "nothing yet")
