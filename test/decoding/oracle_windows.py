# Windows of several blocks a second time: the slow decoder of oracle.py with more than one block open, in lists.
# Entry points: Window (when blocks open and when they must fill), decode (all tokens of a canvas).
# Every round runs the model in full over everything visible, with a dense block-causal mask and no cache; a block is
# final once it changed nothing while it was full behind final blocks, or had its looks.
"""Independent oracle of windows."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from decoding.oracle import Ask, Votes, lanes, seen
from decoding.oracle_rules import RULES, Moment


@dataclass(frozen=True)
class Window:
    """blocks: open at once at most; add, semi, stable: shares in [0, 1]; ends: tokens behind which none is opened."""

    blocks: int
    add: float
    semi: float
    stable: float = 0.0
    ends: tuple[int, ...] = ()


@dataclass
class Open:
    """An open block: positions [start, stop), what a rule sees, what its looks found, and how often it was looked at
    while all before it was final (led), and full (post)."""

    start: int
    stop: int
    now: Moment
    history: list[Votes] = field(default_factory=list)
    led: int = 0
    post: int = 0
    stable: float = 1.0

    def share(self, ask: Ask) -> float:
        """Of its positions, those that hold a token."""
        return sum(self.now.x[i] != ask.mask_id for i in range(self.start, self.stop)) / (self.stop - self.start)


def decode(model: Any, ask: Ask, window: Window, x: list[int], editable: set[int]) -> list[int]:
    """The canvas x with its editable places filled, up to the block in which the first end token is final."""
    starts = [s for s in range(0, len(x), ask.block) if editable & set(range(s, s + ask.block))]
    opened = [_open(ask, x, editable, starts.pop(0))]
    while opened:
        finals = _round(model, ask, x, editable, opened)
        gone = [opened.pop(0) for _ in range(finals)]
        if any(x[i] in window.ends for one in gone for i in one.now.places):
            return x
        if starts and (not opened or _opens(ask, window, opened)):
            opened.append(_open(ask, x, editable, starts.pop(0)))
        for place, one in enumerate(opened):
            one.now.ready = place == 0 or opened[place - 1].share(ask) >= window.semi
    return x


def _open(ask: Ask, x: list[int], editable: set[int], start: int) -> Open:
    stop = min(start + ask.block, len(x))
    places = [i for i in range(start, stop) if i in editable]
    return Open(start, stop, Moment(ask.policy, ask.key, x, places, sum(x[i] == ask.mask_id for i in places)))


def _opens(ask: Ask, window: Window, opened: list[Open]) -> bool:
    if any(one.now.x[i] in window.ends for one in opened for i in one.now.places):
        return False
    last = opened[-1]
    return len(opened) < window.blocks and last.share(ask) >= window.add and last.stable >= window.stable


def _round(model: Any, ask: Ask, x: list[int], editable: set[int], opened: list[Open]) -> int:
    stop = opened[-1].stop
    hidden = [x[i] if i in editable else ask.mask_id for i in range(stop)]
    rows = lanes(model, ask, x[:stop], hidden)
    limit = _looks(ask)
    quiet, done, writes = [], [], dict[int, int]()
    for place, one in enumerate(opened):
        now = one.now
        now.hidden = [i for i in now.places if x[i] == ask.mask_id]
        now.seen = seen(ask, now, one.history, rows)
        fill, edit, back = RULES[ask.policy["type"]](now)
        forced = place == 0 and one.led + 1 >= now.masks + limit + 1
        fill, back = (now.hidden, []) if forced else (fill, back)
        visible = now.visible
        agreed = [i for i in visible if now.seen[i].token == x[i] or not _looks_again(ask)]
        one.stable = len(agreed) / len(visible) if visible else 1.0
        one.history.append({i: (now.seen[i].token, now.seen[i].p) for i in now.hidden})
        new = {**{i: now.seen[i].token for i in fill + edit}, **dict.fromkeys(back, ask.mask_id)}
        one.led, one.post = one.led + (place == 0), one.post + (place == 0 and not now.hidden)
        left = [i for i in now.places if new.get(i, x[i]) == ask.mask_id]
        quiet.append(not now.hidden and not any(new[i] != x[i] for i in new))
        done.append(not left and (forced or not _edits(ask) or (one.led > 0 and one.post >= limit)))
        now.step += now.ready
        writes |= new
    for i, token in writes.items():
        x[i] = token
    return _closed(quiet, done)


def _closed(quiet: list[bool], done: list[bool]) -> int:
    count, same = 0, True
    for calm, over in zip(quiet, done, strict=True):
        same = same and calm
        if not (same or over):
            return count
        count += 1
    return count


def _edits(ask: Ask) -> bool:
    return ask.policy.get("tau_edit") is not None


def _looks_again(ask: Ask) -> bool:
    return _edits(ask) or ask.policy["type"] == "remask"


def _looks(ask: Ask) -> int:
    return ask.policy["max_post_steps"] if _edits(ask) else 0
