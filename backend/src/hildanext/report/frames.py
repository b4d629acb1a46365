# A trace of a generation as frames of text: what the whole canvas showed after every forward.
# Entry points: frames_of.
# The HTML report and the terminal animation are drawn from the same frames.
"""Frames of a recorded generation."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any


def frames_of(prompt: str, trace: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """[{step, tokens: [[text, state], ...]}]: the prompt as `given`, finished blocks as `done`, then the open blocks
    with the states of their tokens (mask, new, edited, kept, given)."""
    finished: dict[int, list[str]] = {}
    latest: dict[int, str] = {}
    found = []
    start = None
    for number, entry in enumerate(trace, 1):
        if start is not None and entry["start"] != start:
            finished |= {pos: [text, "done"] for pos, text in latest.items() if pos < entry["start"]}
            latest = {}
        start = entry["start"]
        tokens = [token for token in entry["tokens"] if token["state"] != "given"]
        latest = {token["pos"]: token["text"] for token in tokens}
        active = [[token["text"], token["state"]] for token in tokens]
        done = [finished[pos] for pos in sorted(finished)]
        found.append({"step": number, "tokens": [[prompt, "given"], *done, *active]})
    return found
