# Timing of forwards and of whole generations, for the decoding benchmark.
# Entry points: Timed (a denoiser that measures itself), time_forwards, time_autoregressive,
# time_engine, script (a policy of given TPF).
# Wall or CPU seconds; interleaved variants are measured round by round and the fastest round counts.
"""Stopwatches of the decoding benchmark."""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from hildanext.config import Config
from hildanext.config.bench import DecodeBenchConfig
from hildanext.decoding.driver import Driver
from hildanext.decoding.engine import BlockEngine
from hildanext.decoding.forward import ForwardRow, forward
from hildanext.decoding.request import Request, Result
from hildanext.decoding.store import StateStore

CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}


class Timed:
    """A denoiser that adds up the seconds of its calls; everything else is the denoiser's."""

    def __init__(self, denoiser: Any, clock: Callable[[], float]) -> None:
        self.denoiser, self.clock, self.seconds = denoiser, clock, 0.0

    def __getattr__(self, name: str) -> Any:
        return getattr(self.denoiser, name)

    def __call__(self, *args: Any, **keywords: Any) -> Tensor:
        """The denoiser's logits."""
        started = self.clock()
        logits: Tensor = self.denoiser(*args, **keywords)
        if logits.is_cuda:
            torch.cuda.synchronize()
        self.seconds += self.clock() - started
        return logits


def script(block: int, tokens_per_forward: float) -> dict[str, Any]:
    """Fields of a request: the policy that fills a block in as many forwards as that TPF takes, whatever it reads."""
    return {"policy": {"type": "static_quota", "steps": max(1, math.ceil(block / tokens_per_forward))}}


def fastest(variants: Mapping[str, Callable[[], Any]], repeats: int, clock: str) -> dict[str, float]:
    """Seconds of the fastest of `repeats` calls of each variant, after one warm-up, the variants taking turns."""
    best, now = dict.fromkeys(variants, float("inf")), CLOCKS[clock]
    for round_number in range(repeats + 1):
        for name, call in variants.items():
            started = now()
            call()
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            if round_number:
                best[name] = min(best[name], now() - started)
    return best


@torch.no_grad()
def time_forwards(loaded: Any, bench: DecodeBenchConfig) -> dict[str, float]:
    """Seconds of one forward behind `context_tokens` cached tokens, all logits: 'ar' (one token, transformers' cache),
    and for every block size 'bare <size>' (model and transformers' cache) and 'engine <size>' (ours)."""
    denoiser, context = loaded.denoiser, bench.context_tokens
    ids = torch.arange(context) % 1000
    store = StateStore()
    store.reserve(1, context + 2 * max(bench.blocks))
    slot, nothing = store.add(), torch.zeros(context, dtype=torch.bool)
    forward(denoiser, store, [ForwardRow(slot, 0, ids, nothing, context)], denoiser.device)
    store.commit(slot, context)
    bare = _Bare(denoiser, ids.to(denoiser.device))
    variants: dict[str, Callable[[], Any]] = {"ar": _Call(bare.run, (1,))}
    for size in bench.blocks:
        row = _behind(denoiser, slot, ids, size)
        variants[f"bare {size}"] = _Call(bare.run, (size,))
        variants[f"engine {size}"] = _Call(forward, (denoiser, store, [row], denoiser.device))
    return fastest(variants, bench.repeats, bench.clock)


def _behind(denoiser: Any, slot: int, ids: Tensor, size: int) -> ForwardRow:
    # a shifted model reads the first token of a block from the committed one before it, as the engine's rows do
    back = 0 if denoiser.shift == "none" else 1
    tokens = torch.cat([ids[len(ids) - back :], torch.full((size,), denoiser.mask_id)])
    return ForwardRow(slot, len(ids) - back, tokens, torch.arange(back + size) >= back, size)


@dataclass(frozen=True)
class _Call:
    function: Callable[..., Any]
    arguments: tuple[Any, ...]

    def __call__(self) -> Any:
        return self.function(*self.arguments)


