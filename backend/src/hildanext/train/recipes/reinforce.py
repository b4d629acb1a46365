# Reinforcement learning: groups of answers by the model in training, their rewards, and epochs of updates on them.
# Entry points: rl_command, Reinforce (the Work).
# A rollout is `rl.groups` prompts answered `rl.samples` times; a step learns from train.batch x train.accumulate of the
# answers. Old and reference policy are numbers stored with the rollout, so a resumed run repeats an uninterrupted one
# exactly. Padding that was not sampled is never learned.
"""Recipe of reinforcement learning."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch

from hildanext import registry
from hildanext.config import Config
from hildanext.core.policy_objective import Known, PolicyObjective
from hildanext.core.reward import Attempt, Reward, total
from hildanext.core.types import LossReport
from hildanext.decoding.request import Request, Result
from hildanext.decoding.trajectory import Trajectory
from hildanext.errors import ConfigError, HildaError
from hildanext.models.about import about
from hildanext.progress import Console
from hildanext.train.loop import Notes
from hildanext.train.recipes.answers import Answers, first_end
from hildanext.train.recipes.conversion import step_seed, train_command
from hildanext.train.recipes.questions import Question, questions_of, rows_of
from hildanext.train.recipes.reference import Reference, ahead, autocast, require_single
from hildanext.train.recipes.rollout import Answering, digest, drawn
from hildanext.train.training import Training

MASKS = 1 << 21
HELD = 1 << 22


def rl_command(config: Config, console: Console, path: Path | None) -> dict[str, Any]:
    """Check rewards and rows, then train in a run directory; the report of train_command with `held_out`: the mean
    reward of the held-out prompts before and after."""
    rewards, found = rewards_of(config), rows_of(config.rl)
    for reward in rewards:
        reward.ready(found)
    made = list[Reinforce]()

    def recipe(training: Training, model: Any) -> Reinforce:
        made.append(Reinforce(training, model))
        return made[0]

    report = train_command(config, console, "rl", path, recipe)
    return made[0].reported(report)


def rewards_of(config: Config) -> tuple[Reward, ...]:
    """The rewards of the configuration."""
    return tuple(registry.build("rewards", section, "rl.rewards") for section in config.rl.rewards)


def _objective(training: Training) -> PolicyObjective:
    config = training.config
    made: PolicyObjective = registry.build("policy_objectives", config.rl.objective, "rl.objective")
    if made.pairs:
        raise ConfigError(f"rl.objective {config.rl.objective.type}: it learns from pairs; use `hildanext dpo`")
    cuts = [name for name in ("top_k", "cfg_scale") if getattr(config.decode, name)]
    cuts += ["top_p"] if config.decode.top_p < 1 else []
    if cuts:
        raise ConfigError(
            f"decode.{cuts[0]}: answers are scored on the whole vocabulary, so they must be drawn from it; leave it at"
            " its default"
        )
    if not config.decode.temperature:
        raise ConfigError("decode.temperature 0: all answers of a group would be the same; set it to 1.0")
    return made.prepare(about(training.loaded, config.model))


class Reinforce:
    """The steps of a run. model: the Denoiser that is trained, and that answers. Source: docs/rl.md."""

    noise = None

    def __init__(self, training: Training, model: Any) -> None:
        config = training.config
        require_single(config, training.ranks.size)
        self.training, self.model, self.settings = training, model, config.rl
        self.objective, self.rewards = _objective(training), rewards_of(config)
        self.updates = _updates(config)
        most = training.shards.window - max(self.settings.answer, 1)
        asked = questions_of(
            rows_of(self.settings), self.settings, training.loaded.tokenizer, most, training.console
        )  # fmt: skip
        count = len(asked) - self.settings.held_out
        self.questions, self.held_out = asked[:count], asked[count:]
        self.reference = Reference(training, self.objective, self.settings.reference)
        self.answering = Answering(training, model)
        self._pad = int(training.shards.manifest["pad_id"])
        self._answers: Answers | None = None
        self._known: list[Known] = []
        self._held: list[float] = []
        self._notes = Notes(0)

    def micro_batches(self, step: int) -> Iterator[Callable[[], LossReport]]:
        """The next batches of the rollout at work; the next rollout where it is used up."""
        number, place = divmod(step, self.updates * self.settings.epochs)
        if self._answers is None or self._answers.number != number:
            self._play(number)
        answers, train = self._answers, self.training.config.train
        assert answers is not None
        self._notes = Notes(answers.learned(train.batch * train.accumulate), answers.ids, answers.facts)
        for index in range(place * train.accumulate, (place + 1) * train.accumulate):
            known = self._known[index]
            slot = index % (self.updates * train.accumulate)
            played = answers.played(slice(slot * train.batch, (slot + 1) * train.batch), self._pad)
            losses = self.objective.losses(self.model, played.to(self._device), answers.block, known)
            yield from [partial(next, losses)] * len(known.views)

    @property
    def _device(self) -> torch.device:
        return self.training.loaded.device

    def _play(self, number: int) -> None:
        if number % self.settings.measure_every == 0:
            self._measure()
        self._answers = self._rolled(number)
        self._known = self._scored(self._answers)
        facts = {"first_end": first_end(self.model, self._answers, self.answering.end, self._device)}
        held = {"held_reward": self._held[-1]} if self._held else {}
        self._answers.facts.update({**facts, **held})

    def _rolled(self, number: int) -> Answers:
        settings, seed = self.settings, self.training.config.seed
        wanted = range(number * settings.groups, (number + 1) * settings.groups)
        chosen = drawn(len(self.questions), wanted, seed)
        asked = [self.questions[index] for index in chosen for _ in range(settings.samples)]
        start = number * self.updates * settings.epochs
        block = self.training.ladder.block(start)
        results = self._answered(asked, step_seed(seed, start), block)
        sums, scores = self._rewarded(asked, results)
        groups, first = sums.view(settings.groups, -1), scores[0].view(settings.groups, -1)
        kept = _kept(groups, first, settings.drop, settings.narrow)
        advantage = self.objective.advantages(groups).flatten()
        found = [Trajectory.of(q.ids, one, self.model.mask_id) for q, one in zip(asked, results, strict=True)]
        made = Answers.of(found, self.objective, settings.eos, self.model.mask_id, self.training.config.decode)
        flat = float((groups.amax(1) - groups.amin(1) <= 0).double().mean())
        facts = {
            "phase": self.training.ladder.stage(start).phase, "block": block, "rollout": number,
            "reward": float(sums.mean()), "reward_spread": float(sums.std(correction=0)), "flat": flat,
            "kept_groups": float(kept.double().mean()), **_told(self.rewards, scores), **_costs(results),
            "entropy": made.mean_surprisal(),
        }  # fmt: skip
        return made.filled(advantage, kept.repeat_interleave(settings.samples), chosen, facts)

    def _answered(self, asked: list[Question], seed: int, block: int) -> list[Result]:
        return self.answering.answers([
            Request(
                prompt_ids=one.ids, seed=seed, sample=place, block=block, trace=True,
                max_new_tokens=self.settings.answer,
            )
            for place, one in enumerate(asked)
        ])  # fmt: skip

    def _rewarded(self, asked: list[Question], results: list[Result]) -> tuple[torch.Tensor, torch.Tensor]:
        attempts = [
            Attempt(
                question.row, one.text, place // self.settings.samples, one.metrics.tokens, one.metrics.forwards,
                one.finish_reason == "eos",
            )
            for place, (question, one) in enumerate(zip(asked, results, strict=True))
        ]  # fmt: skip
        return total(self.rewards, attempts)

    def _scored(self, answers: Answers) -> list[Known]:
        train, found = self.training.config.train, list[Known]()
        for index in range(self.updates * self.settings.epochs * train.accumulate):
            slot = index % (self.updates * train.accumulate)
            played = answers.played(slice(slot * train.batch, (slot + 1) * train.batch), self._pad).to(self._device)
            with autocast(self.training.config, self._device):
                where = (answers.block, self._masks(answers.number, index))
                found.append(ahead(self.objective, self.reference, self.model, played, where))
        return found

    def _masks(self, number: int, index: int) -> torch.Generator:
        return torch.Generator().manual_seed(step_seed(self.training.config.seed, number, MASKS + index))

    def _measure(self) -> None:
        settings = self.settings
        if not self.held_out:
            return
        seed, block = step_seed(self.training.config.seed, 0, HELD), self.training.ladder.last
        sums, _ = self._rewarded(self.held_out, self._answered(self.held_out, seed, block))
        self._held.append(float(sums.mean()))
        best = max(self._held)
        if settings.most_drop and best - self._held[-1] > settings.most_drop:
            self.training.console.warn(
                f"rl: the held-out reward fell from {best:.3f} to {self._held[-1]:.3f}, more than rl.most_drop="
                f"{settings.most_drop:g}; the run ends, its checkpoints remain"
            )
            (self.training.run.path / "finish").touch()

    def reported(self, report: Mapping[str, Any]) -> dict[str, Any]:
        """The report with the held-out rewards, measured once more; it is also report.json."""
        self._measure()
        held = {"held_out": {"prompts": len(self.held_out), "rewards": self._held}} if self._held else {}
        made = {**report, **held}
        self.training.run.write_json("report.json", made)
        (self.training.run.path / "finish").unlink(missing_ok=True)
        if self._held:
            rows = [("held-out reward", f"{self._held[0]:.4f}", f"{self._held[-1]:.4f}")]
            self.training.console.table(rows, ("reward", "before", "after"))
        return made

    def notes(self) -> Notes:
        """Tokens and prompts of the step, and what is known of its rollout."""
        return self._notes

    def state_dict(self) -> dict[str, Any]:
        """The rollout at work with what was scored ahead, the held-out rewards, and what they depend on."""
        rows: dict[str, Any] = {}
        if self._answers is not None:
            known = [{"old": list(one.old), "reference": one.reference and list(one.reference)} for one in self._known]
            rows = {"rows": vars(self._answers), "known": known}
        prompts = digest([one.ids for one in (*self.questions, *self.held_out)])
        return {"rl": {"updates": self.updates, "prompts": prompts, "held": list(self._held), **rows}}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on in the middle of a rollout. HildaError where prompts or the steps of a rollout are others."""
        own, saved = self.state_dict()["rl"], state["rl"]
        changed = [name for name in ("updates", "prompts") if saved[name] != own[name]]
        if changed:
            raise HildaError(
                f"train.resume: {' and '.join(changed)} of a rollout differ from the checkpoint's; resume with its"
                " rl section, train.batch and train.accumulate, or start anew with model.path set to the checkpoint"
            )
        self._held = [float(value) for value in saved["held"]]
        if "rows" not in saved:
            return
        self._answers = Answers(**saved["rows"])
        self._known = [self._again(index, one) for index, one in enumerate(saved["known"])]

    def _again(self, index: int, stored: Mapping[str, Any]) -> Known:
        answers, train = self._answers, self.training.config.train
        assert answers is not None
        slot = index % (self.updates * train.accumulate)
        played = answers.played(slice(slot * train.batch, (slot + 1) * train.batch), self._pad).to(self._device)
        views = self.objective.views(self.model, played, answers.block, self._masks(answers.number, index))
        old = tuple(one.to(self._device) for one in stored["old"])
        theirs = stored["reference"]
        return Known(views, old, None if theirs is None else tuple(one.to(self._device) for one in theirs))


