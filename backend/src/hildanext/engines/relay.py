# Token ids from another engine, turned into the events and the result our own engine would give.
# Entry points: Relay, refuse_fixed.
# EOS, stop strings and the length limit are ours: other engines keep tokens after EOS or drop the EOS itself.
"""Events over another engine's tokens."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from hildanext.config.decode import WINDOW
from hildanext.decoding.events import Commit, Done, Event
from hildanext.decoding.prompt import Bounds, end_ids, prepare
from hildanext.decoding.request import FinishReason, Metrics, Request, Result
from hildanext.decoding.text import TextStream
from hildanext.engines.task import Task
from hildanext.errors import DecodeError


@dataclass
class Relay:
    """One request served elsewhere. push() takes further token ids; over: an end was met."""

    number: int
    request: Request
    tokenizer: Any
    bounds: Bounds
    policy: str
    preset: Mapping[str, Any]
    forwards: int = 0
    over: bool = False
    finish: FinishReason = "cancelled"
    started: float = field(default_factory=time.monotonic)
    first: float = 0.0
    seen: int = 0
    emitted: int = 0

    def __post_init__(self) -> None:
        prepared = prepare(self.request, self.tokenizer, self.bounds)
        self.prompt, self.bounds = prepared.prompt, replace(self.bounds, new=prepared.blocks.new)
        self.ends = end_ids(self.request, self.tokenizer)
        self.text = TextStream(self.tokenizer, self.prompt, self.request.stop, self.ends)

    def push(self, ids: Sequence[int], final: bool) -> list[Event]:
        """Commit for new text, Done at an end. ids: every token so far, in order; final: there will be no more."""
        new = list(ids[self.seen : self.bounds.new])
        place = next((index for index, token in enumerate(new) if token in self.ends), None)
        new = new if place is None else new[: place + 1]
        self.seen += len(new)
        last = final or place is not None or self.seen >= self.bounds.new
        delta = self.text.push(new, last)
        self.first = self.first or time.monotonic()
        kept = tuple(self.text.ids[self.emitted : self.text.settled])
        self.emitted += len(kept)
        events: list[Event] = [Commit(self.number, delta, kept)] if delta or kept else []
        if last or self.text.stopped:
            self.over = True
            self.finish = "stop" if self.text.stopped else "length" if place is None else "eos"
            events.append(Done(self.number, self.result()))
        return events

    def result(self) -> Result:
        """The result so far."""
        seconds, tokens = time.monotonic() - self.started, len(self.text.ids)
        metrics = Metrics(
            forwards=self.forwards, tokens=tokens, prompt_tokens=len(self.prompt), seconds=seconds,
            tokens_per_forward=tokens / self.forwards if self.forwards else 0.0,
            first_block_seconds=max(0.0, self.first - self.started), tokens_per_second=tokens / max(seconds, 1e-9),
            policy=self.policy, block=self.bounds.block,
        )  # fmt: skip
        return Result(self.text.text, tuple(self.text.ids), self.finish, metrics, preset=self.preset)


def refuse_fixed(request: Request, engine: str, mode: str) -> None:
    """DecodeError for what this engine fixes when it starts: thresholds, sampling, block size, policy, guidance."""
    if isinstance(request, Task):
        raise DecodeError(f"engine: {engine} does not score texts; the engine transformers does")
    fixed = {
        "tau_mask": request.tau_mask != "preset", "tau_edit": request.tau_edit != "preset",
        **{name: getattr(request, name) != "preset" for name in WINDOW},
        "mode": request.mode not in (None, mode), "temperature": bool(request.temperature),
        "top_k": bool(request.top_k), "top_p": request.top_p not in (None, 1.0), "cfg_scale": bool(request.cfg_scale),
        "block": request.block is not None, "policy": request.policy is not None, "carry": request.carry is not None,
        "kv": request.kv is not None,
        "overrides": bool(request.overrides), "infill": request.infill, "suffix": bool(request.suffix),
        "trace": request.trace, "logprobs": request.logprobs is not None, "grammar": request.grammar is not None,
        "tools": bool(request.called),
    }  # fmt: skip
    found = [name for name, given in fixed.items() if given]
    if found:
        raise DecodeError(
            f"{', '.join(found)}: {engine} fixes this when it starts (it serves {mode}); leave it out (the engine"
            " transformers takes it)"
        )