class _Bare:
    def __init__(self, denoiser: Any, ids: Tensor) -> None:
        self.model, self.mask_id, self.context = denoiser.model, denoiser.mask_id, len(ids)
        self.cache = self.model(input_ids=ids[None], use_cache=True, logits_to_keep=1).past_key_values

    def run(self, size: int) -> None:
        device = self.model.device
        tokens = torch.full((1, size), self.mask_id, device=device)
        positions = torch.arange(self.context, self.context + size, device=device)[None]
        mask = torch.ones(1, 1, size, self.context + size, dtype=torch.bool, device=device)
        self.model(input_ids=tokens, attention_mask=mask, position_ids=positions, past_key_values=self.cache)
        self.cache.crop(-size)


@torch.no_grad()
def time_autoregressive(loaded: Any, bench: DecodeBenchConfig) -> dict[str, float]:
    """tokens/s of transformers' own greedy generate with its cache, batch 1, the prompt's forward included."""
    model = loaded.denoiser.model
    ids = torch.tensor([prompt_ids(bench, 0)], device=model.device)
    clock = CLOCKS[bench.clock]
    started = clock()
    out = model.generate(
        input_ids=ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=bench.new_tokens,
        min_new_tokens=bench.new_tokens, use_cache=True, pad_token_id=0,
    )  # fmt: skip
    seconds = clock() - started
    count = int(out.shape[1]) - bench.prompt_tokens
    return {"tokens": count, "seconds": seconds, "tokens_per_second": count / seconds}


def prompt_ids(bench: DecodeBenchConfig, row: int) -> tuple[int, ...]:
    """A deterministic prompt of ids 0..999."""
    return tuple((7 * i + 31 * row + 5) % 1000 for i in range(bench.prompt_tokens))


def _without(mask_id: int, ids: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(i % 500 + (i % 500 == mask_id) for i in ids)


def time_engine(
    loaded: Any, config: Config, fields: Mapping[str, Any], rows: int, prompts: tuple[str, ...] = ()
) -> dict[str, Any]:
    """Decode `rows` requests together: tokens/s, TPF of one request (as it was, and with every commit a forward of its
    own), positions of its forwards, forwards/s, seconds inside and outside the model.
    fields: of Request; prompts: texts to use instead of made-up ids; results: what came back, in order of request."""
    timed = copy.copy(loaded)
    bench = config.bench.decode
    clock = CLOCKS[bench.clock]
    denoiser = Timed(loaded.denoiser, clock)
    object.__setattr__(timed, "denoiser", denoiser)
    engine = BlockEngine(timed, config.decode)
    made: list[dict[str, Any]] = [{"prompt": prompts[row % len(prompts)]} for row in range(rows)] if prompts else []
    made = made or [{"prompt_ids": _without(loaded.denoiser.mask_id, prompt_ids(bench, row))} for row in range(rows)]
    started = clock()
    common = {"ignore_eos": True, "max_new_tokens": bench.new_tokens}
    results = Driver(engine).run([Request.of(**{**common, **source, **fields}) for source in made])
    seconds, tokens = clock() - started, sum(result.metrics.tokens for result in results)
    return {
        "requests": rows, "tokens": tokens, "seconds": seconds, "tokens_per_second": tokens / seconds,
        "tokens_per_forward": _mean("tokens_per_forward", results),
        "tokens_per_forward_unfused": _mean("tokens_per_forward_unfused", results),
        "positions_per_forward": _mean("positions_per_forward", results),
        "forwards": engine.forwards, "forwards_per_second": engine.forwards / seconds,
        "model_seconds": denoiser.seconds, "overhead": (seconds - denoiser.seconds) / denoiser.seconds,
        "overhead_seconds_per_forward": (seconds - denoiser.seconds) / engine.forwards,
        "results": results,
    }  # fmt: skip


def _mean(name: str, results: Sequence[Result]) -> float:
    return sum(float(getattr(result.metrics, name)) for result in results) / len(results)
