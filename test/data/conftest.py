# Fixtures of the data tests: the real Qwen3 tokenizer, read once.
# Entry points: qwen.
# It is read-only for the tests; it skips where the assets are missing.
"""Fixtures of the data tests."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from hildanext.data.tokenizers import load_tokenizer


@pytest.fixture(scope="session")
def qwen(assets: Path) -> Any:
    return load_tokenizer(assets / "qwen3-tokenizer")
