# VFM on text: a noise adapter that lets a frozen discrete model write a block in one look; its decoder decides what
# of it stays.
# Entry points: Vfm (plugin), VfmModel, Proposing (the child with proposals in it).
# The shift is a function of the canvas alone (blocks that hold nothing but [MASK]): cached texts equal uncached ones.
# Letters: B rows, L positions, Q queries, D width of the child, n scored positions, V vocabulary.
"""Latent type vfm."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, ClassVar, Literal, cast

import torch
from pydantic import Field
from torch import Tensor
from torch.nn.functional import cross_entropy

from hildanext.core.head import exclude_token
from hildanext.core.latent import Ground, LatentModel, LatentType, report
from hildanext.core.latents.layers import Sight
from hildanext.core.latents.vfm import NoiseAdapter, fresh, trajectory
from hildanext.core.masks import additive, block_ids
from hildanext.core.types import Batch, Denoiser, LossReport
from hildanext.decoding.store import View
from hildanext.errors import ConfigError, DecodeError, ModelError
from hildanext.models.backend import Backend, plan_diffusion
from hildanext.models.denoiser import HFDenoiser, hugging_face


class Vfm(LatentType):
    """The adapter's loss: -log p of a text by one look, KL to the prior, consistency of one look with several.
    Source: VFM arXiv:2603.07276; the text version is ours."""

    parent: ClassVar[Literal["never", "training", "always"]] = "always"
    proposes: ClassVar[bool] = True
    block: int = Field(16, ge=1, description="block size, tokens: the one the child is decoded with")
    sampler: str = Field("proposal", description="proposal: the block decoder writes the texts")
    width: int = Field(64, ge=1, description="width of the adapter")
    layers: int = Field(2, ge=1, description="layers of the adapter, a count")
    heads: int = Field(2, ge=1, description="attention heads of the adapter, a count")
    kl: float = Field(1e-4, ge=0, description="lambda, weight of the KL of a position's shift to the prior")
    data: float = Field(0.2, ge=0, description="weight of the text itself, predicted by one look")
    consistency: float = Field(1.0, ge=0, description="weight of what several looks of the child write")
    looks: int = Field(4, ge=1, description="looks of the child, a count")
    tau: float = Field(0.7, ge=0, le=1, description="probability from which a look fills a position")
    prior: float = Field(0.1, gt=0, description="deviation of the prior, in root mean squares of the embeddings")
    begin: float = Field(0.02, gt=0, description="deviation of the first weights of mu, not 0")

    def build(self, ground: Ground) -> LatentModel:
        """A new adapter."""
        if self.width % (2 * self.heads):
            raise ConfigError(
                f"latent.model: width {self.width} is no multiple of 2 x heads ({self.heads}); change one"
            )
        return VfmModel(self, ground)


class VfmModel(LatentModel):
    """adapter: all that trains."""

    samplers: ClassVar[tuple[str, ...]] = ("proposal",)

    def __init__(self, settings: Vfm, ground: Ground) -> None:
        super().__init__(ground)
        self.settings = settings
        scale = 1.0
        if ground.parent is not None:
            child = hugging_face(ground.parent)
            if child.shift != "none":
                raise ConfigError("model.path: its logits are shifted by one token; a proposal needs shift none")
            scale = float(child.model.get_input_embeddings().weight.float().pow(2).mean().sqrt())
        sizes = (ground.hidden, settings.width, settings.layers, settings.heads)
        self.adapter = NoiseAdapter(sizes, scale, settings.prior, settings.begin)

    @property
    def child(self) -> HFDenoiser:
        """The frozen discrete model."""
        if self.ground.parent is None:
            raise ModelError("vfm: the frozen child is not there; its copy belongs into the model's folder")
        return hugging_face(self.ground.parent)

    def proposing(self) -> Denoiser | None:
        """The child with proposals; None where it is not there yet (a model that is only counted)."""
        return None if self.ground.parent is None else cast(Denoiser, Proposing(self))

    def loss(self, batch: Batch, done: float, rng: torch.Generator) -> LossReport:
        """All blocks at once, each behind its clean text; in evaluation also `without`: consistency with no shift."""
        settings, tokens = self.settings, batch.learn.sum().float()
        mean, deviation = self.moments(batch)
        shift = mean + deviation * torch.randn(mean.shape, generator=rng).to(mean) if self.training else mean
        target = self.endpoint(batch)
        logits = self.logits(batch, self._masked(batch), shift).float()
        terms = {
            "data": (cross_entropy(logits, batch.tokens[batch.learn], reduction="sum"), tokens),
            "consistency": (cross_entropy(logits, target[batch.learn], reduction="sum"), tokens),
            "kl": (self.adapter.divergence(mean, deviation)[batch.learn].sum(), tokens),
        }
        weights = {"data": settings.data, "consistency": settings.consistency, "kl": settings.kl, "without": 0.0}
        if not self.training:
            bare = self.logits(batch, self._masked(batch), None).float()
            terms["without"] = (cross_entropy(bare, target[batch.learn], reduction="sum"), tokens)
        return report(terms, weights, tokens)

    def _masked(self, batch: Batch) -> Tensor:
        return batch.tokens.masked_fill(batch.learn, self.child.mask_id)

    def _grid(self, batch: Batch) -> Tensor:
        length = batch.tokens.shape[1]
        return block_ids(length, self.settings.block, batch.docs, self.child.block_grid).expand_as(batch.docs)

    def moments(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """mu and sigma [B, L, D] of every block's positions behind its clean text, 0 in blocks that hold more than
        [MASK]."""
        child, noisy = self.child, self._masked(batch)
        mask, _ = plan_diffusion(Backend("dense", "vfm"), batch.docs, self.settings.block, child.block_grid)
        positions = batch.positions()
        sight = Sight(torch.cat([positions, positions], 1), additive(mask, child.dtype))
        with torch.no_grad():
            embedded = child.model.get_input_embeddings()(torch.cat([noisy, batch.tokens], 1))
        mean, deviation = (one[:, : noisy.shape[1]] for one in self.adapter(embedded, sight))
        keep = fresh(noisy != child.mask_id, _apart(self._grid(batch), batch.docs))[..., None]
        return mean * keep, torch.where(keep, deviation, self.adapter.get_buffer("scale") * self.adapter.prior)

    def logits(self, batch: Batch, noisy: Tensor, shift: Tensor | None) -> Tensor:
        """The child's logits [n, V] at the learned positions, without [MASK]; shift [B, L, D]: added to the embeddings
        of the noisy half."""
        child = self.child
        added = None if shift is None else torch.cat([shift, torch.zeros_like(shift)], 1)
        with child.whole(), adding(child, added):
            features = child.noisy_features(noisy, batch, self.settings.block, batch.learn)
        return exclude_token(features @ child.head().T, child.mask_id)

    @torch.no_grad()
    def endpoint(self, batch: Batch) -> Tensor:
        """[B, L]: what `looks` looks of the child alone write in each block behind its clean text."""
        settings = self.settings
        how = (settings.looks, self.child.mask_id, settings.tau)
        blocks = _apart(self._grid(batch), batch.docs)
        return trajectory(lambda noisy: self.logits(batch, noisy, None), batch.tokens, batch.learn, blocks, how)


def _apart(blocks: Tensor, docs: Tensor) -> Tensor:
    return blocks + docs * (int(blocks.max()) + 1)


@contextmanager
def adding(child: HFDenoiser, shift: Tensor | None) -> Iterator[None]:
    """A context in which the child's embeddings [B, Q, D] have the shift added; None: nothing."""
    if shift is None:
        yield
        return
    hook = child.model.get_input_embeddings().register_forward_hook(lambda module, given, output: output + shift)
    try:
        yield
    finally:
        hook.remove()


