# README's shell lines and Python blocks run, in a scratch copy of the project folder, in the order they stand.
# So do the Python blocks of the guides for people who write Python.
# Entry points: pytest. Lines of ```sh blocks are run; ```text blocks are shown output.
# Lines of ours and Python blocks run in this process, so that torch is imported once (test_wheel.py starts the program
# itself); make targets that would recurse into this suite are run as `make --dry-run`.
"""Guard of README.md."""

from __future__ import annotations

import contextlib
import io
import os
import re
import shlex
import subprocess
import sys
import traceback
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

import pytest

from hildanext import cli

ROOT = Path(__file__).resolve().parents[2]
LINKED = ("backend", "docs", "examples", "test", "Makefile", "vendor", "VERSIONS.md")
SHORTER = {"hildanext demo": "hildanext demo --quick"}
DRY = re.compile(r"^make (demo|test|check|tiny-model|test-oldest)\b")
SHELL = frozenset("|&;<>$`*")
INSTALLS = ("python3.11 -m venv", ".venv/bin/pip install", "py -3.11", r".venv\Scripts")


def shell_lines(text: str) -> list[str]:
    """The commands of every ```sh block, comments and blank lines removed, continued lines joined."""
    blocks = re.findall(r"^```sh\n(.*?)^```", text, re.M | re.S)
    lines = "\n".join(blocks).replace("\\\n", " ").splitlines()
    bare = (re.sub(r"\s+#.*$", "", line).strip() for line in lines)
    return [line for line in bare if line and not line.startswith("#")]


class Done(NamedTuple):
    """How a line ended, and what it said."""

    returncode: int
    stderr: str


def run(line: str, folder: Path) -> Done:
    """One line in `folder`: ours by this process, others by the shell, with this environment's programs first on the
    path."""
    if line.startswith("hildanext ") and not SHELL & {*line}:
        return run_here(lambda: cli.main(shlex.split(line)[1:]), folder)
    line = DRY.sub(lambda found: f"make --dry-run {found.group(1)}", SHORTER.get(line, line))
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = os.environ | {"PATH": path}
    done = subprocess.run(line, shell=True, cwd=folder, capture_output=True, text=True, env=environment)
    return Done(done.returncode, done.stderr)


def run_here(work: Callable[[], int | None], folder: Path) -> Done:
    """A call in `folder`; its exit code is what it returns or exits with, 1 for any other end."""
    said = io.StringIO()
    with contextlib.chdir(folder), redirect_stdout(io.StringIO()), redirect_stderr(said):
        try:
            return Done(work() or 0, said.getvalue())
        except SystemExit as end:
            return Done(int(end.code or 0), said.getvalue())
        except Exception:
            return Done(1, said.getvalue() + traceback.format_exc())


@pytest.fixture(scope="module")
def scratch(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("readme")
    for name in LINKED:
        (folder / name).symlink_to(ROOT / name)
    (folder / "runs").mkdir()
    (folder / "runs" / "configs").symlink_to(ROOT / "runs" / "configs")
    return folder


def _runnable(text: str) -> list[str]:
    return [line for line in shell_lines(text) if not line.startswith(INSTALLS)]


@pytest.mark.slow
@pytest.mark.parametrize("line", _runnable((ROOT / "README.md").read_text()))
def test_the_line_runs(line: str, scratch: Path) -> None:
    done = run(line, scratch)
    assert done.returncode == 0, f"{line}\n{done.stderr[-2000:]}"


def python_blocks(page: str) -> str:
    """The ```python blocks of a page as one script: later blocks use the names of earlier ones."""
    return "\n".join(re.findall(r"^```python\n(.*?)^```", (ROOT / page).read_text(encoding="utf-8"), re.M | re.S))


def run_python(code: str, folder: Path) -> Done:
    """A script in `folder`, as a module of its own."""
    script = ModuleType("printed")
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, script.__name__, script)
        return run_here(lambda: exec(compile(code, "printed.py", "exec"), vars(script)), folder)


@pytest.mark.slow
@pytest.mark.parametrize("page", ["README.md", "docs/python.md", "docs/getting-started.md"])
def test_the_python_blocks_run(page: str, scratch: Path) -> None:
    done = run_python(python_blocks(page), scratch)
    assert done.returncode == 0, done.stderr[-2000:]


def test_a_planted_wrong_name_is_seen(scratch: Path) -> None:
    done = run_python("import hildanext\nhildanext.lod('tiny')\n", scratch)
    assert done.returncode == 1 and "no attribute 'lod'" in done.stderr


def test_the_readme_has_the_two_commands() -> None:
    assert {"make demo", "make test"} <= set(shell_lines((ROOT / "README.md").read_text()))


def test_a_planted_wrong_line_is_seen(scratch: Path) -> None:
    text = "```sh\nhildanext doctor --no-such-flag  # wrong\n```\n"
    assert [run(line, scratch).returncode for line in shell_lines(text)] == [2]
