# Prints the table of sampling in docs/choosing-thresholds.md: the bundled child in every mode at four temperatures.
# Entry points: `python docs/sampling.py`; `--confidence sampled` measures the other reading of a confidence.
# Stories are continued from their first sentence and judged by the story world's own checker; intervals are Wilson's.
"""Modes against temperatures, as a table."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from hildanext.cli import spoken
from hildanext.config import Config
from hildanext.config.decode import MODES
from hildanext.measure.generation import DiffusionGenerator
from hildanext.measure.task import EvalContext
from hildanext.measure.tasks.storyworld import Storyworld
from hildanext.models.load import load_model
from hildanext.progress import Console

TEMPERATURES = (0.0, 0.2, 0.7, 1.0)


def table(stories: int, temperatures: Sequence[float], confidence: str) -> list[str]:
    """The lines of the table: a row per mode, valid stories with their 95 % interval and tokens per forward."""
    config, console = Config(), Console(quiet=True)
    loaded = load_model(config.model)
    lines = [
        "| mode | " + " | ".join(f"T = {t:g}" for t in temperatures) + " |",
        "|---" * (len(temperatures) + 1) + "|",
    ]
    for mode in MODES:
        decode = config.decode.model_copy(update={"mode": mode, "confidence": confidence})
        context = EvalContext(loaded, config, console, DiffusionGenerator(loaded, decode))
        cells = []
        for temperature in temperatures:
            found = Storyworld(stories=stories, answers=0, temperature=temperature).run(context).measures
            valid, tpf = found["valid"], found["tokens_per_forward"]
            share = f"{100 * valid.value:.0f} % ({100 * valid.low:.0f} to {100 * valid.high:.0f})"
            cells.append(f"{share}, {tpf.value:.2f}")
        lines.append(f"| `{mode}` | " + " | ".join(cells) + " |")
        print(lines[-1], flush=True)
    return lines


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--stories", type=int, default=60)
    parser.add_argument("--confidence", default="raw")
    asked = parser.parse_args(arguments)
    print("\n".join(table(asked.stories, TEMPERATURES, asked.confidence)))


if __name__ == "__main__":
    sys.exit(spoken("sampling.py", main))
