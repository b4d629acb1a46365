# What the contest times: the parent read left to right in three ways, a GGUF file by llama.cpp, a child by blocks.
# Entry points: Reading, Reader, Generate, LeftToRight, Gguf, ByBlocks, exact_engine, shifted.
# All read one prompt at a time, greedily, to the end of the text, each by the clock of the benchmark.
"""Readers of prompts."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import torch

from hildanext.bench.decoding.asks import Ask
from hildanext.bench.decoding.llamacpp import LlamaCpp
from hildanext.bench.decoding.timing import CLOCKS
from hildanext.config import Config
from hildanext.decoding.driver import Driver
from hildanext.decoding.events import Done, Failed
from hildanext.decoding.statistics import Sampling
from hildanext.decoding.text import TextStream
from hildanext.engines.transformers import NativeSession
from hildanext.errors import RunError
from hildanext.measure.left_to_right import Row, continued
from hildanext.models.denoiser import HFDenoiser, hugging_face


@dataclass(frozen=True)
class Reading:
    """What came: token ids, seconds by the benchmark's clock, forwards (a count; 0: not known)."""

    ids: tuple[int, ...]
    seconds: float
    forwards: int = 0


class Reader(Protocol):
    """Continues one prompt, greedily."""

    def read(self, ask: Ask, new: int) -> Reading:
        """At most `new` tokens, an end token included."""
        ...


@dataclass(frozen=True)
class Generate:
    """transformers' own generate with its cache."""

    network: Any
    clock: str

    @torch.no_grad()
    def read(self, ask: Ask, new: int) -> Reading:
        """The continuation by model.generate."""
        now = CLOCKS[self.clock]
        started = now()
        ids = torch.tensor([ask.ids], device=self.network.device)
        out = self.network.generate(
            input_ids=ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=new, use_cache=True,
            min_new_tokens=None if ask.ends else new, eos_token_id=sorted(ask.ends) or None, pad_token_id=0,
        )  # fmt: skip
        found = tuple(out[0, len(ask.ids) :].tolist())
        return Reading(found, now() - started, len(found))


@dataclass(frozen=True)
class LeftToRight:
    """Our own cache, one token a forward (measure/left_to_right.py)."""

    loaded: Any
    clock: str

    def read(self, ask: Ask, new: int) -> Reading:
        """The continuation, one row at work."""
        now = CLOCKS[self.clock]
        started = now()
        row = Row(ask.ids, TextStream(self.loaded.tokenizer, ask.ids, (), ask.ends), ask.ends, new, 0)
        for _ in continued(self.loaded.denoiser, [row], Sampling()):
            pass
        return Reading(tuple(row.text.ids), now() - started, row.written)


@dataclass(frozen=True)
class Gguf:
    """A GGUF file by llama.cpp."""

    process: LlamaCpp

    def read(self, ask: Ask, new: int) -> Reading:
        """The continuation by the other process, and its seconds."""
        ids, seconds = self.process.read(ask.ids, new, ask.ends)
        return Reading(ids, seconds, len(ids))


@dataclass(frozen=True)
class ByBlocks:
    """An engine's session, asked with these fields of a request. patience: seconds after which a text is given up, and
    what came by then counts (None: none)."""

    session: Any
    fields: Mapping[str, Any]
    clock: str
    patience: float | None = None

    def read(self, ask: Ask, new: int) -> Reading:
        """The continuation by blocks."""
        self.session.reset()  # nothing of an earlier reading of this prompt is left
        now, driver = CLOCKS[self.clock], Driver(self.session)
        started = now()
        number = driver.submit(ask.request(new, self.fields))
        result = None
        while result is None and driver.pending:
            for event in driver.step():
                if isinstance(event, Failed):
                    raise event.error
                result = event.result if isinstance(event, Done) else result
            if result is None and self.patience is not None and now() - started > self.patience:
                result = driver.cancel(number)
        if result is None:
            raise RunError(f"engine {self.session.name}: a request ended without a result")
        return Reading(tuple(result.token_ids), now() - started, result.metrics.forwards)


def exact_engine(loaded: Any, config: Config) -> ByBlocks:
    """Our engine at block 1 with shift clean: the AR model itself, exactly."""
    fields = {"block": 1, "policy": {"type": "static_quota"}}
    session = NativeSession("transformers", shifted(loaded, "clean"), config)
    return ByBlocks(session, fields, config.bench.decode.clock)


def shifted(loaded: Any, shift: str) -> Any:
    """The loaded model with its logits read as `shift` says; the weights are shared."""
    held, changed = hugging_face(loaded.denoiser), copy.copy(loaded)
    denoiser = HFDenoiser(held.model, held.mask_id, shift=shift, block_grid=held.block_grid).eval()
    object.__setattr__(changed, "denoiser", denoiser)
    return changed
