# On-policy distillation: its states are the decoder's own, replayed by a second forward; runs resume exactly and stop.
# Entry points: pytest.
# The oracle of a state is the rule of the policy written out on the features that training computes from it. The
# teacher of the end of turn is a table: after one token comes the end, after any other that token.
"""Tests of train/recipes/on_policy.py and decoding/trajectory.py."""

from __future__ import annotations

import signal
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from stand_in import StandIn
from torch import Tensor
from train.material import QUIET, losses, overrides, records, stop_after

import hildanext
from hildanext.commands.on_policy import BASE
from hildanext.config import Config, load_config
from hildanext.config.decode import DecodeConfig
from hildanext.config.train import RolloutConfig
from hildanext.core.batches import document_batch
from hildanext.core.objectives import distill
from hildanext.core.types import Batch
from hildanext.data.shards import ShardSet
from hildanext.data.tokenizers import load_tokenizer
from hildanext.decoding.driver import Driver
from hildanext.decoding.engine import BlockEngine
from hildanext.decoding.request import Metrics, Request, Result
from hildanext.decoding.trajectory import Trajectory
from hildanext.errors import ConfigError, DataError, HildaError, Interrupted
from hildanext.train.recipes import on_policy
from hildanext.train.recipes.on_policy import OnPolicy, Rollout, answer_length, on_policy_command, prompts_of, view_of

GROWING = {"warmup": [4, 8], "stable": [16], "decay_to": 16, "shares": [0.6, 0.4, 0.0]}
SMALL = {"ladder": GROWING, "rollout__prompts": 4, "rollout__first": 6, "rollout__ramp": 2, "train__steps": 8}


@pytest.fixture(scope="module")
def tiny() -> hildanext.Model:
    return hildanext.load("tiny")


def decoded(model: Any, block: int, **fields: Any) -> list[Trajectory]:
    """Greedy answers of the bundled child, with the states they went through."""
    chats = [[{"role": "user", "content": text}] for text in ("Write a story about Lily and a fox.", "Hi")]
    prompts = [
        tuple(model.tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_dict=False))
        for chat in chats
    ]
    asked = [Request(prompt_ids=ids, block=block, trace=True, max_new_tokens=24) for ids in prompts]
    results = Driver(BlockEngine(model.loaded, DecodeConfig(**fields))).run(asked)
    found = [Trajectory.of(ids, one, model.denoiser.mask_id) for ids, one in zip(prompts, results, strict=True)]
    for one, ids, result in zip(found, prompts, results, strict=True):
        assert one.tokens[: one.first].tolist() == list(ids) and one.stopped == (result.finish_reason == "eos")
        assert one.tokens[one.first : one.stop].tolist() == list(result.token_ids)
    return found


def assert_replayed(model: Any, one: Trajectory, block: int, taus: tuple[float, float | None]) -> int:
    """Every look of every block again, from the rows training would make of it; returns how many there were."""
    length, mask_id, looks = len(one.tokens), model.denoiser.mask_id, 0
    batch = document_batch([(one.tokens.tolist(), one.first)], 0, block)
    every = torch.zeros_like(batch.learn)
    every[0, :length] = True
    for number in range(max(len(rows) for rows in one.looks.values())):
        chosen = {start: number for start, rows in one.looks.items() if number < len(rows)}
        state = batch.tokens.clone()
        state[0, :length] = one.state(chosen)
        with torch.no_grad():
            logits = model.denoiser.noisy_features(state, batch, block, every) @ model.denoiser.head().T
        logits[:, mask_id] = -torch.inf
        sure, best = logits.softmax(1).max(1)
        for start, look in chosen.items():
            rows, at = one.looks[start], torch.arange(start, start + one.looks[start].shape[1])
            now, after = rows[look], one.tokens[at] if look + 1 == len(rows) else rows[look + 1]
            hidden = now == mask_id
            change = hidden & (sure[at] > taus[0])
            if bool(hidden.any()) and not bool(change.any()):
                change[torch.where(hidden, sure[at], -1.0).argmax()] = True
            if taus[1] is not None:
                change |= ~hidden & (at >= one.first) & (best[at] != now) & (sure[at] > taus[1])
            assert torch.equal(torch.where(change, best[at], now), after)
            looks += 1
    return looks


