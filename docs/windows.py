# Prints the table of windows in docs/results.md: the bundled child with 1, 2 and 4 blocks open at once.
# Entry points: `python docs/windows.py`; `--modes`, `--tau`, `--blocks`, `--add`, `--semi`, `--stable`, `--size`,
# `--model`, `--stories`, `--seed`, `--unseen`. Stories are continued from their first sentence, one at a time, and
# judged by the story world's own checker; seconds are of the processor, with torch's threads; intervals are Wilson's.
"""Blocks open at once against quality and speed, as a table."""

from __future__ import annotations

import argparse
import itertools
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hildanext.cli import spoken
from hildanext.config import Config
from hildanext.errors import DataError
from hildanext.measure.generation import DiffusionGenerator
from hildanext.measure.task import EvalContext
from hildanext.measure.tasks.storyworld import Storyworld
from hildanext.models.load import load_model
from hildanext.progress import Console
from hildanext.world import story

HEADER = (
    "| mode | tau_mask | block | blocks open | tau_add / semi / stable | valid | TPF | positions per forward |"
    " tokens/CPU-s |"
)
MEASURES = ("valid", "tokens_per_forward", "positions_per_forward")


class Unseen(Storyworld):
    """Stories whose first sentences are all different and not among `known`."""

    known: frozenset[str] = frozenset()

    def openings(self) -> list[str]:
        """The first ones of the seed that are so."""
        found, index = dict[str, None](), 0
        while len(found) < self.stories:
            if (start := story(f"{self.seed}:{index}").sentences[0]) not in self.known:
                found[start] = None
            index += 1
        return list(found)


def known_openings(file: Path | None) -> frozenset[str]:
    """The first sentences of the texts of a file of rows; none without a file. DataError where there are none."""
    if file is None:
        return frozenset()
    try:
        texts = [str(json.loads(line)["text"]) for line in file.read_text(encoding="utf-8").splitlines()]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(
            f"{file}: no rows with a text ({type(error).__name__}); docs/own_stories.py writes some"
        ) from error
    return frozenset(f"{text.partition('.')[0]}." for text in texts)


def row(loaded: Any, config: Config, fields: dict[str, Any], task: Storyworld) -> str:
    """One line of the table: `fields` are of the decode section."""
    decode = config.decode.model_copy(update={**fields, "requests": 1})
    context = EvalContext(loaded, config, Console(quiet=True), DiffusionGenerator(loaded, decode))
    started = time.process_time()
    outcome = task.run(context)
    seconds = time.process_time() - started
    valid, tpf, width = (outcome.measures[name] for name in MEASURES)
    tokens = task.stories * outcome.measures["tokens_per_text"].value
    share = f"{100 * valid.value:.1f} % ({100 * valid.low:.0f} to {100 * valid.high:.0f})"
    taus = " / ".join(str(fields.get(name, "-")) for name in ("tau_add", "tau_semi", "tau_stable"))
    size, blocks = fields["block"] or loaded.meta.block, fields["window_blocks"]
    told = (f"`{fields['mode']}`", fields.get("tau_mask", "-"), size, blocks, taus, share)
    measured = (f"{tpf.value:.2f}", f"{width.value:.1f}", f"{tokens / seconds:.0f}")
    return f"| {' | '.join(map(str, (*told, *measured)))} |"


def settings(asked: argparse.Namespace) -> list[dict[str, Any]]:
    """The decode sections that are measured: each mode with one block, and with several at every combination."""
    made = list[dict[str, Any]]()
    for mode, size, blocks, tau_mask in itertools.product(asked.modes, asked.size, asked.blocks, asked.tau):
        base = {"mode": mode, "block": size, "window_blocks": blocks} | ({"tau_mask": tau_mask} if tau_mask else {})
        taus = list(itertools.product(asked.add, asked.semi, asked.stable)) if blocks > 1 else []
        made += [base | dict(zip(("tau_add", "tau_semi", "tau_stable"), tau, strict=True)) for tau in taus] or [base]
    return made


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--stories", type=int, default=300)
    parser.add_argument("--seed", type=int, default=7_000_001, help="of the stories; choose settings on another one")
    parser.add_argument("--model", default="")
    parser.add_argument("--unseen", type=Path, help="rows the model was trained on: none of their first sentences")
    parser.add_argument("--modes", nargs="+", default=["S_MODE", "Q_MODE"])
    parser.add_argument("--size", nargs="+", type=int, default=[0], help="block sizes; 0: the model folder's")
    parser.add_argument("--tau", nargs="+", type=float, default=[0.0], help="tau_mask; 0: the mode's own")
    parser.add_argument("--blocks", nargs="+", type=int, default=[1, 2, 4])
    for name, value in (("add", 0.9), ("semi", 0.9), ("stable", 0.0)):
        parser.add_argument(f"--{name}", nargs="+", type=float, default=[value])
    asked = parser.parse_args(arguments)
    config = Config()
    model = config.model.model_copy(update={"path": asked.model} if asked.model else {})
    loaded = load_model(model)
    print(f"{HEADER}\n{'|---' * 9}|", flush=True)
    known = known_openings(asked.unseen)
    task = Storyworld(stories=asked.stories, answers=0, seed=asked.seed)
    if known:
        task = Unseen(stories=asked.stories, answers=0, seed=asked.seed, known=known)
    for fields in settings(asked):
        print(row(loaded, config, fields, task), flush=True)


if __name__ == "__main__":
    sys.exit(spoken("windows.py", main))
