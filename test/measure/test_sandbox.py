# The sandbox: correct programs pass whatever standard module they use, wrong ones fail and say why, limits hold.
# Entry points: pytest.
# What breaks out and what cheats is in test_sandbox_escapes.py and test_sandbox_cheats.py.
"""Tests of measure/sandbox."""

from __future__ import annotations

import gzip
import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from waiting import PATIENCE

from hildanext.measure import judging
from hildanext.measure.judging import Program, judge
from hildanext.measure.sandbox import TESTS, Limits, run_program, walls, warning
from hildanext.measure.sandbox.running import Wall
from hildanext.measure.tasks.humaneval import Humaneval
from hildanext.measure.tasks.mbpp import Mbpp
from hildanext.progress import Console

QUICK = Limits(cpu_seconds=2, wall_seconds=PATIENCE, memory_bytes=256 << 20)
CONTEXT: Any = SimpleNamespace(console=Console(True), config=SimpleNamespace(eval=SimpleNamespace(samples=0)))
SKIPPED_MODULES = {"antigravity", "this", "idlelib"}
IMPORTS = """
import importlib, sys
failed = []
for name in sorted(sys.stdlib_module_names - {skipped}):
    try:
        importlib.import_module(name)
    except ImportError as error:
        failed.append(name)
print("FAILED:" + " ".join(failed))
"""
CORRECT = {
    "dataclass": "from __future__ import annotations\nfrom dataclasses import dataclass\n@dataclass\nclass A:\n"
    " x: int\n"
    "import typing\nassert typing.get_type_hints(A) == {'x': int} and A(1) == A(1)",
    "files": "import pathlib, shutil, os\npathlib.Path('a').write_text('x')\nshutil.copy2('a', 'b')\n"
    "os.utime('b', (1, 1))\n"
    "os.rename('b', 'c')\nos.mkdir('d')\nos.symlink('c', 'd/e')\nassert sorted(os.listdir('.')) == ['a', 'c', 'd']",
    "temporary": "import tempfile\nwith tempfile.TemporaryDirectory() as folder:\n open(folder + '/x', 'w').write('x')",
    "threads": "from concurrent.futures import ThreadPoolExecutor\nwith ThreadPoolExecutor(8) as pool:\n"
    " assert sum(pool.map(abs, range(9))) == 36",
    "asyncio": "import asyncio\nasync def f():\n await asyncio.sleep(0.001)\n return 3\nassert asyncio.run(f()) == 3",
    "pickle": "import pickle\nclass A: pass\nassert isinstance(pickle.loads(pickle.dumps(A())), A)",
    "source": "import inspect\ndef f(): return 1\nassert 'return 1' in inspect.getsource(f)",
    "sqlite": "import sqlite3\nassert sqlite3.connect(':memory:').execute('select 1').fetchone() == (1,)",
    "random": "import random, os, uuid, secrets\nassert len(os.urandom(8)) == 8 and uuid.uuid4() != uuid.uuid4()",
    "no input": "try: input()\nexcept EOFError: pass\nelse: assert False",
    "main": "if __name__ == '__main__': x = 1\nassert x == 1",
    "time zone": "import zoneinfo, datetime\nassert datetime.datetime.now().year > 2000",
    "itself": "import os, signal\nsignal.signal(signal.SIGUSR1, lambda *a: None)\nos.kill(os.getpid(), signal.SIGUSR1)",
}  # fmt: skip
HELD = {
    "plain": ("def f(x): return x + 1", "assert f(1) == 2 and f(f(1)) == 3"),
    "exact kinds": ("def f(x): return (x, [1.5], {2}, {'a': None}, b'b', 1j)",
    "assert f(1) == (1, [1.5], {2}, {'a': None}, b'b', 1j)"),
    "counters": ("from collections import *\ndef f(x): return Counter(x)", "assert f('aab') == {'a': 2, 'b': 1}"),
    "named tuples": ("from collections import *\nP = namedtuple('P', 'a b')\n"
    "def f(): return P(1, 2)", "assert f() == (1, 2)"),
    "numbers": ("from decimal import *\nfrom fractions import *\n"
    "def f(): return Decimal('1.5'), Fraction(1, 3), 10**5000",
                "from fractions import *\nassert f() == (1.5, Fraction(1, 3), 10**5000)"),
    "generators": ("def f(n):\n for i in range(n): yield i", "assert list(f(3)) == [0, 1, 2] and sum(f(4)) == 6"),
    "objects": ("class S:\n def __init__(self): self.x = []\n def push(self, v): self.x.append(v)\n"
    " def __len__(self): return len(self.x)",
                "s = S()\ns.push(4)\nassert len(s) == 1 and s.x == [4] and isinstance(s, S)"),
    "arguments changed in place": ("def f(x): x.sort(); x.append(9)", "y = [3, 1]\nf(y)\nassert y == [1, 3, 9]"),
    "errors": ("def f(x): raise ValueError('no')", "try: f(1)\nexcept ValueError as e: assert str(e) == 'no'\n"
    "else: assert False"),
    "own errors": ("class E(KeyError): pass\ndef f(): raise E('x')", "try: f()\nexcept E: pass\nelse: assert False"),
    "a name like a built-in": ("def sum(a, b): return a * b", "assert sum(3, 4) == 12"),
    "variables": ("x = [1]\ndef f(): x.append(2)", "f()\nassert x == [1, 2]"),
    "modules": ("import math\ndef f(x): return math.pi", "assert math.isclose(f(1), 3.14159265, rel_tol=1e-6)"),
}  # fmt: skip


