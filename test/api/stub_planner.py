# A stand-in for a training command's --print-plan: what it says depends on train.steps of its configuration.
# Entry points: python stub_planner.py COMMAND --config FILE --print-plan --json.
# 400 steps are refused as a command refuses, 500 fail, 600 say nothing.
"""Stub planner for the tests of jobs."""

from __future__ import annotations

import json
import sys
from pathlib import Path

if __name__ == "__main__":
    steps = json.loads(Path(sys.argv[3]).read_text(encoding="utf-8")).get("train", {}).get("steps", 1000)
    if steps in (400, 500):
        print(f"hildanext {sys.argv[1]}: train.data: no shards, run tokenize", file=sys.stderr)
        sys.exit(2 if steps == 400 else 1)
    rest = steps - 10
    stages = [
        {"phase": "warmup", "block": 4, "first": 0, "steps": 10, "tokens": 640, "seconds": 60.0},
        {"phase": "stable", "block": 16, "first": 10, "steps": rest, "tokens": 64 * rest, "seconds": 6.0 * rest},
    ]
    plan = {"window": 64, "steps": steps, "tokens_per_step": 64, "tokens": 64 * steps, "stages": stages}
    print("" if steps == 600 else json.dumps(plan | {"seconds": float("nan"), "memory": {"total": 1 << 30}}))
