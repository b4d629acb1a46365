# llama.cpp as an AR reader of a GGUF file: through llama-cpp-python or the npm package node-llama-cpp, if one is here.
# Entry points: LlamaCpp (open, read, close), runtime, HOW.
# It runs in a process of its own: two pools of threads in one process slow each other. Neither package is a dependency.
"""llama.cpp beside our decoder."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from types import TracebackType
from typing import IO, Any

from hildanext.errors import RunError

SCRIPT = Path(__file__).with_suffix(".mjs")
PACKAGE = Path("node_modules") / "node-llama-cpp" / "package.json"
HOW = "pip install llama-cpp-python (builds from source), or npm install node-llama-cpp and bench.decode.node=FOLDER"


@dataclass(frozen=True)
class Runtime:
    """A way to run llama.cpp: what it is called, the command that a job is appended to, the folder it starts in."""

    name: str
    command: tuple[str, ...]
    folder: Path


def runtime(node: str) -> Runtime | None:
    """llama-cpp-python where it is installed, else node-llama-cpp in the folder `node` or one above it, else None."""
    if find_spec("llama_cpp") is not None:
        worker = (sys.executable, "-m", "hildanext.bench.decoding.llamacpp_worker")
        return Runtime("llama-cpp-python", worker, Path.cwd())
    program, start = shutil.which("node"), Path(node).expanduser().absolute()
    found = next((folder for folder in (start, *start.parents) if (folder / PACKAGE).is_file()), None)
    if program is None or found is None:
        return None
    return Runtime("node-llama-cpp", (program, str(SCRIPT)), found)


@dataclass(frozen=True)
class LlamaCpp:
    """A GGUF file that is read left to right, greedily, by another process. clock: which of its seconds count; said:
    the file of what it says on stderr, since a pipe that nobody reads would stop it once it is full."""

    file: Path
    clock: str
    process: subprocess.Popen[str]
    name: str
    said: IO[str]

    @classmethod
    def open(cls, how: Runtime, file: Path, window: int, threads: int, clock: str) -> LlamaCpp:
        """Start it with room for `window` tokens. RunError where it does not start."""
        job = json.dumps({"file": str(file.absolute()), "threads": threads, "window": window})
        source = str(Path(__file__).parents[3])
        env = os.environ | {"PYTHONPATH": os.pathsep.join([source, *filter(None, [os.environ.get("PYTHONPATH")])])}
        said = tempfile.TemporaryFile("w+", errors="replace")  # noqa: SIM115 (closed by close)
        process = subprocess.Popen(
            [*how.command, job], cwd=how.folder, env=env, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            stderr=said,
        )  # fmt: skip
        made = cls(file, clock, process, f"llama.cpp {file.name}", said)
        made._reply()
        return made

    def __enter__(self) -> LlamaCpp:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()

    def read(self, prompt: Sequence[int], new: int, ends: Collection[int]) -> tuple[tuple[int, ...], float]:
        """(ids up to the first of `ends` or `new` of them, seconds). RunError where the process has ended."""
        assert self.process.stdin is not None
        try:
            self.process.stdin.write(json.dumps({"prompt": list(prompt), "new": new, "ends": sorted(ends)}) + "\n")
            self.process.stdin.flush()
        except OSError as error:
            raise RunError(self._ended()) from error
        found = self._reply()
        return tuple(found["ids"]), float(found[self.clock])

    def _reply(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            if line.startswith("{"):
                return dict(json.loads(line))
        raise RunError(self._ended())

    def _ended(self) -> str:
        self.process.wait()
        self.said.seek(0)
        said = self.said.read().strip().splitlines() or ["without a word"]
        why = next((line.strip() for line in reversed(said) if "rror" in line), said[-1].strip())
        return f"{self.file}: llama.cpp ended ({why[:200]}); leave the file out, or install another build: {HOW}"

    def close(self) -> None:
        """End the process."""
        if self.process.poll() is None:
            self.process.kill()
        self.process.communicate()
        self.said.close()
