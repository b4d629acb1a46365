# The sandbox: what passes, what is stopped, and that an exit code alone proves nothing.
# Entry points: pytest.
# Every attack here is a program that would count as a success if only the exit code were read.
"""Tests of measure/sandbox.py."""

from __future__ import annotations

from pathlib import Path

import pytest

from hildanext.measure.sandbox import Limits, run_program

QUICK = Limits(cpu_seconds=1, wall_seconds=3.0, memory_bytes=256 << 20)


def test_a_program_that_reaches_its_end_passes() -> None:
    assert run_program("assert sorted([2, 1]) == [1, 2]", QUICK).passed


def test_a_failing_assertion_fails_and_says_why() -> None:
    found = run_program("assert 1 == 2, 'wrong'", QUICK)
    assert not found.passed and found.reason == "failed" and "wrong" in found.output


@pytest.mark.parametrize("source", ["import sys; sys.exit(0)", "import os; os._exit(0)", "raise SystemExit"])
def test_leaving_with_exit_code_zero_is_not_success(source: str) -> None:
    assert run_program(f"{source}\nassert False", QUICK).reason == "no nonce"


def test_a_printed_pass_and_a_guessed_report_are_not_success() -> None:
    source = (
        "import os\nfor fd in range(3, 32):\n    try: os.write(fd, b'passed')\n    except OSError: pass\nos._exit(0)"
    )
    assert not run_program(source, QUICK).passed


def test_an_endless_loop_is_stopped() -> None:
    assert run_program("while True: pass", QUICK).reason == "timeout"


def test_a_sleeping_program_is_stopped() -> None:
    assert run_program("import time; time.sleep(60)", Limits(wall_seconds=1.0)).reason == "timeout"


def test_too_much_memory_fails() -> None:
    assert "MemoryError" in run_program("x = bytearray(1 << 30)", QUICK).output


@pytest.mark.parametrize(
    "source",
    [
        "import socket; socket.socket()",
        "import subprocess; subprocess.run(['true'])",
        "import os; os.fork()",
        "import os; os.system('true')",
        "import ctypes; ctypes.CDLL(None)",
    ],
)
def test_network_processes_and_foreign_code_are_refused(source: str) -> None:
    found = run_program(source, QUICK)
    assert not found.passed and "not allowed" in found.output


def test_files_can_be_written_only_in_the_scratch_folder(tmp_path: Path) -> None:
    target = tmp_path / "stolen"
    assert run_program("open('own', 'w').write('x')", QUICK).passed
    assert not run_program(f"open({str(target)!r}, 'w').write('x')", QUICK).passed
    assert not target.exists()


def test_a_file_larger_than_the_limit_fails() -> None:
    assert not run_program("open('big', 'w').write('x' * (4 << 20))", QUICK).passed


def test_nothing_of_the_environment_is_visible(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HILDANEXT_TOKEN_OF_TEST", "secret")
    assert run_program("import os\nassert 'HILDANEXT_TOKEN_OF_TEST' not in os.environ", QUICK).passed
