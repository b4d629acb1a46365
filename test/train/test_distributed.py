# Two gloo processes, DDP and FSDP2, against one process with the same global batch.
# Entry points: pytest.
# One pair of processes trains both ways; the tests look at what they left.
"""Tests of train/distributed.py and of checkpoints of several ranks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from train.forked import forked
from train.material import MUON, TURNS, losses, run
from transformers import AutoModelForCausalLM
from waiting import free_ports

pytestmark = pytest.mark.slow
RUNS = 4


@pytest.fixture(scope="module")
def trained(shards: Path, parent: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("ranks")
    run(folder / "one", shards, model__path=str(parent), train__batch=4, objective=TURNS)
    forked("train.ranks:rank", 2, str(folder), str(shards), str(parent), str(free_ports(RUNS)))
    return folder


@pytest.mark.skipif(not hasattr(torch.optim, "Muon"), reason="torch.optim.Muon came with torch 2.9")
def test_muon_on_sharded_matrices_is_that_of_one_process_and_its_checkpoint_resumes(
    trained: Path, shards: Path, parent: Path, tmp_path: Path
) -> None:
    muon: dict[str, Any] = {"model__path": str(parent), "train__batch": 4, **MUON}
    run(tmp_path / "one", shards, **muon)
    assert losses(trained / "muon") == pytest.approx(losses(tmp_path / "one"), rel=2e-4)
    assert losses(trained / "muon-rest") == losses(trained / "muon")[2:] != []
    run(tmp_path / "rest", shards, **muon, train__resume=str(trained / "muon" / "checkpoints" / "step-000002"))
    assert losses(tmp_path / "rest") == pytest.approx(losses(tmp_path / "one")[2:], rel=2e-4)


@pytest.mark.parametrize("kind", ["ddp", "fsdp2"])
def test_two_processes_give_the_losses_of_one(kind: str, trained: Path) -> None:
    assert losses(trained / kind) == pytest.approx(losses(trained / "one"), rel=2e-5)


@pytest.mark.parametrize("kind", ["ddp", "fsdp2"])
def test_two_processes_export_one_plain_folder_with_the_same_weights(kind: str, trained: Path) -> None:
    ours = load_file(trained / kind / "model" / "model.safetensors")
    theirs = load_file(trained / "one" / "model" / "model.safetensors")
    assert ours.keys() == theirs.keys()
    assert all(torch.allclose(ours[name], theirs[name], atol=2e-5) for name in theirs)
    model = AutoModelForCausalLM.from_pretrained(trained / kind / "model")
    assert model.get_input_embeddings().weight is model.get_output_embeddings().weight


@pytest.mark.parametrize("kind", ["ddp", "fsdp2"])
def test_a_checkpoint_of_two_ranks_resumes_in_one_process(
    kind: str, trained: Path, shards: Path, parent: Path, tmp_path: Path
) -> None:
    checkpoint = trained / kind / "checkpoints" / "step-000004"
    run(tmp_path, shards, model__path=str(parent), train__batch=4, train__resume=str(checkpoint), objective=TURNS)
    assert losses(tmp_path) == pytest.approx(losses(trained / "one")[4:], rel=2e-5)
