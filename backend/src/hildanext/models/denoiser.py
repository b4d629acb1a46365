# Any Hugging Face causal LM as a block-diffusion denoiser, through 4-D masks and position ids; recurrent layers, where
# it has some, are told in which order they read (models/runs.py).
# Entry points: HFDenoiser, network and module (of a denoiser), hugging_face, position_bytes.
# A denoiser's parameters are the network's; all it computes passes through forward(kind, ...), which DDP and FSDP2 see.
# Letters: B rows, L positions, Q queries, K keys, V vocabulary, D hidden width, n selected positions.
"""The adapter from transformers to `hildanext.core.types.Denoiser`."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from hildanext.core.batches import repeated
from hildanext.core.compaction import Compaction
from hildanext.core.masks import BlockDiffusionRule, additive, shifted_places
from hildanext.core.mixture import Mixture, MixtureHook
from hildanext.core.types import Batch, Denoiser
from hildanext.errors import ModelError
from hildanext.models import attention
from hildanext.models.attention import Cache, Layout
from hildanext.models.backend import Backend, choose_backend, dense_kernel, plan_causal, plan_diffusion
from hildanext.models.key_scores import KeyScores
from hildanext.models.mixer import install, pair_bytes
from hildanext.models.runs import Runs
from hildanext.models.shape import Shape
from hildanext.models.support import FULL, attention_layers, layer_kinds


class HFDenoiser(nn.Module):
    """A causal LM as Denoiser: logit i predicts token i. attention: auto | dense | sliced | flex; shift: none | clean
    (token i is read from position i-1, a block's first token from the clean stream); block_grid: see core/masks.py;
    edit_ids: the rows of DELETE and INSERT, key_scores: trained scores of keys, where the model has them."""

    def __init__(
        self, model: Any, mask_id: int, *, attention: str = "auto", shift: str = "none", block_grid: str = "global"
    ) -> None:
        super().__init__()
        self.model, self.mask_id = model, mask_id
        self.attention, self.shift, self.block_grid = attention, shift, block_grid
        self.edit_ids: tuple[int, int] | None = None
        self.key_scores: KeyScores | None = None
        self._layout: bool | None = None
        self.looked_into = 0
        self._install()

    def _install(self) -> None:
        attention.install(self.model)
        self.mixers = install(self.model)

    @property
    def vocab_size(self) -> int:
        """V: rows of the output matrix."""
        return int(self.head().shape[0])

    @property
    def config(self) -> Any:
        """The Hugging Face configuration."""
        return self.model.config

    @property
    def window(self) -> int:
        """Longest sequence of the configuration, tokens; 0 where it names none."""
        return Shape.of(self.config).window

    @property
    def exact(self) -> bool:
        """True: a row's numbers do not depend on what shares its forward."""
        return True

    @property
    def takes_layout(self) -> bool:
        """Whether the layers attend to just what a layout or a store gives them; probed once, with four tokens."""
        return self.probe()

    @property
    def end_ids(self) -> frozenset[int]:
        """eos ids of the configuration and of the generation configuration."""
        found: set[int] = set()
        for source in (self.config, getattr(self.model, "generation_config", None)):
            value = getattr(source, "eos_token_id", None)
            found |= set(value) if isinstance(value, list | tuple) else set() if value is None else {int(value)}
        return frozenset(found)

    def state_bytes(self, positions: int) -> int:
        """Key and value bytes of `positions` tokens in all layers; of recurrent layers what they keep of any text."""
        kept = (1 if self.shift == "none" else 2) * pair_bytes(self.mixers, self.dtype)
        return positions * position_bytes(self.config, self.dtype.itemsize) + kept

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.head().device

    @property
    def dtype(self) -> torch.dtype:
        """Dtype of the output matrix and of the features."""
        return self.head().dtype

    def backend(self, length: int, block: int) -> Backend:
        """The attention backend that noisy_features uses at this length and block size, with its reason."""
        found = choose_backend(self.attention, self.device, length, block)
        if found.name == "dense" or self.takes_layout:
            return found
        if self.attention != "auto":
            raise ModelError(
                f"model.attention: {self.attention} replaces the mask, and layers of {self.config.model_type} change"
                " keys or mask themselves; use auto or dense"
            )
        return Backend("dense", f"layers of {self.config.model_type} change keys or mask themselves")

    @torch.no_grad()
    def probe(self) -> bool:
        """takes_layout, from a forward the first time."""
        if self._layout is not None:
            return self._layout
        probe, training = attention.Probe(), self.model.training
        tokens = torch.arange(4, device=self.device)[None] % self.vocab_size
        self.model.eval()
        try:
            unread = torch.ones(1, 1, 1, 1, dtype=torch.bool, device=self.device)
            self.body(tokens, tokens, unread, cache=probe, layout=probe)
        finally:
            self.model.train(training)
        self._layout = probe.passed
        return self._layout

    @contextmanager
    def mixing(self, mixture: Mixture) -> Iterator[None]:
        """A context in which the input of every forward holds the mixture."""
        with self.whole(), MixtureHook(self.model.get_input_embeddings(), mixture):
            yield

    @contextmanager
    def whole(self) -> Iterator[None]:
        """A context in which noisy_features reads both halves with every position in its place, for what looks at
        positions inside the network; outside, noised blocks that nobody reads are left out."""
        self.looked_into += 1
        try:
            yield
        finally:
            self.looked_into -= 1

    def head(self) -> Tensor:
        """The output matrix [V, D]."""
        weight: Tensor = self.model.get_output_embeddings().weight
        return weight

    def forward(self, kind: str | Tensor, *args: Any, **keywords: Any) -> Tensor:
        """forward("noisy_features" | "causal_features" | "logits", ...) computes that; with tokens first: logits."""
        if not isinstance(kind, str):
            return self._logits(kind, *args, **keywords)
        if kind == "noisy_features":
            return self._noisy(*args, **keywords)
        return (self._causal if kind == "causal_features" else self._logits)(*args, **keywords)

    def noisy_features(self, noisy: Tensor, batch: Batch, block: int, select: Tensor) -> Tensor:
        """Hidden states [n, D], after the final norm, that predict the tokens at `select` [B, L] bool from x_t = noisy
        [B, L]. One forward over [x_t ; x_0], over x_t alone when block <= 0 or >= L; noisy and select [k B, L]: k views
        of each row, view after view, beside one x_0.
        Source: LLaDA2.0 arXiv:2512.15745 eq. 2-3."""
        features: Tensor = self("noisy_features", noisy, batch, block, select)
        return features

    def causal_features(self, batch: Batch, select: Tensor) -> Tensor:
        """Hidden states [n, D] of the AR model, causal within documents, that predict the tokens at `select` [B, L]
        bool: each the state one position earlier. ValueError where a document's first position is selected."""
        features: Tensor = self("causal_features", batch, select)
        return features

    def body(
        self,
        tokens: Tensor,
        positions: Tensor,
        mask: Tensor,
        cache: Cache | None = None,
        layout: Layout | None = None,
        runs: Runs | None = None,
    ) -> Tensor:
        """Hidden states [B, Q, D] after the final norm. mask [B or 1, 1, Q, K] bool or additive float; it is ignored
        where a layout is given. runs: order of recurrent layers; None: rows are texts, from their beginning or from
        what the cache keeps of them. ModelError where positions say otherwise."""
        if mask.dtype != torch.bool:
            mask = mask.to(self.dtype)
        extra: dict[str, Any] = {} if layout is None else {"layout": layout}
        given: Any = mask
        if self.mixers:
            extra["runs"] = self._order(positions, cache) if runs is None else runs
            given = {"linear_attention": None} | dict.fromkeys(layer_kinds(self.config)) | {FULL: mask}
        with dense_kernel(self.device):
            output = self.model.base_model(
                input_ids=tokens, attention_mask=given, position_ids=positions, past_key_values=cache,
                use_cache=cache is not None, **extra,
            )  # fmt: skip
        hidden: Tensor = output.last_hidden_state
        return hidden

    def _order(self, positions: Tensor, cache: Cache | None) -> Runs:
        if isinstance(cache, attention.Keeping):
            return Runs.decoding(cache.places, cache.blocks, positions, self.shift == "clean")
        return Runs.of_positions(positions)

    def _logits(
        self,
        tokens: Tensor,
        positions: Tensor,
        mask: Tensor,
        cache: Cache | None = None,
        select: Tensor | None = None,
        layout: Layout | None = None,
    ) -> Tensor:
        hidden = self.body(tokens, positions, mask, cache, layout)
        if self.shift == "clean":
            hidden = _shifted(hidden, positions, select)
        return (hidden if select is None else hidden[select]) @ self.head().T

    def _causal(self, batch: Batch, select: Tensor) -> Tensor:
        if bool((select & (batch.positions() == 0)).any()):
            raise ValueError("causal_features: select holds a document's first position, which nothing predicts")
        mask, layout = plan_causal(self.backend(batch.tokens.shape[1], 1), batch.docs)
        runs = Runs.causal(batch.docs) if self.mixers else None
        hidden = self.body(batch.tokens, batch.positions(), additive(mask, self.dtype), layout=layout, runs=runs)
        return hidden[:, :-1][select[:, 1:]]

    def _noisy(self, noisy: Tensor, batch: Batch, block: int, select: Tensor) -> Tensor:
        length, views = noisy.shape[1], len(noisy) // len(batch.tokens)
        block = block if 0 < block < length else length
        backend = self.backend(length, block)
        apart = bool(self.mixers or self.looked_into) or batch.opened is not None
        if block < length and backend.name == "dense" and not apart:
            rule = BlockDiffusionRule.of(length, block, batch.docs, self.block_grid, batch.groups)
            return self._compact(noisy, batch, block, select, Compaction.of(rule, select))
        batch = batch if views == 1 else repeated(batch, views)
        mask, layout = plan_diffusion(backend, batch.docs, block, self.block_grid, batch.groups, batch.opened)
        tokens, positions = noisy, batch.positions()
        if block < length:
            tokens, positions = torch.cat([noisy, batch.tokens], 1), torch.cat([positions, positions], 1)
        # a bool mask would be turned into one such bias per layer, and kept for the backward pass
        runs = self._read(batch, block) if self.mixers else None
        hidden = self.body(tokens, positions, additive(mask, self.dtype), layout=layout, runs=runs)
        rows, columns = select.nonzero(as_tuple=True)
        return hidden[rows, self._read_at(batch, block)[rows, columns]]

    def _compact(self, noisy: Tensor, batch: Batch, block: int, select: Tensor, compaction: Compaction) -> Tensor:
        positions = batch.positions().gather(1, compaction.place % noisy.shape[1])
        tokens = compaction.tokens(noisy, batch.tokens)
        hidden = self.body(tokens, positions, additive(compaction.mask(), self.dtype))
        rows, columns = select.nonzero(as_tuple=True)
        return hidden[compaction.columns(rows, self._read_at(batch, block)[rows % len(batch.tokens), columns])]

    def _read_at(self, batch: Batch, block: int) -> Tensor:
        if self.shift == "none":
            return torch.arange(batch.tokens.shape[1], device=batch.docs.device).expand_as(batch.docs)
        return shifted_places(batch.docs, block, self.block_grid, batch.groups)

    def _read(self, batch: Batch, block: int) -> Runs:
        if block >= batch.tokens.shape[1]:
            return Runs.causal(batch.docs)
        return Runs.diffusion(batch.docs, block, self.block_grid, batch.groups)


def _shifted(hidden: Tensor, positions: Tensor, select: Tensor | None) -> Tensor:
    asked = torch.ones_like(positions, dtype=torch.bool) if select is None else select
    if bool((asked[:, 0] & (positions[:, 0] != 0)).any()):
        raise ValueError("denoiser: with shift the forward must begin before the first selected position")
    before = torch.cat([hidden[:, :1], hidden[:, :-1]], dim=1)
    return torch.where((positions == 0)[..., None], hidden, before)


def network(denoiser: Denoiser) -> Any:
    """The Hugging Face network of a denoiser, for what needs more than the protocol says: adapters, export, AR
    generation. ModelError for a model of another kind."""
    return hugging_face(denoiser).model


def hugging_face(denoiser: Denoiser) -> HFDenoiser:
    """The denoiser as an HFDenoiser. ModelError for a model of another kind."""
    if isinstance(denoiser, HFDenoiser):
        return denoiser
    raise ModelError(
        f"model: {type(denoiser).__name__} holds no Hugging Face network, which adapters, noise on the embedding,"
        " exports, parity and AR generation need; use a model of kind hf"
    )


def module(denoiser: Denoiser) -> nn.Module:
    """The denoiser as the torch module whose parameters train. ModelError for a kind without parameters."""
    if isinstance(denoiser, nn.Module):
        return denoiser
    raise ModelError(f"model: {type(denoiser).__name__} has no parameters to train; use a model of a kind that trains")


def position_bytes(config: Any, size: int) -> int:
    """Bytes of keys and values that one token costs in all layers of a Hugging Face configuration; size: bytes of one
    element. Latent attention (fewer bytes) is not known to it."""
    shape = Shape.of(config)
    return 2 * attention_layers(config) * shape.kv_heads * shape.head_dim * size
