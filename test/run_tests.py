# Runs the test suite with explicit threads: all of it, or the files and folders named.
# Entry points: `python test/run_tests.py [pytest arguments]`.
# Markers: gpu tests skip without a CUDA device; slow tests run too.
"""The project's test command."""

import os
import sys
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "2")
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import pytest

if __name__ == "__main__":
    here = Path(__file__).resolve().parent
    named = [argument for argument in sys.argv[1:] if Path(argument.partition("::")[0]).exists()]
    config = [
        "-c",
        str(here.parent / "backend" / "pyproject.toml"),
        "--rootdir",
        str(here.parent),
        "-q",
        "-ra",
        "--durations=12",
    ]
    sys.exit(pytest.main([*config, *sys.argv[1:], *([] if named else [str(here)])]))
