# Text for evaluation, from a diffusion decoder or from the same weights read autoregressively.
# Entry points: Completion, DiffusionGenerator, ARGenerator, TransformersGenerator, generator_for.
# Both are asked with the same prompt ids, decode.requests of them at once, and timed by the same clock: the seconds of
# all texts are those that passed while they were written, whoever shared a batch.
"""Generators that tasks ask."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch

from hildanext.config import Config
from hildanext.config.decode import DecodeConfig
from hildanext.config.latent import LatentConfig
from hildanext.core.types import Denoiser
from hildanext.data.chat import prompt_ids
from hildanext.decoding.blocks import Blocks
from hildanext.decoding.driver import Driver
from hildanext.decoding.engine import BlockEngine
from hildanext.decoding.prompt import end_ids
from hildanext.decoding.randomness import chosen
from hildanext.decoding.request import Request, Result
from hildanext.decoding.statistics import Sampling
from hildanext.decoding.text import TextStream
from hildanext.errors import ConfigError, DecodeError
from hildanext.measure.left_to_right import Row, continued
from hildanext.models.denoiser import network


@dataclass(frozen=True)
class Completion:
    """One generated text. forwards, edits: counts, of forwards it took part in and of applied rewrites; seconds: its
    share of the time that passed; finish: eos, stop, length, or failed with an empty text and the error; fused,
    positions: as in decoding.request.Metrics."""

    text: str
    ids: tuple[int, ...]
    forwards: int
    edits: int
    seconds: float
    finish: str
    error: str = ""
    fused: int = 0
    positions: int = 0

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
        """All requests through one engine, decode.requests of them at once."""
        return _driven(BlockEngine(self.loaded, self.config), requests)


def _driven(engine: Any, requests: Sequence[Request]) -> list[Completion]:
    started = time.monotonic()
    results = Driver(engine).run(requests)
    seconds = (time.monotonic() - started) / max(1, sum(result.metrics.forwards for result in results))
    return [_completion(result, seconds * result.metrics.forwards) for result in results]


def _completion(result: Result, seconds: float) -> Completion:
    metrics, edits = result.metrics, sum(result.metrics.edits_applied)
    return Completion(
        result.text, result.token_ids, metrics.forwards, edits, seconds, result.finish_reason,
        fused=metrics.fused or 0, positions=metrics.positions or 0,
    )  # fmt: skip


@dataclass(frozen=True)
class ARGenerator:
    """The loaded model left to right with its own cache; greedy at temperature 0. [MASK] is never drawn."""

    loaded: Any
    config: DecodeConfig
    kind: str = "autoregressive"

    def complete(self, requests: Sequence[Request]) -> list[Completion]:
        """decode.requests of equal sampling together, prompts of similar length, each place taken again when its text
        ends. DecodeError where one does not fit the window."""
        rows = [self._row(request) for request in requests]
        groups: dict[Sampling, list[Row]] = {}
        for row, request in sorted(zip(rows, requests, strict=True), key=lambda pair: len(pair[0].prompt)):
            groups.setdefault(self._sampling(request), []).append(row)
        seconds = 0.0
        for sampling, group in groups.items():
            started = time.monotonic()
            for _ in continued(self.loaded.denoiser, group, sampling, self.config.requests):
                pass
            seconds += time.monotonic() - started
        seconds /= max(1, sum(row.written for row in rows))
        return [
            Completion(
                row.text.text,
                tuple(row.text.ids),
                row.written,
                0,
                seconds * row.written,
                row.finish,
                positions=row.written,
            )  # fmt: skip
            for row in rows
        ]

    def prompt(self, request: Request) -> list[int]:
        """Token ids of a request's prompt; an empty one becomes the end-of-text token, which starts documents here."""
        if request.prompt_ids is not None:
            return list(request.prompt_ids)
        tokenizer = self.loaded.tokenizer
        thinking = bool(self.config.thinking if request.thinking is None else request.thinking)
        start = self.loaded.meta.document_start
        found = prompt_ids(tokenizer, request.prompt, request.messages, start, thinking)
        return found or [int(tokenizer.eos_token_id)]

    def _row(self, request: Request) -> Row:
        if request.infill or request.suffix:
            raise DecodeError("infill: left to right nothing of what follows a gap is seen; use a diffusion model")
        denoiser, prompt = self.loaded.denoiser, self.prompt(request)
        new = self.config.max_new_tokens if request.max_new_tokens is None else request.max_new_tokens
        Blocks(len(prompt), new, 1, window_of(denoiser, self.config))
        ends = end_ids(request, self.loaded.tokenizer, denoiser.end_ids)
        text = TextStream(self.loaded.tokenizer, prompt, request.stop, ends)
        seed = chosen(self.config.seed if request.seed is None else request.seed)
        return Row(prompt, text, ends, new, seed, request.sample)

    def _sampling(self, request: Request) -> Sampling:
        names = ("temperature", "top_k", "top_p")
        asked = {name: getattr(request, name) for name in names}
        return Sampling(**{name: getattr(self.config, name) if asked[name] is None else asked[name] for name in names})


