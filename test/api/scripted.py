# A session without a model: its text follows from the request alone, its drafts fill and edit like a real canvas.
# Entry points: ScriptedSession, Held (its steps wait for the test), story.
# Its events follow docs/events.md: some words are drafted wrong and edited a step later. The seed shapes the text only
# above temperature 0, as it does in a real engine.
# Prompts "fail" and "slow" make a step raise, or take `slow` seconds; "lost" fails alone.
"""Scripted engine session for the tests of the server."""

from __future__ import annotations

import random
import threading
import time
from dataclasses import dataclass, field

from waiting import PATIENCE

from hildanext.decoding.events import Commit, Done, Draft, DraftToken, Event
from hildanext.decoding.request import Metrics, Request, Result
from hildanext.engines.protocol import Capability, Facts, Failed
from hildanext.errors import DecodeError, RunError

WORDS = ("the", "a", "old", "fox", "boat", "river", "stone", "girl", "ran", "found", "kept", "gave", "slowly", "again")
BLOCK, MASK = 8, len(WORDS)


def story(request: Request) -> list[str]:
    """The words a scripted session answers with."""
    text = request.prompt or str(request.messages or request.prompt_ids)
    seed = request.seed if request.temperature else None
    rng = random.Random(f"{text}|{seed}|{request.sample}|{request.mode}|{request.tau_mask}")
    return [" " + rng.choice(WORDS) for _ in range(request.max_new_tokens or 16)]


def id_of(word: str) -> int:
    """The token id of a word, the mask's for none."""
    return WORDS.index(word.strip()) if word else MASK


@dataclass
class Work:
    """One request at work."""

    request: Request
    drafts: bool
    words: list[str]
    filled: list[bool] = field(default_factory=list)
    shown: list[str] = field(default_factory=list)
    start: int = 0
    steps: int = 0
    text: str = ""


@dataclass
class ScriptedSession:
    """A session whose every answer can be recomputed with story()."""

    seconds: float = 0.0
    slow: float = 0.5
    name: str = "scripted"
    works: dict[int, Work] = field(default_factory=dict)
    cancelled: list[int] = field(default_factory=list)
    most: int = 0
    numbers: int = 0
    closed: bool = False

    capability = Capability(True, (), True, 64, True, "step", True, ("cpu",))
    facts = Facts("scripted", "cpu", "float32", "no weights", 4096, BLOCK)

    @property
    def pending(self) -> int:
        return len(self.works)

    def submit(self, request: Request, drafts: bool = False) -> int:
        if request.prompt == "refuse":
            raise DecodeError("prompt: this one is refused, send another")
        self.numbers += 1
        self.works[self.numbers] = Work(request, drafts, story(request))
        self.most = max(self.most, len(self.works))
        return self.numbers

    def step(self) -> list[Event | Failed]:
        time.sleep(self.seconds)
        events: list[Event | Failed] = []
        for number, work in list(self.works.items()):
            if work.request.prompt == "fail":
                raise RuntimeError("planted failure")
            if work.request.prompt == "lost":
                del self.works[number]
                events.append(Failed(number, RunError("scripted: planted loss")))
                continue
            if work.request.prompt == "slow":
                time.sleep(self.slow)
            events += self._advance(number, work)
        return events

    def _advance(self, number: int, work: Work) -> list[Event]:
        block = work.words[work.start : work.start + BLOCK]
        if not work.filled:
            work.filled, work.shown = [False] * len(block), [""] * len(block)
        work.steps += 1
        rng = random.Random(f"{number}{work.steps}")
        hidden = [i for i, done in enumerate(work.filled) if not done]
        fresh = rng.sample(hidden, min(2, len(hidden)))
        for i in fresh:
            work.filled[i] = True
        events: list[Event] = [self._draft(number, work, block, fresh, rng)] if work.drafts else []
        return events + (self._commit(number, work, block) if all(work.filled) else [])

    def _draft(self, number: int, work: Work, block: list[str], fresh: list[int], rng: random.Random) -> Draft:
        tokens = []
        for i, word in enumerate(block):
            state = "mask" if not work.filled[i] else "new" if i in fresh else "kept"
            if state == "kept" and work.shown[i] != word:
                state = "edited"
            if state != "mask":
                wrong = state == "new" and not all(work.filled) and rng.random() < 0.3
                work.shown[i] = f" {rng.choice(WORDS)}" if wrong else word
            pos = 10 + work.start + i
            confidence = 0.0 if state == "mask" else round(0.4 + 0.6 * rng.random(), 3)
            tokens.append(DraftToken(pos, id_of(work.shown[i]), work.shown[i], confidence, state))
        return Draft(number, work.steps, tuple(tokens))

    def _commit(self, number: int, work: Work, block: list[str]) -> list[Event]:
        text = "".join(block)
        stop = min([place for mark in work.request.stop if (place := (work.text + text).find(mark)) >= 0], default=-1)
        whole = work.text + text if stop < 0 else (work.text + text)[:stop]
        events: list[Event] = [Commit(number, whole[len(work.text) :], tuple(map(id_of, block)))]
        work.text = whole
        work.start += len(block)
        work.filled = []
        if stop >= 0 or work.start >= len(work.words):
            del self.works[number]
            events.append(Done(number, self._result(work, "stop" if stop >= 0 else "length")))
        return events

    def _result(self, work: Work, reason: str) -> Result:
        metrics = Metrics(
            forwards=work.steps, tokens=work.start, prompt_tokens=5, steps=work.steps, seconds=0.01,
            tokens_per_forward=work.start / max(1, work.steps), first_block_seconds=0.005, cached_tokens=2,
        )  # fmt: skip
        ids, seed = tuple(map(id_of, work.words[: work.start])), work.request.seed
        return Result(work.text, ids, reason, metrics, "scripted", seed=seed)  # type: ignore[arg-type]

    def cancel(self, number: int) -> Result | None:
        work = self.works.pop(number, None)
        if work is not None:
            self.cancelled.append(number)
        return None if work is None else self._result(work, "cancelled")

    def reset(self) -> None:
        self.works.clear()

    def close(self) -> None:
        self.closed = True


class Held(ScriptedSession):
    """A scripted session whose steps wait until the test lets them go."""

    def __init__(self, go: threading.Event) -> None:
        super().__init__()
        self.go = go

    def step(self) -> list[Event | Failed]:
        self.go.wait(PATIENCE)
        return super().step()
