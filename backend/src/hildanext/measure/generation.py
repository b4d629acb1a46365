# Text for evaluation, from a diffusion decoder or from the same weights read autoregressively.
# Entry points: Completion, DiffusionGenerator, ARGenerator, generator_for.
# Both are asked with the same prompt ids; the AR side is transformers' own generate, batched over equal lengths.
"""Generators that tasks ask."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch

from hildanext.config.decode import DecodeConfig
from hildanext.data.chat import prompt_ids
from hildanext.decoding.driver import Driver
from hildanext.decoding.engine import BlockEngine
from hildanext.decoding.prompt import end_ids
from hildanext.decoding.request import Request, Result
from hildanext.errors import ConfigError
from hildanext.models.denoiser import network

LARGEST_BATCH = 64


@dataclass(frozen=True)
class Completion:
    """One generated text. tokens and forwards are counts; edits: applied rewrites; seconds: of this request alone where
    the generator knows it, else its share of the batch's time."""

    text: str
    ids: tuple[int, ...]
    forwards: int
    edits: int
    seconds: float
    finish: str

    @property
    def tokens(self) -> int:
        """Generated tokens, the first EOS included."""
        return len(self.ids)


class Generator(Protocol):
    """Answers requests in their order."""

    @property
    def kind(self) -> str:
        """diffusion or autoregressive."""

    def complete(self, requests: Sequence[Request]) -> list[Completion]:
        """One completion per request."""


@dataclass(frozen=True)
class DiffusionGenerator:
    """The block decoder with continuous batching; texts do not depend on who shares a batch."""

    loaded: Any
    config: DecodeConfig
    kind: str = "diffusion"

    def complete(self, requests: Sequence[Request]) -> list[Completion]:
        """All requests through one engine."""
        return [_completion(result) for result in Driver(BlockEngine(self.loaded, self.config)).run(requests)]


def _completion(result: Result) -> Completion:
    edits = sum(result.metrics.edits_applied)
    return Completion(
        result.text, result.token_ids, result.metrics.forwards, edits, result.metrics.seconds, result.finish_reason
    )


@dataclass(frozen=True)
class ARGenerator:
    """transformers' generate on the loaded model, left to right; greedy at temperature 0. [MASK] is never drawn."""

    loaded: Any
    config: DecodeConfig
    kind: str = "autoregressive"

    def complete(self, requests: Sequence[Request]) -> list[Completion]:
        """Requests in batches of equal prompt length and settings; the seed of a batch is its first request's."""
        groups: dict[tuple[int, int, float], list[int]] = {}
        prompts = [self.prompt(request) for request in requests]
        for index, request in enumerate(requests):
            key = (len(prompts[index]), self._new(request), self._temperature(request))
            groups.setdefault(key, []).append(index)
        found: dict[int, Completion] = {}
        for indices in groups.values():
            for start in range(0, len(indices), LARGEST_BATCH):
                part = indices[start : start + LARGEST_BATCH]
                done = self._batch([requests[i] for i in part], [prompts[i] for i in part])
                found.update(zip(part, done, strict=True))
        return [found[index] for index in range(len(requests))]

    def prompt(self, request: Request) -> list[int]:
        """Token ids of a request's prompt; an empty one becomes the end-of-text token, which starts documents here."""
        if request.prompt_ids is not None:
            return list(request.prompt_ids)
        tokenizer = self.loaded.tokenizer
        thinking = bool(self.config.thinking if request.thinking is None else request.thinking)
        found = prompt_ids(tokenizer, request.prompt, request.messages, thinking=thinking)
        return found or [int(tokenizer.eos_token_id)]

    def _new(self, request: Request) -> int:
        return self.config.max_new_tokens if request.max_new_tokens is None else request.max_new_tokens

    def _temperature(self, request: Request) -> float:
        return self.config.temperature if request.temperature is None else request.temperature

    def _batch(self, requests: Sequence[Request], prompts: list[list[int]]) -> list[Completion]:
        model, first = network(self.loaded.denoiser), requests[0]
        ends = sorted(end_ids(first, self.loaded.tokenizer, self.loaded.denoiser.end_ids))
        ids = torch.tensor(prompts, device=self.loaded.denoiser.device)
        temperature = self._temperature(first)
        drawing = {"do_sample": True, "temperature": temperature, "top_k": 0} if temperature else {"do_sample": False}
        started = time.monotonic()
        with torch.random.fork_rng(devices=[]), torch.no_grad():
            torch.manual_seed((self.config.seed if first.seed is None else first.seed) + first.sample)
            output = model.generate(
                ids, attention_mask=torch.ones_like(ids), max_new_tokens=self._new(first), eos_token_id=ends or None,
                pad_token_id=ends[0] if ends else 0, suppress_tokens=[self.loaded.denoiser.mask_id], **drawing,
            )  # fmt: skip
        seconds = (time.monotonic() - started) / len(requests)
        rows = output[:, ids.shape[1] :].tolist()
        return [self._cut(row, ends, request, seconds) for row, request in zip(rows, requests, strict=True)]

    def _cut(self, row: list[int], ends: Sequence[int], request: Request, seconds: float) -> Completion:
        place = next((index for index, token in enumerate(row) if token in ends), None)
        kept = row if place is None else row[: place + 1]
        text = self.loaded.tokenizer.decode(kept if place is None else kept[:-1], skip_special_tokens=False)
        cuts = [text.index(stop) for stop in request.stop if stop in text]
        text = text[: min(cuts)] if cuts else text
        finish = "stop" if cuts else "length" if place is None else "eos"
        return Completion(text, tuple(kept), len(kept), 0, seconds, finish)


def generator_for(kind: str, loaded: Any, config: DecodeConfig) -> Generator:
    """`diffusion`, `autoregressive`, or `auto`: autoregressive for a folder that no conversion has written to."""
    if kind == "auto":
        kind = "diffusion" if loaded.meta.block else "autoregressive"
    if kind == "diffusion":
        return DiffusionGenerator(loaded, config)
    if kind == "autoregressive":
        return ARGenerator(loaded, config)
    raise ConfigError(f"eval.generator: {kind!r}, expected auto, diffusion or autoregressive")
