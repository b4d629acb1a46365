# How a cell learns beside the first one at equal tokens: the same rows, masks and learning rate, step by step.
# Entry points: paired_cells, paired, paired_rows, PAIRED.
# Losses of the same masks differ far less from each other than from step to step, so that a few steps tell two recipes
# apart. Steps in which masks, replaced tokens or the rate are not the same do not count.
"""Cells at equal tokens."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import mean, median, stdev
from typing import Any

FEWEST = 8
PAIRED = ("cell", "seed", "steps", "masked tokens, nats", "steps ahead", "time of a step")
SAME = ("lr", "m2t_tokens", "t2t_tokens", "block")


def paired(first: Sequence[Mapping[str, Any]], other: Sequence[Mapping[str, Any]]) -> dict[str, float] | None:
    """Of the later half of the steps that both have alike: the mean difference of the masked tokens' cross-entropy,
    nats, with its standard error; how many steps earlier than the first the other has it, by the first's slope there;
    and the ratio of processor time. None under 8 such steps. Source: docs/conversion-methods.md, at equal tokens."""
    records = {one["step"]: one for one in first if "m2t" in one}
    pairs = [
        (records[one["step"]], one)
        for one in other
        if "m2t" in one and one["step"] in records and _alike(records[one["step"]], one)
    ]
    if len(pairs) < FEWEST:
        return None
    late = pairs[len(pairs) // 2 :]
    gaps = [float(his["m2t"]) - float(hers["m2t"]) for hers, his in late]
    slope = _slope([(float(hers["step"]), float(hers["m2t"])) for hers, _ in late])
    return {
        "steps": float(late[-1][0]["step"]), "gap": mean(gaps), "error": stdev(gaps) / math.sqrt(len(gaps)),
        "ahead": mean(gaps) / slope if slope < 0 else math.nan,
        "pace": median(float(his["processor"]) for _, his in pairs)
        / median(float(hers["processor"]) for hers, _ in pairs),
    }  # fmt: skip


def _alike(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    return all(one.get(name) == other.get(name) for name in SAME)


def _slope(points: Sequence[tuple[float, float]]) -> float:
    middle, level = mean(x for x, _ in points), mean(y for _, y in points)
    return sum((x - middle) * (y - level) for x, y in points) / sum((x - middle) ** 2 for x, _ in points)


def paired_cells(results: Sequence[Mapping[str, Any]], folders: Sequence[Path]) -> list[dict[str, Any]]:
    """`paired` of the first stage of every cell with that of the first cell of the same seed; folders: of results.
    Cells that have too few steps alike are left out."""
    firsts, made = dict[int, list[dict[str, Any]]](), list[dict[str, Any]]()
    for result, folder in zip(results, folders, strict=True):
        records = _records(folder / "stage-1" / "metrics.jsonl")
        known = firsts.setdefault(int(result["seed"]), records)
        found = None if known is records else paired(known, records)
        if found is not None:
            made.append({"cell": result["cell"], "seed": result["seed"], **found})
    return made


def _records(path: Path) -> list[dict[str, Any]]:
    if not path.exists():
        return []
    return [record for record in map(json.loads, path.read_text(encoding="utf-8").splitlines()) if "loss" in record]


def paired_rows(found: Sequence[Mapping[str, Any]]) -> list[tuple[str, ...]]:
    """A row of PAIRED for each."""
    return [
        (
            str(one["cell"]), str(one["seed"]), f"{one['steps']:.0f}", f"{one['gap']:+.3f} ± {one['error']:.3f}",
            f"{one['ahead'] + 0.0:+.1f}", f"{one['pace']:.2f} x",
        )
        for one in found
    ]  # fmt: skip
