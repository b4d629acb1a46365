# Task `chat`: answers to held-out prompts beside those of the AR parent, asked with the same turns.
# Entry points: Chat, token_f1.
# Agreement is with the parent's greedy answers; likelihood, repetition, length and stopping are compared with answers
# that the parent gives at the temperature of decode, by the same clock and code.
"""Task plugin chat."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import Field

from hildanext.config.model import ModelConfig
from hildanext.data.chat import generation_prompt
from hildanext.data.prompts import Prompt, read_prompts
from hildanext.decoding.request import Request
from hildanext.errors import DataError
from hildanext.measure.endings import Ending, causal
from hildanext.measure.generation import ARGenerator, Completion
from hildanext.measure.items import chosen
from hildanext.measure.task import FAILED, EvalContext, Outcome, Task, cost
from hildanext.measure.tasks.tinystories import repetition, words
from hildanext.report.intervals import Measure, mean, ratio, share


class Chat(Task):
    """Token F1 and exact match with the parent's greedy answers; nats per character under the parent, repetition,
    length and share of answers that end by themselves, each beside the parent's own. Source: docs/getting-started.md,
    chats beside the parent."""

    file: str = Field("", description="file of prompts, as `answer` reads them; replies in it are not used")
    field: str = Field("", description="field of a row that is the prompt; empty: found row by row")
    limit: int = Field(50, ge=1, description="prompts")
    parent: str = Field("", description="AR model folder that answers beside the model and scores both")
    max_new_tokens: int = Field(128, ge=1, description="tokens per answer")

    def ready(self) -> None:
        """Read the prompts and find the parent."""
        from hildanext.models.load import model_folder

        self._prompts(0)
        if not self.parent:
            raise DataError(
                f"{type(self).__name__.lower()}.parent: no AR model is named to answer beside it; give its folder"
            )
        model_folder(self.parent, f"eval.tasks.{type(self).__name__.lower()}.parent")

    def run(self, context: EvalContext) -> Outcome:
        """Answer, let the parent answer, score both."""
        beside = self.beside(context)
        return beside.outcome(context, range(len(beside.prompts)))

    def beside(self, context: EvalContext) -> Beside:
        """The prompts with the parent's answers, under the sampling of the context."""
        from hildanext.models.load import load_model

        prompts, model, decode = self._prompts(context.config.seed), context.config.model, context.config.decode
        parent: Any = load_model(ModelConfig(path=self.parent, device=model.device, dtype=model.dtype))
        asks = [
            Request(messages=tuple(one.messages), max_new_tokens=self.max_new_tokens, sample=index)
            for index, one in enumerate(prompts)
        ]
        theirs = EvalContext(parent, context.config, context.console, ARGenerator(parent, decode))
        own = theirs.complete("chat: the parent", asks)
        greedy = own
        if decode.temperature:
            cold = [ask.model_copy(update={"temperature": 0.0}) for ask in asks]
            greedy = theirs.complete("chat: the parent, greedy", cold)
        return Beside(parent, prompts, asks, own, greedy)

    def _prompts(self, seed: int) -> list[Prompt]:
        found = read_prompts(self.file, self.field, where=f"{type(self).__name__.lower()}.file").prompts
        return [item["prompt"] for item in chosen([{"prompt": one} for one in found], self.limit, seed)]


@dataclass(frozen=True)
class Beside:
    """Prompts as they are asked, and what the parent answered: by the sampling of decode, and greedily."""

    parent: Any
    prompts: Sequence[Prompt]
    asks: Sequence[Request]
    own: Sequence[Completion]
    greedy: Sequence[Completion]

    def outcome(self, context: EvalContext, which: Sequence[int]) -> Outcome:
        """The model of the context on these prompts, beside the parent."""
        answers = context.complete("chat", [self.asks[index] for index in which])
        done = dict(zip(which, answers, strict=True))
        good = [
            index for index in which
            if all(one.finish != FAILED for one in (done[index], self.own[index], self.greedy[index]))
        ]  # fmt: skip
        if not good:
            raise DataError("chat.file: no prompt was answered by model and parent; give shorter ones")
        texts = [done[index] for index in good]
        found = [texts, *([some[index] for index in good] for some in (self.own, self.greedy))]
        measures = self._measures([self.prompts[index] for index in good], *found) | cost(texts)
        shown = [
            {
                "prompt": str(self.prompts[index].messages[-1]["content"]),
                "reply": done[index].text,
                "parent": self.own[index].text,
            }
            for index in good[: context.config.eval.samples]
        ]
        return Outcome(measures, {"prompts": len(which), "compared": len(good)}, shown)

    def _measures(
        self, prompts: Sequence[Prompt], done: Sequence[Completion], own: Sequence[Completion],
        greedy: Sequence[Completion],
    ) -> dict[str, Measure]:  # fmt: skip
        pairs = list(zip(done, greedy, strict=True))
        found = {
            "exact_match": share(sum(one.text.strip() == other.text.strip() for one, other in pairs), len(pairs)),
            "token_f1": mean([token_f1(one.text, other.text) for one, other in pairs]),
        }
        both = {"": done, "parent_": own}
        for name, texts in both.items():
            stopped = sum(one.finish == "eos" for one in texts)
            found |= {f"{name}repetition": mean([repetition(one.text) for one in texts])}
            found |= {f"{name}stopped": share(stopped, len(texts))}
        found["parent_tokens_per_text"] = mean([float(one.tokens) for one in own], "tokens")
        where = [one.finish == "eos" for one, other in zip(done, own, strict=True) if other.finish == "eos"]
        if where:
            found["stopped_where_parent_does"] = share(sum(where), len(where))
        return found | self._likelihoods(prompts, done, own)

    def _likelihoods(
        self, prompts: Sequence[Prompt], done: Sequence[Completion], own: Sequence[Completion]
    ) -> dict[str, Measure]:
        said = [three for three in zip(prompts, done, own, strict=True) if three[1].text and three[2].text]
        if not said:
            return {}
        nats: list[list[float]] = []
        sizes: list[list[float]] = []
        for side in (1, 2):
            endings = [
                Ending.of(self.parent, generation_prompt(three[0].messages, self.parent.tokenizer), three[side].text)  # type: ignore[union-attr]
                for three in said
            ]
            nats.append(causal(self.parent.denoiser, endings))
            sizes.append([float(one.characters) for one in endings])
        rates = [[a / b for a, b in zip(*side, strict=True)] for side in zip(nats, sizes, strict=True)]
        return {
            "nats_per_character": ratio(nats[0], sizes[0], "nats per character"),
            "parent_nats_per_character": ratio(nats[1], sizes[1], "nats per character"),
            "nats_of_parents": ratio(rates[0], rates[1], "of the parent's"),
        }


def token_f1(text: str, reference: str) -> float:
    """Harmonic mean of precision and recall of a text's words in a reference's, in [0, 1]; 1 where both are empty.
    Source: SQuAD arXiv:1606.05250, without its removal of articles and punctuation."""
    found, wanted = Counter(words(text)), Counter(words(reference))
    common = (found & wanted).total()
    if not found or not wanted:
        return float(found == wanted)
    return 2 * common / (found.total() + wanted.total())
