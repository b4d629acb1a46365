# Task `humaneval`: OpenAI's 164 Python problems, from a local HumanEval.jsonl[.gz] or the hub.
# Entry points: Humaneval.
# Completion style: the reply continues the prompt; chat style: the reply holds the whole function in a fence.
"""Task plugin humaneval."""

from __future__ import annotations

from typing import Any, ClassVar

from pydantic import Field

from hildanext.decoding.request import Request
from hildanext.measure.extraction import STOPS, completed_function
from hildanext.measure.items import chosen, read_items
from hildanext.measure.judging import Program, judge
from hildanext.measure.sandbox import TESTS, Limits
from hildanext.measure.task import EvalContext, Outcome, Task

FIELDS = ("task_id", "prompt", "entry_point", "test", "canonical_solution")
ASK = "Complete this Python function. Answer with the whole function in one code block.\n\n```python\n{prompt}```"


class Humaneval(Task):
    """pass@1 on HumanEval. Source: Chen et al. arXiv:2107.03374."""

    version: ClassVar[int] = 2
    path: str = Field("hub:openai/openai_humaneval:test", description="file, or hub:<owner>/<name>[/<subset>]:<split>")
    download: bool = Field(False, description="allow the network for a path on the hub")
    chat: bool = Field(False, description="ask as a chat turn instead of continuing the prompt")
    max_new_tokens: int = Field(512, ge=1, description="tokens per reply")
    cpu_seconds: int = Field(10, ge=1, description="processor time of one program's tests, seconds")
    canonical: bool = Field(False, description="run the reference solutions instead of the model's, to check the tests")

    def ready(self) -> None:
        """Read the items."""
        read_items(self.path, FIELDS, self.download)

    def run(self, context: EvalContext) -> Outcome:
        """Generate, complete the function, run its tests."""
        items = chosen(read_items(self.path, FIELDS, self.download), self.limit, context.config.seed)
        done = [] if self.canonical else context.complete("humaneval", [self.request(item) for item in items])
        replies = [item["canonical_solution"] for item in items] if self.canonical else [one.text for one in done]
        programs = [
            Program(item["task_id"], reply, self.program(item, reply))
            for item, reply in zip(items, replies, strict=True)
        ]
        limits = Limits(cpu_seconds=self.cpu_seconds, wall_seconds=2.0 * self.cpu_seconds)
        return judge(context, "humaneval", programs, done, limits)

    def request(self, item: dict[str, Any]) -> Request:
        """One item's request; completion style stops where top-level code would begin."""
        if self.chat:
            turn = {"role": "user", "content": ASK.format(prompt=item["prompt"])}
            return Request(messages=(turn,), max_new_tokens=self.max_new_tokens)
        return Request(prompt=item["prompt"], max_new_tokens=self.max_new_tokens, stop=STOPS)

    def program(self, item: dict[str, Any], reply: str) -> str:
        """The completed function, its tests, and the call that runs them."""
        whole = completed_function(item["prompt"], reply, item["entry_point"])
        return f"{whole}\n{TESTS}\n{item['test']}\n\ncheck({item['entry_point']})\n"
