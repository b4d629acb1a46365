# Shards and a saved parent shared by the training tests.
# Entry points: shards, parent.
# Both are made once per training, in a temporary folder.
"""Fixtures of the training tests."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from train.material import make_shards, run

from hildanext.report.losses import Plot
from hildanext.train import recorder


@pytest.fixture(scope="module", autouse=True)
def undrawn() -> Iterator[None]:
    """Trainings draw no picture; test_trackers.py and test_run.py draw it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(recorder, "plot_losses", lambda run, ladder: Plot(run / "plots" / "loss.png", ""))
        yield


@pytest.fixture(scope="session")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_shards(tmp_path_factory.mktemp("shards"))


@pytest.fixture(scope="session")
def parent(shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("parent")
    run(path, shards, objective__type="autoregressive", train__steps=4)
    return path / "model"
