# Writes stories that a model tells by itself, as rows to train on: the last stage for windows (results.md).
# Entry points: `python docs/own_stories.py OUT`; `--stories`, `--model`, `--mode`, `--seed`.
# A story is continued from its first sentence, greedily; what the story world's checker refuses is left out, and told.
"""A model's own stories, one JSON line each."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from hildanext.cli import spoken
from hildanext.config import Config
from hildanext.decoding.request import Request
from hildanext.disk import write_atomic
from hildanext.measure.generation import DiffusionGenerator
from hildanext.measure.task import EvalContext
from hildanext.models.load import load_model
from hildanext.progress import Console
from hildanext.world import check, story


def main(arguments: Sequence[str] | None = None) -> None:
    """Tell and write them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path)
    parser.add_argument("--stories", type=int, default=9600)
    parser.add_argument("--model", default="tiny")
    parser.add_argument("--mode", default="Q_MODE")
    parser.add_argument("--seed", type=int, default=8_000_001, help="of the first sentences; no table uses this one")
    asked = parser.parse_args(arguments)
    config, console = Config(), Console()
    loaded = load_model(config.model.model_copy(update={"path": asked.model}))
    decode = config.decode.model_copy(update={"mode": asked.mode, "requests": 48})
    context = EvalContext(loaded, config, console, DiffusionGenerator(loaded, decode))
    starts = [story(f"{asked.seed}:{index}").sentences[0] for index in range(asked.stories)]
    told = context.complete("stories", [Request(prompt=start, max_new_tokens=256) for start in starts])
    texts = [f"{start} {one.text.lstrip()}" for start, one in zip(starts, told, strict=True)]
    kept = [text for text in texts if check(text).valid]
    write_atomic(asked.out, "".join(json.dumps({"text": text}) + "\n" for text in kept))
    console.say(f"{asked.out}: {len(kept):,} of {len(texts):,} stories are valid and kept")


if __name__ == "__main__":
    sys.exit(spoken("own_stories.py", main))
