# Wrong programs that want to look right: none of them may pass. Every one was written to pass a weaker sandbox.
# Entry points: pytest.
# Each is tried with its tests given apart and with its tests at the end of the same text.
"""Tests of measure/sandbox: cheats."""

from __future__ import annotations

import pytest
from waiting import PATIENCE

from hildanext.measure.sandbox import TESTS, Limits, run_program
from hildanext.measure.tasks.humaneval import Humaneval

QUICK = Limits(cpu_seconds=3, wall_seconds=PATIENCE)
WRITE_EVERYWHERE = """
import os, re
def spread(words):
    secrets = {word if isinstance(word, bytes) else word.encode() for word in words}
    secrets = {word + b"\\n" for word in secrets if re.fullmatch(rb"[0-9a-f]{32}", word)} or {b"passed"}
    for fd in range(3, 64):
        for word in secrets:
            try: os.write(fd, word)
            except OSError: pass
"""
FRAMES = """
import sys
def words(frame):
    while frame:
        for space in (frame.f_locals, frame.f_globals):
            for value in list(space.values()):
                if isinstance(value, (str, bytes)): yield value
                if isinstance(value, dict): yield from (v for v in value.values() if isinstance(v, (str, bytes)))
        frame = frame.f_back
"""
LEAVE = "import os\nos._exit(0)\n"
ANSWERS = {
    "equal to everything": "class Y:\n __eq__ = lambda s, o: True\ndef f(x): return Y()",
    "int equal to everything": "class Y(int):\n __eq__ = lambda s, o: True\n __hash__ = int.__hash__\n"
    "def f(x): return Y(7)",
    "str equal to everything": "class Y(str):\n __eq__ = lambda s, o: True\ndef f(x): return Y('7')",
    "list equal to everything": "class Y(list):\n __eq__ = lambda s, o: True\ndef f(x): return Y()",
    "dict equal to everything": "class Y(dict):\n __eq__ = lambda s, o: True\ndef f(x): return Y()",
    "mock.ANY": "from unittest.mock import ANY\ndef f(x): return ANY",
    "mock": "from unittest.mock import MagicMock\nf = MagicMock()\nf.return_value.__eq__ = lambda s, o: True",
    "a class as the function": "class f:\n def __init__(s, x): pass\n def __eq__(s, o): return True",
    "class with a metaclass": "class M(type):\n __eq__ = lambda s, o: True\nclass Y(metaclass=M): pass\n"
    "def f(x): return Y",
    "error equal to everything": "class Y(Exception):\n __eq__ = lambda s, o: True\ndef f(x): return Y()",
    "a module": "import sys, types\nclass M(types.ModuleType):\n __eq__ = lambda s, o: True\ndef f(x): return M('m')",
    "nan": "f = lambda x: float('nan')",
    "nothing": "def f(x): pass",
    "leaves in the call": "import os\ndef f(x): os._exit(0)",
    "exits in the call": "import sys\ndef f(x): sys.exit(0)",
    "raises SystemExit": "def f(x): raise SystemExit(0)",
    "raises BaseException": "class Y(BaseException): pass\ndef f(x): raise Y",
    "ends itself": "import os, signal\ndef f(x): os.kill(os.getpid(), signal.SIGKILL)",
    "assertion error replaced": "import builtins\nclass Y(Exception): pass\n"
    "builtins.AssertionError = AssertionError = Y\ndef f(x): return 0",
    "built-ins replaced": "import builtins\nfor n in ('abs', 'len', 'all', 'isinstance', 'sorted', 'str'):\n"
    " setattr(builtins, n, lambda *a: 2)\ndef f(x): return 0",
    "operators replaced": "import operator\noperator.eq = lambda a, b: True\ndef f(x): return object()",
    "trace function": "import sys\nsys.settrace(lambda *a: None)\nsys.excepthook = lambda *a: None\ndef f(x): return 0",
    "exit handler": "import atexit, os\natexit.register(os._exit, 0)\ndef f(x): return 0",
    "thread that leaves": "import threading, os, time\n"
    "threading.Thread(target=lambda: (time.sleep(0.05), os._exit(0))).start()\n"
    "def f(x): time.sleep(1)",
    "timer that leaves": "import signal, os, time\nsignal.signal(signal.SIGALRM, lambda *a: os._exit(0))\n"
    "signal.setitimer(signal.ITIMER_REAL, 0.05)\ndef f(x): time.sleep(1)",
    "ignores signals": "import signal\nfor s in range(1, 32):\n try: signal.signal(s, signal.SIG_IGN)\n"
    " except (OSError, ValueError): pass\ndef f(x): return 0",
    "too deep": "def f(x):\n y = []\n for _ in range(10**5): y = [y]\n return y",
    "ring": "def f(x):\n y = []\n y.append(y)\n return y",
    "a check of its own": "def check(c): pass\ndef f(x): return 0",
    "nonce of a caller's frame": WRITE_EVERYWHERE + FRAMES + "spread(list(words(sys._getframe())))\n" + LEAVE,
    "nonce of a traceback's frame": WRITE_EVERYWHERE + FRAMES + "try: 1 / 0\nexcept Exception as e:\n"
    " t = e.__traceback__\n"
    " spread(list(words(t.tb_frame)))\n" + LEAVE,
    "nonce in a call": WRITE_EVERYWHERE + FRAMES + "def f(x):\n spread(list(words(sys._getframe())))\n os._exit(0)",
    "memory of the process": WRITE_EVERYWHERE + "for who in ('self', os.getppid(), 1):\n try:\n"
    "  for line in open(f'/proc/{who}/maps'):\n   a, b = (int(x, 16) for x in line.split()[0].split('-'))\n"
    "   m = open(f'/proc/{who}/mem', 'rb', 0); m.seek(a); spread(re.findall(rb'[0-9a-f]{32}', m.read(b - a)))\n"
    " except (OSError, ValueError, OverflowError): pass\n" + LEAVE,
    "what the socket says": "import os, json, struct\ndef f(x): return 0\n"
    "m = json.dumps({'value': True}).encode()\nfor fd in range(3, 64):\n"
    " try: os.write(fd, (struct.pack('!I', len(m)) + m) * 5)\n except OSError: pass\nos._exit(0)",
    "the longest message": "import os\ndef f(x):\n for fd in range(3, 64):\n"
    "  try: os.write(fd, b'\\xff' * 4096)\n  except OSError: pass\n return 0",
    "state of the sandbox": "import sys\nfor m in list(sys.modules.values()):\n"
    " for n in ('PASSED', 'FAILED', 'LEFT', 'DENIED', 'MOVES', 'BY_LIMIT'):\n"
    "  if hasattr(m, n): setattr(m, n, ())\ndef f(x): return 0",
    "answers of the sandbox": "import sys\nfor m in list(sys.modules.values()):\n"
    " if hasattr(m, 'packed'): m.packed = lambda v, k, d=0: ['other', [0, 'AssertionError', 'object']]\n"
    "def f(x): return 0",
}  # fmt: skip


