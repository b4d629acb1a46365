# Prints the table of small hybrid pairs in docs/results.md: bound, stories, speed and what is kept of a request.
# Entry points: `python docs/hybrids.py NAME=PARENT_RUN,CHILD_RUN ...`; `--stories`, `--rounds`.
# Stories are continued from their first sentence, one at a time, the models taking turns in every round; seconds are of
# the processor, the fastest round counts, and tokens of all stories are divided by them. Intervals are Wilson's.
"""Parents with recurrent layers beside one of attention alone, each with its conversion."""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hildanext.cli import spoken
from hildanext.config import Config
from hildanext.errors import ConfigError, DataError
from hildanext.measure.generation import generator_for
from hildanext.measure.task import EvalContext
from hildanext.measure.tasks.storyworld import Storyworld
from hildanext.models.load import load_model
from hildanext.progress import Console

HEADER = (
    "| pair | parent, NLL | bound before | after | parent, valid | child, valid | TPF | parent, tokens/CPU-s | child |"
    " kept at 1,024 | 8,192 | 32,768 |"
)
LENGTHS = (1024, 8192, 32768)


class Side:
    """A run's model as it decodes: the parent left to right, the child by its mode."""

    def __init__(self, run: Path, kind: str, config: Config) -> None:
        loaded = load_model(config.model.model_copy(update={"path": str(run / "model")}))
        decode = config.decode.model_copy(update={"mode": "Q_MODE", "requests": 1})
        self.denoiser: Any = loaded.denoiser
        self.context = EvalContext(loaded, config, Console(quiet=True), generator_for(kind, loaded, decode))
        self.report = _report(run / "report.json")
        self.seconds, self.measures = float("inf"), dict[str, Any]()

    def round(self, stories: int) -> None:
        """Tell them once."""
        started = time.process_time()
        self.measures = dict(Storyworld(stories=stories, answers=0).run(self.context).measures)
        self.seconds = min(self.seconds, time.process_time() - started)

    def speed(self, stories: int) -> str:
        """Tokens of a second of the processor."""
        return f"{stories * self.measures['tokens_per_text'].value / self.seconds:.0f}"

    def valid(self) -> str:
        """Share of valid stories."""
        found = self.measures["valid"]
        return f"{100 * found.value:.1f} % ({100 * found.low:.0f} to {100 * found.high:.0f})"


def _report(path: Path) -> Mapping[str, Any]:
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: no report of a training that ended ({type(error).__name__})") from error


def row(name: str, parent: Side, child: Side, stories: int) -> str:
    """One line of the table."""
    first, last = (child.report[part]["eval_nll"] for part in ("first", "last"))
    bytes_ = [f"{child.denoiser.state_bytes(length) / 1e6:.2f} MB" for length in LENGTHS]
    told = (name, f"{parent.report['last']['eval_nll']:.3f}", f"{first:.3f}", f"{last:.3f}", parent.valid())
    speeds = (parent.speed(stories), child.speed(stories))
    return (
        "| " + " | ".join((*told, child.valid(), f"{child.measures['tokens_per_forward'].value:.2f}", *speeds, *bytes_))
    ) + " |"


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("pairs", nargs="+", metavar="NAME=PARENT_RUN,CHILD_RUN")
    parser.add_argument("--stories", type=int, default=40)
    parser.add_argument("--rounds", type=int, default=2)
    asked, config = parser.parse_args(arguments), Config()
    sides = dict[str, tuple[Side, Side]]()
    for pair in asked.pairs:
        name, _, runs = pair.partition("=")
        if len(both := [Path(run) for run in runs.split(",") if run]) != 2:
            raise ConfigError(f"{pair}: give NAME=PARENT_RUN,CHILD_RUN")
        parent, child = both
        sides[name] = (Side(parent, "autoregressive", config), Side(child, "diffusion", config))
    for _ in range(asked.rounds):
        for both in sides.values():
            for side in both:
                side.round(asked.stories)
    print(f"{HEADER}\n{'|---' * 12}|")
    for name, (parent, child) in sides.items():
        print(row(name, parent, child, asked.stories))


if __name__ == "__main__":
    sys.exit(spoken("hybrids.py", main))
