# Task `multiple_choice`: which of a question's endings is the likeliest, over sets like ARC-Easy, PIQA or COPA.
# Entry points: MultipleChoice, Question.
# A row is (context, continuation, label) of one ending, or a question with its choices. A diffusion model is read by
# its bound and at block 1; the parent left to right, on the same questions, so that their difference is paired.
"""Task plugin multiple_choice."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

from pydantic import Field

from hildanext.config.model import ModelConfig
from hildanext.data.reading import KINDS, files_below
from hildanext.decoding.engine import DEFAULT_BLOCK
from hildanext.errors import DataError
from hildanext.measure.endings import POSITIONS, Ending, bounds, causal
from hildanext.measure.items import Item, chosen, read_items
from hildanext.measure.task import EvalContext, Outcome, Task
from hildanext.report.intervals import Measure, mean, ratio, share

BARE = 1_000_000
Reading = Literal["autoregressive", "bound", "block_1"]
Rule = Literal["nats", "character", "bare"]


@dataclass(frozen=True)
class Question:
    """A set's name, a context, its endings, which is right, and the context that says nothing (empty: none)."""

    set: str
    context: str
    endings: tuple[str, ...]
    right: int
    bare: str = ""


class MultipleChoice(Task):
    """Share of questions whose right ending is the likeliest: by its nats, by nats per character, or by nats less those
    behind a bare context. Source: docs/getting-started.md, multiple choice."""

    version: ClassVar[int] = 2
    path: str = Field("", description="file of rows, or a folder of them, a set each; or hub:<owner>/<name>:<split>")
    download: bool = Field(False, description="allow the network for a path on the hub")
    limit: int = Field(0, ge=0, description="questions of each set at most; 0: all")
    readings: tuple[Reading, ...] = Field(
        (), description="how the model is read; empty: bound and block_1, or autoregressive for an AR model"
    )
    rules: tuple[Rule, ...] = Field(
        ("nats", "character"), min_length=1, description="what makes an ending the likeliest; bare needs its rows"
    )
    parent: str = Field("", description="AR model folder on the same questions; empty: none")
    block: int = Field(0, ge=0, description="block size of the bound, tokens; 0: that of decoding")
    samples: int = Field(
        4, ge=2, multiple_of=2, description="Monte-Carlo draws of a block that is not enumerated, in pairs"
    )
    exact: int = Field(
        3, ge=0, le=8, description="scored tokens of a block up to which its mask patterns are enumerated"
    )
    positions: int = Field(POSITIONS, ge=1, description="positions of a forward, a count")

    def ready(self) -> None:
        """Read the questions and find the parent."""
        from hildanext.models.load import model_folder

        self._questions(0)
        if self.parent:
            model_folder(self.parent, "eval.tasks.multiple_choice.parent")

    def run(self, context: EvalContext) -> Outcome:
        """Score every ending under every reading, then compare."""
        from hildanext.models.load import load_model

        questions, model = self._questions(context.config.seed), context.config.model
        readings: Sequence[Reading] = self.readings or (
            ("autoregressive",) if context.generator.kind == "autoregressive" else ("bound", "block_1")
        )
        chance = [1 / len(one.endings) for one in questions]
        counts = {f"questions of {name}": sum(one.set == name for one in questions) for name in _sets(questions)}
        picked: dict[str, dict[Rule, list[int]]] = {}
        errors: dict[str, Measure] = {}
        with context.console.bar("multiple_choice", len(readings) + bool(self.parent)) as bar:
            for reading in readings:
                picked[reading] = self._picked(context, context.loaded, questions, reading, counts, errors)
                bar.advance()
            if self.parent:
                parent: Any = load_model(ModelConfig(path=self.parent, device=model.device, dtype=model.dtype))
                picked["parent"] = self._picked(context, parent, questions, "autoregressive", counts, errors)
                bar.advance()
        measures = self._measures(questions, picked) | {"chance": _mean(questions, chance)} | errors
        return Outcome(measures, counts, _shown(questions, picked, context.config.eval.samples))

    def _picked(
        self, context: EvalContext, loaded: Any, questions: Sequence[Question], reading: Reading,
        counts: dict[str, int], errors: dict[str, Measure],
    ) -> dict[Rule, list[int]]:  # fmt: skip
        pairs = [(one.context, text) for one in questions for text in one.endings]
        if "bare" in self.rules:
            pairs += [(one.bare, text) for one in questions for text in one.endings]
        unique = list(dict.fromkeys(pairs))
        endings = [Ending.of(loaded, *pair) for pair in unique]
        block = 1 if reading == "block_1" else self.block or context.config.decode.block or loaded.meta.block
        if reading == "autoregressive":
            nats = causal(loaded.denoiser, endings, self.positions)
        else:
            size = block or DEFAULT_BLOCK
            scored = bounds(loaded.denoiser, endings, size, self.samples, self.exact, self.positions)
            nats, drawn = [one.nats for one in scored], [one for one in scored if not one.exact]
            counts |= {f"enumerated by {reading}": len(scored) - len(drawn), f"sampled by {reading}": len(drawn)}
            if drawn and self.samples > 2:
                squared = mean([one.standard_error**2 for one in drawn])
                value, low, high = (math.sqrt(one) for one in (squared.value, squared.low, squared.high))
                error = Measure(value, low, high, len(drawn), "nats")
                errors[f"standard error of a sampled {reading}"] = error
        found = dict(zip(unique, nats, strict=True))
        return {rule: [_best(one, found, rule) for one in questions] for rule in self.rules}

    def _measures(
        self, questions: Sequence[Question], picked: Mapping[str, Mapping[Rule, Sequence[int]]]
    ) -> dict[str, Measure]:
        found: dict[str, Measure] = {}
        for rule in self.rules:
            right = {
                name: [float(pick == one.right) for pick, one in zip(picks[rule], questions, strict=True)]
                for name, picks in picked.items()
            }
            for name, each in right.items():
                for own in _sets(questions):
                    inside = [hit for hit, one in zip(each, questions, strict=True) if one.set == own]
                    found[f"{own} {name} by {rule}"] = share(int(sum(inside)), len(inside))
                found[f"mean {name} by {rule}"] = _mean(questions, each)
            for name, each in right.items() if "parent" in right else ():
                if name != "parent":
                    less = [one - other for one, other in zip(each, right["parent"], strict=True)]
                    found[f"{name} less parent by {rule}"] = _mean(questions, less)
        return found

    def _questions(self, seed: int) -> list[Question]:
        place = Path(self.path)
        if not self.path:
            raise DataError(
                "multiple_choice.path: no file is named; give one of rows with context, continuation, label"
            )
        files = [str(file) for file in files_below(place, KINDS)] if place.is_dir() else [self.path]
        found: list[Question] = []
        for file in files:
            every = _read(file, read_items(file, (), self.download), "bare" in self.rules)
            found += [item["question"] for item in chosen([{"question": one} for one in every], self.limit, seed)]
        return found


