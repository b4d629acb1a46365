# Steps of datatrove pipelines that tests run: workers import them by name.
# Entry points: KillsOnce, AlwaysDies.
# Not a test file.
"""Steps for the tests of the executors."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any


class KillsOnce:
    """A task of a pipeline that kills its own worker the first time."""

    def __init__(self, folder: Path) -> None:
        self.folder = str(folder)

    def __call__(self, data: Any, rank: int = 0, world_size: int = 1) -> Iterator[Any]:
        begun = Path(self.folder) / f"begun-{rank}"
        if rank == 1 and not begun.exists():
            begun.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        with (Path(self.folder) / f"done-{rank}").open("a") as file:
            file.write("x")
        return iter(())


class AlwaysDies(KillsOnce):
    """A task that kills its worker every time."""

    def __call__(self, data: Any, rank: int = 0, world_size: int = 1) -> Iterator[Any]:
        os.kill(os.getpid(), signal.SIGKILL)
        return iter(())
