# Ranks of a test as forks of one process: torch, transformers and the package are imported once for all of them.
# Entry points: forked (of a test), and the program it starts: python forked.py MODULE:FUNCTION COUNT ARGUMENTS...
# What the module calls `before` runs first, in the one process. The function is called in each fork with its number and
# the arguments. One that fails ends all of them, so that none waits for what does not come.
"""Forked ranks."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import traceback
from importlib import import_module
from pathlib import Path

SECONDS = 1200


def forked(function: str, count: int, *arguments: str) -> None:
    """Call a function of a test module, `module:name`, in `count` forks; fails where one of them does, or none ends."""
    here = Path(__file__).parent
    found = os.pathsep.join([str(here.parent), os.environ.get("PYTHONPATH", "")])
    environment = os.environ | {"PYTHONPATH": found, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(here / "forked.py"), function, str(count), *arguments]
    process = subprocess.Popen(command, env=environment, start_new_session=True)
    try:
        assert process.wait(SECONDS) == 0
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)


def main() -> int:
    """Of the program: 0 where every fork ended well."""
    name, count, *arguments = sys.argv[1:]
    module, _, called = name.partition(":")
    own, children = import_module(module), list[int]()
    if first := vars(own).get("before"):
        first(*arguments)
    function = vars(own)[called]
    for number in range(int(count)):
        child = os.fork()
        if not child:
            code = 1
            try:
                function(number, *arguments)
                code = 0
            except BaseException:
                traceback.print_exc()
            finally:
                sys.stdout.flush()
                sys.stderr.flush()
                os._exit(code)
        children.append(child)
    while children:
        ended, status = os.wait()
        children.remove(ended)
        if status:
            for child in children:
                os.kill(child, signal.SIGKILL)  # one that waits for another that failed
            return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