@pytest.mark.parametrize("source", CORRECT.values(), ids=CORRECT)
def test_a_correct_program_passes(source: str) -> None:
    found = run_program(source, QUICK)
    assert found.passed, found.output


@pytest.mark.parametrize(("source", "tests"), HELD.values(), ids=HELD)
def test_right_answers_hold_in_another_process(source: str, tests: str) -> None:
    found = run_program(source, QUICK, tests)
    assert found.passed, found.output


def test_every_standard_module_can_be_imported_that_can_be_outside() -> None:
    code = IMPORTS.format(skipped=SKIPPED_MODULES)
    outside = subprocess.run([sys.executable, "-S", "-P", "-c", code], capture_output=True, text=True, cwd="/").stdout
    inside = run_program(code, Limits(cpu_seconds=30, wall_seconds=PATIENCE))
    assert inside.passed, inside.output
    said = [set(text.rpartition("FAILED:")[2].split()) for text in (inside.output, outside)]
    assert said[0] <= said[1]


def test_a_failing_assertion_fails_and_says_why() -> None:
    found = run_program("def f(x): return x\nassert f(1) == 2, 'wrong'", QUICK)
    assert found.reason == "failed" and "wrong" in found.output and "assert f(1) == 2" in found.output


def test_an_error_inside_the_program_is_told_with_its_line() -> None:
    found = run_program("def f(x):\n    return x / 0", QUICK, "assert f(1) == 2")
    assert found.reason == "failed" and "return x / 0" in found.output and "ZeroDivisionError" in found.output


def test_a_program_that_is_no_python_fails() -> None:
    for source in ("def f(:", "x = '\ud800'\n\0", "(" * 5000, 'x = """'):
        assert run_program(f"{source}\n{TESTS}\nassert True", QUICK).reason == "failed"


@pytest.mark.parametrize("source", ["import sys; sys.exit(0)", "import os; os._exit(0)", "raise SystemExit"])
def test_leaving_with_exit_code_zero_is_not_success(source: str) -> None:
    assert run_program(f"{source}\nassert False", QUICK).reason == "no nonce"


def test_an_endless_loop_is_stopped() -> None:
    assert run_program("while True: pass", Limits(cpu_seconds=1, wall_seconds=PATIENCE)).reason == "timeout"
    assert (
        run_program("def f():\n while True: pass", Limits(cpu_seconds=1, wall_seconds=PATIENCE), "f()").reason
        == "timeout"
    )


def test_a_sleeping_program_is_stopped() -> None:
    assert run_program("import time; time.sleep(60)", Limits(wall_seconds=1.0)).reason == "timeout"


def test_too_much_memory_fails() -> None:
    assert "MemoryError" in run_program("x = bytearray(1 << 30)", QUICK).output


