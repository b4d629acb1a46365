# What a record promises, recomputed from the trace of a result by plain forwards of the whole model.
# Entry points: records_are_the_oracles, logprobs.
# The oracle rebuilds the canvas before every step and asks the model at every token that the step wrote.
"""Checks of records."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import pytest
from decoding import oracle
from decoding.reference import MASK
from decoding.subjects import BLOCK, LETTERS, Subject, decoded

from hildanext.decoding.request import Request, Result

Told = dict[int, tuple[int, int, int, float]]


def logprobs(subject: Subject, canvas: Sequence[int], place: int, scale: float, given: int) -> list[float]:
    """Natural log-probabilities at a place without [MASK], from one forward over the canvas up to its block's end."""
    stop = min(len(canvas), (place // BLOCK + 1) * BLOCK)
    hidden = [MASK] * given + list(canvas[given:stop])
    ask = oracle.Ask((), 0, BLOCK, MASK, {}, cfg_scale=scale)
    scores = oracle.lanes(subject.model, ask, list(canvas[:stop]), hidden)[place]
    total = math.log(sum(math.exp(score) for token, score in enumerate(scores) if token != MASK))
    return [-math.inf if token == MASK else score - total for token, score in enumerate(scores)]


def told(subject: Subject, asked: Request, result: Result) -> Told:
    """Position -> (token, step, edits, log-probability) of every token written, from the trace alone."""
    ids = list(asked.prompt_ids or ())
    length = max(token["pos"] for line in result.trace for token in line["tokens"]) + 1
    canvas = ids + [MASK] * (length - len(ids))
    writes, found = dict[int, int](), Told()
    for line in result.trace:
        before = list(canvas)
        for token in line["tokens"]:
            place, new = token["pos"], MASK if token["state"] == "mask" else token["id"]
            if new not in (before[place], MASK):
                writes[place] = writes.get(place, 0) + 1
                value = logprobs(subject, before, place, asked.cfg_scale or 0.0, len(ids))[new]
                found[place] = (new, line["step"], writes[place] - 1, value)
            canvas[place] = new
    return found


def records_are_the_oracles(subject: Subject, asked: Request, **settings: Any) -> Result:
    """A result's record is the oracle's, position by position."""
    result = decoded(subject, asked, **settings)
    wanted, record = told(subject, asked, result), result.record
    assert record is not None and [one.id for one in record] == list(result.token_ids)
    for place, one in enumerate(record, len(asked.prompt_ids or ())):
        token, step, edits, value = wanted[place]
        assert (one.id, one.step, one.edits) == (token, step, edits), place
        assert one.logprob == pytest.approx(value, abs=1e-4), place
        assert one.text == LETTERS[token]
    return result
