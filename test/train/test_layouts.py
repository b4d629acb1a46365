# Every layout of two ranks against one process: the same losses step by step, one folder, checkpoints that go on.
# Entry points: pytest. Marked slow: a pair of processes trains five times.
# Of each layout a step has the same four rows twice (accumulation); tensor parallel ranks have the same rows.
"""Tests of train/layout.py."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from models.families import network
from models.hybrids import configuration
from safetensors.torch import load_file
from train.layout_ranks import COMMON, FAMILIES, LAYOUTS
from train.material import losses, records, run
from train.test_distributed import free_ports

from hildanext.config.train import LayoutConfig
from hildanext.data.tokenizers import load_tokenizer
from hildanext.errors import ConfigError
from hildanext.train.layout import Layout
from hildanext.train.loop import Trainer

PORTS = 22
WIDE = {"hidden": 16, "layers": 2, "heads": 2, "kv_heads": 2, "ffn": 32, "window": 64}
RUNS = sorted([*LAYOUTS, "copies"])
slow = pytest.mark.slow


@pytest.mark.parametrize(
    ("given", "ranks", "found"),
    [
        ("fsdp2", 8, Layout("fsdp2")), ({"fsdp": 8}, 8, Layout("fsdp2")), ({"replicate": 4}, 4, Layout("ddp")),
        ({"fsdp": 4, "replicate": 2}, 8, Layout("fsdp2", 2)), ({"tp": 2}, 2, Layout("tp")), ({}, 1, Layout("none")),
    ],
)  # fmt: skip
def test_a_layout_is_what_its_numbers_say(given: Any, ranks: int, found: Layout) -> None:
    assert Layout.of(LayoutConfig(**given) if isinstance(given, dict) else given, ranks) == found


@pytest.mark.parametrize(
    ("given", "ranks", "told"),
    [
        ({"ep": 2}, 2, "parallel.ep: experts"), ({"sp": 2}, 2, "parallel.sp: rows"),
        ({"tp": 2, "fsdp": 2}, 4, "parallel.tp: not together with fsdp"),
        ({"fsdp": 4, "replicate": 2}, 4, "fsdp 4 x replicate 2 makes 8 ranks, torchrun started 4"),
    ],
)  # fmt: skip
def test_a_layout_that_does_not_run_is_refused_by_name(given: dict[str, int], ranks: int, told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        Layout.of(LayoutConfig(**given), ranks)


@pytest.fixture(scope="module")
def wide(shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A parent whose two key-value heads two ranks can share."""
    path = tmp_path_factory.mktemp("wide")
    run(path, shards, objective__type="autoregressive", train__steps=4, model__new=WIDE)
    return path / "model"


@pytest.fixture(scope="module")
def parents(shards: Path, wide: Path, random_model: Callable[..., Any]) -> Path:
    """The folder of all parents: the dense one, a mixture of experts and a hybrid."""
    tokenizer = load_tokenizer(shards / "tokenizer")
    for family in FAMILIES:
        size = {"vocab_size": len(tokenizer) + 6}
        made = random_model(family, **size) if family == "qwen3_moe" else network(configuration(family, **size))
        made.save_pretrained(wide.parent / family)
        tokenizer.save_pretrained(wide.parent / family)
    return wide.parent


