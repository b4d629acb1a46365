# Scripts beside the package (docs/, vendor/) as modules, so that tests can call what they consist of.
# Entry points: script.
# A module is registered, since dataclasses of postponed annotations look themselves up there.
"""Scripts as modules."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType


def script(path: Path) -> ModuleType:
    """What a file defines, executed anew."""
    name = f"script_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
