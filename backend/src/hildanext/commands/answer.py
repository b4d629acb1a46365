# hildanext answer: a model's answers to a file of prompts, as chat rows to train on; or prompts of our own to ask.
# Entry points: add_arguments, run. BASE: longer answers and more of them together than a person's request.
# With --run-dir, as a job has it, progress and report are kept there; the answers go to answer.output in any case.
"""Subcommand `answer`."""

from __future__ import annotations

import argparse
from typing import Any

from hildanext.commands import Context, add_model

HELP = "answer prompts with a model read left to right, into chat rows for prepare-data and sft"
JOB = (
    "model", "answer", "decode.temperature", "decode.top_k", "decode.top_p", "decode.max_new_tokens", "decode.seed",
    "decode.thinking", "decode.window", "decode.requests", "seed",
)  # fmt: skip
BASE = {"decode": {"max_new_tokens": 256, "requests": 32}}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Prompts, model, where the rows go, and how they are drawn."""
    add_model(parser)
    for flag, place, metavar, kind, about in (
        ("--prompts", "answer.path", "FILE", str, "rows with prompt, messages or instruction, or a text, one a line"),
        ("--out", "answer.output", "FILE", str, "rows to write, or to go on with"),
        ("--samples", "answer.samples", "N", int, "answers to each prompt (default 1)"),
        ("--temperature", "decode.temperature", "X", float, "of sampling (default 0: greedy)"),
        ("--max-new-tokens", "decode.max_new_tokens", "N", int, "tokens per answer at most (default 256)"),
        ("--at-once", "decode.requests", "N", int, "answers written together (default 32)"),
        ("--limit", "answer.limit", "N", int, "ask the first N prompts only"),
        ("--write-prompts", "answer.write", "N", int, "write N prompts of our own to --out instead"),
    ):
        parser.add_argument(flag, dest=place, metavar=metavar, type=kind, help=about)
    parser.add_argument(
        "--unfinished", dest="answer.unfinished", choices=("drop", "keep"),
        help="answers that did not end by themselves (default drop)",
    )  # fmt: skip
    parser.add_argument(
        "--held-out", dest="answer.held_out", action="store_const", const=True,
        help="with --write-prompts: of the part that training prompts never have",
    )  # fmt: skip


def run(context: Context) -> dict[str, Any]:
    """The counts of what was asked, answered, dropped and written."""
    from hildanext.measure.answering import answer, keep_prompts
    from hildanext.run_dir import RunDir

    config, console = context.config, context.console
    if context.args.run_dir is None:
        return keep_prompts(config, console) if config.answer.write else answer(config, console)
    run_dir = RunDir.create(config, "answer", context.args.run_dir)
    with run_dir.running(console):
        if config.answer.write:
            report = keep_prompts(config, console)
        else:
            report = answer(config, console, lambda done, total: run_dir.status(step=done, total=total))
        run_dir.write_json("report.json", report)
    return report
