# Runs the test suite with explicit threads: all of it, spread over the cores by file, or the files and folders named.
# Entry points: `python test/run_tests.py [pytest arguments]`; `-n 0` keeps the whole suite in one process.
# Markers: gpu tests skip without a CUDA device; slow tests run too.
"""The project's test command."""

import os
import sys
from pathlib import Path

ALL = not any(Path(argument.partition("::")[0]).exists() for argument in sys.argv[1:])
WORKERS = min(4, len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1)
os.environ.setdefault("OMP_NUM_THREADS", "1" if ALL else "2")
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import pytest

if __name__ == "__main__":
    here = Path(__file__).resolve().parent
    config = [
        "-c",
        str(here.parent / "backend" / "pyproject.toml"),
        "--rootdir",
        str(here.parent),
        "-q",
        "-ra",
        "--durations=12",
    ]
    spread = ["-n", str(WORKERS), "--dist", "loadfile", str(here)] if ALL else []
    sys.exit(pytest.main([*config, *spread, *sys.argv[1:]]))
