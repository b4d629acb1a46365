# Statistics of generated text that need no model: distinct n-grams and repetition.
# Entry points: distinct, repetition, words.
# Words are runs of letters, digits or single marks, lower-cased.
"""Diversity and repetition of texts."""

from __future__ import annotations

import re
from collections.abc import Sequence

Gram = tuple[str, ...]


def words(text: str) -> list[str]:
    """The words and marks of a text, lower-cased."""
    return re.findall(r"\w+|[^\w\s]", text.lower())


def _grams(pieces: Sequence[str], size: int) -> list[Gram]:
    return [tuple(pieces[start : start + size]) for start in range(len(pieces) - size + 1)]


def distinct(texts: Sequence[str], size: int) -> tuple[int, int]:
    """(different n-grams, all n-grams) over all texts; their quotient is distinct-n. Source: Li et al. 1510.03055."""
    grams = [gram for text in texts for gram in _grams(words(text), size)]
    return len(set(grams)), len(grams)


def repetition(text: str, size: int = 4) -> float:
    """Share of a text's n-grams that occurred earlier in it, in [0, 1]; 0 for a text without any."""
    grams = _grams(words(text), size)
    return 1 - len(set(grams)) / len(grams) if grams else 0.0
