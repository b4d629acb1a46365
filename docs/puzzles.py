# Writes the rows of reinforcement learning in docs/results.md: countdown of three numbers, 4x4 sudoku, stories to tell.
# Entry points: `python docs/puzzles.py FOLDER`, which writes <task>_sft, _train, _test.jsonl, stories_<part>.jsonl.
# sft has worked answers as chats, train and test what rl.rows reads; no puzzle of test is in the other two, told apart
# by a hash of what is asked. A sudoku's solution may be: there are 288 of them.
"""Generated countdown and sudoku."""

from __future__ import annotations

import argparse
import hashlib
import itertools
import json
import random
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from hildanext.cli import spoken
from hildanext.world.corpus import corpus

COUNTS = {"sft": 12000, "train": 4000, "test": 400}
HELD = 8
STORIES = {"train": 31, "test": 32}
MOST, HIGHEST = 12, 60
OPERATIONS: dict[str, Callable[[int, int], int]] = {
    "+": lambda a, b: a + b, "-": lambda a, b: a - b, "*": lambda a, b: a * b,
}  # fmt: skip


def countdown(rng: random.Random) -> tuple[dict[str, Any], str]:
    """Three numbers of 1 to 12 and a target of 1 to 60 that some expression of them makes; and one that does."""
    while True:
        a, b, c = (rng.randint(1, MOST) for _ in range(3))
        first, second = rng.choice("+-*"), rng.choice("+-*")
        inner = OPERATIONS[first](a, b)
        left = rng.random() < 0.5
        target = OPERATIONS[second](inner, c) if left else OPERATIONS[second](c, inner)
        if 1 <= target <= HIGHEST:
            whole = f"({a} {first} {b})"
            text = f"{whole} {second} {c}" if left else f"{c} {second} {whole}"
            given = rng.sample((a, b, c), 3)
            row = {"prompt": f"{given[0]}, {given[1]}, {given[2]} = {target}", "input": given, "output": target}
            return row, f"{text} = {target}"


def _grids() -> list[tuple[int, ...]]:
    lines, found = list(itertools.permutations((1, 2, 3, 4))), list[tuple[int, ...]]()
    for rows in itertools.product(lines, repeat=4):
        columns = zip(*rows, strict=True)
        boxes = ([rows[y + i][x + j] for i in (0, 1) for j in (0, 1)] for y in (0, 2) for x in (0, 2))
        if all(len(set(part)) == 4 for part in itertools.chain(columns, boxes)):
            found.append(tuple(itertools.chain(*rows)))
    return found


GRIDS = _grids()


def sudoku(rng: random.Random) -> tuple[dict[str, Any], str]:
    """A 4x4 grid with 8 to 10 cells empty and one solution; and that."""
    while True:
        grid = rng.choice(GRIDS)
        empty = set(rng.sample(range(16), rng.randint(8, 10)))
        fits = sum(all(i in empty or one[i] == grid[i] for i in range(16)) for one in GRIDS)
        if fits == 1:
            puzzle = "".join("0" if i in empty else str(grid[i]) for i in range(16))
            solution = "".join(map(str, grid))
            return {"prompt": puzzle, "Puzzle": puzzle, "Solution": solution}, solution


def made(task: Callable[[random.Random], tuple[dict[str, Any], str]], part: str) -> Iterator[dict[str, Any]]:
    """Rows of a part, each asked once in it."""
    rng, seen = random.Random(f"{task.__name__}:{part}"), set[str]()
    while len(seen) < COUNTS[part]:
        row, answer = task(rng)
        key = str(row["Puzzle"]) if "Puzzle" in row else f"{sorted(row['input'])} {row['output']}"
        held = hashlib.sha256(key.encode()).digest()[0] % HELD == 0
        if held != (part == "test") or row["prompt"] in seen:
            continue
        seen.add(row["prompt"])
        turns = [{"role": "user", "content": row["prompt"]}, {"role": "assistant", "content": answer}]
        yield {"messages": turns} if part == "sft" else row


def main(arguments: Sequence[str] | None = None) -> None:
    """Write them all."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    folder: Path = parser.parse_args(arguments).folder
    folder.mkdir(parents=True, exist_ok=True)
    for task in (countdown, sudoku):
        for part in COUNTS:
            lines = "".join(f"{json.dumps(row)}\n" for row in made(task, part))
            (folder / f"{task.__name__}_{part}.jsonl").write_text(lines, encoding="utf-8")
    for part, seed in STORIES.items():
        told = [row for row in corpus("chat", seed, COUNTS["train"]) if row["check"]["type"] == "story"]
        text = "".join(f"{json.dumps(row)}\n" for row in told)
        (folder / f"stories_{part}.jsonl").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    sys.exit(spoken("puzzles.py", main))