class Proposing:
    """A Denoiser: the child, with the adapter's mean added to [MASK] in blocks that hold nothing else. The adapter's
    keys and values lie in the same store, in layers behind the child's."""

    def __init__(self, model: VfmModel) -> None:
        self.model, self.child = model, model.child

    def __getattr__(self, name: str) -> Any:
        return getattr(self.child, name)  # all else is the child's

    def state_bytes(self, positions: int) -> int:
        """The child's and the adapter's."""
        own = 2 * self.model.settings.layers * self.model.settings.width * self.child.dtype.itemsize
        return self.child.state_bytes(positions) + positions * own

    def __call__(
        self, tokens: Tensor, positions: Tensor, mask: Tensor, cache: Any = None, select: Tensor | None = None,
        layout: Any = None,
    ) -> Tensor:  # fmt: skip
        """Logits as core.types.Denoiser says. DecodeError under kv, and for blocks of another size than trained."""
        block = self.model.settings.block
        if cache is not None and not isinstance(cache, View):
            raise DecodeError("kv: proposals need the keys of all text before a block; leave kv out")
        if cache is not None and any(size != block for size in cache.blocks):
            raise DecodeError(f"block: the proposals were trained at blocks of {block} tokens; leave it out")
        real, blocks, masked = (
            self._real(tokens, mask, cache),
            self._blocks(positions, cache),
            tokens == self.child.mask_id,
        )
        keep = fresh(real & ~masked, blocks)
        full = fresh(real & masked, blocks)
        shift = None
        # a block that is neither is not shifted, and cannot be committed from this forward: it needs no keys of ours
        if bool((real & (keep | full)).any()):
            embedded = self.child.model.get_input_embeddings()(tokens)
            mean, _ = self.model.adapter(embedded, Sight(positions, mask, layout, cache, self.model.ground.layers))
            shift = mean * keep[..., None]
        with adding(self.child, shift):
            found: Tensor = self.child(tokens, positions, mask, cache, select, layout)
        return found

    @staticmethod
    def _real(tokens: Tensor, mask: Tensor, cache: Any) -> Tensor:
        if cache is None:  # what nobody sees only fills the row
            seen = mask if mask.dtype == torch.bool else mask == 0
            return seen[:, 0].any(1).expand_as(tokens)
        real = torch.zeros_like(tokens, dtype=torch.bool)
        for place in cache.places:
            real[place.row, place.offset : place.offset + place.size] = True
        return real

    def _blocks(self, positions: Tensor, cache: Any) -> Tensor:
        blocks = positions // self.model.settings.block
        if cache is None or len(cache.places) == len(positions):
            return blocks
        row = torch.zeros_like(positions)
        for number, place in enumerate(cache.places):  # end to end in one row
            row[place.row, place.offset : place.offset + place.size] = number
        return blocks + row * (int(blocks.max()) + 1)