def _read(file: str, items: Sequence[Item], bare: bool) -> list[Question]:
    name = Path(file).name.split(".")[0]
    whole = [_whole(name, file, item) for item in items if "choices" in item and "request" not in item]
    groups: dict[int, list[Item]] = {}
    for number, item in enumerate(items):
        if "choices" in item and "request" not in item:
            continue
        asked = item.get("request", item)
        if not {"context", "continuation"} <= set(asked) or not {"label", "doc_id"} <= set(item):
            raise DataError(f"{file}: item {number + 1} lacks context, continuation, label or doc_id; or give choices")
        groups.setdefault(int(item["doc_id"]), []).append({**item, **asked})
    rows = [_grouped(name, file, groups, key, bare) for key in groups if key < BARE]
    if not whole and not rows:
        raise DataError(f"{file}: no questions; expected rows with context, continuation, label and doc_id")
    return whole + rows


def _whole(name: str, file: str, item: Item) -> Question:
    endings, right = tuple(f" {one}" for one in item["choices"]), int(item.get("label", -1))
    if not 0 <= right < len(endings) or "context" not in item:
        raise DataError(f"{file}: a question with choices needs a context and the index of the right one as its label")
    return Question(name, str(item["context"]), endings, right)


def _grouped(name: str, file: str, groups: Mapping[int, Sequence[Item]], key: int, bare: bool) -> Question:
    rows = groups[key]
    endings, right = tuple(str(row["continuation"]) for row in rows), int(rows[0]["label"])
    if not 0 <= right < len(endings) or len({row["context"] for row in rows}) > 1:
        raise DataError(
            f"{file}: question {key} has {len(endings)} endings, label {right}; expected one context for all"
        )
    if bare and key + BARE not in groups:
        raise DataError(f"{file}: question {key} has no rows with a bare context, which the rule `bare` needs")
    empty = str(groups[key + BARE][0]["context"]) if bare else ""
    return Question(name, str(rows[0]["context"]), endings, right, empty)


def _best(one: Question, nats: Mapping[tuple[str, str], float], rule: Rule) -> int:
    scores = [nats[one.context, text] for text in one.endings]
    if rule == "character":
        scores = [score / max(1, len(text)) for score, text in zip(scores, one.endings, strict=True)]
    if rule == "bare":
        scores = [score - nats[one.bare, text] for score, text in zip(scores, one.endings, strict=True)]
    return min(range(len(scores)), key=scores.__getitem__)


def _sets(questions: Sequence[Question]) -> list[str]:
    return list(dict.fromkeys(one.set for one in questions))


def _mean(questions: Sequence[Question], values: Sequence[float]) -> Measure:
    """The mean over sets of their means, as one weighted mean over questions."""
    sizes = {name: sum(one.set == name for one in questions) for name in _sets(questions)}
    weights = [1 / sizes[one.set] for one in questions]
    return ratio([value * weight for value, weight in zip(values, weights, strict=True)], weights, "share")


def _shown(
    questions: Sequence[Question], picked: Mapping[str, Mapping[Rule, Sequence[int]]], count: int
) -> list[dict[str, Any]]:
    return [
        {"set": one.set, "context": one.context, "right": one.endings[one.right]}
        | {f"{name} by {rule}": one.endings[picks[index]] for name, by in picked.items() for rule, picks in by.items()}
        for index, one in enumerate(questions[:count])
    ]
