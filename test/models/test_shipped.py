# The adapters that are shipped: what the folder says of itself, and the model they make where its base was fetched.
# Entry points: pytest.
# The base is not in the repository: `hildanext fetch smollm2-135m` brings it.
"""Tests of models/smollm2-135m-diffusion."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import hildanext
from hildanext.decoding.modes import checked
from hildanext.models.adapter_folder import read_adapters, require_base
from hildanext.models.meta import HildaMeta

NAME, LARGEST = "smollm2-135m-diffusion", 20_000_000


@pytest.fixture(scope="module")
def folder(project: Path) -> Path:
    return project / "models" / NAME


def test_the_folder_is_small_and_says_what_it_is_made_for(folder: Path) -> None:
    meta = HildaMeta.read(folder)
    assert sum(path.stat().st_size for path in folder.iterdir()) <= LARGEST
    assert (meta.kind, meta.shift, meta.parent, meta.base and meta.base.name) == (
        "adapters", "clean", "smollm2-135m", "smollm2-135m",
    )  # fmt: skip
    assert meta.block in (4, 8, 16) and checked(meta.decode) == meta.decode
    assert "apache-2.0" in (folder / "README.md").read_text() and (folder / "LICENSE").is_file()


def test_its_matrices_are_finite_and_adapt_every_linear_layer(folder: Path) -> None:
    scale, matrices = read_adapters(folder)
    assert scale == 2.0 and len(matrices) == 30 * 7
    assert all(bool(torch.isfinite(one).all()) and bool(one.any()) for pair in matrices.values() for one in pair)


def test_over_its_base_it_answers_and_stops(folder: Path) -> None:
    if not (folder.parent / "smollm2-135m").is_dir():
        pytest.skip("models/smollm2-135m is not here: hildanext fetch smollm2-135m")
    require_base(folder, read_adapters(folder)[1])
    model = hildanext.load(str(folder))
    answer = model.generate([{"role": "user", "content": "What is the capital of France?"}], max_new_tokens=64)
    assert "Paris" in answer.text and answer.finish_reason == "eos"
