# Texts with a piece left out: code of HumanEval-Infilling, the middle sentence of texts, a sentence of the story world.
# Entry points: Gap (a text in three pieces), code_gaps, text_gaps, story_gaps, edit_similarity.
# The three pieces joined are the text, to the letter; in prose the space before the left-out sentence belongs to it.
"""Items of infilling."""

from __future__ import annotations

import random
import re
from collections.abc import Sequence
from dataclasses import dataclass

from hildanext.errors import DataError
from hildanext.measure.items import Item
from hildanext.measure.sandbox import TESTS
from hildanext.measure.tasks.infilling import Hole
from hildanext.world import check, story

CODE_FIELDS = ("task_id", "prompt", "suffix", "canonical_solution", "test", "entry_point")
LINE, SENTENCE = re.compile(r"\n"), re.compile(r"[.!?][\"']?(?=\s|$)")
INTRODUCES = 3
"""The sentence of a story that says first which object there is and what colour it has; six later ones say it again."""


@dataclass(frozen=True)
class Gap:
    """before + middle + after is the text. tests: what a program needs behind the text, "" for prose; end: what ends a
    middle that is written left to right, None where nothing does; world: whether it is a story of the story world."""

    before: str
    middle: str
    after: str
    name: str = ""
    tests: str = ""
    end: re.Pattern[str] | None = None
    world: bool = False

    def whole(self, middle: str) -> str:
        """The text with another middle."""
        return self.before + middle + self.after

    def program(self, middle: str) -> str:
        """The text with another middle and its tests, for the sandbox."""
        return f"{self.whole(middle)}\n{TESTS}\n{self.tests}"

    def cut(self, text: str) -> str:
        """A text written on from `before`, up to and with its first end behind a letter; all of it without one."""
        ends = self.end.finditer(text) if self.end else iter(())
        stop = next((one.end() for one in ends if text[: one.start()].strip()), len(text))
        return text[:stop]

    def valid(self, middle: str) -> bool:
        """Whether the text with another middle is a story of the story world."""
        return check(self.whole(middle)).valid


def code_gaps(items: Sequence[Item]) -> list[Gap]:
    """The rows of a HumanEval-Infilling set. Source: arXiv:2207.14255."""
    return [
        Gap(
            str(item["prompt"]), str(item["canonical_solution"]), str(item["suffix"]), str(item["task_id"]),
            f"{item['test']}\n\ncheck({item['entry_point']})\n",
            LINE if str(item["task_id"]).startswith("SingleLine") else None,
        )
        for item in items
    ]  # fmt: skip


def text_gaps(texts: Sequence[str], sentences: int) -> list[Gap]:
    """The middle one of each text's first `sentences` sentences; texts with fewer, or a middle of less than four words,
    are left out."""
    holes = [hole for text in texts if (hole := Hole.of(text, sentences))]
    return [
        Gap(one.before, f" {one.middle}", f" {one.after}", f"text {n}", end=SENTENCE) for n, one in enumerate(holes)
    ]


def story_gaps(seed: int, count: int, sentence: int) -> list[Gap]:
    """Stories without one sentence: the one of this number, counted from 0, or for -1 any but the first and the last.
    What it must say of the world stands in the others. DataError for a number no story has."""
    found = []
    for number in range(count):
        told = story(f"infill:{seed}:{number}").sentences
        if sentence >= len(told) - 1 or sentence == 0:
            raise DataError(f"infill.sentence: {sentence}; a story has sentences 1 to {len(told) - 2} to leave out")
        at = sentence if sentence > 0 else random.Random(f"gap:{seed}:{number}").randrange(1, len(told) - 1)
        before, after = " ".join(told[:at]), " ".join(told[at + 1 :])
        found.append(Gap(before, f" {told[at]}", f" {after}", f"story {number}", end=SENTENCE, world=True))
    return found


def edit_similarity(text: str, reference: str) -> float:
    """1 - the Levenshtein distance of two texts over the longer one's length, in characters; 1 where both are empty."""
    longest = max(len(text), len(reference))
    if not longest:
        return 1.0
    row = list(range(len(reference) + 1))
    for place, letter in enumerate(text, 1):
        before, row[0] = row[0], place
        for at, other in enumerate(reference, 1):
            before, row[at] = row[at], min(row[at] + 1, row[at - 1] + 1, before + (letter != other))
    return 1.0 - row[-1] / longest
