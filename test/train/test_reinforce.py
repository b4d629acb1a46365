# Reinforcement learning: what is sampled is what is scored, a stopped run goes on exactly, rewards move the model.
# Entry points: pytest.
# The oracle of a score is the probability the decoder itself reports of the token it drew; a reward that only wants one
# word must be learned, and its opposite must not.
"""Tests of train/recipes/reinforce.py, answers.py, questions.py, reference.py and of Trajectory.steps."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from train.material import QUIET, losses, overrides, records, stop_after
from waiting import until

import hildanext
from hildanext.commands.rl import BASE
from hildanext.config import Config, load_config
from hildanext.config.decode import DecodeConfig
from hildanext.config.rl import RlConfig
from hildanext.core.policy_views import round_views
from hildanext.decoding.driver import Driver
from hildanext.decoding.engine import BlockEngine
from hildanext.decoding.request import Request
from hildanext.decoding.trajectory import Trajectory
from hildanext.errors import ConfigError, DataError, HildaError, Interrupted
from hildanext.registry import build
from hildanext.train.checkpoint import Checkpoints, read_state
from hildanext.train.recipes import reinforce
from hildanext.train.recipes.answers import Answers
from hildanext.train.recipes.figures import kept_groups
from hildanext.train.recipes.questions import questions_of, rows_of
from hildanext.train.recipes.reinforce import Reinforce, rl_command

LADDER = {"fixed": 4}
WANTED = [{"type": "format", "pattern": "sat|red"}, {"type": "length", "free": 2, "most": 8, "weight": 0.1}]
RL = {
    "rows": "", "groups": 2, "samples": 4, "answer": 8, "epochs": 2, "held_out": 2, "measure_every": 1,
    "most_drop": 0.0, "rewards": WANTED, "objective": {"type": "ebpo", "clip": 0.5},
}  # fmt: skip
SMALL = {
    "ladder": LADDER,
    "train__steps": 6,
    "train__batch": 4,
    "train__eval_rows": 1,
    "optimizer__schedule": "constant",
}


@pytest.fixture(scope="module")
def tiny() -> hildanext.Model:
    return hildanext.load("tiny")


@pytest.fixture(scope="module")
def asked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("prompts") / "rows.jsonl"
    rows = [{"prompt": text, "answer": "7"} for text in ("the cat", "a dog ran", "red house", "bird sang all", "mat")]
    path.write_text("\n".join(map(json.dumps, rows)))
    return path


def configuration(shards: Path, parent: Path, asked: Path, rl: Mapping[str, Any], **changes: Any) -> Config:
    given = {"rl": {**RL, "rows": str(asked), **rl}, "model__path": str(parent), **SMALL, **changes}
    return load_config(None, overrides(shards, **given), BASE)


def run(path: Path, where: tuple[Path, Path, Path], rl: Any = None, **changes: Any) -> dict[str, Any]:
    return rl_command(configuration(*where, rl or {}, **changes), QUIET, path)


@pytest.fixture(scope="module")
def where(shards: Path, parent: Path, asked: Path) -> tuple[Path, Path, Path]:
    return shards, parent, asked


def answers_of(model: Any, objective: Any, **decode: Any) -> tuple[Answers, DecodeConfig]:
    """Two prompts of the bundled child answered twice at temperature 0.7, their drawn probabilities as sampled."""
    given = {"temperature": 0.7, "confidence": "sampled", "tau_edit": None, "tau_mask": 0.9, **decode}
    settings, found = DecodeConfig(**given), list[Trajectory]()
    for place, text in enumerate(("Write a story about Lily and a fox.", "Hi")):
        ids = tuple(
            model.tokenizer.apply_chat_template(
                [{"role": "user", "content": text}], add_generation_prompt=True, return_dict=False
            )
        )
        asked = [Request(prompt_ids=ids, sample=2 * place + n, trace=True, max_new_tokens=20, block=8) for n in (0, 1)]
        results = Driver(BlockEngine(model.loaded, settings)).run(asked)
        found += [Trajectory.of(ids, one, model.denoiser.mask_id) for one in results]
    made = Answers.of(found, objective, "mask", model.denoiser.mask_id, settings)
    return made.filled(made.advantage, made.kept, [0, 0, 1, 1], {"rollout": 0, "block": 8}), settings


def assert_scored_as_drawn(model: Any, name: str, wrong: Mapping[str, Any] | None = None, **cut: Any) -> None:
    """exp(score) of every token in its recorded round is the probability the decoder drew it with: r = 1."""
    objective = build("policy_objectives", {"type": name})
    made, _ = answers_of(model, objective, **cut)
    played = replace(made.played(slice(0, 4), 0), **(wrong or {}))
    seen = 0
    for view in round_views(model.denoiser, played):
        support = objective.support(model.denoiser, played, 8, view)
        with torch.no_grad():
            score = objective.score(model.denoiser, played, 8, view, support)
        assert torch.allclose(score.double(), -played.surprisal[view.m2t], atol=2e-4)
        seen += len(score)
    assert seen == int(played.batch.learn.sum()) > 20


CUT = {"temperature": 1.5, "top_k": 6, "top_p": 0.8}


def test_scores_have_the_support_and_temperature_that_tokens_were_drawn_with(tiny: hildanext.Model) -> None:
    assert_scored_as_drawn(tiny, "trace")
    assert_scored_as_drawn(tiny, "agrpo")
    assert_scored_as_drawn(tiny, "trace", **CUT)
    for wrong, cut in (({"temperature": 1.0}, {}), ({"top_k": 0}, CUT), ({"top_p": 1.0}, CUT), ({"top_k": 5}, CUT)):
        with pytest.raises(AssertionError):
            assert_scored_as_drawn(tiny, "trace", wrong, **cut)


def test_answers_are_those_of_generate_for_the_same_seeds(tiny: hildanext.Model) -> None:
    made, settings = answers_of(tiny, build("policy_objectives", {"type": "trace"}))
    for row in range(4):
        first, stop, _ = made.spans[row].tolist()
        prompt = tuple(made.tokens[row, :first].tolist())
        alone = BlockEngine(tiny.loaded, settings).generate(
            Request(prompt_ids=prompt, sample=row, max_new_tokens=20, block=8)
        )
        assert list(alone.token_ids) == made.tokens[row, first:stop].tolist()


def test_steps_lead_back_to_every_state_and_rewriting_is_refused(tiny: hildanext.Model) -> None:
    ids = (5, 6, 7)
    request = Request(prompt_ids=ids, trace=True, max_new_tokens=16, block=8)
    engine = BlockEngine(tiny.loaded, DecodeConfig(tau_mask=0.5, tau_edit=None, temperature=1.0))
    one = Trajectory.of(ids, engine.generate(request), tiny.denoiser.mask_id)
    steps = one.steps()
    assert steps[:3].tolist() == [-1] * 3 and int(steps[3:].min()) == 0
    for start, rows in one.looks.items():
        at = slice(start, start + rows.shape[1])
        for look, row in enumerate(rows):
            shown = torch.where(steps[at] >= look, tiny.denoiser.mask_id, one.tokens[at])
            assert torch.equal(shown, row)
    start = max(one.looks)
    one.looks[start][-1, -1] = 9 if int(one.looks[start][-1, -1]) != 9 else 10
    with pytest.raises(ValueError, match="rewritten"):
        one.steps()


def test_behind_the_first_end_nothing_counts_unless_the_canvas_does(tiny: hildanext.Model) -> None:
    objective = build("policy_objectives", {"type": "trace"})
    made, _ = answers_of(tiny, objective)
    played, mask_id = made.played(slice(0, 4), 0), tiny.denoiser.mask_id
    for row in range(4):
        first, stop, length = made.spans[row].tolist()
        assert played.batch.learn[row].nonzero()[:, 0].tolist() == list(range(first, stop))
        assert (played.batch.tokens[row, stop:length] == mask_id).all()
        assert not (played.canvas[row, :length] == mask_id).any()
        assert played.batch.docs[row].tolist() == [0] * length + [1] * (played.batch.tokens.shape[1] - length)


@pytest.fixture(scope="module")
def whole(where: tuple[Path, Path, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("rl")
    run(path, where)
    return path


def test_a_rollout_is_learned_from_in_epochs_and_begins_at_ratio_one(whole: Path) -> None:
    lines = [record for record in records(whole) if "loss" in record]
    assert [line["rollout"] for line in lines] == [0, 0, 0, 0, 1, 1]
    assert all(lines[index]["moved"] == lines[index]["kl"] == lines[index]["clipped"] == 0 for index in (0,))
    assert lines[4]["moved"] == 0 and lines[4]["kl"] > 0 and lines[2]["moved"] > 0
    names = {"reward", "reward_spread", "flat", "entropy", "answer", "truncated", "first_end", "tokens_per_forward"}
    assert (
        names | {"edits", "moved_50", "moved_90", "moved_100"} <= set(lines[0])
        and lines[0]["reward_format"] >= 0 >= lines[0]["reward_length"]
    )
    for line in lines:
        assert 0 <= line["moved_50"] <= line["moved_90"] <= line["moved_100"]
        assert line["moved_50"] <= 2 * line["moved"] <= 2 * line["moved_100"]
    # 4 rows of 2 views: learned from, once more without a gradient but on the state that answered, and ahead by both
    # policies for all 4 batches of the rollout, with its decoding
    assert [line["forwards"] for line in lines[1:4]] == [16, 16, 16]
    decoded = lines[0]["answer"] * 8 / lines[0]["tokens_per_forward"]
    assert lines[0]["forwards"] == pytest.approx(decoded + 4 * 2 * 2 * 4 + 8)
    report = json.loads((whole / "report.json").read_text())
    assert len(report["held_out"]["rewards"]) == 3 and report["held_out"]["prompts"] == 2
    meta = json.loads((whole / "model" / "hildanext.json").read_text())
    assert meta["history"][-1]["objective"] == "ebpo" and meta["history"][-1]["steps"] == 6


class Forgetful(Reinforce):
    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        super().load_state_dict({"rl": {n: v for n, v in state["rl"].items() if n != "rows"}})


def resumed(path: Path, where: tuple[Path, Path, Path], step: int) -> list[float]:
    with pytest.MonkeyPatch.context() as patch:
        stop_after(patch, step - 1, signal.SIGTERM)
        with pytest.raises(Interrupted, match=f"step {step}"):
            run(path, where)
    run(path, where, train__resume="latest")
    return losses(path)


def test_a_run_stopped_within_a_rollout_goes_on_as_if_it_had_not_been(
    whole: Path, where: tuple[Path, Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert resumed(tmp_path / "a", where, 3) == losses(whole)
    ours, theirs = (load_file(path / "model" / "model.safetensors") for path in (tmp_path / "a", whole))
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    rewards = [[record.get("reward") for record in records(path)] for path in (tmp_path / "a", whole)]
    assert [one for one in rewards[0] if one is not None] == [one for one in rewards[1] if one is not None]
    monkeypatch.setattr(reinforce, "Reinforce", Forgetful)
    assert resumed(tmp_path / "b", where, 3) != losses(whole)


MANY = {"epochs": 500}  # a rollout of a thousand steps: no kill comes behind it


def stopped_at(path: Path, where: tuple[Path, Path, Path], step: int, **changes: Any) -> list[tuple[Any, ...]]:
    with pytest.MonkeyPatch.context() as patch:
        stop_after(patch, step - 1, signal.SIGTERM)
        with pytest.raises(Interrupted, match=f"step {step}"):
            run(path, where, MANY, train__steps=900, train__checkpoint_every=3, **changes)
    lines = [record for record in records(path) if "loss" in record]
    return [(line["step"], line["loss"], line["reward"], line["rollout"]) for line in lines]


def test_kill_9_within_a_rollout_loses_no_answer_of_it(where: tuple[Path, Path, Path], tmp_path: Path) -> None:
    given = {"rl": {**RL, "rows": str(where[2]), **MANY}, "model__path": str(where[1]), **SMALL, "train__steps": 900}
    sets = [part for text in overrides(where[0], **given, train__checkpoint_every=3) for part in ("--set", text)]
    command = [sys.executable, "-m", "hildanext", "rl", "--quiet", "--run-dir", str(tmp_path / "killed"), *sets]
    process = subprocess.Popen(command)
    checkpoints = Checkpoints(tmp_path / "killed" / "checkpoints")
    until(lambda: checkpoints.newest() is not None or process.poll() is not None)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    step = int(read_state(checkpoints.all()[-1])["step"])
    shutil.copytree(tmp_path / "killed", tmp_path / "forgetful")
    whole = stopped_at(tmp_path / "whole", where, step + 2)
    assert stopped_at(tmp_path / "killed", where, step + 2, train__resume="latest") == whole
    assert {rollout for *_, rollout in whole} == {0}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(reinforce, "Reinforce", Forgetful)
        assert stopped_at(tmp_path / "forgetful", where, step + 2, train__resume="latest") != whole


def test_cut_draws_are_learned_from_and_a_stopped_run_keeps_what_could_be_drawn(
    where: tuple[Path, Path, Path], tmp_path: Path
) -> None:
    rl = {"objective": {"type": "trace"}, "epochs": 1, "held_out": 0, "groups": 4}
    cut = {"decode__top_k": 3, "decode__top_p": 0.9, "train__steps": 4, "optimizer__lr": 0.01}
    run(tmp_path / "whole", where, rl, **cut)
    with pytest.MonkeyPatch.context() as patch:
        stop_after(patch, 1, signal.SIGTERM)
        with pytest.raises(Interrupted, match="step 2"):
            run(tmp_path / "cut", where, rl, **cut)
    run(tmp_path / "cut", where, rl, **cut, train__resume="latest")
    assert losses(tmp_path / "cut") == losses(tmp_path / "whole")
    first = next(record for record in records(tmp_path / "whole") if "loss" in record)
    assert first["moved_100"] == 0 and first["clipped"] == 0


@pytest.mark.parametrize("name", ["espo", "agrpo", "trace", "wd1"])
def test_every_objective_runs_under_adapters_with_the_weights_below_them_as_reference(
    name: str, where: tuple[Path, Path, Path], tmp_path: Path
) -> None:
    fields = {"type": name} | ({} if name == "trace" else {"kl_weight": 0.1})
    changes = {"model__adapter": {"kind": "lora", "rank": 2}, "train__steps": 3, "optimizer__lr": 0.01}
    run(tmp_path, where, {"objective": fields}, **changes)
    lines = [record for record in records(tmp_path) if "loss" in record]
    assert lines[0]["kl"] == 0 and all(line["loss"] is not None for line in lines)
    assert max(line["kl"] for line in lines) > 0


def learned(path: Path, where: tuple[Path, Path, Path], weight: float) -> float:
    """The mean of the last rollouts' share of answers with a red or sat in them."""
    rewards = [{"type": "format", "pattern": "sat|red", "weight": weight}]
    rl = {"rewards": rewards, "held_out": 0, "epochs": 1, "groups": 4, "samples": 8, "answer": 4}
    rl["objective"] = {"type": "espo", "kl_weight": 0.0, "clip": 10.0}
    changes = {"train__steps": 16, "train__batch": 32, "optimizer__lr": 0.01, "optimizer__clip": 1.0}
    run(path, where, rl, **changes)
    lines = [record["reward_format"] for record in records(path) if "loss" in record]
    return sum(lines[-5:]) / 5


