# Prints a table of docs/decoding-methods.md: stories of a model under decode sections that are given as JSON.
# Entry points: `python docs/methods.py '{"carry": "rcd"}' ...`; `--model`, `--stories`, `--seed`.
# Stories are continued from their first sentence, eight at a time, and judged by the story world's own checker; seconds
# are of the processor, with as many threads as torch has; intervals are Wilson's.
"""Decoding methods against quality and speed, as a table."""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Sequence
from typing import Any

from hildanext.cli import spoken
from hildanext.config import Config
from hildanext.measure.generation import DiffusionGenerator
from hildanext.measure.task import EvalContext
from hildanext.measure.tasks.storyworld import Storyworld
from hildanext.models.load import load_model
from hildanext.progress import Console

HEADER = "| model | decode | valid | TPF | forwards per story | tokens/CPU-s |"


def row(loaded: Any, config: Config, fields: dict[str, Any], asked: argparse.Namespace) -> str:
    """One line of the table: `fields` are of the decode section."""
    decode = type(config.decode).model_validate({**fields, "requests": 8})
    context = EvalContext(loaded, config, Console(quiet=True), DiffusionGenerator(loaded, decode))
    started = time.process_time()
    outcome = Storyworld(stories=asked.stories, answers=0, seed=asked.seed).run(context)
    seconds = time.process_time() - started
    valid, tpf = outcome.measures["valid"], outcome.measures["tokens_per_forward"]
    tokens = asked.stories * outcome.measures["tokens_per_text"].value
    share = f"{100 * valid.value:.1f} % ({100 * valid.low:.0f} to {100 * valid.high:.0f})"
    told = (asked.model.split("/")[-2 if asked.model.endswith("model") else -1], f"`{json.dumps(fields)}`", share)
    forwards = tokens / asked.stories / tpf.value
    measured = (f"{tpf.value:.2f} ({tpf.low:.2f} to {tpf.high:.2f})", f"{forwards:.1f}", f"{tokens / seconds:.0f}")
    return f"| {' | '.join((*told, *measured))} |"


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("fields", nargs="+", type=json.loads, metavar="JSON", help="decode sections")
    parser.add_argument("--stories", type=int, default=100)
    parser.add_argument("--model", default="tiny")
    parser.add_argument("--seed", type=int, default=7_000_001)
    asked = parser.parse_args(arguments)
    config = Config()
    loaded = load_model(config.model.model_copy(update={"path": asked.model}))
    print(f"{HEADER}\n{'|---' * 6}|", flush=True)
    for fields in asked.fields:
        print(row(loaded, config, fields, asked), flush=True)


if __name__ == "__main__":
    sys.exit(spoken("methods.py", main))
