# Runs the test suite with explicit threads: all of it, spread over the cores by file, or the files and folders named.
# Entry points: `python test/run_tests.py [pytest arguments]`; `-n 0` keeps the whole suite in one process.
# Markers: gpu tests skip without a CUDA device; slow tests run too.
"""The project's test command."""

import os
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
MOST_WORKERS = 4


def main(arguments: list[str]) -> int:
    """Run pytest; returns its exit code."""
    everything = not any(Path(argument.partition("::")[0]).exists() for argument in arguments)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    os.environ.setdefault("OMP_NUM_THREADS", "1" if everything else "2")
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    import pytest

    config = ["-c", str(HERE.parent / "backend" / "pyproject.toml"), "--rootdir", str(HERE.parent)]
    spread = (
        ["-n", str(min(MOST_WORKERS, cores)), "--dist", "loadfile", "--no-loadscope-reorder", str(HERE)]
        if everything
        else []
    )
    return int(pytest.main([*config, "-q", "-ra", "--durations=12", *spread, *arguments]))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
