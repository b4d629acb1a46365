# Prints the table of edits in docs/decoding-methods.md: faults planted in stories, and what is left of them.
# Entry points: `python docs/edits.py --model runs/edit/model`; `--stories`, `--policies`.
# Every block of a story is a trial: the text before it is as it was, the block is damaged or not, the decoder begins
# from that. An insertion pushes the block's last token out, which nothing tells: `taken out` does not count it.
"""Repair of deletions, insertions and substitutions."""

from __future__ import annotations

import argparse
import json
import random
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from hildanext.cli import spoken
from hildanext.config import Config
from hildanext.config.decode import DecodeConfig
from hildanext.decoding.engine import BlockEngine
from hildanext.decoding.events import Done
from hildanext.decoding.request import Request
from hildanext.models.load import load_model
from hildanext.report.intervals import share
from hildanext.world import story

FAULTS = ("none", "deletion", "insertion", "substitution")


@dataclass(frozen=True)
class Trial:
    """A story's ids up to the end of a block that begins at `start`, and the block as the decoder finds it."""

    ids: tuple[int, ...]
    start: int
    draft: tuple[int, ...]
    fault: str


def trials(tokenizer: Any, block: int, stories: int, seed: int) -> list[Trial]:
    """One per whole block behind the first of each story, its fault drawn."""
    source, made = random.Random(seed), list[Trial]()
    for index in range(stories):
        ids = list(tokenizer(story(f"{seed}:{index}").text)["input_ids"])
        for start in range(block, len(ids) - block, block):
            own, behind = ids[start : start + block], ids[start + block]
            fault, place = source.choice(FAULTS), source.randrange(block - 1)
            word = source.choice([one for one in ids if one != own[place]])
            drafts = {
                "none": own, "deletion": [*own[:place], *own[place + 1 :], behind],
                "insertion": [*own[:place], word, *own[place:]][:block],
                "substitution": [*own[:place], word, *own[place + 1 :]],
            }  # fmt: skip
            fault = fault if drafts[fault] != own else "none"
            made.append(Trial(tuple(ids[: start + block]), start, tuple(drafts[fault]), fault))
    return made


def edited(loaded: Any, asked: Sequence[Trial], policy: dict[str, Any]) -> list[list[int]]:
    """The block that the decoder makes of each trial's draft."""
    block = loaded.meta.block
    engine, found = BlockEngine(loaded, DecodeConfig(block=block)), dict[int, list[int]]()
    for trial in asked:
        prompt = trial.ids[: trial.start]
        engine.submit(Request(prompt_ids=prompt, max_new_tokens=block, policy=policy, ignore_eos=True))
        canvas = engine.waiting[-1].canvas
        canvas.tokens[trial.start :] = torch.tensor(trial.draft)
        canvas.opened = ()
        canvas.refill()
    while engine.pending:
        found |= {event.request: list(event.result.token_ids) for event in engine.step() if isinstance(event, Done)}
    return [found[number] for number in sorted(found)]


def row(policy: dict[str, Any], asked: Sequence[Trial], made: Sequence[Sequence[int]]) -> str:
    """One line of the table."""
    right, seen, changed, tokens = Counter[str](), Counter[str](), 0, 0
    for trial, block in zip(asked, made, strict=True):
        wanted = list(trial.ids[trial.start :])
        seen[trial.fault] += 1
        right[trial.fault] += list(block) == wanted
        right["taken out"] += trial.fault == "insertion" and list(block)[:-1] == wanted[:-1]
        if trial.fault == "none":
            tokens += len(wanted)
            changed += sum(a != b for a, b in zip(block, wanted, strict=True))
    cells = [f"`{json.dumps(policy)}`"]
    seen["taken out"] = seen["insertion"]
    for fault in (*FAULTS[1:3], "taken out", *FAULTS[3:]):
        found = share(right[fault], seen[fault])
        cells.append(f"{100 * found.value:.1f} % ({100 * found.low:.0f} to {100 * found.high:.0f}) of {seen[fault]}")
    return f"| {' | '.join(cells)} | {100 * changed / max(1, tokens):.2f} % of {tokens} |"


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="runs/edit/model")
    parser.add_argument("--stories", type=int, default=40)
    parser.add_argument("--seed", type=int, default=7_000_002)
    parser.add_argument("--policies", nargs="+", type=json.loads, metavar="JSON")
    asked = parser.parse_args(arguments)
    loaded = load_model(Config().model.model_copy(update={"path": asked.model}))
    tried = trials(loaded.tokenizer, loaded.meta.block or 32, asked.stories, asked.seed)
    print("| policy | deletions repaired | insertions | insertions taken out | substitutions | right tokens changed |")
    print("|---|---|---|---|---|---|")
    for policy in asked.policies or [{"type": "threshold_indel"}, {"type": "threshold_edit"}]:
        print(row(policy, tried, edited(loaded, tried, policy)), flush=True)


if __name__ == "__main__":
    sys.exit(spoken("edits.py", main))
