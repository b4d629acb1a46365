# Reinforcement learning: groups of answers by the model in training, their rewards, and epochs of updates on them.
# Entry points: rl_command, Reinforce (the Work).
# A rollout is `rl.groups` prompts answered `rl.samples` times; a step learns from train.batch x train.accumulate of the
# answers. Old and reference policy are numbers stored with the rollout, so a resumed run repeats an uninterrupted one
# exactly. Padding that was not sampled is never learned.
"""Recipe of reinforcement learning."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from hildanext import registry
from hildanext.config import Config
from hildanext.core.policy_objective import Known, PolicyObjective
from hildanext.core.policy_views import Played
from hildanext.core.reward import Attempt, Reward, total
from hildanext.core.types import LossReport
from hildanext.decoding.request import Request, Result
from hildanext.decoding.trajectory import Trajectory
from hildanext.errors import ConfigError
from hildanext.models.about import about
from hildanext.progress import Console
from hildanext.train.loop import Notes
from hildanext.train.recipes.answers import Answers, first_end
from hildanext.train.recipes.conversion import step_seed, train_command
from hildanext.train.recipes.figures import costs, forwards_ahead, forwards_learned, kept_groups, moves, told
from hildanext.train.recipes.questions import Question, questions_of, rows_of
from hildanext.train.recipes.reference import Reference, ahead, autocast, require_single
from hildanext.train.recipes.rollout import Answering, digest, drawn, require_same_rollout, updates_of
from hildanext.train.training import Training

MASKS = 1 << 21
HELD = 1 << 22
KEPT = ("old", "reference", "support")


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
    if config.decode.cfg_scale:
        raise ConfigError("decode.cfg_scale: answers are scored by one forward, not by two; leave it at 0")
    cut = "top_k" if config.decode.top_k else "top_p" if config.decode.top_p < 1 else ""
    if cut and not made.rounds:
        raise ConfigError(
            f"decode.{cut}: {config.rl.objective.type} scores answers on the whole vocabulary, so they must be drawn"
            " from it; leave it at its default, or take agrpo or trace"
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
        drawn_at_once = config.rl.groups * config.rl.samples
        self.updates = updates_of(drawn_at_once, config, "rl.groups x rl.samples")
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
        self._learned: list[Known] = []
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
        places = range(place * train.accumulate, (place + 1) * train.accumulate)
        self._learned = [replace(self._known[index], fresh=place == 0, moved=[]) for index in places]
        for index, known in zip(places, self._learned, strict=True):
            losses = self.objective.losses(self.model, self._batch(answers, index), answers.block, known)
            yield from [partial(next, losses)] * len(known.views)

    def _batch(self, answers: Answers, index: int) -> Played:
        train = self.training.config.train
        slot = index % (self.updates * train.accumulate)
        return answers.played(slice(slot * train.batch, (slot + 1) * train.batch), self._pad).to(self._device)

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
        kept = kept_groups(groups, first, settings.drop, settings.narrow)
        advantage = self.objective.advantages(groups).flatten()
        found = [Trajectory.of(q.ids, one, self.model.mask_id) for q, one in zip(asked, results, strict=True)]
        made = Answers.of(found, self.objective, settings.eos, self.model.mask_id, self.training.config.decode)
        flat = float((groups.amax(1) - groups.amin(1) <= 0).double().mean())
        facts = {
            "phase": self.training.ladder.stage(start).phase, "block": block, "rollout": number,
            "reward": float(sums.mean()), "reward_spread": float(sums.std(correction=0)), "flat": flat,
            "kept_groups": float(kept.double().mean()), **told(self.rewards, scores), **costs(results),
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
                one.finish_reason == "eos", question.turns,
            )
            for place, (question, one) in enumerate(zip(asked, results, strict=True))
        ]  # fmt: skip
        return total(self.rewards, attempts)

    def _scored(self, answers: Answers) -> list[Known]:
        train, found = self.training.config.train, list[Known]()
        for index in range(self.updates * self.settings.epochs * train.accumulate):
            played = self._batch(answers, index)
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
        """Tokens and prompts of the step, what is known of its rollout, and how far its ratios moved."""
        rows, answers = self.training.config.train.batch, self._answers
        record = {**self._notes.record, **moves(self._learned)}
        forwards = forwards_learned(self._learned, self.objective, rows)
        if answers is not None and self._learned and self._learned[0].fresh:
            forwards += answers.facts["forwards"] + forwards_ahead(self._known, self.objective, rows)
        return replace(self._notes, record={**record, "forwards": forwards})

    def state_dict(self) -> dict[str, Any]:
        """The rollout at work with what was scored ahead, the held-out rewards, and what they depend on."""
        rows: dict[str, Any] = {}
        if self._answers is not None:
            stored = [{name: getattr(one, name) and list(getattr(one, name)) for name in KEPT} for one in self._known]
            rows = {"rows": vars(self._answers), "known": stored}
        prompts = digest([one.ids for one in (*self.questions, *self.held_out)])
        return {"rl": {"updates": self.updates, "prompts": prompts, "held": list(self._held), **rows}}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on in the middle of a rollout. HildaError where prompts or the steps of a rollout are others."""
        own, saved = self.state_dict()["rl"], state["rl"]
        require_same_rollout(own, saved, "its rl section, train.batch and train.accumulate")
        self._held = [float(value) for value in saved["held"]]
        if "rows" not in saved:
            return
        self._answers = Answers(**saved["rows"])
        self._known = [self._again(index, one) for index, one in enumerate(saved["known"])]

    def _again(self, index: int, stored: Mapping[str, Any]) -> Known:
        answers = self._answers
        assert answers is not None
        played = self._batch(answers, index)
        views = self.objective.views(self.model, played, answers.block, self._masks(answers.number, index))
        old, reference, support = (
            stored[name] and tuple(one.to(self._device) for one in stored[name]) for name in KEPT
        )  # fmt: skip
        return Known(views, old or (), reference, support)
