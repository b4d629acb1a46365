# The command line stays light, and its surface changes only on purpose.
# Entry points: pytest; `python test/guards/test_command_line.py` rewrites the snapshot.
# The snapshot lists every command with its flags.
"""Guards of the command line."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path

import pytest

SNAPSHOT = Path(__file__).with_name("cli_surface.json")
HEAVY = {"torch", "transformers", "datasets", "fastapi", "numpy", "rich", "uvicorn"}
PROBE = "import sys; {}; print(','.join(sorted(set(m.split('.')[0] for m in sys.modules))))"


def surface() -> dict[str, list[str]]:
    """Every command with its positional names and long flags, sorted."""
    from hildanext.cli import parser

    action = next(a for a in parser()._actions if isinstance(a, argparse._SubParsersAction))
    return {
        name: sorted(
            max(a.option_strings, key=len) if a.option_strings else (a.metavar or a.dest).lower()
            for a in child._actions
        )
        for name, child in sorted(action.choices.items())
    }


def modules_after(statement: str) -> set[str]:
    """Top-level modules loaded by a fresh interpreter after one statement."""
    out = subprocess.run([sys.executable, "-c", PROBE.format(statement)], capture_output=True, text=True, check=True)
    return set(out.stdout.strip().split(","))


def test_building_the_argument_tree_loads_nothing_heavy() -> None:
    assert modules_after("import hildanext.cli; hildanext.cli.parser()") & HEAVY == set()


def test_the_light_check_can_fail() -> None:
    assert "numpy" in modules_after("import hildanext.cli, numpy") & HEAVY


def test_listing_plugins_imports_none_of_them() -> None:
    loaded = modules_after("from hildanext import registry; [registry.names(k) for k in registry.KINDS]")
    assert loaded & HEAVY == set()


def test_the_surface_is_the_recorded_one() -> None:
    recorded = json.loads(SNAPSHOT.read_text())
    assert surface() == recorded, "changed on purpose? run `python test/guards/test_command_line.py`"


def test_the_surface_check_can_fail() -> None:
    recorded = json.loads(SNAPSHOT.read_text())
    recorded["doctor"].append("--planted")
    assert surface() != recorded


def test_an_unknown_command_exits_with_two() -> None:
    done = subprocess.run([sys.executable, "-m", "hildanext", "no-such-command"], capture_output=True, text=True)
    assert done.returncode == 2 and "Traceback" not in done.stderr


def test_a_wrong_config_shows_every_mistake_at_once(capsys: pytest.CaptureFixture[str]) -> None:
    sets = ["--set", "seeed=1", "--set", "train.stepz=3", "--set", "model.dtype=fp8", "--set", "objective.nois=1"]
    from hildanext.cli import main

    assert main(["config", "show", *sets]) == 2
    said = capsys.readouterr().err
    assert all(word in said for word in ("'seed'", "'steps'", "fp8", "objective.nois"))
    assert "Traceback" not in said


def test_help_is_quick_enough_to_feel_instant() -> None:
    started = time.process_time()
    assert surface()
    assert time.process_time() - started < 5.0


if __name__ == "__main__":
    SNAPSHOT.write_text(json.dumps(surface(), indent=1) + "\n")
