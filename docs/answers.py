# Prints the table on the 135 M child of docs/decoding-methods.md: answers under decode sections that are given as JSON.
# Entry points: `python docs/answers.py '{"carry": "rcd"}' ...`; `--model`, `--parent`, `--questions`, `--tokens`.
# Quality is what the parent thinks of the answers, nats per token read left to right; seconds are of the processor, one
# request at a time. Intervals are bootstrapped over questions.
"""Decoding methods on a chat model, as a table."""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Sequence
from typing import Any

import hildanext
from hildanext.cli import spoken
from hildanext.report.intervals import mean, ratio

QUESTIONS = (
    "What is the capital of France?", "Why is the sky blue?", "Name three fruits.", "How do I boil an egg?",
    "What is a prime number?", "Write a sentence about a dog.", "What do bees make?", "How many days has a week?",
    "Who wrote Hamlet?", "What is the sun made of?", "Give me a tip for sleeping well.", "What is photosynthesis?",
)  # fmt: skip
HEADER = "| `decode` | same tokens as the first line | parent's nats per token | tokens per forward | tokens/CPU-s |"


def row(model: Any, parent: Any, fields: dict[str, Any], asked: argparse.Namespace, first: list[Any]) -> str:
    """One line; the answers of the first line are put into `first`."""
    answers, seconds = [], []
    for question in QUESTIONS[: asked.questions]:
        turns = [{"role": "user", "content": question}]
        began = time.process_time()
        answers.append(model.generate(turns, **{"mode": "S_MODE", "max_new_tokens": asked.tokens, **fields}))
        seconds.append(time.process_time() - began)
    first.extend(answers if not first else [])
    tokens = [len(one.token_ids) for one in answers]
    same = [
        sum(a == b for a, b in zip(one.token_ids, other.token_ids, strict=False)) / len(other.token_ids)
        for one, other in zip(answers, first, strict=True)
    ]
    scores = []
    for question, answer in zip(QUESTIONS, answers, strict=False):
        turns = [{"role": "user", "content": question}]
        ids = parent.tokenizer.apply_chat_template(turns, add_generation_prompt=True, return_dict=False)
        scores.append(parent.score(answer.text or " ", context=[int(one) for one in ids], kind="autoregressive"))
    nats = ratio([one.nats for one in scores], [one.tokens for one in scores])
    agreed, tpf = mean(same), ratio(tokens, [one.metrics.forwards for one in answers])
    told = (
        f"`{json.dumps(fields)}`", f"{100 * agreed.value:.0f} % ({100 * agreed.low:.0f} to {100 * agreed.high:.0f})",
        f"{nats.value:.2f} ({nats.low:.2f} to {nats.high:.2f})", f"{tpf.value:.2f} ({tpf.low:.2f} to {tpf.high:.2f})",
        f"{sum(tokens) / sum(seconds):.1f}",
    )  # fmt: skip
    return f"| {' | '.join(told)} |"


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("fields", nargs="+", type=json.loads, metavar="JSON", help="fields of a request")
    parser.add_argument("--model", default="models/smollm2-135m-diffusion")
    parser.add_argument("--parent", default="models/smollm2-135m")
    parser.add_argument("--questions", type=int, default=12)
    parser.add_argument("--tokens", type=int, default=48)
    asked = parser.parse_args(arguments)
    model, parent, first = hildanext.load(asked.model), hildanext.load(asked.parent), list[Any]()
    print(f"{HEADER}\n{'|---' * 5}|", flush=True)
    for fields in asked.fields:
        print(row(model, parent, fields, asked, first), flush=True)


if __name__ == "__main__":
    sys.exit(spoken("answers.py", main))
