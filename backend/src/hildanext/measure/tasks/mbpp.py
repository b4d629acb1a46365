# Task `mbpp`: Mostly Basic Python Problems, from a local file or the hub.
# Entry points: Mbpp.
# Reads the original schema (text, test_list), the sanitized one (prompt, test_list) and (prompt, test).
"""Task plugin mbpp."""

from __future__ import annotations

from typing import Any, ClassVar

from pydantic import Field

from hildanext.decoding.request import Request
from hildanext.errors import DataError
from hildanext.measure.extraction import code_block
from hildanext.measure.items import chosen, read_items
from hildanext.measure.judging import Program, judge
from hildanext.measure.sandbox import TESTS, Limits
from hildanext.measure.task import EvalContext, Outcome, Task

ASK = (
    "You are an expert Python programmer, and here is your task: {text} "
    "Your code should pass these tests:\n\n{tests}\n[BEGIN]\n"
)


class Mbpp(Task):
    """pass@1 on MBPP with its own prompt. Source: Austin et al. arXiv:2108.07732."""

    version: ClassVar[int] = 2
    path: str = Field(
        "hub:google-research-datasets/mbpp:test", description="file, or hub:<owner>/<name>[/<subset>]:<split>"
    )
    download: bool = Field(False, description="allow the network for a path on the hub")
    chat: bool = Field(False, description="ask as a chat turn instead of continuing the prompt")
    max_new_tokens: int = Field(512, ge=1, description="tokens per reply")
    cpu_seconds: int = Field(10, ge=1, description="processor time of one program's tests, seconds")
    canonical: bool = Field(False, description="run the reference solutions instead of the model's, to check the tests")

    def ready(self) -> None:
        """Read the items."""
        for item in read_items(self.path, ("code",), self.download):
            self.request(item)

    def run(self, context: EvalContext) -> Outcome:
        """Generate, take the code, run the tests."""
        items = chosen(read_items(self.path, ("code",), self.download), self.limit, context.config.seed)
        done = [] if self.canonical else context.complete("mbpp", [self.request(item) for item in items])
        replies = [item["code"] for item in items] if self.canonical else [one.text for one in done]
        programs = [
            Program(str(item.get("task_id", number)), reply, self.program(item, reply))
            for number, (item, reply) in enumerate(zip(items, replies, strict=True))
        ]
        limits = Limits(cpu_seconds=self.cpu_seconds, wall_seconds=2.0 * self.cpu_seconds)
        return judge(context, "mbpp", programs, done, limits)

    def request(self, item: dict[str, Any]) -> Request:
        """One item's request."""
        text = item.get("text") or item.get("prompt")
        if not text:
            raise DataError(f"{self.path}: an item has neither text nor prompt; it has {', '.join(sorted(item))}")
        ask = ASK.format(text=text, tests="\n".join(_tests(item)))
        if self.chat:
            return Request(messages=({"role": "user", "content": ask},), max_new_tokens=self.max_new_tokens)
        return Request(prompt=ask, max_new_tokens=self.max_new_tokens, stop=("[DONE]",))

    def program(self, item: dict[str, Any], reply: str) -> str:
        """The tests' imports and the reply's code; then, apart, the imports, the set-up lines and the tests."""
        imports = list(item.get("test_imports", ()))
        setup = item.get("test_setup_code", "")
        return "\n".join([*imports, code_block(reply), TESTS, *imports, setup, *_tests(item), ""])


def _tests(item: dict[str, Any]) -> list[str]:
    found = item.get("test_list", item.get("test", ()))
    return [found] if isinstance(found, str) else list(found)