@pytest.mark.parametrize("taus", [(0.9, None), (0.6, 0.3)])
@pytest.mark.parametrize("block", [4, 8])
def test_every_recorded_state_leads_to_the_next_in_the_forward_of_training(
    block: int, taus: tuple[float, float | None], tiny: hildanext.Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = decoded(tiny, block, tau_mask=taus[0], tau_edit=taus[1])
    assert sum(assert_replayed(tiny, one, block, taus) for one in found) > 12
    kept = Trajectory.state

    def late(self: Trajectory, chosen: Mapping[int, int]) -> Tensor:
        return kept(self, {start: min(look + 1, len(self.looks[start]) - 1) for start, look in chosen.items()})

    monkeypatch.setattr(Trajectory, "state", late)
    with pytest.raises(AssertionError):
        for one in found:
            assert_replayed(tiny, one, block, taus)


def told(steps: list[list[tuple[int, int, str]]], ids: tuple[int, ...], finish: Any) -> Result:
    """A result with this trace: (position, id, state) of every step."""
    trace = tuple({"tokens": [{"pos": at, "id": id, "state": state} for at, id, state in step]} for step in steps)
    return Result("", ids, finish, Metrics(block=4), trace=trace)


MASK, END = 99, 2


def by_hand() -> Trajectory:
    """Prompt 10 11 12 13 14; block [4, 8) in two looks, the second edits 21; block [8, 12) ends with END at 9."""
    given, mask = (4, 14, "given"), "mask"
    steps = [
        [given, (5, 21, "new"), (6, MASK, mask), (7, 23, "new")],
        [given, (5, 31, "edited"), (6, 22, "new"), (7, 23, "kept")],
        [(8, 24, "new"), (9, MASK, mask), (10, 7, "new"), (11, MASK, mask)],
        [(8, 24, "kept"), (9, END, "new"), (10, 7, "kept"), (11, MASK, mask)],
        [(8, 24, "kept"), (9, END, "kept"), (10, 7, "kept"), (11, 8, "new")],
    ]
    return Trajectory.of((10, 11, 12, 13, 14), told(steps, (31, 22, 23, 24, END), "eos"), MASK)


def test_a_trajectory_is_read_from_a_trace() -> None:
    one = by_hand()
    assert one.tokens.tolist() == [10, 11, 12, 13, 14, 31, 22, 23, 24, END, 7, 8]
    assert (one.first, one.stop, one.stopped) == (5, 10, True)
    assert one.looks[4].tolist() == [[14, MASK, MASK, MASK], [14, 21, MASK, 23]]
    assert one.looks[8].tolist() == [[MASK] * 4, [24, MASK, 7, MASK], [24, END, 7, MASK]]
    assert one.state({4: 1, 8: 0}).tolist() == [10, 11, 12, 13, 14, 21, MASK, 23, *[MASK] * 4]
    with pytest.raises(ValueError, match="trace=True"):
        Trajectory.of((1,), told([], (), "eos"), MASK)


def test_a_block_begun_behind_the_end_by_a_window_is_no_part_of_the_trajectory() -> None:
    behind = [(4, 8, "new"), (5, MASK, "mask"), (6, 9, "new"), (7, MASK, "mask")]
    steps = [[(0, 10, "given"), (1, 5, "new"), (2, END, "new"), (3, 7, "new"), *behind]]
    one = Trajectory.of((10,), told(steps, (5, END), "eos"), MASK)
    assert one.tokens.tolist() == [10, 5, END, 7] and list(one.looks) == [0]


def rollout() -> Rollout:
    short = Trajectory.of(
        (10,), told([[(0, 10, "given"), (1, 5, "new"), (2, 6, "new"), (3, 7, "new")]], (5,), "length"), MASK
    )
    return Rollout.of([by_hand(), short], [7, 3], {"rollout": 0, "block": 4}, torch.Generator().manual_seed(0))


def test_the_answer_is_learned_with_its_end_and_nothing_else() -> None:
    batch, state = rollout().rows(slice(0, 2), pad_id=0)
    assert batch.tokens.shape == (2, 12) and batch.ids == (7, 3)
    assert batch.learn.nonzero().tolist() == [[0, 5], [0, 6], [0, 7], [0, 8], [0, 9], [1, 1]]
    assert int(batch.tokens[0, 9]) == END and bool(batch.learn[0, 9])
    assert batch.docs[1].tolist() == [0] * 4 + [1] * 8 and not batch.docs[0].any()
    view = view_of(batch, state, MASK, 4)
    assert torch.equal(view.m2t, batch.learn & (state == MASK)) and bool(view.m2t.any())
    assert torch.equal(view.t2t, batch.learn & (state != MASK) & (state != batch.tokens))
    alone, _ = rollout().rows(slice(1, 2), pad_id=0)
    assert alone.tokens.shape == (1, 4)


def test_a_rounds_state_has_something_left_to_learn_and_each_such_one_is_drawn() -> None:
    seen = set()
    for seed in range(40):
        made = Rollout.of([by_hand()], [0], {"rollout": 0, "block": 4}, torch.Generator().manual_seed(seed))
        seen.add((tuple(made.state[0, 4:8].tolist()), tuple(made.state[0, 8:].tolist())))
    firsts, seconds = {first for first, _ in seen}, {second for _, second in seen}
    assert firsts == {(14, MASK, MASK, MASK), (14, 21, MASK, 23)}
    assert seconds == {(MASK,) * 4, (24, MASK, 7, MASK)} and len(seen) == 4


def configuration(shards: Path, parent: Path, **changes: Any) -> Config:
    base = {**BASE, "objective": {**BASE["objective"], "parent": str(parent)}}
    return load_config(None, overrides(shards, model__path=str(parent), **{**SMALL, **changes}), base)


def run(path: Path, shards: Path, parent: Path, **changes: Any) -> list[dict[str, Any]]:
    on_policy_command(configuration(shards, parent, **changes), QUIET, path)
    return [record for record in records(path) if "loss" in record]


@pytest.fixture(scope="module")
def whole(shards: Path, parent: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("on-policy")
    run(path, shards, parent)
    return path


def test_blocks_and_answers_grow_with_the_rollout_and_a_rollout_keeps_its_block(whole: Path) -> None:
    lines = [record for record in records(whole) if "loss" in record]
    assert [line["rollout"] for line in lines] == [0, 0, 1, 1, 2, 2, 3, 3]
    assert [line["block"] for line in lines] == [4, 4, 4, 4, 8, 8, 16, 16]
    assert [line["longest"] for line in lines[::2]] == [6, 19, 32, 32]
    assert all(line["kl"] == pytest.approx(line["loss"], rel=1e-5) for line in lines)
    assert all(0 <= line["stopped"] <= 1 and 0 < line["answer"] <= line["longest"] for line in lines)
    settings = RolloutConfig(first=100, last=4000, ramp=100)
    assert [answer_length(settings, n, 4096) for n in (0, 50, 100, 200)] == [100, 2050, 4000, 4000]
    assert answer_length(RolloutConfig(first=100, ramp=0), 0, 64) == 64


class Forgetful(OnPolicy):
    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        super().load_state_dict({"rollout": {n: v for n, v in state["rollout"].items() if n != "rows"}})


def resumed(path: Path, shards: Path, parent: Path, step: int) -> list[float]:
    with pytest.MonkeyPatch.context() as patch:
        stop_after(patch, step - 1, signal.SIGTERM)
        with pytest.raises(Interrupted, match=f"step {step}"):
            run(path, shards, parent)
    run(path, shards, parent, train__resume="latest")
    return losses(path)


@pytest.mark.parametrize("step", [3, 6])
def test_a_run_stopped_within_a_rollout_or_between_two_goes_on_as_if_it_had_not_been(
    step: int, whole: Path, shards: Path, parent: Path, tmp_path: Path
) -> None:
    assert resumed(tmp_path, shards, parent, step) == losses(whole)
    ours, theirs = (load_file(path / "model" / "model.safetensors") for path in (tmp_path, whole))
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_a_run_that_decodes_its_rollout_anew_is_caught_by_that_comparison(
    whole: Path, shards: Path, parent: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(on_policy, "OnPolicy", Forgetful)
    assert resumed(tmp_path, shards, parent, 3) != losses(whole)


def test_a_resume_with_other_prompts_or_steps_per_rollout_is_refused(
    whole: Path, shards: Path, parent: Path, tmp_path: Path
) -> None:
    newest = str(sorted((whole / "checkpoints").glob("step-*"))[-1])
    for change in ({"rollout__prompts": 8}, {"train__split": "sft_eval"}):
        with pytest.raises(HildaError, match=r"of a rollout differ from the checkpoint's"):
            run(tmp_path / str(*change), shards, parent, train__resume=newest, **change)


def test_what_cannot_be_rolled_out_is_one_clear_line(shards: Path, parent: Path, tmp_path: Path) -> None:
    refused: Iterator[tuple[dict[str, Any], type[HildaError], str]] = iter([
        ({"rollout__prompts": 5}, ConfigError, r"rollout\.prompts: 5 answers are no multiple of .* = 2"),
        ({"objective": {"type": "autoregressive"}, "ladder": {}}, ConfigError, r"objective autoregressive: on-policy"),
        ({"objective__anneal": 0.5}, ConfigError, r"objective\.anneal: on-policy decodes with the whole block"),
        ({"train__split": "train"}, DataError, r"no prompt of 1 to 16 tokens before a reply"),
    ])  # fmt: skip
    for number, (changes, kind, words) in enumerate(refused):
        with pytest.raises(kind, match=words):
            run(tmp_path / str(number), shards, parent, **changes)


def test_prompts_are_what_stands_before_a_reply(shards: Path) -> None:
    split = ShardSet.open(shards / "sft_train")
    found = prompts_of(split, 16)
    row = split[0]
    first = int(row.learn.argmax())
    assert list(found[0]) == row.tokens[:first].tolist() and max(map(len, found)) <= 16
    assert len(prompts_of(split, 6)) < len(found)


SAY = 40


class Bigram(StandIn):
    """After SAY the end, after anything else SAY."""

    def __init__(self, vocabulary: int, end: int) -> None:
        super().__init__(vocab_size=vocabulary, mask_id=vocabulary - 1)
        self.table = torch.zeros(vocabulary, vocabulary)
        self.table[:, SAY], self.table[SAY, SAY], self.table[SAY, end] = 8.0, 0.0, 8.0

    def causal_features(self, batch: Batch, select: Tensor) -> Tensor:
        return torch.nn.functional.one_hot(batch.tokens.roll(1, 1)[select], self.vocab_size).float()

    def head(self) -> Tensor:
        return self.table.T


def last_answers(path: Path, shards: Path, parent: Path) -> tuple[float, float]:
    """(share that stopped, mean length) of the last rollouts of a short run under the table."""
    changes = {"rollout__prompts": 8, "train__batch": 8, "rollout__first": 12, "rollout__last": 12}
    fixed = {"fixed": 4}
    lines = run(path, shards, parent, **changes, ladder=fixed, train__steps=18, optimizer__lr=0.02)
    assert lines[0]["stopped"] == 0.0 and lines[0]["answer"] == 12.0
    last = lines[-4:]
    return sum(line["stopped"] for line in last) / 4, sum(line["answer"] for line in last) / 4


def test_answers_learn_to_stop_where_the_parent_does(
    shards: Path, parent: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    known = on_policy.about

    def about(loaded: Any, model: Any) -> Any:
        teacher = Bigram(loaded.denoiser.vocab_size, loaded.tokenizer.eos_token_id)
        return replace(known(loaded, model), load=lambda path: teacher)

    monkeypatch.setattr(on_policy, "about", about)
    stopped, length = last_answers(tmp_path / "taught", shards, parent)
    assert stopped > 0.9 and length < 6
    end, kept = load_tokenizer(shards / "tokenizer").eos_token_id, distill.weighted_kl

    def endless(features: Tensor, weight: Tensor, teacher: Any, weights: Tensor) -> Any:
        return kept(features, weight, replace(teacher, exclude=end), weights)

    monkeypatch.setattr(distill, "weighted_kl", endless)
    assert last_answers(tmp_path / "endless", shards, parent)[0] < 0.5
