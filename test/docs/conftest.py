# The evaluation fixtures, for the guides' examples.
# Entry points: scripted, loaded, story_model.
# They are those of test/eval, loaded by path because test folders are no packages.
"""Fixtures of test/docs."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

_spec = importlib.util.spec_from_file_location("eval_fixtures", Path(__file__).parent.parent / "eval" / "conftest.py")
assert _spec is not None and _spec.loader is not None
_module = importlib.util.module_from_spec(_spec)
sys.modules["eval_fixtures"] = _module
_spec.loader.exec_module(_module)
story_model, loaded, scripted = _module.story_model, _module.loaded, _module.scripted
