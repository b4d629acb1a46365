# Every layout of two and of four ranks against one process: the same losses, one folder, checkpoints that go on.
# Entry points: pytest. Marked slow: four processes train in all layouts, which stand in layout_ranks.py.
# Of each layout a step has the same rows; tensor and sequence parallel ranks have the same ones.
"""Tests of train/layout.py."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from models.families import network
from models.hybrids import configuration
from safetensors.torch import load_file
from train.forked import forked
from train.layout_ranks import AGAIN, BOTH, COMMON, FOURS, HYBRID, MOE, PAIRS, REFUSED, ROWS, Case
from train.material import losses, records, run
from waiting import free_ports

from hildanext.config.train import LayoutConfig
from hildanext.data.tokenizers import load_tokenizer
from hildanext.errors import ConfigError
from hildanext.train.layout import Layout
from hildanext.train.loop import Trainer

PORTS = 90
slow = pytest.mark.slow


@pytest.mark.parametrize(
    ("given", "ranks", "found"),
    [
        ("fsdp2", 8, Layout("fsdp2")), ({"fsdp": 8}, 8, Layout("fsdp2")), ({"replicate": 4}, 4, Layout("ddp")),
        ({"fsdp": 4, "replicate": 2}, 8, Layout("fsdp2", 2)), ({"tp": 2}, 2, Layout("tp")), ({}, 1, Layout("none")),
        ({"sp": 2}, 2, Layout("ddp", sp=2)), ({"sp": 2, "fsdp": 4}, 8, Layout("fsdp2", sp=2)),
        ({"ep": 2}, 2, Layout("fsdp2", ep=2)), ({"ep": 2, "fsdp": 4}, 8, Layout("fsdp2", ep=2)),
    ],
)  # fmt: skip
def test_a_layout_is_what_its_numbers_say(given: Any, ranks: int, found: Layout) -> None:
    assert Layout.of(LayoutConfig(**given) if isinstance(given, dict) else given, ranks) == found


@pytest.mark.parametrize(
    ("given", "ranks", "told"),
    [
        ({"tp": 2, "fsdp": 2}, 4, "tp and fsdp together were not tried; use one of them, or fsdp with replicate"),
        ({"sp": 2, "ep": 2}, 4, "ep and sp together"), ({"sp": 2, "fsdp": 2, "replicate": 2}, 8, "together"),
        ({"fsdp": 4, "replicate": 2}, 4, "fsdp 4 x replicate 2 makes 8 ranks, torchrun started 4"),
    ],
)  # fmt: skip
def test_a_layout_that_does_not_run_is_refused_by_name(given: dict[str, int], ranks: int, told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        Layout.of(LayoutConfig(**given), ranks)


@pytest.fixture(scope="module")
def trained(
    shards: Path, random_model: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory
) -> Path:  # fmt: skip
    """The folder of all runs. Their parents: a dense one, one whose heads two do not divide, a mixture of experts, a
    hybrid, and one that is both."""
    folder, parents = tmp_path_factory.mktemp("layouts"), tmp_path_factory.mktemp("parents")
    tokenizer = load_tokenizer(shards / "tokenizer")
    size = {"vocab_size": len(tokenizer) + 6}
    made = {
        "model": random_model(num_attention_heads=2, **size), MOE: random_model(MOE, **size),
        "odd": random_model(num_attention_heads=3, num_key_value_heads=1, **size),
        HYBRID: network(configuration(HYBRID, **size)), BOTH: network(configuration(BOTH, **size)),
    }  # fmt: skip
    for name, parent in made.items():
        parent.save_pretrained(parents / name)
        tokenizer.save_pretrained(parents / name)
    forked("train.layout_ranks:rank", 4, str(folder), str(shards), str(parents), str(free_ports(PORTS)))
    return folder


def cases() -> dict[str, Case]:
    """The runs that must give the losses of one process, the resumed one apart."""
    every = {**PAIRS[0], **PAIRS[1], **FOURS}
    return {name: case for name, case in every.items() if case.plant is nullcontext and "again" not in name}


@slow
@pytest.mark.parametrize("name", cases())
def test_ranks_in_any_layout_give_the_losses_of_one_process(name: str, trained: Path) -> None:
    one = cases()[name].one
    assert len(losses(trained / name)) == 5
    assert losses(trained / name) == pytest.approx(losses(trained / one), rel=1e-6)
    own, theirs = (
        [line["eval"]["eval_nll"] for line in records(trained / run) if "eval" in line] for run in (name, one)
    )
    close = 5e-6 if one == "one-hybrid" else 1e-6  # a state sums what five steps of another order made of it
    assert len(own) == 2 and own == pytest.approx(theirs, rel=close)


@slow
@pytest.mark.parametrize("name", ["planted-tp", "planted-sp", "planted-ep"])
def test_a_planted_fault_of_the_gradients_is_seen(name: str, trained: Path) -> None:
    planted, one = losses(trained / name), losses(trained / {**PAIRS[0], **PAIRS[1]}[name].one)
    assert planted[0] == pytest.approx(one[0], rel=1e-6)
    assert planted != pytest.approx(one, rel=1e-5)


@slow
@pytest.mark.parametrize("name", [name for name, case in cases().items() if case.one in ("one", "one-moe")])
def test_ranks_in_any_layout_leave_one_folder_with_the_same_weights(name: str, trained: Path) -> None:
    one, other = (load_file(trained / run / "model" / "model.safetensors") for run in (cases()[name].one, name))
    assert one.keys() == other.keys()
    assert all(torch.allclose(one[key], other[key], atol=2e-6) for key in one)


@slow
@pytest.mark.parametrize("name", ["tp", "hsdp"])
def test_a_checkpoint_goes_on_in_as_many_ranks_with_the_same_numbers(name: str, trained: Path) -> None:
    assert losses(trained / f"{name}-again") == losses(trained / name)[3:] != []


@slow
@pytest.mark.parametrize("name", AGAIN)
def test_a_checkpoint_that_four_ranks_wrote_beside_training_goes_on_in_two(name: str, trained: Path) -> None:
    assert losses(trained / name) == pytest.approx(losses(trained / AGAIN[name].one)[3:], rel=1e-6)
    assert not list((trained / "hsdp" / "checkpoints").glob(".*"))


@slow
@pytest.mark.parametrize("name", ["tp", "sp", "ep", "hsdp", "sp-fsdp", "ep-fsdp"])
def test_a_checkpoint_of_any_layout_goes_on_in_one_process(
    name: str, trained: Path, shards: Path, tmp_path: Path
) -> None:  # fmt: skip
    folder = str(trained / name / "checkpoints" / "step-000003")
    parent = json.loads((trained / name / "config.json").read_text())["model"]["path"]
    run(tmp_path, shards, **{**COMMON, "train__batch": ROWS, "train__resume": folder, "model__path": parent})
    assert losses(tmp_path) == pytest.approx(losses(trained / cases()[name].one)[3:], rel=1e-6)


@slow
def test_what_a_layout_does_not_do_is_refused_before_anything_is_trained(trained: Path) -> None:
    told = {path.stem: path.read_text() for path in trained.glob("refused-*.txt")}
    assert set(told) == {f"refused-{name}-{rank}" for name in REFUSED for rank in (0, 1)}
    assert not [path for path in trained.glob("refused-*/metrics.jsonl") if losses(path.parent)]
    for name, words in {
        "tp-lora": "not with model.adapter", "tp-muon": "not with optimizer.name=muon",
        "tp-hybrid": "recurrent layers of qwen3_5_text", "sp-hybrid": "recurrent layers of qwen3_5_text",
        "tp-moe": "the plan of qwen3_moe shares tensors as moe_tp_experts", "ep-dense": "no plan of experts for qwen3",
        "ep-lora": "adapters cannot be gathered", "ep-muon": "not with optimizer.name=muon",
        "sp-noise": "not with model.embedding_noise", "sp-inside": "positions inside the network",
        "sp-heads": "2 ranks do not divide 3 attention heads", "four": "makes 4 ranks, torchrun started 2",
        "tp-fsdp": "tp and fsdp together were not tried", "ddp-beside": "only where ranks share weights",
    }.items():  # fmt: skip
        assert words in told[f"refused-{name}-0"] == told[f"refused-{name}-1"]


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
