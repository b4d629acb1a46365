# A launcher whose command is a stub: what the job does is its configuration's description.
# Entry points: python stub_launcher.py RUN_DIR; it calls itself as the command.
# "ok" ends well, "fail" exits 3, "sleep" runs until a signal (for ten minutes at most) and says it saved, "stubborn"
# ignores signals.
"""Stub launcher for the tests of jobs."""

from __future__ import annotations

import base64
import json
import signal
import sys
import time
from pathlib import Path

from hildanext.api import launch
from hildanext.config import load_config
from hildanext.errors import Interrupted
from hildanext.run_dir import RunDir, StopRequest


def command(arguments: list[str]) -> int:
    """What the command line would do."""
    config = load_config(Path(arguments[2]), [])
    run = RunDir.create(config, arguments[0], Path(arguments[4]))
    print("hello from the job", flush=True)
    deed = config.description.split()[0] if config.description else "ok"
    if deed == "fail":
        print("the disk is full", flush=True)
        return 3
    if deed == "stubborn":
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    try:
        with run.running(), StopRequest() as stop:
            work(run, deed, stop)
    except Interrupted:
        return 130
    run.write_json("report.json", {"final": 1.5, "bad": float("nan")})
    return 0


PIXEL = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="


def work(run: RunDir, deed: str, stop: StopRequest) -> None:
    """Steps with a falling loss, and a picture of one pixel."""
    (run.path / "panels").mkdir()
    (run.path / "panels" / "decoding-000001.png").write_bytes(base64.b64decode(PIXEL))
    steps = 3 if deed == "ok" else 30_000
    stages = [{"phase": "warmup", "block": 4, "first": 0, "steps": steps}]
    run.write_json("plan.json", {"steps": steps, "window": 64, "stages": stages})
    for step in range(1, steps + 1):
        with (run.path / "metrics.jsonl").open("a", encoding="utf-8") as file:
            record = {"step": step, "loss": 1.0 / step, "reward": step, "reward_spread": step % 7, "note": "text"}
            file.write(json.dumps(record) + "\n")
        run.status(step=step, total=steps, loss=1.0 / step)
        run.log(f"step {step}")
        if stop.received and deed != "stubborn":
            (run.checkpoints / "step-000001").mkdir(parents=True)
            raise Interrupted("checkpoint saved")
        time.sleep(0.02)


if __name__ == "__main__":
    if sys.argv[1] == "command":
        sys.exit(command(sys.argv[2:]))
    sys.exit(launch.main(sys.argv[1:], (sys.executable, __file__, "command")))
