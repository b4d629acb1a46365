# Task `curve`: quality against speed on chats, thresholds chosen on one half of the prompts and reported on the other.
# Entry points: Curve, Setting.
# Quality is what the parent thinks of the answers: nats per character under it, as a multiple of its own answers'. Both
# halves hold every second prompt, so that a file sorted by kind gives each the same kinds.
"""Task plugin curve."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field

from hildanext.config.decode import Share
from hildanext.errors import DataError
from hildanext.measure.generation import generator_for
from hildanext.measure.task import EvalContext, Outcome
from hildanext.measure.tasks.chat import Beside, Chat
from hildanext.report.intervals import Measure

NEAR = 1.1
"""Times the lowest multiple, what counts as near it where no setting is good enough."""
QUALITY, SPEED = "nats_of_parents", "tokens_per_forward"
TOLD = (QUALITY, SPEED, "tokens_per_second", "token_f1", "repetition", "stopped_where_parent_does", "edits_per_text")


@dataclass(frozen=True)
class Setting:
    """One way of decoding: thresholds as probabilities (tau_edit None: no editing), looks at a full block, block size
    in tokens (0: the model's)."""

    tau_mask: float
    tau_edit: float | None
    max_post_steps: int
    block: int

    def name(self) -> str:
        """For a table."""
        edit = "off" if self.tau_edit is None else f"{self.tau_edit:g}"
        block = f", block {self.block}" if self.block else ""
        return f"tau_mask {self.tau_mask:g}, tau_edit {edit}, looks {self.max_post_steps}{block}"

    def values(self) -> dict[str, Any]:
        """The fields of a mode."""
        return {"tau_mask": self.tau_mask, "tau_edit": self.tau_edit, "max_post_steps": self.max_post_steps}


class Curve(Chat):
    """The chats of task `chat` at every setting of a grid, on one half of the prompts. Chosen is the fastest setting
    whose multiple of the parent's nats is at most `most`, or within a tenth of the lowest; it is measured again on the
    other half, as is the lowest where that is another. Source: docs/choosing-thresholds.md, chosen on one half."""

    version: ClassVar[int] = 1
    limit: int = Field(32, ge=2, description="prompts, of which each half gets every second")
    max_new_tokens: int = Field(64, ge=1, description="tokens per answer")
    tau_mask: tuple[Share, ...] = Field((0.5, 0.7, 0.9), min_length=1, description="thresholds of filling")
    tau_edit: tuple[Share | None, ...] = Field(
        (0.5, 0.9, None), min_length=1, description="thresholds of editing, probabilities; null: no editing"
    )
    looks: tuple[Annotated[int, Field(ge=0)], ...] = Field(
        (0, 2), min_length=1, description="max_post_steps: looks at a block without masks, counts"
    )
    blocks: tuple[Annotated[int, Field(ge=0)], ...] = Field(
        (0,), min_length=1, description="block sizes, tokens; 0: the model's"
    )
    most: float = Field(1.1, gt=0, description="multiple of the parent's nats that is still good enough")
    rank: Literal["tokens_per_forward", "tokens_per_second"] = Field(
        "tokens_per_forward", description="what makes a setting the fastest; seconds are of this machine"
    )

    def settings(self) -> Iterator[Setting]:
        """The grid; without editing a full block has nothing to be looked at for, so only the fewest looks stay."""
        for tau_mask, tau_edit, looks, block in product(self.tau_mask, self.tau_edit, self.looks, self.blocks):
            if tau_edit is not None or looks == min(self.looks):
                yield Setting(tau_mask, tau_edit, looks, block)

    def run(self, context: EvalContext) -> Outcome:
        """Measure the grid, choose, measure again."""
        beside = self.beside(context)
        halves = [range(start, len(beside.prompts), 2) for start in (0, 1)]
        if not halves[1]:
            raise DataError(f"curve.file: {self.file} has one prompt; two halves need more")
        found = {one: _measured(beside, context, one, halves[0]) for one in self.settings()}
        lowest, chosen = self.choice(found)
        measures = {f"{one.name()}: {name}": value for one, by in found.items() for name, value in by.items()}
        points = _frontier([_point(one, by) for one, by in found.items()])
        again: list[dict[str, Any]] = []
        roles = {"chosen": chosen} | ({"lowest": lowest} if lowest != chosen else {})
        for role, one in roles.items():
            by = _measured(beside, context, one, halves[1])
            measures |= {f"{role}, other half: {name}": value for name, value in by.items()}
            again.append(_point(one, by) | {"label": f"{role}, other half"})
        return self._told(context, chosen, measures, [len(half) for half in halves], points, again)

    def choice(self, found: Mapping[Setting, Mapping[str, Measure]]) -> tuple[Setting, Setting]:
        """(the setting of the lowest multiple, the chosen one)."""
        lowest = min(found, key=lambda one: found[one][QUALITY].value)
        most = max(self.most, NEAR * found[lowest][QUALITY].value)
        good = [one for one in found if found[one][QUALITY].value <= most]
        return lowest, max(good, key=lambda one: found[one][self.rank].value)

    def _told(
        self, context: EvalContext, chosen: Setting, measures: Mapping[str, Measure], sizes: Sequence[int],
        points: Sequence[Mapping[str, Any]], again: Sequence[Mapping[str, Any]],
    ) -> Outcome:  # fmt: skip
        say, reached = context.console.say, measures[f"{chosen.name()}: {QUALITY}"].value <= self.most
        near = f"nothing reaches {self.most:g}, so the fastest within a tenth of the lowest"
        why = f"the fastest up to {self.most:g}" if reached else near
        other = measures[f"chosen, other half: {QUALITY}"]
        say(f"chosen on {sizes[0]} prompts ({why}): {chosen.name()}; on {sizes[1]} others {other.text()}")
        line = json.dumps({"Q_MODE": chosen.values()})
        model = context.config.model.path
        say(f'to keep it: "decode": {line} in the hildanext.json of {model}, or, in a copy,')
        say(f"  hildanext export --model {model} --set 'export.format.decode={line}'")
        counts = {"settings": len(points), "prompts of the choice": sizes[0], "prompts of the report": sizes[1]}
        shown = [{"chosen": chosen.name(), "mode": line}]
        return Outcome(measures, counts, shown, {"multiple": [*points, *again]})


def _measured(beside: Beside, context: EvalContext, one: Setting, half: Sequence[int]) -> dict[str, Measure]:
    given = {**one.values(), **({"block": one.block} if one.block else {})}
    decode = context.config.decode.model_copy(update=given)
    config = context.config.model_copy(update={"decode": decode})
    at = replace(context, config=config, generator=generator_for("diffusion", context.loaded, decode))
    found = beside.outcome(at, half).measures
    if QUALITY not in found:
        raise DataError(f"curve: {one.name()} gave no text at all; leave it out of the grid")
    context.console.say(f"{one.name()}: {found[QUALITY].text()}, {found[SPEED].value:.2f} tokens per forward")
    return {name: found[name] for name in TOLD if name in found}


def _point(one: Setting, by: Mapping[str, Measure]) -> dict[str, Any]:
    quality = by[QUALITY]
    edit = "off" if one.tau_edit is None else f"{one.tau_edit:g}"
    label = f"{one.tau_mask:g}/{edit}/{one.max_post_steps}" + (f"/{one.block}" if one.block else "")
    return {"x": by[SPEED].value, "y": quality.value, "low": quality.low, "high": quality.high, "label": label}


def _frontier(points: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The points, with a label only where none is faster and at least as good, or better and at least as fast."""
    beaten = [any(two["x"] >= one["x"] and two["y"] <= one["y"] and two != one for two in points) for one in points]
    return [one | {"label": ""} if worse else one for one, worse in zip(points, beaten, strict=True)]
