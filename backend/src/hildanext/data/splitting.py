# The serial half of prepare-data: which documents stay (duplicates, mixture) and on which side of the split they fall.
# Entry points: table, duplicates, mixture_thresholds, below.
# All of it depends on the document's own hash: neither order nor the number of workers can change a side.
"""Duplicates, mixture, split."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hildanext.data.units import TABLE

FULL = float(2**64)
BUCKET_DOCUMENTS = 1 << 17


def table(stem: Path) -> NDArray[Any]:
    """The records of one unit, in the order of its lines."""
    return np.fromfile(stem.with_suffix(".table"), dtype=TABLE)


def duplicates(stems: Sequence[Path], wanted: bool = True) -> NDArray[np.bool_]:
    """Over all documents of all units in order: whether an earlier one has the same hash (nowhere unless `wanted`).
    Memory is bounded: one range of hashes at a time."""
    counts = [stem.with_suffix(".table").stat().st_size // TABLE.itemsize for stem in stems]
    repeated = np.zeros(sum(counts), dtype=np.bool_)
    buckets = max(1, -(-len(repeated) // BUCKET_DOCUMENTS))
    for bucket in range(buckets if wanted else 0):
        _mark(stems, counts, (bucket, buckets), repeated)
    return repeated


def _mark(stems: Sequence[Path], counts: Sequence[int], part: tuple[int, int], repeated: NDArray[np.bool_]) -> None:
    hashes, places, start = [], [], 0
    for stem, count in zip(stems, counts, strict=True):
        found = table(stem)["hash"]
        inside = np.flatnonzero(found[:, 0] % np.uint64(part[1]) == part[0])
        hashes.append(found[inside])
        places.append(inside + start)
        start += count
    if not places:
        return
    values, index = np.concatenate(hashes), np.concatenate(places)
    order = np.lexsort((index, values[:, 1], values[:, 0]))
    same = np.all(values[order][1:] == values[order][:-1], axis=1)
    repeated[index[order][1:][same]] = True


def mixture_thresholds(chars: Sequence[int], weights: Sequence[float | None]) -> list[float]:
    """Share of each source's documents that stays, in [0, 1], so that the weighted sources' characters stand in the
    ratio of their weights and as much as possible stays. A source without weight stays whole."""
    ratios = [size / weight for size, weight in zip(chars, weights, strict=True) if weight is not None and size]
    scale = min(ratios, default=0.0)
    return [
        1.0 if weight is None or not size else min(1.0, scale * weight / size)
        for size, weight in zip(chars, weights, strict=True)
    ]


def below(values: NDArray[np.uint64], share: float) -> NDArray[np.bool_]:
    """Which hashes fall into the first `share` of their range."""
    if share >= 1.0:
        return np.ones(len(values), dtype=np.bool_)
    return values < np.uint64(int(share * FULL))
