# Shards and a saved parent shared by the training tests.
# Entry points: shards, parent.
# Both are made once per training, in a temporary folder.
"""Fixtures of the training tests."""

from __future__ import annotations

from pathlib import Path

import pytest
from train.material import make_shards, run


@pytest.fixture(scope="session")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_shards(tmp_path_factory.mktemp("shards"))


@pytest.fixture(scope="session")
def parent(shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("parent")
    run(path, shards, objective__type="autoregressive", train__steps=4)
    return path / "model"