def test_output_beyond_the_limit_is_discarded_and_the_end_is_kept() -> None:
    found = run_program(
        "for i in range(400000): print('x' * 99)\nprint('end')", Limits(cpu_seconds=20, wall_seconds=PATIENCE)
    )
    assert found.passed and found.output.endswith("end") and len(found.output) <= 2000


def test_a_file_larger_than_the_limit_fails() -> None:
    assert not run_program("open('big', 'w').write('x' * (4 << 20))", QUICK).passed


def test_programs_may_be_started_where_the_limits_say_so() -> None:
    source = "import subprocess\nassert subprocess.run(['true']).returncode == 0"
    assert run_program(source, Limits(processes=4, wall_seconds=PATIENCE)).passed
    assert not run_program(source, QUICK).passed


def test_the_same_program_gives_the_same_order_of_a_set_every_time() -> None:
    source = "print(list({'a', 'b', 'c', 'd', 'e', 'f'}))"
    assert len({run_program(source, QUICK).output for _ in range(3)}) == 1


def test_two_programs_do_not_share_random_numbers() -> None:
    assert len({run_program("import random; print(random.random())", QUICK).output for _ in range(3)}) == 3


def test_the_last_line_that_says_so_begins_the_tests() -> None:
    source = f"def f(): return 1\n{TESTS}\ncheat = True"
    assert not run_program(f"{source}\n{TESTS}\nassert f() == 2", QUICK).passed
    assert run_program(f"{source}\n{TESTS}\nassert f() == 1", QUICK).passed


def test_a_lost_warden_is_replaced() -> None:
    from hildanext.measure.sandbox import wardens

    assert run_program("x = 1", QUICK).passed
    for one in wardens._POOL.idle:
        one.process.kill()
        one.process.wait()
    assert run_program("x = 1", QUICK).passed


def test_every_wall_is_reported_and_few_walls_give_a_loud_note() -> None:
    found = walls()
    assert {"mounts", "landlock", "seccomp", "network"} <= {wall.name for wall in found}
    assert all(wall.stands or wall.why for wall in found)
    alone = tuple(Wall(wall.name, wall.name == "undumpable", wall.guards, "no") for wall in found)
    assert "container" in warning(alone) and "mounts or landlock" in warning(alone)
    assert warning(tuple(Wall(wall.name, wall.name in ("landlock", "seccomp"), "", "") for wall in found)) == ""


def test_judging_behind_few_walls_warns(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(judging, "walls", lambda: (Wall("landlock", True, "", ""),))
    judge(CONTEXT, "none", [Program("a", "", "x = 1")], [], QUICK)
    assert "pids or seccomp" in capsys.readouterr().err


def _references(assets: Path) -> list[tuple[str, str]]:
    text = gzip.decompress((assets / "humaneval" / "HumanEval.jsonl.gz").read_bytes()).decode()
    rows = [json.loads(line) for line in text.splitlines()]
    found = [(row["task_id"], Humaneval().program(row, row["canonical_solution"])) for row in rows][::8]
    rows = [json.loads(line) for line in (assets / "mbpp" / "mbpp.jsonl").read_text().splitlines()]
    special = [row for row in rows if row["task_id"] in (126, 367, 927)]
    return found + [(str(row["task_id"]), Mbpp().program(row, row["code"])) for row in rows[::32] + special]


def test_reference_solutions_of_humaneval_and_mbpp_pass_side_by_side(assets: Path) -> None:
    programs = [Program(name, "", source) for name, source in _references(assets)]
    found = judge(CONTEXT, "references", programs, [], Limits(cpu_seconds=10, wall_seconds=PATIENCE))
    assert found.counts["passed"] == len(programs) > 50 and judging.WORKERS >= 2
    assert found.counts["isolated"] in (0, len(programs))


def test_a_forked_process_uses_wardens_of_its_own() -> None:
    assert run_program("x = 1", QUICK).passed
    pid = os.fork()
    if pid == 0:
        os._exit(0 if run_program("x = 1", QUICK).passed else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0 and run_program("x = 1", QUICK).passed
