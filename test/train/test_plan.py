# The plan of a run: what its objective costs in time and memory, counted by hand, and a model that is not there.
# Entry points: pytest.
# Seconds are not measured here: the timed copy is replaced by a pace that is known.
"""Tests of train/plan.py and train/rehearsal.py."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from models.families import FAMILIES, tiny
from train.material import QUIET, WINDOW, configuration

from hildanext.cli import main
from hildanext.commands import sft
from hildanext.config import Config, load_config
from hildanext.config.train import ObjectiveSection
from hildanext.data.shards import ShardSet
from hildanext.errors import ModelError
from hildanext.models import preflight
from hildanext.models.footprint import NetworkFootprint
from hildanext.models.preflight import estimate
from hildanext.models.shallow import fewest_layers, shallow
from hildanext.progress import Console
from hildanext.train import plan, rehearsal
from hildanext.train.plan import plan_command
from hildanext.train.recipes.conversion import train_command
from hildanext.train.rehearsal import Pace, rehearse

KNOWN = Pace(pair=10.0, single=4.0, head=0.01, read=0.003, step=7.0)


@pytest.fixture
def known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plan, "rehearse", lambda *given: KNOWN)
    monkeypatch.setattr(preflight, "resident_memory", lambda: 2**28)


def with_objective(config: Config, **fields: Any) -> Config:
    return config.model_copy(update={"objective": ObjectiveSection.model_validate(fields)})


def test_the_plan_adds_up_and_needs_no_data(capsys: pytest.CaptureFixture[str]) -> None:
    config: Config = configuration(Path("nowhere"), tokenize__window=64, train__steps=100)
    found = plan_command(config, Console())
    assert [stage["block"] for stage in found["stages"]] == [1, 4, 64, 64, 32, 16, 8]
    assert sum(stage["tokens"] for stage in found["stages"]) == found["tokens"] == 100 * 2 * 64
    assert found["seconds"] is None and "not estimated, the new model's tokenizer" in "".join(capsys.readouterr())


@pytest.mark.parametrize(
    ("layout", "apart"), [("fsdp2", 1), ({"tp": 4}, 1), ({"sp": 2, "fsdp": 4}, 4), ({"ep": 2, "fsdp": 4}, 8)]
)
def test_the_plan_counts_the_ranks_that_the_numbers_of_a_layout_make(layout: Any, apart: int) -> None:
    config = configuration(Path("nowhere"), tokenize__window=64, train__steps=100, train__parallel=layout)
    assert plan_command(config, QUIET)["tokens"] == 100 * 2 * 64 * apart


def test_a_model_that_is_not_there_is_an_error_after_the_stages(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(ModelError, match="nowhere"):
        plan_command(configuration(tmp_path, model__path=str(tmp_path / "nowhere"), train__steps=100), QUIET)
    given = ["convert-wsd", "--print-plan", "--set", f"model.path={tmp_path / 'nowhere'}"]
    assert main(given) == 2
    said = capsys.readouterr()
    assert "decay" in said.out + said.err and "nowhere" in said.err


def test_the_plan_of_a_model_has_time_and_memory(shards: Path, parent: Path) -> None:
    found = plan_command(configuration(shards, model__path=str(parent)), QUIET)
    assert found["memory"]["total"] > 0 and found["seconds"] > 0


def test_a_fall_back_that_the_memory_stands_on_is_said_by_the_plan_and_by_the_run(
    known: None,
    shards: Path,
    parent: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(NetworkFootprint, "unsure", lambda *given: "memory: planted")
    config = configuration(shards, model__path=str(parent), model__max_vram_pct=1e-9)
    plan_command(config, Console())
    assert "memory: planted" in capsys.readouterr().err
    with pytest.raises(ModelError, match="needed on cpu"):
        train_command(config, Console(), "convert-wsd", tmp_path / "run")
    assert "memory: planted" in capsys.readouterr().err


def test_a_stage_costs_the_forwards_of_its_objective(known: None, shards: Path, parent: Path) -> None:
    """The default of sft: two turns of two views over [x_t ; x_0], the first of each scored wholly, drawn at random."""
    changes: dict[str, Any] = {"ladder.fixed": 16, "train.steps": 3, "train.accumulate": 5}
    config = configuration(shards, model__path=str(parent), **changes)
    config = with_objective(config, **sft.BASE["objective"], draft="sample")
    (stage,) = plan_command(config, QUIET)["stages"]
    learned = ShardSet.open(shards / "train").manifest["learned"] / len(ShardSet.open(shards / "train"))
    scored = 2 * (1.0 + 1.0) * 0.01 + 2 * 0.003
    assert stage["seconds"] == pytest.approx(3 * (5 * 2 * (4 * 10.0 + learned * scored) + 7.0))


def test_a_parent_and_the_mdlm_stage_have_no_clean_half(known: None, shards: Path, parent: Path) -> None:
    config = configuration(shards, model__path=str(parent), **{"train.steps": 3, "ladder.fixed": 0})
    own = ShardSet.open(shards / "train").manifest["learned"] / len(ShardSet.open(shards / "train"))
    for made in (with_objective(config, type="autoregressive"), with_objective(config, type="mask_and_edit")):
        (stage,) = plan_command(made, QUIET)["stages"]
        assert stage["seconds"] == pytest.approx(3 * (2 * (4.0 + own * 0.01) + 7.0))


def test_memory_is_that_of_the_widest_pass(known: None, shards: Path, parent: Path) -> None:
    config = configuration(shards, model__path=str(parent), **{"ladder.fixed": 16})

    def needed(**fields: Any) -> dict[str, Any]:
        return estimate(with_objective(config, **fields), WINDOW)

    both = {"complementary": True, "low": 0.2, "high": 0.8}
    one = needed(type="mask_and_edit")
    assert needed(type="multi_turn", turns=4, noise=both)["activations"] == one["activations"]
    assert needed(type="confidence", noise=both)["activations"] == 1.5 * one["activations"]
    assert needed(type="mask_and_edit", views_beside=True, noise=both)["activations"] == 1.5 * one["activations"]
    sliced = configuration(shards, model__path=str(parent), **{"ladder.fixed": 16, "model.attention": "sliced"})
    apart, alone = (
        estimate(with_objective(sliced, **fields), WINDOW)["activations"]
        for fields in ({"type": "confidence", "noise": both}, {"type": "mask_and_edit"})
    )
    assert apart == 2 * alone
    assert needed(type="autoregressive")["activations"] < one["activations"]
    assert needed(type="mask_and_edit", keep_weight=0.0)["logits"] < one["logits"]
    assert one["total"] == pytest.approx(sum(one.get(part, 0) for part in preflight.PARTS), abs=8)


def test_two_depths_are_timed_and_the_other_layers_extrapolated(monkeypatch: pytest.MonkeyPatch) -> None:
    depths: list[int] = []

    def timed(config: Config, network: Any, depth: int, sizes: tuple[int, int]) -> tuple[float, ...]:
        depths.append(depth)
        return 2.0 + 3 * depth, 1.0 + depth, 0.5, 0.25, 0.1 * depth

    monkeypatch.setattr(rehearsal, "_timed", timed)
    settings = tiny(FAMILIES["llama"])
    settings.num_hidden_layers = 30
    found = rehearse(load_config(), settings, 64, 16)
    assert depths == [1, 3] and (found.pair, found.single) == pytest.approx((92.0, 31.0))
    assert (found.head, found.read, found.step) == pytest.approx((0.5, 0.25, 3.0))


@pytest.mark.parametrize(("name", "fewest"), [("llama", 1), ("deepseek_v3", 2)])
def test_a_shallow_copy_has_the_first_layers_and_the_shape_of_the_rest(name: str, fewest: int) -> None:
    settings = tiny(FAMILIES[name])
    if name == "deepseek_v3":
        settings.first_k_dense_replace = 1
    assert fewest_layers(settings) == fewest
    made = shallow(settings, 1)
    assert len(made.model.layers) == 1 and made.config.vocab_size == settings.vocab_size
    assert settings.num_hidden_layers == 2


def test_the_pace_of_a_small_model_is_measured(shards: Path, parent: Path) -> None:
    config = configuration(shards, model__path=str(parent))
    found = rehearse(config, preflight.kind_at(str(parent)).footprint(config.model).config, WINDOW, 8)
    assert all(value > 0 for value in vars(found).values()) and torch.is_grad_enabled()