@dataclass(frozen=True)
class TransformersGenerator(ARGenerator):
    """transformers' own `generate` with its cache: decode.requests of similar length padded on the left, each batch
    until its last text ends. Stop strings end no batch. The baseline that everybody has."""

    kind: str = "transformers"

    def complete(self, requests: Sequence[Request]) -> list[Completion]:
        """One completion per request; sampling is that of the first."""
        rows, seconds = [self._row(request) for request in requests], 0.0
        order = sorted(rows, key=lambda row: len(row.prompt))
        for start in range(0, len(order), self.config.requests):
            part = order[start : start + self.config.requests]
            started = time.monotonic()
            written = self._generated(part, self._sampling(requests[0]))
            seconds += time.monotonic() - started
            for row, tokens in zip(part, written, strict=True):
                for token in tokens[: row.new]:
                    row.take(token)
        seconds /= max(1, sum(row.written for row in rows))
        return [
            Completion(row.text.text, tuple(row.text.ids), row.written, 0, seconds * row.written, row.finish,
                       positions=row.written)
            for row in rows
        ]  # fmt: skip

    @torch.no_grad()
    def _generated(self, rows: Sequence[Row], sampling: Sampling) -> list[list[int]]:
        denoiser, longest = self.loaded.denoiser, max(len(row.prompt) for row in rows)
        pad = int(self.loaded.tokenizer.eos_token_id)
        ids = torch.tensor([[pad] * (longest - len(row.prompt)) + list(row.prompt) for row in rows])
        seen = torch.tensor([[0] * (longest - len(row.prompt)) + [1] * len(row.prompt) for row in rows])
        drawn: dict[str, Any] = {"do_sample": sampling.temperature > 0}
        if sampling.temperature:
            drawn |= {"temperature": sampling.temperature, "top_k": sampling.top_k, "top_p": sampling.top_p}
        ids, seen = ids.to(denoiser.device), seen.to(denoiser.device)
        out = network(denoiser).generate(
            input_ids=ids, attention_mask=seen, use_cache=True, pad_token_id=pad,
            max_new_tokens=max(row.new for row in rows), eos_token_id=sorted(set().union(*(row.ends for row in rows))),
            suppress_tokens=[denoiser.mask_id], **drawn,
        )  # fmt: skip
        written: list[list[int]] = out[:, longest:].tolist()
        return written


def window_of(denoiser: Denoiser, config: DecodeConfig) -> int:
    """Positions a text may have: the smaller of the model's and the configuration's window; 0: no bound."""
    return min((size for size in (denoiser.window, config.window) if size), default=0)


@dataclass(frozen=True)
class LatentGenerator:
    """A latent model's own sampler, or the block decoder over its proposals."""

    loaded: Any
    config: Config
    kind: str = "diffusion"

    def complete(self, requests: Sequence[Request]) -> list[Completion]:
        """All requests through one session, those that are drawn alike together."""
        from hildanext.engines.latent import session_over

        return _driven(session_over(self.loaded, self.config), requests)


def generator_for(kind: str, loaded: Any, config: DecodeConfig, latent: LatentConfig | None = None) -> Generator:
    """`diffusion`, `autoregressive`, or `auto`: autoregressive for a folder that no conversion has written to. latent:
    how a latent model draws."""
    if loaded.kind.engine == "latent":
        if kind == "autoregressive":
            raise ConfigError("eval.generator autoregressive: a latent model reads nothing left to right; use auto")
        return LatentGenerator(loaded, Config(decode=config, latent=latent or LatentConfig()))
    if kind == "auto":
        kind = "diffusion" if loaded.meta.block else "autoregressive"
    if kind == "diffusion":
        return DiffusionGenerator(loaded, config)
    if kind == "autoregressive":
        return ARGenerator(loaded, config)
    raise ConfigError(f"eval.generator: {kind!r}, expected auto, diffusion or autoregressive")