def test_a_reward_is_learned_and_its_opposite_unlearned(where: tuple[Path, Path, Path], tmp_path: Path) -> None:
    assert learned(tmp_path / "more", where, 1.0) > learned(tmp_path / "less", where, -1.0) + 0.3


def test_a_fall_of_the_held_out_reward_ends_the_run(
    where: tuple[Path, Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    falling = iter([0.9, 0.1, 0.1, 0.1, 0.1])

    def rewarded(self: Reinforce, asked: list[Any], results: list[Any]) -> Any:
        held = len(asked) == 2
        sums = torch.full((len(asked),), next(falling) if held else 0.5, dtype=torch.float64)
        return sums, torch.stack([sums, sums])

    monkeypatch.setattr(Reinforce, "_rewarded", rewarded)
    report = run(tmp_path, where, {"epochs": 1, "most_drop": 0.5})
    assert report["steps"] < 6 and report["held_out"]["rewards"][:2] == [0.9, 0.1]


def test_groups_are_dropped_by_what_they_say() -> None:
    sums = torch.tensor([[1.0, 1.0], [0.0, 0.0], [0.5, 0.505], [0.0, 1.0]], dtype=torch.float64)
    for drop, kept in (
        ((), [True] * 4), (("all_right",), [False, True, True, True]), (("all_wrong",), [True, False, True, True]),
        (("narrow",), [False, False, False, True]),
    ):  # fmt: skip
        assert kept_groups(sums, sums, drop, 0.01).tolist() == kept


def test_questions_come_from_files_by_their_prompt_or_by_a_template(tiny: hildanext.Model, asked: Path) -> None:
    settings = RlConfig(rows=str(asked), held_out=0)
    own = questions_of(rows_of(settings), settings, tiny.tokenizer, 64, QUIET)
    assert len(own) == 5 and own[0].row["answer"] == "7"
    templated = RlConfig(rows=str(asked), held_out=0, ask="Write a story about {prompt}.")
    assert questions_of(rows_of(templated), templated, tiny.tokenizer, 64, QUIET)[0].ids != own[0].ids
    world = rows_of(RlConfig(rows="world:coding:3", limit=20))
    assert len(world) == 20 and world[0]["register"] == "coding"


def test_what_cannot_be_reinforced_is_one_clear_line(where: tuple[Path, Path, Path], tmp_path: Path) -> None:
    refused: Iterator[tuple[dict[str, Any], dict[str, Any], type[HildaError], str]] = iter([
        ({"groups": 3}, {}, ConfigError, r"rl\.groups x rl\.samples: 12 answers are no multiple of .* = 8"),
        ({"objective": {"type": "dpo"}}, {}, ConfigError, "it learns from pairs; use `hildanext dpo`"),
        ({}, {"decode__temperature": 0}, ConfigError, r"decode\.temperature 0"),
        ({}, {"decode__top_k": 5}, ConfigError, r"decode\.top_k: ebpo scores answers on the whole vocabulary"),
        ({}, {"model__adapter": {"kind": "lora", "dropout": 0.1}}, ConfigError, r"model\.adapter\.dropout 0\.1"),
        ({"rows": "nowhere.jsonl"}, {}, DataError, "no such file"),
        ({"rows": "world:stories"}, {}, ConfigError, r"give world:<register>"),
        ({"held_out": 5}, {}, DataError, "5 rows and rl.held_out=5"),
        ({"ask": "{nothing}"}, {}, ConfigError, r"rl\.ask: 'nothing'"),
        ({"rewards": [{"type": "countdown"}]}, {}, DataError, "reward countdown"),
        (
            {"objective": {"type": "trace"}}, {"decode__tau_edit": 0.0, "decode__tau_mask": 0.0},
            ConfigError, r"set decode\.tau_edit=null",
        ),
    ])  # fmt: skip
    for number, (rl, changes, kind, words) in enumerate(refused):
        if number == 0:
            changes = {"train__batch": 8}
        with pytest.raises(kind, match=words):
            run(tmp_path / str(number), where, rl, **changes)
