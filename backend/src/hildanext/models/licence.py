# The licence files of a model folder, which go with whatever is made of it.
# Entry points: licence_files, carry.
# By name: LICENSE, LICENCE, NOTICE, COPYING and what begins so; the rest of a parent's folder stays behind.
"""Licence files."""

from __future__ import annotations

import shutil
from pathlib import Path

BEGINNINGS = ("license", "licence", "notice", "copying")


def licence_files(folder: Path) -> list[Path]:
    """The licence files of a folder, sorted."""
    return sorted(path for path in folder.iterdir() if path.is_file() and path.name.lower().startswith(BEGINNINGS))


def carry(origin: Path | None, folder: Path) -> None:
    """Copy the licence files of `origin` (None or no folder: none) into `folder`, over those of the same name."""
    for path in licence_files(origin) if origin is not None and origin.is_dir() else ():
        if path.parent.resolve() != folder.resolve():
            shutil.copyfile(path, folder / path.name)