def _updates(config: Config) -> int:
    answers, step = config.rl.groups * config.rl.samples, config.train.batch * config.train.accumulate
    if answers % step:
        raise ConfigError(
            f"rl.groups x rl.samples = {answers}: no multiple of train.batch x train.accumulate = {step}; a rollout is"
            " used up by whole steps"
        )
    return answers // step


def _kept(sums: torch.Tensor, first: torch.Tensor, drop: tuple[str, ...], narrow: float) -> torch.Tensor:
    gone = {
        "all_right": (first >= 1).all(dim=1),
        "all_wrong": (first <= 0).all(dim=1),
        "narrow": sums.amax(dim=1) - sums.amin(dim=1) < narrow,
    }
    return ~torch.stack([gone[name] for name in drop] or [torch.zeros(len(sums), dtype=torch.bool)]).any(dim=0)


def _told(rewards: tuple[Reward, ...], scores: torch.Tensor) -> dict[str, float]:
    names = [type(reward).__module__.rsplit(".", 1)[-1] for reward in rewards]
    return {f"reward_{name}": float(own.mean()) for name, own in zip(names, scores, strict=True)}


def _costs(results: list[Result]) -> dict[str, float]:
    tokens, forwards = (sum(getattr(one.metrics, name) for one in results) for name in ("tokens", "forwards"))
    stopped = sum(one.finish_reason == "eos" for one in results) / len(results)
    return {
        "answer": tokens / len(results), "truncated": 1 - stopped,
        "tokens_per_forward": tokens / forwards if forwards else math.nan,
    }  # fmt: skip
