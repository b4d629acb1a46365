# The front door for people who write Python: a loaded model with its masks, losses, likelihoods and texts as methods.
# Entry points: load, Model (batch, loss, nll, score, generate, stream), Answer, generate (text in, text out).
# A thin file over the rooms: models, core, decoding and engines do the work, and each can be used without it.
# Where a plugin is taken its name, its section {"type": name, ...} or the object itself will do.
"""Loading, scoring and decoding from Python."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache, partial
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import ValidationError

from hildanext.config import Config
from hildanext.config.model import ModelConfig
from hildanext.config.nearest import describe
from hildanext.core.batches import document_batch
from hildanext.core.likelihood import Estimate, autoregressive_nll, block_elbo
from hildanext.core.types import Batch, Denoiser, LossReport, Objective
from hildanext.data.tokenizers import begun
from hildanext.decoding.engine import DEFAULT_BLOCK
from hildanext.decoding.events import Event
from hildanext.decoding.policy import BlockPolicy
from hildanext.decoding.request import Request, Result
from hildanext.engines.opening import OpenEngine
from hildanext.engines.transformers import BUNDLED, NativeSession
from hildanext.errors import ConfigError, DataError, DecodeError
from hildanext.measure.scores import Kind, Scoring, scores
from hildanext.models.about import about
from hildanext.models.load import Loaded, load_model
from hildanext.registry import build
from hildanext.report.recording import Recording

Named = str | Mapping[str, Any]


@dataclass(frozen=True)
class TextBatch(Batch):
    """A Batch whose length is a multiple of `block`, the block size its losses are taken at."""

    block: int = 1


@dataclass(frozen=True)
class Likelihood:
    """What a model says of a batch, both on the same tokens. autoregressive: NLL read left to right, exact; bound: the
    negated ELBO at block size `block`, an upper bound on the NLL of the block-diffusion model."""

    autoregressive: Estimate
    bound: Estimate
    block: int


@dataclass(frozen=True)
class Answer(Result):
    """A Result that can be looked at. prompt: the text that was given, '' for a chat or token ids."""

    prompt: str = field(default="", repr=False, compare=False)

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON, without the trace, as of any Result."""
        return {name: value for name, value in super().as_dict().items() if name != "prompt"}

    def animation(self, title: str = "") -> Recording:
        """How it was decoded, to be saved as .html, .gif, .svg or .jsonl, or shown in a notebook. It must have been
        asked for with trace=True; DecodeError."""
        return Recording.of_trace(self.prompt, self.trace, self.as_dict(), title or self.prompt or "hildanext generate")


