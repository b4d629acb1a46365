# Prints the tables of reinforcement learning in docs/results.md: what models answer to rows that a reward can check.
# Entry points: `python docs/reinforced.py REWARD ROWS MODEL ... [--tau 0.7] [--count 400] [--decode JSON ...]`.
# Greedy, one answer a row, no editing unless --edit; ROWS is a file or world:<register>:<seed>, as rl.rows; --decode
# gives further fields of the decode section, a line each. Intervals are Wilson's for what is right (a reward of 1) and
# bootstrapped for means; width is positions per forward, candidates of a search counted.
"""Models against a reward, as a table."""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Sequence
from typing import Any

from hildanext.cli import spoken
from hildanext.config import Config
from hildanext.config.rl import RlConfig
from hildanext.core.reward import Attempt, Reward
from hildanext.decoding.request import Request
from hildanext.measure.generation import DiffusionGenerator
from hildanext.models.load import load_model
from hildanext.progress import Console
from hildanext.registry import build
from hildanext.report.intervals import mean, ratio, share
from hildanext.train.recipes.questions import questions_of, rows_of

HEADER = "| model | decode | right | reward | tokens per forward | width | answers/CPU-s |"


def row(path: str, reward: Reward, fields: dict[str, Any], asked: argparse.Namespace) -> str:
    """One line of the table."""
    config = Config()
    loaded = load_model(config.model.model_copy(update={"path": path}))
    wanted = RlConfig(rows=asked.rows, limit=asked.count, held_out=0)
    questions = questions_of(rows_of(wanted), wanted, loaded.tokenizer, 1 << 20, Console(quiet=True))
    edits = {} if asked.edit else {"tau_edit": None}
    given = {"mode": asked.mode, "tau_mask": asked.tau, "requests": 64, **edits, **fields}
    decode = type(config.decode).model_validate(given)
    requests = [Request(prompt_ids=one.ids, max_new_tokens=asked.tokens) for one in questions]
    started = time.process_time()
    done = DiffusionGenerator(loaded, decode).complete(requests)
    seconds = time.process_time() - started
    scores = reward.scores([Attempt(q.row, one.text, turns=q.turns) for q, one in zip(questions, done, strict=True)])
    speed = ratio([one.tokens for one in done], [one.forwards for one in done])
    right = share(sum(score >= 1 for score in scores), len(scores))
    width = sum(one.positions for one in done) / sum(one.forwards for one in done)
    cells = (path, f"`{json.dumps(fields)}`", right.text(), mean(scores).text(), speed.text())
    return f"| {' | '.join((*cells, f'{width:.1f}', f'{len(done) / seconds:.1f}'))} |"


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("reward", help="type of the reward")
    parser.add_argument("rows")
    parser.add_argument("models", nargs="+")
    parser.add_argument("--tau", type=float, default=0.7, help="probability a mask must exceed to be filled")
    parser.add_argument("--mode", default="Q_MODE")
    parser.add_argument("--edit", action="store_true", help="edit as the mode does")
    parser.add_argument("--count", type=int, default=400)
    parser.add_argument("--decode", nargs="+", type=json.loads, default=[{}], metavar="JSON", help="decode sections")
    parser.add_argument("--tokens", type=int, default=48, help="longest answer")
    asked = parser.parse_args(arguments)
    reward: Reward = build("rewards", {"type": asked.reward}, "reward")
    print(f"{HEADER}\n{'|---' * 7}|", flush=True)
    for path in asked.models:
        for fields in asked.decode:
            print(row(path, reward, fields, asked), flush=True)


if __name__ == "__main__":
    sys.exit(spoken("reinforced.py", main))
