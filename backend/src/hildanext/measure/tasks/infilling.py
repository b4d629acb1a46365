# Task `infilling`: the middle sentence of a story, written from what stands before and after it.
# Entry points: Infilling, Hole.
# The gap has the true length in tokens, told to both: the model fills it, the parent writes as many tokens on from what
# stands before alone. A gap sees what follows only within its own block.
"""Task plugin infilling."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher
from typing import Any

from pydantic import Field

from hildanext.config.model import ModelConfig
from hildanext.decoding.request import Request
from hildanext.errors import DataError
from hildanext.measure.endings import Ending, causal
from hildanext.measure.generation import ARGenerator, Completion
from hildanext.measure.items import chosen, read_items
from hildanext.measure.task import FAILED, EvalContext, Outcome, Task, cost
from hildanext.measure.tasks.chat import token_f1
from hildanext.measure.tasks.tinystories import words
from hildanext.report.intervals import Measure, mean, ratio

SENTENCE = re.compile(r"(?<=[.!?])[\"']?\s+(?=[\"'A-Z])")


@dataclass(frozen=True)
class Hole:
    """A text without its middle sentence: what stands before and after, joined by single spaces."""

    before: str
    middle: str
    after: str

    @classmethod
    def of(cls, text: str, sentences: int) -> Hole | None:
        """The middle one of the first `sentences` sentences; None where there are fewer or it has less than four words,
        or where the text writes gaps itself."""
        found = SENTENCE.split(" ".join(text.split()))[:sentences]
        at = len(found) // 2
        if len(found) < sentences or len(words(found[at])) < 4 or "<gap:" in text:
            return None
        return cls(" ".join(found[:at]), found[at], " ".join(found[at + 1 :]))


class Infilling(Task):
    """Token F1 and edit similarity with the true sentence, and nats per character under the parent of the sentence and
    all that follows, each for the model, for the parent left to right, and for the text as it was.
    Source: docs/getting-started.md, infilling."""

    path: str = Field("", description="file of texts with a `text` field, JSON lines")
    download: bool = Field(False, description="allow the network for a path on the hub")
    limit: int = Field(50, ge=1, description="texts")
    sentences: int = Field(7, ge=3, description="sentences taken of a text, of which the middle one is left out")
    parent: str = Field("", description="AR model folder: the baseline, and what scores all texts")

    def ready(self) -> None:
        """Read the texts and find the parent."""
        from hildanext.models.load import model_folder

        self._holes(0)
        if not self.parent:
            raise DataError("infilling.parent: no AR model is named, which scores the texts; give its folder")
        model_folder(self.parent)

    def run(self, context: EvalContext) -> Outcome:
        """Fill, let the parent go on, score."""
        from hildanext.models.load import load_model

        holes, model = self._holes(context.config.seed), context.config.model
        parent: Any = load_model(ModelConfig(path=self.parent, device=model.device, dtype=model.dtype))
        tokenizer = context.loaded.tokenizer
        sizes = [len(tokenizer(f" {one.middle}", add_special_tokens=False)["input_ids"]) for one in holes]
        gaps = [
            Request(prompt=f"{one.before} <gap:{size}> {one.after}", infill=True)
            for one, size in zip(holes, sizes, strict=True)
        ]
        done = context.complete("infilling", gaps)
        asks = [
            Request(prompt=one.before, max_new_tokens=size, ignore_eos=True)
            for one, size in zip(holes, sizes, strict=True)
        ]
        theirs = EvalContext(parent, context.config, context.console, ARGenerator(parent, context.config.decode))
        baseline = theirs.complete("infilling: the parent", asks)
        good = [index for index, one in enumerate(done) if FAILED not in (one.finish, baseline[index].finish)]
        if not good:
            raise DataError("infilling: no text was filled by model and parent; give shorter ones")
        kept = [holes[index] for index in good]
        written = {
            "": [filled(holes[index], done[index].text) for index in good],
            "parent_": [baseline[index].text.strip() for index in good],
            "true_": [one.middle for one in kept],
        }
        measures = _measures(parent, kept, written) | cost([_gap(done[index], sizes[index]) for index in good])
        shown = [
            {"before": one.before, "after": one.after, "true": one.middle, "filled": own, "parent": other}
            for one, own, other in zip(kept, written[""], written["parent_"], strict=True)
        ]
        return Outcome(measures, {"texts": len(holes), "compared": len(good)}, shown[: context.config.eval.samples])

    def _holes(self, seed: int) -> list[Hole]:
        texts = [str(item["text"]) for item in read_items(self.path, ("text",), self.download)]
        holes = [hole for text in texts if (hole := Hole.of(text, self.sentences))]
        if not holes:
            raise DataError(f"{self.path}: no text has {self.sentences} sentences; lower infilling.sentences")
        return [item["hole"] for item in chosen([{"hole": one} for one in holes], self.limit, seed)]


def filled(hole: Hole, text: str) -> str:
    """What stands in the hole of a filled text, without the spaces around it."""
    return text.removeprefix(hole.before).removesuffix(hole.after).strip()


def _gap(one: Completion, size: int) -> Completion:
    # of a filled text only the gap was generated
    return Completion(
        one.text, one.ids[:size], one.forwards, one.edits, one.seconds, one.finish,
        fused=one.fused, positions=one.positions,
    )  # fmt: skip


def edit_similarity(text: str, reference: str) -> float:
    """Twice the words in the longest matching blocks of both over the words of both, in [0, 1]; 1 where both are
    empty."""
    return SequenceMatcher(None, words(text), words(reference), autojunk=False).ratio()


def _measures(parent: Any, holes: Sequence[Hole], written: dict[str, list[str]]) -> dict[str, Measure]:
    found: dict[str, Measure] = {}
    nats: dict[str, list[float]] = {}
    for name, middles in written.items():
        pairs = list(zip(holes, middles, strict=True))
        rests = [f" {middle} {hole.after}" if middle else f" {hole.after}" for hole, middle in pairs]
        endings = [Ending.of(parent, hole.before, rest) for hole, rest in zip(holes, rests, strict=True)]
        nats[name] = causal(parent.denoiser, endings)
        sizes = [float(len(rest)) for rest in rests]
        found[f"{name}nats_per_character"] = ratio(nats[name], sizes, "nats per character")
        if name != "true_":
            found[f"{name}token_f1"] = mean([token_f1(middle, hole.middle) for hole, middle in pairs])
            found[f"{name}edit_similarity"] = mean([edit_similarity(middle, hole.middle) for hole, middle in pairs])
    less = [own - other for own, other in zip(nats[""], nats["parent_"], strict=True)]
    return found | {"nats_less_parents": mean(less, "nats per text")}
