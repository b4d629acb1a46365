# Task `chat`: answers to held-out prompts beside those of the AR parent, asked with the same turns.
# Entry points: Chat, token_f1.
# Agreement is with the parent's greedy answers; likelihood, repetition, length and stopping are compared with answers
# that the parent gives at the temperature of decode, by the same clock and code.
"""Task plugin chat."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
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
    rows: int = Field(16, ge=1, description="answers scored in a forward")

    def ready(self) -> None:
        """Read the prompts and find the parent."""
        from hildanext.models.load import model_folder

        self._prompts(0)
        if not self.parent:
            raise DataError("chat.parent: no AR model is named, whose answers are compared; give its folder")
        model_folder(self.parent, "eval.tasks.chat.parent")

    def run(self, context: EvalContext) -> Outcome:
        """Answer, let the parent answer, score both."""
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
        done = context.complete("chat", asks)
        good = [
            index for index, three in enumerate(zip(done, own, greedy, strict=True))
            if all(one.finish != FAILED for one in three)
        ]  # fmt: skip
        if not good:
            raise DataError(f"{self.file}: no prompt was answered by model and parent; give shorter ones")
        found = [[some[index] for index in good] for some in (done, own, greedy)]
        measures = self._measures(parent, [prompts[index] for index in good], *found) | cost(done)
        shown = [
            {
                "prompt": str(prompts[index].messages[-1]["content"]),
                "reply": done[index].text,
                "parent": own[index].text,
            }
            for index in good[: context.config.eval.samples]
        ]
        counts = {"prompts": len(prompts), "compared": len(good)}
        return Outcome(measures, counts, shown)

    def _prompts(self, seed: int) -> list[Prompt]:
        found = read_prompts(self.file, self.field, where="chat.file").prompts
        return [item["prompt"] for item in chosen([{"prompt": one} for one in found], self.limit, seed)]

    def _measures(
        self, parent: Any, prompts: Sequence[Prompt], done: Sequence[Completion], own: Sequence[Completion],
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
        return found | self._likelihoods(parent, prompts, done, own)

    def _likelihoods(
        self, parent: Any, prompts: Sequence[Prompt], done: Sequence[Completion], own: Sequence[Completion]
    ) -> dict[str, Measure]:
        said = [three for three in zip(prompts, done, own, strict=True) if three[1].text and three[2].text]
        if not said:
            return {}
        nats: list[list[float]] = []
        sizes: list[list[float]] = []
        for side in (1, 2):
            endings = [
                Ending.of(parent, generation_prompt(three[0].messages, parent.tokenizer), three[side].text)  # type: ignore[union-attr]
                for three in said
            ]
            nats.append(causal(parent.denoiser, endings, self.rows))
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
