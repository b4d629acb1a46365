# Task `tinystories`: continuations of short stories, judged without a reference: diversity, repetition, an AR judge.
# Entry points: Tinystories, distinct, repetition, words.
# Low judge NLL alone also means repetitive; read it beside distinct_2 and repetition.
"""Task plugin tinystories."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, ClassVar

from pydantic import Field

from hildanext.config.model import ModelConfig
from hildanext.decoding.request import Request
from hildanext.errors import DataError
from hildanext.measure.generation import Completion
from hildanext.measure.items import chosen, read_items
from hildanext.measure.scoring import causal_nats
from hildanext.measure.task import FAILED, EvalContext, Outcome, Task, cost
from hildanext.report.intervals import Measure, mean, ratio, share


class Tinystories(Task):
    """distinct-1/2/3, repetition of 4-grams, bits per character under an AR judge, for the text and for references."""

    version: ClassVar[int] = 2
    path: str = Field("", description="file of stories with a `text` field, JSON lines")
    download: bool = Field(False, description="allow the network for a path on the hub")
    limit: int = Field(50, ge=1, description="stories to continue")
    prompt_words: int = Field(12, ge=1, description="words of each story given as the prompt")
    max_new_tokens: int = Field(128, ge=1, description="tokens per continuation")
    judge: str = Field("", description="AR model folder that scores the text; empty: no score")

    def ready(self) -> None:
        """Read the stories and find the judge."""
        from hildanext.models.load import model_folder

        read_items(self.path, ("text",), self.download)
        if self.judge:
            model_folder(self.judge, "eval.tasks.tinystories.judge")

    def run(self, context: EvalContext) -> Outcome:
        """Continue, then measure."""
        stories = [
            str(item["text"])
            for item in chosen(read_items(self.path, ("text",), self.download), self.limit, context.config.seed)
        ]
        prompts = [" ".join(text.split()[: self.prompt_words]) for text in stories]
        if not prompts:
            raise DataError(f"{self.path}: no stories; give a file with at least one")
        done = context.complete(
            "tinystories", [Request(prompt=prompt, max_new_tokens=self.max_new_tokens) for prompt in prompts]
        )
        measures = self._texts([one.text for one in done if one.finish != FAILED]) | cost(done)
        if self.judge:
            measures |= self._judged(prompts, done, stories)
        shown = [{"prompt": prompt, "reply": one.text} for prompt, one in zip(prompts, done, strict=True)]
        return Outcome(measures, {"stories": len(done)}, shown[: context.config.eval.samples])

    def _texts(self, texts: Sequence[str]) -> dict[str, Measure]:
        found = {f"distinct_{size}": share(*distinct(texts, size)) for size in (1, 2, 3) if distinct(texts, size)[1]}
        return found | {"repetition": mean([repetition(text) for text in texts])}

    def _judged(self, prompts: Sequence[str], done: Sequence[Completion], stories: Sequence[str]) -> dict[str, Measure]:
        from hildanext.models.load import load_model

        judge: Any = load_model(ModelConfig(path=self.judge))
        written = [(prompt, one.text) for prompt, one in zip(prompts, done, strict=True) if one.text]
        real = [(prompt, text[len(prompt) :]) for prompt, text in zip(prompts, stories, strict=True)]
        return {
            f"judge_bits_per_character{name}": _bits(judge, pairs)
            for name, pairs in (("", written), ("_of_references", real))
        }


def _bits(judge: Any, pairs: Sequence[tuple[str, str]]) -> Measure:
    nats = [causal_nats(judge, prompt, text) / 0.6931471805599453 for prompt, text in pairs]
    return ratio(nats, [float(max(1, len(text))) for _, text in pairs], "bits per character")


def words(text: str) -> list[str]:
    """Runs of letters, digits or single marks, lower-cased."""
    return re.findall(r"\w+|[^\w\s]", text.lower())


def _grams(pieces: Sequence[str], size: int) -> list[tuple[str, ...]]:
    return [tuple(pieces[start : start + size]) for start in range(len(pieces) - size + 1)]


def distinct(texts: Sequence[str], size: int) -> tuple[int, int]:
    """(different n-grams, all n-grams) over all texts; their quotient is distinct-n. Source: arXiv:1510.03055."""
    grams = [gram for text in texts for gram in _grams(words(text), size)]
    return len(set(grams)), len(grams)


def repetition(text: str, size: int = 4) -> float:
    """Share of a text's n-grams that occurred earlier in it, in [0, 1]; 0 for a text without any."""
    grams = _grams(words(text), size)
    return 1 - len(set(grams)) / len(grams) if grams else 0.0
