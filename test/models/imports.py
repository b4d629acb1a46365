# What a package imports when it is imported, read off its files.
# Entry points: importing.
# Optional packages must not be among them: they load when they are needed.
"""Imports at module level."""

from __future__ import annotations

import re
from pathlib import Path


def importing(folder: Path, package: str) -> list[str]:
    """Files of a folder that import a package whose name begins so when they are imported."""
    lead = re.compile(rf"^(import|from) {package}", re.M)
    return [path.name for path in folder.rglob("*.py") if lead.search(path.read_text(encoding="utf-8"))]
