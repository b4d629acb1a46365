# Task `gsm8k`: grade-school word problems, from a local jsonl or the hub; also the story world's own problems.
# Entry points: Gsm8k.
# An item has `question` and `answer`, the answer's number after '####'.
"""Task plugin gsm8k."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from pydantic import Field

from hildanext.decoding.request import Request
from hildanext.measure.extraction import gsm8k_answer, gsm8k_gold, same_number
from hildanext.measure.items import Item, chosen, read_items
from hildanext.measure.task import EvalContext, Outcome, Task, cost
from hildanext.report.intervals import share

STOPS = ("\nQuestion:", "\n\nQ:", "Question:")


class Gsm8k(Task):
    """Exact match of the final number. Source: Cobbe et al. arXiv:2110.14168; form of lm-evaluation-harness."""

    version: ClassVar[int] = 3
    path: str = Field("hub:openai/gsm8k/main:test", description="file, or hub:<owner>/<name>[/<subset>]:<split>")
    download: bool = Field(False, description="allow the network for a path on the hub")
    shots: str = Field("", description="file of worked examples (train.jsonl) for the few-shot form; empty: none")
    shot_count: int = Field(5, ge=0, description="worked examples before each question")
    chat: bool = Field(False, description="ask as a chat turn instead of continuing the prompt")
    rule: Literal["flexible", "strict"] = Field("flexible", description="strict: only a number after '####' counts")
    max_new_tokens: int = Field(256, ge=1, description="tokens per reply")

    def ready(self) -> None:
        """Read the items and the worked examples."""
        self._items()
        self.lead(0)

    def run(self, context: EvalContext) -> Outcome:
        """Ask, extract the number, compare."""
        items = chosen(self._items(), self.limit, context.config.seed)
        lead = self.lead(context.config.seed)
        done = context.complete("gsm8k", [self.request(item, lead) for item in items])
        shown, right = [], 0
        for item, one in zip(items, done, strict=True):
            found, gold = gsm8k_answer(one.text, self.rule), gsm8k_gold(str(item["answer"]))
            right += same_number(found, gold)
            shown.append({"question": item["question"], "reply": one.text, "found": found, "gold": gold})
        measures = {"exact_match": share(right, len(items))} | cost(done)
        return Outcome(measures, {"items": len(items)}, shown[: context.config.eval.samples])

    def _items(self) -> list[Item]:
        return read_items(self.path, ("question", "answer"), self.download)

    def lead(self, seed: int) -> str:
        """The worked examples, each `Question: ...` and `Answer: ...`, with a blank line after."""
        if not self.shots or not self.shot_count:
            return ""
        examples = chosen(read_items(self.shots, ("question", "answer"), self.download), self.shot_count, seed)
        return "".join(f"Question: {one['question']}\nAnswer: {one['answer']}\n\n" for one in examples)

    def request(self, item: dict[str, Any], lead: str) -> Request:
        """One item's request."""
        if self.chat:
            turn = {"role": "user", "content": f"{lead}{item['question']}"}
            return Request(messages=(turn,), max_new_tokens=self.max_new_tokens)
        ask = f"{lead}Question: {item['question']}\nAnswer:"
        return Request(prompt=ask, max_new_tokens=self.max_new_tokens, stop=STOPS)
