# Prints the toy table of docs/decoding-methods.md: small models trained with and without carry, under several policies.
# Entry points: `python docs/toys.py`; `--steps`, `--count`, `--carry` (train for it too), `--ask JSON ...`.
# The tasks are the demo's: reverse letters, sort digits, add numbers; one block of 26 characters, one right answer.
"""Toy tasks against forwards, as a table."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from typing import Any

from hildanext.cli import spoken
from hildanext.selftest.demo.toy_tasks import OBJECTIVE, TASKS, measure_toy, new_toy, train_toy

CARRYING = {**OBJECTIVE, "type": "carry", "carry": {"type": "rcd"}, "behind": 0.25}
ASKED = [
    *[{"tau_mask": tau, "tau_edit": None} | more for tau in (0.9, 0.6) for more in ({}, {"carry": "rcd"})],
    {"policy": {"type": "static_quota", "steps": 2}},
    {"policy": {"type": "order_token", "steps": 2, "beams": 2, "children": 4}},
    {"policy": {"type": "info_gain", "steps": 2, "bypass": 0.95}},
]


def main(arguments: Sequence[str] | None = None) -> None:
    """Train, measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--count", type=int, default=200)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--carry", action="store_true", help="train for carry-over, and as usual")
    parser.add_argument("--ask", nargs="+", type=json.loads, metavar="JSON", help="fields of a request")
    asked = parser.parse_args(arguments)
    print("| trained with | request | " + " | ".join(TASKS) + " |\n" + "|---" * (2 + len(TASKS)) + "|")
    for objective in [OBJECTIVE, CARRYING] if asked.carry else [OBJECTIVE]:
        loaded = new_toy(asked.seed)
        train_toy(loaded, asked.steps, asked.seed, objective=objective)
        for fields in asked.ask or ASKED:
            print(row(loaded, objective, fields, asked), flush=True)


def row(loaded: Any, objective: dict[str, Any], fields: dict[str, Any], asked: argparse.Namespace) -> str:
    """One line of the table: share of exact answers with its interval, and forwards per answer."""
    cells = [objective["type"], f"`{json.dumps(fields)}`"]
    for task in TASKS:
        found = measure_toy(loaded, task, asked.count, asked.seed, **fields)
        exact = found["exact_match"]
        share = f"{100 * exact['value']:.0f} % ({100 * exact['low']:.0f} to {100 * exact['high']:.0f})"
        cells.append(f"{share}, {found['forwards']['value']:.2f}")
    return f"| {' | '.join(cells)} |"


if __name__ == "__main__":
    sys.exit(spoken("toys.py", main))
