# Slots of unequal lengths against transformers' own greedy generate, one prompt at a time, in several families.
# Entry points: pytest.
# Rows end at different times and others take their slots; a slow path without layouts must write the same.
"""Tests of measure/left_to_right.py."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from models.hybrids import HYBRIDS, hybrid

from hildanext.decoding.statistics import Sampling
from hildanext.decoding.text import TextStream
from hildanext.measure import left_to_right
from hildanext.measure.left_to_right import Row, continued
from hildanext.models.denoiser import HFDenoiser

MASK, VOCABULARY = 66, 67


def rows_to_write(count: int, ends: Sequence[int] = ()) -> list[Row]:
    """Rows of unequal prompts and lengths; every third has the prompt of the one before it."""
    rng, found = random.Random(3), list[Row]()
    for index in range(count):
        prompt = [rng.randrange(VOCABULARY - 1) for _ in range(rng.randrange(1, 14))]
        prompt = list(found[-1].prompt) if index % 3 == 2 else prompt
        found.append(Row(prompt, TextStream(None, prompt), frozenset(ends), rng.randrange(1, 12), 5, index))
    return found


def greedy(model: Any, row: Row) -> list[int]:
    """What transformers writes for one row alone."""
    ids = torch.tensor([list(row.prompt)])
    whole = model.generate(
        ids, attention_mask=torch.ones_like(ids), max_new_tokens=row.new, do_sample=False, pad_token_id=0,
        eos_token_id=sorted(row.ends) or None, suppress_tokens=[MASK],
    )  # fmt: skip
    return list(whole[0, ids.shape[1] :].tolist())


@pytest.mark.parametrize("family", ["llama", "qwen3", "mistral", "lfm2", "qwen3_5_text"])
@pytest.mark.parametrize("layout", [True, False])
def test_every_row_is_what_transformers_writes_for_it_alone(
    family: str, layout: bool, random_model: Callable[..., Any]
) -> None:
    model = hybrid(family) if family in HYBRIDS else random_model(family)
    wanted = [greedy(model, row) for row in rows_to_write(10, ends=range(0, 60, 6))]
    denoiser = HFDenoiser(model, MASK).eval()
    assert denoiser.takes_layout
    denoiser._layout = layout
    rows = rows_to_write(10, ends=range(0, 60, 6))
    done = list(continued(denoiser, rows, Sampling(), 4))
    assert {id(row) for row in done} == {id(row) for row in rows} and len(done) == 10
    assert [row.text.ids for row in rows] == wanted
    assert {row.finish for row in rows} == {"eos", "length"}


def test_a_slot_is_taken_again_and_a_prompt_met_twice_is_read_once(
    random_model: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    denoiser, shapes = HFDenoiser(random_model("llama"), MASK).eval(), list[tuple[int, ...]]()
    body, probed = HFDenoiser.body, denoiser.probe()

    def seen(self: HFDenoiser, tokens: torch.Tensor, *given: Any, **named: Any) -> torch.Tensor:
        shapes.append(tuple(tokens.shape))
        return body(self, tokens, *given, **named)

    monkeypatch.setattr(HFDenoiser, "body", seen)
    monkeypatch.setattr(left_to_right, "GROWTH", 2)
    rows = rows_to_write(12)
    list(continued(denoiser, rows, Sampling(), 4))
    steps = [shape for shape in shapes if shape[1] == 1]
    assert max(shape[0] for shape in shapes) == 4 and len(steps) < sum(row.written for row in rows) / 2
    assert probed and shapes[0][0] == 3, "four rows, two of one prompt"
    assert sum(shape[0] for shape in shapes) < sum(row.written for row in rows)


def test_a_draw_is_the_same_in_every_company(random_model: Callable[..., Any]) -> None:
    denoiser, drawn = HFDenoiser(random_model("llama"), MASK).eval(), Sampling(temperature=1.0, top_p=0.9)
    together, alone = rows_to_write(8), rows_to_write(8)
    list(continued(denoiser, together, drawn, 3))
    for row in alone:
        list(continued(denoiser, [row], drawn))
    assert [row.text.ids for row in together] == [row.text.ids for row in alone]
    assert MASK not in {token for row in alone for token in row.text.ids}