@dataclass(frozen=True)
class Model:
    """A model ready for use, made by `load`. block: its block size, tokens; dtype_reason: why this dtype was taken;
    notes: what a reader of its results must know; loaded, config: the folder as read and every setting used with it;
    companions: the further models that objectives asked for, by path, kept as long as this one."""

    tokenizer: Any = field(repr=False)
    denoiser: Denoiser = field(repr=False)
    block: int
    device: torch.device
    dtype: torch.dtype
    dtype_reason: str
    notes: tuple[str, ...]
    loaded: Loaded = field(repr=False)
    config: Config = field(repr=False)
    companions: dict[str, Denoiser] = field(default_factory=dict, repr=False, compare=False)

    def batch(self, texts: str | Sequence[str | Sequence[int]], block: int | None = None) -> TextBatch:
        """Texts or token ids as rows [B, L] on the model's device: each a document of its own, ended by EOS, learned
        whole and padded to a multiple of `block`. DataError for none, for an empty one, for what is no text."""
        size = self.block if block is None else block
        if size < 1:
            raise DataError(f"batch: block {size}; expected a block size of 1 token or more")
        rows = [self._ids(text) for text in ([texts] if isinstance(texts, str) else texts)]
        if not rows:
            raise DataError("batch: no texts; give at least one")
        made = document_batch([(ids, 0) for ids in rows], int(self.tokenizer.eos_token_id), size).to(self.device)
        return TextBatch(made.tokens, made.learn, made.docs, made.ids, block=size)

    def _ids(self, text: str | Sequence[int]) -> list[int]:
        if isinstance(text, str):
            ids = list(self.tokenizer(text, add_special_tokens=False)["input_ids"])
            ids = begun(ids, self.tokenizer, self.loaded.meta.document_start) if ids else ids
        elif isinstance(text, Sequence) and all(isinstance(one, int) for one in text):
            ids = list(text)
        else:
            raise DataError(f"batch: {text!r} is neither a text nor token ids")
        if not ids:
            raise DataError("batch: an empty text; leave it out")
        end = int(self.tokenizer.eos_token_id)
        return ids if ids[-1:] == [end] else [*ids, end]

    def loss(
        self, batch: Batch, objective: Named | Objective = "mask_and_edit", seed: int = 0, block: int | None = None
    ) -> LossReport:
        """The report of an objective on a batch, prepared as training prepares it; `float(report)` is the loss, and
        report.total carries the gradient. The noise is a function of `seed`, an integer."""
        size = self._fitting(batch, block)
        made = (
            build("objectives", _section(objective), "objective") if isinstance(objective, str | Mapping) else objective
        )
        known = about(self.loaded, self.config.model)
        prepared = made.prepare(replace(known, load=partial(self._companion, known.load)))
        report: LossReport = prepared.loss(self.denoiser, batch, size, torch.Generator().manual_seed(seed))
        return report

    def _companion(self, load: Callable[[str], Denoiser], path: str) -> Denoiser:
        if path not in self.companions:
            self.companions[path] = load(path)
        return self.companions[path]

    def nll(self, batch: Batch, samples: int = 8, seed: int = 0, block: int | None = None) -> Likelihood:
        """AR NLL and block ELBO of a batch, nats, each also without its end tokens; samples: Monte-Carlo draws of the
        bound, 0: exact, to block 8."""
        size = self._fitting(batch, block)
        if samples == 0 and size > 8:
            raise DataError(f"nll: block {size} cannot be enumerated; give samples, or a block of 8 tokens or less")
        rng = torch.Generator().manual_seed(seed)
        ends = {*self.denoiser.end_ids, int(self.tokenizer.eos_token_id)}
        bound = block_elbo(self.denoiser, batch, size, rng, samples, ends)
        return Likelihood(autoregressive_nll(self.denoiser, batch, ends), bound, size)

    def score(
        self, texts: str | Sequence[str], context: str | Sequence[int] = "", kind: Kind = "bound", samples: int = 16,
        block: int | None = None,
    ) -> Any:  # fmt: skip
        """The Score of a text behind a context, or the Scores of several behind one, nats with those of each token.
        kind: `bound`, the block bound with `samples` draws per block (0: exact, to 8 tokens), or `autoregressive`.
        DataError, WindowError."""
        if samples < 0 or samples % 2:
            raise DataError(f"score: samples {samples}; expected an even count, or 0")
        pairs = [(context, text) for text in ([texts] if isinstance(texts, str) else texts)]
        how = Scoring(kind, samples, self.block if block is None else block)
        found = [one for piece in scores(self.loaded, pairs, how) for one in piece]
        return found[0] if isinstance(texts, str) else found

    def _fitting(self, batch: Batch, block: int | None) -> int:
        own = batch.block if isinstance(batch, TextBatch) else self.block
        size, length = own if block is None else block, batch.tokens.shape[1]
        if 0 < size < length and length % size:
            raise DataError(f"batch: {length} positions are no multiple of block {size}; make it with block={size}")
        return size

    def stream(self, prompt: Any, policy: Named | BlockPolicy | None = None, **fields: Any) -> Iterator[Event]:
        """The events of one request as they come: drafts, commits, the end. Arguments are those of `generate`."""
        yield from self._engine().stream(_request(prompt, policy, fields))

    def generate(self, prompts: Any, policy: Named | BlockPolicy | None = None, **fields: Any) -> Any:
        """The Answer to a prompt (a text, token ids, or a chat as a list of turns {role, content}), or the Answers to a
        list of them, decoded together in one engine; each text is the one it would be alone. fields: those of
        decoding.request.Request. A prompt met again draws afresh: `sample` counts its repeats. DecodeError."""
        if _is_one(prompts):
            return _answer(prompts, self._engine().generate(_request(prompts, policy, fields)))
        if not isinstance(prompts, Sequence) or not prompts:
            raise DecodeError(f"generate: {prompts!r}, expected a text, a chat, token ids, or a list of them")
        seen: Counter[str] = Counter()
        requests = []
        for prompt in prompts:
            requests.append(_request(prompt, policy, {"sample": seen[repr(prompt)], **fields}))
            seen[repr(prompt)] += 1
        results = self._engine().run(requests)
        return [_answer(prompt, result) for prompt, result in zip(prompts, results, strict=True)]

    def _engine(self) -> OpenEngine:
        if self.loaded.kind.engine == "latent":
            from hildanext.engines.latent import session_over

            return OpenEngine(session_over(self.loaded, self.config))
        name = BUNDLED if self.config.model.path == BUNDLED else "transformers"
        return OpenEngine(NativeSession(name, self.loaded, self.config))


