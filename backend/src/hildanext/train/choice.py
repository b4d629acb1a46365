# What a conversion should be on this machine, decided from the model, the data, the memory and the time there is.
# Entry points: choose, Facts, Decision, seconds_of, steps_for, kept, as_values.
# Every value comes with its reason, so that whoever disagrees knows with what. Decisions are functions of Facts and of
# "does it fit"; nothing is loaded or measured here.
"""Choosing a conversion."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from hildanext.errors import ConfigError, ModelError

SPAN = re.compile(r"(?:(\d+(?:\.\d+)?)h)?(?:(\d+(?:\.\d+)?)m)?(?:(\d+(?:\.\d+)?)s)?")
LONG = 2 * 3600.0
EPOCHS = 10
LEAST_STEPS = 12
CHECKPOINT_SECONDS = 300.0
SHARE = 0.9


@dataclass(frozen=True)
class Facts:
    """What is known before a choice. longest: positions the model has, 0 unknown; block: of an earlier conversion, None
    for an AR model; cuda, bfloat16: the device, and whether it multiplies that; adapters, bits: whether peft and
    bitsandbytes are here; chats: what the data are; lengths: tokens of sampled documents; seconds: the budget."""

    parameters: int
    longest: int
    block: int | None
    cuda: bool
    bfloat16: bool
    adapters: bool
    bits: bool
    chats: bool
    lengths: Sequence[int]
    seconds: float


@dataclass(frozen=True)
class Decision:
    """One value of the configuration, by its dotted place, and why."""

    place: str
    value: Any
    reason: str


Fits = Callable[[Mapping[str, Any]], bool]


def seconds_of(text: str) -> float:
    """A span such as 30m, 2h, 1h30m or 90s, in seconds. ConfigError for anything else, and for none."""
    found = SPAN.fullmatch(text.strip().lower())
    parts = [float(part) if part else 0.0 for part in found.groups()] if found else []
    total = sum(part * unit for part, unit in zip(parts, (3600.0, 60.0, 1.0), strict=False))
    if total <= 0:
        raise ConfigError(f"--budget: {text!r} is no span of time; write it as 30m, 2h, 1h30m or 90s")
    return total


def choose(facts: Facts, fits: Fits, given: Mapping[str, Any] | None = None) -> list[Decision]:
    """Shift, window, block, learned rows, dtype, memory, batch and learning rate. fits: whether a run with these values
    {dotted place: value} fits this machine; given: values that were asked for, which stay and which the others follow.
    ModelError where nothing fits."""
    asked = given or {}
    (block,) = kept([_block(facts)], asked)
    (window,) = kept([_window(facts, block.value)], asked)
    block_places = [Decision("ladder.decay_to", block.value, block.reason), block]
    found = [*_shift(facts), window, *block_places, *_rows(facts, block.value), *_dtype(facts)]
    found = kept([*found, *_memory(facts, window.value, {**as_values(found), **asked}, fits)], asked)
    lora = as_values(found)["model.adapter.kind"] != "none"
    return [*found, *kept(_rate(facts, lora), asked)]


def kept(decisions: Sequence[Decision], given: Mapping[str, Any]) -> list[Decision]:
    """The decisions, with what was asked for in the place of what would have been chosen."""
    return [
        one if given.get(one.place, one.value) == one.value
        else Decision(one.place, given[one.place], f"as asked; {json.dumps(one.value)} would have been chosen")
        for one in decisions
    ]  # fmt: skip


def as_values(decisions: Sequence[Decision]) -> dict[str, Any]:
    """{dotted place: value}."""
    return {one.place: one.value for one in decisions}


def _shift(facts: Facts) -> list[Decision]:
    if facts.block is not None:
        return []
    reason = "an AR model predicts the next token; reading a block's first one from the clean text keeps what it knows"
    return [Decision("model.shift", "clean", reason)]


def _window(facts: Facts, block: int) -> Decision:
    wanted = sorted(facts.lengths)[int(0.9 * (len(facts.lengths) - 1))] if facts.lengths else 256
    most = 1024 if facts.cuda else 512
    limit = min(most, _power_below(facts.longest)) if facts.longest else most
    size = min(limit, max(64, _power_above(wanted))) // block * block or block
    reason = f"nine of ten documents have at most {wanted} tokens; at most {limit} here"
    return Decision("tokenize.window", size, reason)


def _block(facts: Facts) -> Decision:
    if facts.block is not None:
        return Decision("ladder.fixed", facts.block, "the block the model was converted for")
    long = facts.seconds >= LONG
    size = (32 if long else 16) if facts.cuda else (16 if long else 8)
    return Decision("ladder.fixed", size, "a small block is learned in fewer steps, a large one decodes faster")


def _rows(facts: Facts, block: int) -> list[Decision]:
    if not facts.chats:
        return []
    return [
        Decision("train.split", "sft_train", "the data are chats: what the assistant says is learned"),
        Decision("train.eval_split", "sft_eval", "as train.split"),
        Decision("model.block_grid", "per_document", "an answer's blocks begin where its chat does"),
        Decision("tokenize.pad_to_block", block, "an answer is filled to a whole block, no further"),
    ]


def _dtype(facts: Facts) -> list[Decision]:
    found = [Decision("model.dtype", "float32", "master weights; products in bfloat16")] if facts.cuda else []
    reason = "this processor multiplies bfloat16" if facts.bfloat16 else "this processor has no units for bfloat16"
    return [*found, Decision("train.autocast", "bfloat16" if facts.bfloat16 else "none", reason)]


def _memory(facts: Facts, window: int, known: Mapping[str, Any], fits: Fits) -> list[Decision]:
    rows = max(1, (16384 if facts.cuda else 1024 if facts.parameters > 5e7 else 2048) // window)
    asked = known.get("train.batch")
    for words, extra, least in _variants(facts):
        batch = asked or rows
        while batch >= (asked or least(rows)):
            values = {**extra, "train.batch": batch, "train.accumulate": max(1, rows // batch)}
            if fits({**values, **known}):
                said = f"{words}: the first of full weights, recomputed layers, 8-bit Adam, adapters that fits"
                return [Decision(place, value, said) for place, value in values.items()]
            batch //= 2
    cure = "" if facts.adapters else "; adapters need less: pip install 'hildanext[quant]'"
    raise ModelError(f"convert: no way of training this model fits the memory that is free{cure}; use a smaller one")


def _variants(facts: Facts) -> list[tuple[str, dict[str, Any], Callable[[int], int]]]:
    plain: dict[str, Any] = {"model.adapter.kind": "none", "train.gradient_checkpointing": False}
    saving = {**plain, "train.gradient_checkpointing": True}
    lora = {**plain, "model.adapter.kind": "lora", "model.adapter.rank": 16}
    found: list[tuple[str, dict[str, Any], Callable[[int], int]]] = [
        ("all weights", plain, lambda rows: max(1, rows // 4)),
        ("all weights, layers recomputed", saving, lambda _: 1),
    ]
    if facts.bits and facts.cuda:
        found.append(("all weights, 8-bit Adam", {**saving, "optimizer.name": "adamw8bit"}, lambda _: 1))
    if facts.adapters:
        found += [("adapters", lora, lambda _: 1)]
        found += [("adapters, layers recomputed", {**lora, "train.gradient_checkpointing": True}, lambda _: 1)]
    if facts.adapters and facts.bits and facts.cuda:
        quantised = {**lora, "model.adapter.kind": "qlora", "train.gradient_checkpointing": True}
        found.append(("adapters on 4-bit weights", quantised, lambda _: 1))
    return found


def _rate(facts: Facts, lora: bool) -> list[Decision]:
    rate = 1e-4 * (1.35e8 / max(1, facts.parameters)) ** 0.5
    rate = min(2e-3, max(1e-5, rate * (4 if lora else 1)))
    reason = f"1e-4 at 135 M parameters, less for more{', four times that for adapters' if lora else ''}"
    return [
        Decision("optimizer.lr", float(f"{rate:.1e}"), reason),
        Decision("optimizer.schedule", "wsd", "the last part anneals, wherever the budget ends"),
        Decision("optimizer.decay", 0.3, "as optimizer.schedule"),
        Decision("optimizer.weight_decay", 0.01, "a short run from trained weights"),
    ]


def steps_for(seconds: float, per_step: float, tokens: int, per_step_tokens: int) -> list[Decision]:
    """Steps, checkpoints and evaluations for the seconds left at `per_step` seconds each, over data of `tokens` tokens.
    ConfigError where they buy fewer than LEAST_STEPS steps."""
    bought = int(SHARE * seconds / per_step)
    if bought < LEAST_STEPS:
        need = (LEAST_STEPS + 1) * per_step / SHARE
        raise ConfigError(
            f"--budget: {max(0.0, seconds):.0f} s are left for training, {max(0, bought)} steps of {per_step:.1f} s;"
            f" give the training {need:.0f} s or more, or take a smaller model"
        )
    most = max(LEAST_STEPS, EPOCHS * tokens // per_step_tokens)
    steps, reason = bought, f"what the budget buys at {per_step:.2f} s a step, measured"
    if most < bought:
        steps, reason = most, f"{EPOCHS} times the data; the budget would buy {bought}"
    every = max(1, round(CHECKPOINT_SECONDS / per_step))
    return [
        Decision("train.steps", steps, reason),
        Decision("train.checkpoint_every", min(every, steps), "about five minutes are lost at most"),
        Decision("train.eval_every", max(1, steps // 4), "four looks on the way"),
        Decision("train.eval_rows", 8, "enough to see it move"),
    ]


def _power_above(size: int) -> int:
    return 1 << max(0, size - 1).bit_length()


def _power_below(size: int) -> int:
    return 1 << (size.bit_length() - 1)