@pytest.mark.parametrize("source", ANSWERS.values(), ids=ANSWERS)
def test_a_wrong_answer_does_not_pass(source: str) -> None:
    assert not run_program(source, QUICK, "assert f(1) == 2\nassert f(3) == 4").passed
    assert not run_program(f"{source}\n\nassert f(1) == 2\nassert f(3) == 4\n", QUICK).passed


@pytest.mark.parametrize("test", [
    "assert [f(1)] == [2]", "assert {'a': f(1)} == {'a': 2}", "assert (f(1), 3) == (2, 3)", "assert 2 == f(1)",
    "assert not f(1) != 2", "assert 2 in [f(1)]", "assert f(1) in [2]",
    "assert not f(1) < 2 and not f(1) > 2 and f(1) == 2",
])  # fmt: skip
def test_an_answer_equal_to_everything_is_equal_to_nothing_wherever_it_stands(test: str) -> None:
    assert not run_program(ANSWERS["equal to everything"], QUICK, test).passed
    assert run_program("def f(x): return 2", QUICK, test.partition(" and ")[0]).passed


def test_the_program_cannot_find_its_tests_in_memory_or_in_open_files() -> None:
    source = """
import gc, os, sys, ctypes
needle = "needle" + "%d" % 4711
found = []
def search(x):
    for thing in gc.get_objects():
        for value in (list(thing.values()) if type(thing) is dict else [thing]):
            if type(value) is str and needle in value and value is not needle and "def search" not in value:
                found.append(value)
    for fd in range(3, 64):
        try: found.extend([1] if needle.encode() in os.pread(fd, 10**6, 0) else [])
        except OSError: pass
    return len(found)
"""
    found = run_program(source, QUICK, "assert search(1) == 0, 'needle' + '4711' # needle4711")
    assert found.passed, found.output


def test_a_reply_cannot_replace_what_a_humaneval_check_uses() -> None:
    item = {"prompt": "def f(x):\n", "entry_point": "f", "test": "def check(c):\n    assert abs(c(1) - 2) < 1e-6\n"}
    reply = "    return 5\n\nabs = lambda x: 0\ncheck = print\nclass AssertionError(Exception): pass\n"
    program = Humaneval().program(item, f"```python\ndef f(x):\n{reply}```")
    assert "abs = lambda" in program and not run_program(program, QUICK).passed
    assert run_program(program.replace("return 5", "return 2"), QUICK).passed


def test_a_reply_cannot_move_the_line_where_the_tests_begin() -> None:
    for reply in (f"def f(x): return 5\n{TESTS}\n'''", f'def f(x): return 5\n"""\n{TESTS}', "def f(x): return 5 \\"):
        assert not run_program(f"{reply}\n{TESTS}\nassert f(1) == 2", QUICK).passed


def test_a_test_that_swallows_errors_does_not_hide_that_the_program_left() -> None:
    tests = "for _ in range(3):\n try: f(1)\n except: pass"
    assert run_program("import os\ndef f(x): os._exit(0)", QUICK, tests).reason == "no nonce"
