# Replacing a whole output folder at once: written beside, swapped in at the end.
# Entry points: replacing(target).
# After a crash between the two renames the old folder is beside the target as .<name>.old; the next run removes it.
"""Output folders."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def replacing(target: Path) -> Iterator[Path]:
    """A new empty folder that takes the target's place when the block ends well; otherwise the target stays as it
    was and the new folder is removed."""
    fresh, old = (target.with_name(f".{target.name}.{kind}") for kind in (f"new-{os.getpid()}", "old"))
    for folder in (fresh, old):
        shutil.rmtree(folder, ignore_errors=True)
    fresh.mkdir(parents=True)
    try:
        yield fresh
    except BaseException:
        shutil.rmtree(fresh, ignore_errors=True)
        raise
    if target.exists():
        target.rename(old)
    fresh.rename(target)
    shutil.rmtree(old, ignore_errors=True)
