# Realistic errors of windows of several blocks, each planted into the package by a monkeypatch.
# Entry points: every public function; it takes pytest's monkeypatch, as in plants.py.
# test_windows says which check must notice which.
"""Errors to plant into windows."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from decoding import plants

from hildanext.core.types import Canvas
from hildanext.decoding import step, store
from hildanext.decoding.state import RequestCanvas

JUDGE, QUERIES = RequestCanvas.judge, store._queries


def readiness_behind_the_writes(patch: Any) -> None:
    def canvas(self: Any, block: Any, *rest: Any) -> Canvas:
        JUDGE(self, self.opens.policy)
        return plants.CANVAS(self, block, *rest)

    patch.setattr(RequestCanvas, "canvas", canvas)


def every_block_made_to_fill(patch: Any) -> None:
    patch.setattr(RequestCanvas, "judge", lambda *_: None)


def a_window_seen_as_one_block(patch: Any) -> None:
    patch.setattr(store, "_queries", lambda place, block: QUERIES(place, max(block, place.start + place.size)))


def randomness_of_the_first_block(patch: Any) -> None:
    def first(live: Any, block: Any, purpose: int) -> Any:
        return plants.UNIFORM(live, replace(block, looks=live.canvas.opened[0].looks), purpose)

    patch.setattr(step, "_uniform", first)


def no_look_behind_the_finished_block(patch: Any) -> None:
    def look(self: Any, block: Any, *rest: Any) -> Any:
        block.led = max(1, block.led)
        return plants.LOOK(self, block, *rest)

    patch.setattr(RequestCanvas, "look", look)


def end_tokens_that_open(patch: Any) -> None:
    patch.setattr(RequestCanvas, "ended", lambda self, ends: [False] * len(self.opened))
