# How texts were decoded: the engine's order comes back from its own text, states are those it had, others are refused.
# Entry points: pytest.
# The oracle of a forced order is the engine decoding freely; of the objective, loops over the recorded steps.
"""Tests of decoding/forced.py, train/trajectories.py and objectives/trajectory.py."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from core.recorder import build, rng
from torch import Tensor
from train.material import QUIET, configuration, losses, make_shards, records, run

from hildanext.config import load_config
from hildanext.core.batches import document_batch
from hildanext.core.objectives import trajectory
from hildanext.core.objectives.mask_and_edit import MaskAndEdit
from hildanext.core.types import About, Batch
from hildanext.data.row_store import RowStore
from hildanext.data.shards import ShardSet
from hildanext.decoding import forced as module
from hildanext.decoding.driver import Driver
from hildanext.decoding.engine import BlockEngine
from hildanext.decoding.forced import forced
from hildanext.decoding.policy import BlockPolicy
from hildanext.decoding.request import Request
from hildanext.decoding.trajectory import Trajectory
from hildanext.errors import ConfigError, DataError
from hildanext.models.load import load_model
from hildanext.registry import build as plugin
from hildanext.train.trajectories import write_trajectories

POLICIES: list[dict[str, Any]] = [
    {"type": "threshold_edit", "tau_mask": 0.8, "tau_edit": None}, {"type": "entropy_bound"}, {"type": "left_to_right"},
    {"type": "random"}, {"type": "margin", "steps": 5},
]  # fmt: skip


@pytest.fixture(scope="module")
def tiny() -> Any:
    return load_model(load_config(None, ["model.path=tiny", "model.device=cpu"]).model)


def decoded(tiny: Any, section: dict[str, Any]) -> Trajectory:
    """A story that the engine decodes under the policy, and how."""
    config = load_config(None, []).decode
    asked = Request(prompt="One day", policy=section, block=8, max_new_tokens=24, trace=True, seed=5, temperature=0.0)
    prompt = tiny.tokenizer("One day", add_special_tokens=False)["input_ids"]
    result = Driver(BlockEngine(tiny, config)).generate(asked)
    start = list(tiny.meta.document_start or ())
    return Trajectory.of([*start, *prompt], result, tiny.denoiser.mask_id)


def assert_replays(tiny: Any, section: dict[str, Any]) -> None:
    one = decoded(tiny, section)
    batch = document_batch([(one.tokens.tolist(), one.first)], 0, 8, ids=(0,))
    policy: BlockPolicy = plugin("policies", section)
    found = forced(tiny.denoiser, batch, 8, policy, seed=5)
    assert torch.equal(found.steps[0, one.first : len(one.tokens)], one.steps()[one.first :])
    assert bool(found.right[0, one.first : len(one.tokens)].all())
    assert int(found.forwards()) == sum(len(looks) for looks in one.looks.values())
    shown = one.probability[one.first :].float()
    torch.testing.assert_close(found.probability[0, one.first : len(one.tokens)], shown, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("section", POLICIES, ids=lambda section: section["type"])
def test_the_engines_own_order_comes_back_from_its_own_text(tiny: Any, section: dict[str, Any]) -> None:
    assert_replays(tiny, section)


def test_an_order_that_sees_the_text_a_step_early_does_not_come_back(
    tiny: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def early(model: Any, state: Tensor, batch: Batch, block: int, hidden: Tensor, asked: Any) -> Any:
        seen = torch.where(torch.rand(state.shape, generator=rng(1)) < 0.5, batch.tokens, state)
        return STATISTICS(model, seen, batch, block, hidden, asked)

    monkeypatch.setattr(module, "_statistics", early)
    with pytest.raises(AssertionError):
        assert_replays(tiny, POLICIES[0])


STATISTICS = module._statistics


class Orders:
    """Recorded steps in memory."""

    def __init__(self, steps: Tensor, block: int, known: Tensor) -> None:
        self.steps, self.facts, self.there = steps, {"block": block}, known

    def rows(self, batch: Batch, part: Any = ()) -> Tensor:
        return self.steps[list(batch.ids)]

    def known(self, batch: Batch) -> Tensor:
        return self.there[list(batch.ids)]


def objective_on(steps: Tensor, block: int = 8, known: Tensor | None = None, **fields: Any) -> trajectory.Trajectory:
    kept = Orders(steps, block, torch.ones(len(steps), dtype=torch.bool) if known is None else known)
    about = About(900, (), torch.device("cpu"), lambda path: None, kept=lambda kind, folder, model: kept)  # type: ignore[arg-type]
    made: trajectory.Trajectory = build("trajectory", orders="somewhere", **fields).prepare(about)
    return made


@pytest.fixture(scope="module")
def texts() -> tuple[Batch, Tensor]:
    ids = torch.randint(5, 900, (3, 32), generator=rng(2)).tolist()
    batch = document_batch([(ids[0], 0), (ids[1], 5), (ids[2][:27], 0)], 0, 8, ids=(0, 1, 2))
    steps = torch.randint(0, 4, batch.tokens.shape, generator=rng(3)).masked_fill(~batch.learn, -1)
    return batch, steps


def assert_states_are_the_decoders(batch: Batch, steps: Tensor, masked: Tensor, block: int) -> None:
    """Each block is open at exactly the positions of some step and all later ones, and the shares vary."""
    shares = []
    for row in range(len(steps)):
        for start in range(0, steps.shape[1], block):
            own, open_, can = (part[row, start : start + block] for part in (steps, masked, batch.learn))
            if not can.any():
                assert not open_.any()
                continue
            cut = int(own[open_].min())
            assert torch.equal(open_, can & (own >= cut))
            shares.append(float(open_.sum() / can.sum()))
    assert len(set(shares)) > 3


def test_a_state_is_one_that_the_decoder_had(tiny: Any, texts: tuple[Batch, Tensor]) -> None:
    batch, steps = texts
    (view,) = objective_on(steps).views(tiny.denoiser, batch, 8, rng())
    assert_states_are_the_decoders(batch, steps, view.m2t, 8)
    assert torch.equal(view.tokens, batch.tokens.masked_fill(view.m2t, tiny.denoiser.mask_id))


def test_an_order_read_backwards_is_seen(tiny: Any, texts: tuple[Batch, Tensor]) -> None:
    batch, steps = texts
    (view,) = objective_on(3 - steps).views(tiny.denoiser, batch, 8, rng())
    with pytest.raises(AssertionError):
        assert_states_are_the_decoders(batch, steps, view.m2t, 8)


def test_the_complement_is_the_rest_and_the_ratio_rises_to_its_top(tiny: Any, texts: tuple[Batch, Tensor]) -> None:
    batch, _ = texts
    steps = torch.arange(32).expand(3, 32).clone()
    objective = objective_on(steps, noise={"complementary": True, "high": 0.8, "low": 0.0, "replace": 0.0})
    one, other = objective.views(tiny.denoiser, batch, 8, rng())
    assert torch.equal(one.m2t ^ other.m2t, batch.learn) and not bool((one.m2t & other.m2t).any())
    (begin,), (end,) = (objective_on(steps).at(done).views(tiny.denoiser, batch, 8, rng()) for done in (0.0, 1.0))
    counts = [view.m2t[0].view(4, 8).sum(dim=1).tolist() for view in (begin, end)]
    assert counts[1] == [7, 7, 7, 7] and all(1 <= count <= 7 for count in counts[0]) and sum(counts[0]) < 28


def test_larger_blocks_take_the_recorded_ones_in_their_order(tiny: Any, texts: tuple[Batch, Tensor]) -> None:
    batch, steps = texts
    order = objective_on(steps).order(tiny.denoiser, batch, torch.zeros(steps.shape, dtype=torch.float64))
    assert bool((order[:, 8:] > order[:, :-8]).all())


def test_rows_without_an_order_are_shuffled_only_where_that_is_asked_for(
    tiny: Any, texts: tuple[Batch, Tensor]
) -> None:
    batch, steps = texts
    known, uniform = torch.tensor([True, False, True]), torch.rand(steps.shape, generator=rng(4), dtype=torch.float64)
    order = objective_on(steps, 8, known, unrecorded="random").order(tiny.denoiser, batch, uniform)
    assert torch.equal(order[1], uniform[1]) and not torch.equal(order[0], uniform[0])


def test_the_certainty_term_is_the_entropy_of_right_predictions(tiny: Any) -> None:
    one = decoded(tiny, POLICIES[0])
    batch = document_batch([(one.tokens.tolist(), one.first)], 0, 8, ids=(0,))
    steps = torch.randint(0, 4, batch.tokens.shape, generator=rng(3))
    plain, sure = objective_on(steps), objective_on(steps, certainty=2.0, confidence_over="normaliser")
    (view,) = plain.views(tiny.denoiser, batch, 8, rng())
    logits = (tiny.denoiser.noisy_features(view.tokens, batch, 8, view.m2t) @ tiny.denoiser.head().T).detach()
    logits[:, tiny.denoiser.mask_id] = -torch.inf
    cold = (logits / 0.5).softmax(-1)
    entropy = -(cold * cold.clamp(min=1e-30).log()).sum(-1)
    right = logits.argmax(-1) == batch.tokens[view.m2t]
    without, having = (objective.loss(tiny.denoiser, batch, 8, rng()) for objective in (plain, sure))
    added = float((having.total - without.total).detach())
    assert added == pytest.approx(2.0 * float(entropy[right].sum()), rel=1e-3)
    assert 0 < int(right.sum()) < len(right) and added > 0.01


def test_a_certainty_term_that_presses_wrong_predictions_too_is_seen(
    tiny: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def everywhere(own: Any, inputs: Any, options: Any, masked: Tensor, normaliser: Tensor) -> Tensor:
        return own.confidence * masked.float()

    monkeypatch.setattr(MaskAndEdit, "_entropy_weights", everywhere)
    with pytest.raises(AssertionError):
        test_the_certainty_term_is_the_entropy_of_right_predictions(tiny)


@pytest.fixture(scope="module")
def child(shards: Path, parent: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("child")
    run(path, shards, model__path=str(parent), ladder__fixed=8, train__steps=2, train__parity=False)
    return path / "model"


def test_orders_are_written_once_read_by_a_run_and_refused_where_others(
    shards: Path, parent: Path, child: Path, tmp_path: Path
) -> None:
    given: dict[str, Any] = {
        "model__path": str(child),
        "trajectories__folder": str(tmp_path / "t"),
        "decode__tau_mask": 0.01,
    }
    report = write_trajectories(configuration(shards, **given), QUIET)
    assert report["written"] == report["rows"] and report["tokens_per_forward"] > 1
    store = RowStore.open(tmp_path / "t", "trajectories")
    assert report["bytes"] == (tmp_path / "t" / "data.bin").stat().st_size
    assert store.rows(next(iter_batches(shards))).max() < 8
    assert write_trajectories(configuration(shards, **given), QUIET)["written"] == 0
    with pytest.raises(DataError, match="of other things"):
        write_trajectories(configuration(shards, **{**given, "decode__tau_mask": 0.9}), QUIET)

    learned = {"type": "trajectory", "orders": str(tmp_path / "t"), "certainty": 1.0}
    short = {"model__path": str(child), "ladder__fixed": 8, "train__steps": 4, "train__parity": False}
    run(tmp_path / "run", shards, objective=learned, **short)
    assert all(record["certainty"] >= 0 for record in records(tmp_path / "run") if "loss" in record)
    with pytest.raises(DataError, match="nothing was written of row"):
        run(tmp_path / "other", make_shards(tmp_path / "more", 40), objective=learned, **short)
    (tmp_path / "t" / "rows.json").write_text(
        (tmp_path / "t" / "rows.json").read_text().replace('hash": "', 'hash": "x')
    )
    with pytest.raises(DataError, match="made with tokenizer x"):
        run(tmp_path / "tok", shards, objective=learned, **short)
    with pytest.raises(ConfigError, match="a cut of a block's order needs"):
        build("trajectory", noise={"replace": 0.1, "high": 0.8})


def iter_batches(shards: Path) -> Any:
    from hildanext.core.batches import stacked

    rows = ShardSet.open(shards / "train")
    yield stacked([rows[0], rows[1]], (0, 1))


def test_free_answers_become_rows_with_their_orders(shards: Path, child: Path, tmp_path: Path) -> None:
    given: dict[str, Any] = {
        "model__path": str(child), "trajectories__folder": str(tmp_path / "t"), "trajectories__free": True,
        "train__split": "sft_train", "decode__tau_edit": None, "decode__max_new_tokens": 12, "trajectories__rows": 4,
    }  # fmt: skip
    report = write_trajectories(configuration(shards, **given), QUIET)
    rows = ShardSet.open(tmp_path / "t" / "rows" / "sft_train")
    assert len(rows) == report["rows"] == len((tmp_path / "t" / "answers.jsonl").read_text().splitlines()) > 3
    first = json.loads((tmp_path / "t" / "answers.jsonl").read_text().splitlines()[0])
    assert rows[0].tokens[: len(first["tokens"])].tolist() == first["tokens"]
    learned = {"type": "trajectory", "orders": str(tmp_path / "t")}
    make_eval(tmp_path / "t" / "rows", shards)
    run(
        tmp_path / "run", tmp_path / "t" / "rows", objective=learned, model__path=str(child), ladder__fixed=8,
        train__steps=2, train__split="sft_train", train__eval_split="sft_eval", train__parity=False,
    )  # fmt: skip
    assert len(losses(tmp_path / "run")) == 2


def make_eval(folder: Path, shards: Path) -> None:
    (folder / "sft_eval").symlink_to(shards / "sft_eval")
