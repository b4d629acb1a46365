# Preference training: chosen over rejected answers through the block bound, against the model the run began from.
# Entry points: dpo_command, Preferring (the Work), Pair, pairs_of.
# A batch is pairs, the chosen answer first; model and reference score the same masks. A row is filled to whole blocks
# with [MASK], which neither counts nor tells where an answer ends.
"""Recipe of preference training."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import torch

from hildanext import registry
from hildanext.config import Config
from hildanext.config.rl import DpoConfig
from hildanext.core.batches import document_batch
from hildanext.core.policy_objective import Known, PolicyObjective
from hildanext.core.policy_views import Played
from hildanext.core.types import LossReport
from hildanext.data.chat import render
from hildanext.data.messages import Unusable
from hildanext.data.records import prompt_of
from hildanext.errors import ConfigError, DataError, HildaError
from hildanext.models.about import about
from hildanext.progress import Console
from hildanext.train.loop import Notes, evaluating
from hildanext.train.recipes.conversion import step_seed, train_command
from hildanext.train.recipes.questions import file_rows
from hildanext.train.recipes.reference import Reference, ahead, autocast, require_single
from hildanext.train.recipes.rollout import digest, drawn
from hildanext.train.training import Training

MASKS, HELD = 1 << 21, 1 << 22


@dataclass(frozen=True)
class Pair:
    """chosen, rejected: (ids of prompt and answer, first of the answer)."""

    chosen: tuple[tuple[int, ...], int]
    rejected: tuple[tuple[int, ...], int]


def dpo_command(config: Config, console: Console, path: Path | None) -> dict[str, Any]:
    """Train on pairs in a run directory; the report of train_command with `held_out`: loss, margin and share preferred
    on the held-out pairs before and after."""
    found, made = _rows(config.dpo), list[Preferring]()

    def recipe(training: Training, model: Any) -> Preferring:
        made.append(Preferring(training, model, found))
        return made[0]

    report = train_command(config, console, "dpo", path, recipe)
    return made[0].reported(report)


def _rows(settings: DpoConfig) -> list[dict[str, Any]]:
    found = file_rows("dpo.pairs", settings.pairs, "give a file of rows with chosen and rejected")
    return list(islice(found, settings.limit or None))


def pairs_of(
    found: list[dict[str, Any]], settings: DpoConfig, tokenizer: Any, most: int, console: Console
) -> list[Pair]:
    """The rows as pairs of at most `most` tokens each; what is left out is counted and said. DataError where a row has
    no prompt, chosen or rejected, or too few are left."""
    made, longer, same = list[Pair](), 0, 0
    for number, row in enumerate(found, 1):
        sides = [_side(row, field, tokenizer, number) for field in (settings.chosen, settings.rejected)]
        if sides[0] == sides[1]:
            same += 1
        elif max(len(ids) for ids, _ in sides) > most:
            longer += 1
        else:
            made.append(Pair(*sides))
    if longer or same:
        console.warn(f"dpo.pairs: of {len(found)} pairs {longer} are longer than {most} tokens, {same} equal: left out")
    if len(made) <= settings.held_out:
        raise DataError(
            f"dpo.pairs {settings.pairs}: {len(made)} pairs, {settings.held_out} of them held out; give more, or hold"
            " out fewer"
        )
    return made


def _side(row: Mapping[str, Any], field: str, tokenizer: Any, number: int) -> tuple[tuple[int, ...], int]:
    value = row.get(field)
    text = value[-1].get("content") if isinstance(value, list) and value and isinstance(value[-1], Mapping) else value
    if not isinstance(text, str) or not text.strip():
        raise DataError(f"dpo.pairs: row {number} has no text in {field!r}; it has {', '.join(sorted(map(str, row)))}")
    try:
        asked = prompt_of({name: one for name, one in row.items() if name not in ("chosen", "rejected")})
    except Unusable as error:
        raise DataError(f"dpo.pairs: row {number}: {error}") from None
    rendered = render((*asked, {"role": "assistant", "content": text}), tokenizer, "last")
    return tuple(rendered.ids), rendered.learn.index(True)


class Preferring:
    """A step is train.accumulate batches of train.batch pairs. model: the Denoiser that is trained. Source:
    docs/rl.md."""

    noise = None

    def __init__(self, training: Training, model: Any, found: list[dict[str, Any]]) -> None:
        config = training.config
        require_single(config, training.ranks.size)
        self.training, self.model, self.settings = training, model, config.dpo
        self.objective = _objective(training)
        pairs = pairs_of(found, self.settings, training.loaded.tokenizer, training.shards.window, training.console)
        count = len(pairs) - self.settings.held_out
        self.pairs, self.held_out = pairs[:count], pairs[count:]
        self.reference = Reference(training, self.objective, self.settings.reference)
        self._pad = int(training.shards.manifest["pad_id"])
        self._before = self._measured()
        self._notes = Notes(0)

    def micro_batches(self, step: int) -> Iterator[Callable[[], LossReport]]:
        """The next pairs, scored by the reference first."""
        train, ladder = self.training.config.train, self.training.ladder
        block, wanted = ladder.block(step), train.batch * train.accumulate
        places = drawn(len(self.pairs), range(step * wanted, (step + 1) * wanted), self.training.config.seed)
        record, tokens = {"phase": ladder.stage(step).phase, "block": block}, 0
        for index in range(train.accumulate):
            own = places[index * train.batch : (index + 1) * train.batch]
            played = self._played([self.pairs[place] for place in own], own, block)
            known = self._known(played, block, step_seed(self.training.config.seed, step, MASKS + index))
            tokens += played.canvas.numel()
            losses = self.objective.losses(self.model, played, block, known)
            yield from [partial(next, losses)] * len(known.views)
        self._notes = Notes(tokens, places, record)

    def _played(self, pairs: list[Pair], places: list[int], block: int) -> Played:
        size, mask_id = block if block > 0 else 1, self.model.mask_id
        sides = [side for pair in pairs for side in (pair.chosen, pair.rejected)]
        filled = [((*ids, *[mask_id] * (-len(ids) % size)), first) for ids, first in sides]
        ids = tuple(2 * place + side for place in places for side in (0, 1))
        batch = document_batch(filled, self._pad, size, ids)
        learn = batch.learn & (batch.tokens != mask_id)
        return Played.given(type(batch)(batch.tokens, learn, batch.docs, ids)).to(self.training.loaded.device)

    def _known(self, played: Played, block: int, seed: int) -> Known:
        with autocast(self.training.config, self.training.loaded.device):
            where = (block, torch.Generator().manual_seed(seed))
            return ahead(self.objective, self.reference, self.model, played, where)

    def _measured(self) -> dict[str, float]:
        sums: dict[str, float] = {}
        block, batch = self.training.ladder.last, self.training.config.train.batch
        with evaluating(self.model):
            for start in range(0, len(self.held_out), batch):
                own = self.held_out[start : start + batch]
                played = self._played(own, [*range(start, start + len(own))], block)
                known = self._known(played, block, step_seed(self.training.config.seed, 0, HELD))
                for report in self.objective.losses(self.model, played, block, known):
                    found = {"loss": report.total.detach(), **report.parts}
                    sums |= {name: sums.get(name, 0.0) + float(value) for name, value in found.items()}
        return {name: value / (2 * len(self.held_out)) for name, value in sums.items()}

    def reported(self, report: Mapping[str, Any]) -> dict[str, Any]:
        """The report with what the held-out pairs say; it is also report.json."""
        after = self._measured()
        held = {"pairs": len(self.held_out), "before": self._before, "after": after}
        made = {**report, **({"held_out": held} if after else {})}
        self.training.run.write_json("report.json", made)
        if after:
            table = [(name, f"{self._before[name]:.4f}", f"{value:.4f}") for name, value in after.items()]
            self.training.console.table(table, ("held-out pairs", "before", "after"))
        return made

    def notes(self) -> Notes:
        """Tokens and pairs of the step."""
        return self._notes

    def state_dict(self) -> dict[str, Any]:
        """What the order of the pairs depends on, and what was measured before the first step."""
        flat = [ids for pair in self.pairs for ids, _ in (pair.chosen, pair.rejected)]
        return {"dpo": {"pairs": digest(flat), "before": self._before}}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on; a step's pairs follow from its number. HildaError where the pairs are others."""
        if state["dpo"]["pairs"] != self.state_dict()["dpo"]["pairs"]:
            raise HildaError(
                "train.resume: the pairs differ from the checkpoint's; resume with its dpo section, or start anew with"
                " model.path set to the checkpoint"
            )
        self._before = dict(state["dpo"]["before"])


def _objective(training: Training) -> PolicyObjective:
    section = training.config.dpo.objective
    made: PolicyObjective = registry.build("policy_objectives", section, "dpo.objective")
    if not made.pairs:
        raise ConfigError(f"dpo.objective {section.type}: it learns from rewards; use `hildanext rl`, or dpo")
    return made.prepare(about(training.loaded, training.config.model))