def _answer(prompt: Any, result: Result) -> Answer:
    return Answer(**vars(result), prompt=prompt if isinstance(prompt, str) else "")


def _section(named: Named) -> Mapping[str, Any]:
    return {"type": named} if isinstance(named, str) else named


def _is_one(prompt: Any) -> bool:
    parts = prompt if isinstance(prompt, Sequence) else ()
    return isinstance(prompt, str) or bool(parts) and all(isinstance(part, int | Mapping) for part in parts)


def _request(prompt: Any, policy: Named | BlockPolicy | None, fields: Mapping[str, Any]) -> Request:
    if not _is_one(prompt):
        raise DecodeError(f"generate: {prompt!r}, expected a text, token ids, or a chat as a list of turns")
    kind = "prompt" if isinstance(prompt, str) else "messages" if isinstance(prompt[0], Mapping) else "prompt_ids"
    asked = {"policy": _section(policy)} if isinstance(policy, str | Mapping) else {"policy": policy}
    return Request.of(**{kind: prompt}, **asked, **fields)


def load(path: str | Path = "tiny", config: Config | None = None, **fields: Any) -> Model:
    """The model of a Hugging Face folder, `tiny` (the bundled child) or `tiny-parent`. fields: those of the `model`
    section (device, dtype, mask_id, ...); config: every other setting. ModelError, ConfigError: one line each."""
    settings = config or Config()
    values = {**settings.model.model_dump(), **fields, "path": str(path)}
    try:
        section = ModelConfig.model_validate(values)
    except ValidationError as error:
        raise ConfigError("load: " + "; ".join(describe(error, ModelConfig, ""))) from error
    loaded, decode = load_model(section), settings.decode
    block = decode.block or loaded.meta.block or DEFAULT_BLOCK
    return Model(
        loaded.tokenizer, loaded.denoiser, block, loaded.device, loaded.dtype, loaded.dtype_reason,
        loaded.meta.cautions(block), loaded, settings.model_copy(update={"model": section}),
    )  # fmt: skip


@cache
def _kept(path: str) -> Model:
    return load(path)


def generate(
    prompt: str,
    mode: str = "Q_MODE",
    tau_mask: float | Literal["preset"] = "preset",
    tau_edit: float | Literal["preset"] | None = "preset",
    max_new_tokens: int = 128,
    seed: int = 0,
    **fields: Any,
) -> str:
    """The text that follows `prompt`. tau_*: probabilities; tau_edit None: no editing; "preset": the mode's value.
    fields: `model`, a folder that stays loaded for the life of the process (default `tiny`), and those of
    Model.generate. DecodeError for values out of range."""
    named: dict[str, Any] = {
        "mode": mode,
        "tau_mask": tau_mask,
        "tau_edit": tau_edit,
        "max_new_tokens": max_new_tokens,
        "seed": seed,
    }
    result: Result = _kept(str(fields.pop("model", BUNDLED))).generate(prompt, **named, **fields)
    return result.text
