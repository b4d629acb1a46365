# A trace of a generation, or its draft events, as frames of text: what the whole canvas showed after every forward.
# Entry points: frames_of.
# The HTML report, the terminal animation and the GIF are drawn from the same frames.
"""Frames of a recorded generation."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any


def frames_of(prompt: str, trace: Iterable[Mapping[str, Any]], whole: bool = False) -> list[dict[str, Any]]:
    """[{step, tokens: [[text, state], ...]}]: the prompt as `given`, finished blocks as `done`, then the open blocks
    with the states of their tokens (mask, new, edited, kept, given). whole: given tokens are part of the text, as
    where gaps are filled; else they are left out, being the prompt's."""
    finished: dict[int, list[str]] = {}
    latest: dict[int, str] = {}
    found = []
    start = None
    for number, entry in enumerate(trace, 1):
        front = entry.get("start", entry["tokens"][0]["pos"])
        if start is not None and front != start:
            finished |= {pos: [text, "done"] for pos, text in latest.items() if pos < front}
            latest = {}
        start = front
        tokens = [token for token in entry["tokens"] if whole or token["state"] != "given"]
        latest = {token["pos"]: token["text"] for token in tokens}
        active = [[token["text"], token["state"]] for token in tokens]
        done = [finished[pos] for pos in sorted(finished)]
        found.append({"step": number, "tokens": [[prompt, "given"], *done, *active]})
    return found
