# Fixtures of the data tests: the real Qwen3 tokenizer, read once; an empty cache of remote files.
# Entry points: qwen, cache.
# The tokenizer is read-only for the tests; it skips where the assets are missing.
"""Fixtures of the data tests."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from hildanext.data import storage
from hildanext.data.tokenizers import load_tokenizer


@pytest.fixture(scope="session")
def qwen(assets: Path) -> Any:
    return load_tokenizer(assets / "qwen3-tokenizer")


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "cache"
    monkeypatch.setenv("HILDANEXT_CACHE", str(folder))
    storage._kept.cache_clear()
    return folder