@pytest.fixture(scope="module")
def trained(shards: Path, parents: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("layouts")
    here, port = Path(__file__).parent, str(free_ports(PORTS))
    found = os.pathsep.join([str(here.parent), os.environ.get("PYTHONPATH", "")])
    environment = os.environ | {"PYTHONPATH": found, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(here / "layout_ranks.py"), str(folder), str(shards), str(parents)]
    ranks = [subprocess.Popen([*command, rank, port], env=environment) for rank in ("0", "1")]
    until = time.monotonic() + 400
    while any(rank.poll() is None for rank in ranks) and not any(rank.poll() for rank in ranks):
        assert time.monotonic() < until
        time.sleep(0.1)
    for rank in ranks:
        rank.kill()  # one that waits for another that failed
    assert [rank.wait() for rank in ranks] == [0, 0]
    for name, parent in (("one", "model"), *((f"one-{family}", family) for family in FAMILIES)):
        run(folder / name, shards, model__path=str(parents / parent), train__batch=2, **COMMON)
    return folder


@slow
@pytest.mark.parametrize("name", RUNS)
def test_two_ranks_in_any_layout_give_the_losses_of_one_process(name: str, trained: Path) -> None:
    assert len(losses(trained / name)) == 5
    assert losses(trained / name) == pytest.approx(losses(trained / "one"), rel=1e-6)
    own, one = (
        [line["eval"]["eval_nll"] for line in records(trained / run) if "eval" in line] for run in (name, "one")
    )
    assert len(own) == 2 and own == pytest.approx(one, rel=1e-6)


@slow
@pytest.mark.parametrize("family", FAMILIES)
def test_a_mixture_and_a_hybrid_shared_by_two_ranks_give_the_losses_of_one_process(family: str, trained: Path) -> None:
    assert losses(trained / family) == pytest.approx(losses(trained / f"one-{family}"), rel=1e-6)


@slow
def test_a_planted_gradient_that_is_summed_once_for_each_micro_batch_is_seen(trained: Path) -> None:
    planted, one = losses(trained / "planted"), losses(trained / "one")
    assert planted[0] == pytest.approx(one[0], rel=1e-6)
    assert planted != pytest.approx(one, rel=1e-5)


@slow
@pytest.mark.parametrize("name", RUNS)
def test_two_ranks_in_any_layout_leave_one_folder_with_the_same_weights(name: str, trained: Path) -> None:
    one, other = (load_file(trained / run / "model" / "model.safetensors") for run in ("one", name))
    assert one.keys() == other.keys()
    assert all(torch.allclose(one[key], other[key], atol=2e-6) for key in one)


@slow
def test_a_checkpoint_of_shared_matrices_goes_on_in_two_ranks_and_in_one_process(
    trained: Path, shards: Path, wide: Path, tmp_path: Path
) -> None:
    assert losses(trained / "tp-again") == losses(trained / "tp")[3:]
    folder = str(trained / "tp" / "checkpoints" / "step-000003")
    run(tmp_path / "rest", shards, train__batch=2, train__resume=folder, model__path=str(wide), **COMMON)
    assert losses(tmp_path / "rest") == pytest.approx(losses(trained / "one")[3:], rel=1e-6)


@slow
def test_what_a_layout_does_not_do_is_refused_before_anything_is_trained(trained: Path) -> None:
    told = {path.stem: path.read_text() for path in trained.glob("refused-*.txt")}
    assert {name.rpartition("-")[0] for name in told} == {
        f"refused-{name}" for name in ("ep", "sp", "tp-fsdp", "four", "lora", "muon", *FAMILIES)
    }
    assert len(told) == 16 and "not with model.adapter" in told["refused-lora-1"]
    assert "not with optimizer.name=muon" in told["refused-muon-0"]
    assert "recurrent layers of qwen3_5_text" in told["refused-qwen3_5_text-0"]
    assert "the plan of qwen3_moe shares tensors as moe_tp_experts" in told["refused-qwen3_moe-1"]
    assert not list(trained.glob("refused-*/metrics.jsonl"))


def test_whole_and_shared_gradients_are_clipped_by_one_norm(monkeypatch: pytest.MonkeyPatch) -> None:
    class Shared(torch.nn.Parameter):
        """As a parameter over a mesh; torch refuses lists of both."""

        device_mesh = "mesh"

    given = [torch.nn.Parameter(torch.zeros(3)), Shared(torch.zeros(2, 2)), torch.nn.Parameter(torch.zeros(1))]
    values = [torch.tensor([3.0, 0.0, 4.0]), torch.full((2, 2), 6.0), torch.tensor([5.0])]
    for parameter, value in zip(given, values, strict=True):
        parameter.grad = value.clone()
    trainer = Trainer.__new__(Trainer)
    trainer.optimizer = torch.optim.SGD([{"params": given}], lr=0.0)
    trainer.rates = type("Rates", (), {"clip": 1.0})()
    expected = 0.5 * sum(float((value**2).sum()) for value in values) ** 0.5
    assert trainer._clip(0.5) == pytest.approx(expected, rel=1e-6)
    clipped = [parameter.grad for parameter in given]
    assert sum(float((grad**2).sum()) for grad in clipped) == pytest.approx(1.0, rel=1e-4)
    assert json.dumps(clipped[0].tolist()) != json.dumps(values[0].tolist())
