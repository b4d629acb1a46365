# Which length a gap gets: the ladder, the shortest good one, scores of the whole text behind a prefix; and the gaps.
# Entry points: pytest.
# The oracle of the scores is the chain rule: exact bounds at block 1 are the model's own left-to-right nats.
"""Tests of measure/filling.py."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from hildanext.config.model import ModelConfig
from hildanext.errors import DataError, ModelError
from hildanext.measure.filling import Choice, ladder, nats_of, shortest_good, shrunk
from hildanext.measure.gaps import Gap, code_gaps, edit_similarity, story_gaps, text_gaps
from hildanext.measure.scoring import causal_nats
from hildanext.models.load import load_model
from hildanext.world import story


@pytest.mark.parametrize("most", [1, 2, 11, 12, 13, 24, 64, 500, 4096])
def test_a_ladder_rises_to_its_end_in_few_steps(most: int) -> None:
    found = ladder(most)
    assert found[-1] == most and len(found) == min(most, 12)
    assert all(a < b for a, b in zip(found, found[1:], strict=False)) and found[0] >= 1
    assert ladder(12) == tuple(range(1, 13)) and ladder(7, 1) == (7,)


def test_the_shortest_good_one_is_taken() -> None:
    assert shortest_good([4, 8, 12], [9.0, 5.5, 5.0], 1.0) == 1
    assert shortest_good([4, 8, 12], [9.0, 5.5, 5.0], 0.1) == 2
    assert shortest_good([12, 8, 4], [5.0, 5.5, 9.0], 4.0) == 2
    assert shortest_good([3, 3], [2.0, 1.5], 1.0) == 1
    for lengths, nats in (([], []), ([1], []), ([1], [1.0, 2.0])):
        with pytest.raises(ValueError, match="scores"):
            shortest_good(lengths, nats, 1.0)
    for most, tries in ((0, 3), (3, 0)):
        with pytest.raises(ValueError, match="1 or more"):
            ladder(most, tries)


def test_texts_are_scored_with_their_suffix_behind_their_prefix() -> None:
    loaded: Any = load_model(ModelConfig(path="tiny-parent"))
    told = story("filling")
    before, after = " ".join(told.sentences[:3]), f" {' '.join(told.sentences[4:7])}"
    middles = [f" {told.sentences[3]}", f" {told.sentences[4]}"]
    found = nats_of(loaded, before, middles, after, Choice(kind="autoregressive"))
    assert found == pytest.approx([causal_nats(loaded, before, middle + after) for middle in middles], rel=1e-4)
    assert found[0] + 3 < found[1]
    alone = nats_of(loaded, before, middles, "", Choice(kind="autoregressive"))
    assert found[0] > alone[0] + 1  # a planted scorer that forgets the suffix would be seen here


def test_the_pieces_of_every_gap_are_its_text() -> None:
    rows = [
        {
            "task_id": f"{kind}Infilling/HumanEval/0/L0", "prompt": "def f(a):\n", "suffix": "    return b\n",
            "canonical_solution": "    b = a\n", "test": "def check(f):\n    assert f(2) == 2", "entry_point": "f",
        }
        for kind in ("SingleLine", "MultiLine")
    ]  # fmt: skip
    line, several = code_gaps(rows)
    assert line.whole(line.middle) == "def f(a):\n    b = a\n    return b\n" and line.end and several.end is None
    assert line.program(line.middle).endswith("assert f(2) == 2\n\ncheck(f)\n")
    assert line.cut("    b = a\n    c = b\n") == "    b = a\n" == line.cut("    b = a\n")
    assert line.cut("\n    b = a\nc") == "\n    b = a\n" and several.cut("x\ny") == "x\ny"
    text = "Tom ran. He had a big dog. Lily saw it."
    (prose,) = text_gaps([text, "Too short."], 3)
    assert prose.whole(prose.middle) == text and prose.middle == " He had a big dog."
    assert prose.cut(' "It is big," he said. Lily') == ' "It is big," he said.'
    gap = story_gaps(5, 1, 3)[0]
    assert gap.valid(gap.middle) and gap.whole(gap.middle) == story("infill:5:0").text
    assert not gap.valid(gap.middle.replace(".", "")) and not gap.valid("")


def test_a_story_without_the_sentence_that_is_asked_for_is_refused() -> None:
    anywhere = {gap.before.count(".") for gap in story_gaps(1, 60, -1)}
    assert len(anywhere) > 10 and min(anywhere) >= 1 and max(anywhere) <= 17
    for sentence in (0, 18, 40):
        with pytest.raises(DataError, match=r"infill\.sentence"):
            story_gaps(1, 1, sentence)


@pytest.mark.parametrize(
    ("a", "b", "share"), [("", "", 1.0), ("abc", "", 0.0), ("kitten", "sitting", 4 / 7), ("ab", "ba", 0.0)]
)
def test_edit_similarity_counts_letters(a: str, b: str, share: float) -> None:
    assert edit_similarity(a, b) == edit_similarity(b, a) == pytest.approx(share)


def test_a_gap_without_an_end_is_not_cut() -> None:
    assert Gap("a", "b", "c").cut("one. two\n") == "one. two\n"


class Deletes:
    """A denoiser whose DELETE is likely at tokens of `wrong`, the later the likelier."""

    device, mask_id, edit_ids, shift = torch.device("cpu"), 0, (8, 9), "none"

    def __init__(self, wrong: set[int]) -> None:
        self.wrong, self.seen = wrong, list[int]()

    def __call__(self, tokens: Tensor, positions: Tensor, mask: Tensor, select: Tensor) -> Tensor:
        assert bool(mask.all()) and positions[0].tolist() == list(range(tokens.shape[1]))
        found = torch.zeros(int(select.sum()), 10)
        self.seen.append(tokens.shape[1])
        for row, token in enumerate(tokens[select].tolist()):
            found[row, 8] = 4.0 + row if token in self.wrong else -4.0
        return found


def test_a_middle_loses_what_the_model_deletes_and_nothing_around_it() -> None:
    editor = SimpleNamespace(denoiser=Deletes({5, 6}))
    assert shrunk(editor, [5, 1], [2, 5, 3, 6], [6, 4], 0.5) == [2, 3]
    assert editor.denoiser.seen == [8, 7, 6]
    assert shrunk(editor, [1], [5, 5], [2], 0.5) == [] and shrunk(editor, [1], [5, 2], [2], 0.999) == [5, 2]
    editor.denoiser.edit_ids = None
    with pytest.raises(ModelError, match="edit actions"):
        shrunk(editor, [1], [5], [2], 0.5)
