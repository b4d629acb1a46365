# Small denoisers whose every number can be computed another way: a table, a uniform model, one layer of attention.
# Entry points: TableModel, UniformModel, LayerModel, batch_of.
# TableModel and UniformModel return logits as features; their head is the identity. All of them are a StandIn.
"""Stand-in models of the objective tests."""

from __future__ import annotations

import torch
from stand_in import StandIn
from torch import Tensor, nn

from hildanext.core.annealing import opened_only
from hildanext.core.batches import repeated
from hildanext.core.masks import block_diffusion_mask, causal_mask, document_mask
from hildanext.core.types import Batch


def batch_of(tokens: Tensor, learn: Tensor | None = None, docs: Tensor | None = None, ids: tuple = ()) -> Batch:
    learn = torch.ones_like(tokens, dtype=torch.bool) if learn is None else learn
    return Batch(tokens, learn, torch.zeros_like(tokens) if docs is None else docs, ids)


class UniformModel(StandIn):
    """Every token equally likely."""

    def __init__(self, vocabulary: int, mask_id: int | None = None) -> None:
        super().__init__(vocab_size=vocabulary, mask_id=vocabulary - 1 if mask_id is None else mask_id)

    def noisy_features(self, noisy: Tensor, batch: Batch, block: int, select: Tensor) -> Tensor:
        return torch.zeros(int(select.sum()), self.vocab_size)

    def causal_features(self, batch: Batch, select: Tensor) -> Tensor:
        return torch.zeros(int(select.sum()), self.vocab_size)


class TableModel(StandIn, nn.Module):
    """logits of a position = table[hash of the earlier clean blocks, code of the noisy block, place in the block]; one
    document per row. `agree`: the table ignores its context, so that all orders give the same product."""

    def __init__(self, tokens: int, block: int, agree: bool = False, prefixes: int = 61) -> None:
        super().__init__(vocab_size=tokens + 1, mask_id=tokens, dtype=torch.float64)
        rng = torch.Generator().manual_seed(7)
        shape = (prefixes, (tokens + 1) ** block, block, tokens + 1)
        table = 1.5 * torch.randn(shape, generator=rng, dtype=torch.float64)
        self.table = nn.Parameter(table[:1, :1].expand(shape).clone() if agree else table)
        self.block, self.tokens, self.prefixes = block, tokens, prefixes

    def noisy_features(self, noisy: Tensor, batch: Batch, block: int, select: Tensor) -> Tensor:
        rows, length = noisy.shape
        assert block == self.block or (not 0 < block < length and self.block == length)
        clean = batch.tokens.view(rows, -1, self.block)
        powers = (self.tokens + 1) ** torch.arange(self.block)
        code = (noisy.view(rows, -1, self.block) * powers).sum(-1)
        places = torch.arange(length).view(1, -1, self.block) + 3
        part = ((clean + 1) * places * places).sum(-1)
        prefix = (part.cumsum(1) - part) % self.prefixes
        return self.table[prefix, code].reshape(rows, length, -1)[select]

    def log_probability(self, prefix: list[int], noisy_block: list[int], place: int, token: int) -> float:
        """The same number by hand, [MASK] excluded."""
        code = sum(value * (self.tokens + 1) ** i for i, value in enumerate(noisy_block))
        hashed = sum((value + 1) * (i + 3) ** 2 for i, value in enumerate(prefix)) % self.prefixes
        return float(self.table.detach()[hashed, code, place, : self.tokens].log_softmax(0)[token])


class LayerModel(StandIn, nn.Module):
    """Embeddings, two rounds of single-head attention under core.masks, a separate head."""

    def __init__(
        self, vocabulary: int = 12, width: int = 16, seed: int = 0, dtype: torch.dtype = torch.float64
    ) -> None:
        super().__init__(vocab_size=vocabulary, mask_id=vocabulary - 1, dtype=dtype)
        rng = torch.Generator().manual_seed(seed)
        shapes = {"embedding": (vocabulary, width), "places": (64, width), "output": (vocabulary, width)}
        shapes |= {f"{name}{layer}": (width, width) for name in "qkvm" for layer in (0, 1)}
        self.weights = nn.ParameterDict(
            {name: nn.Parameter(torch.randn(shape, generator=rng, dtype=dtype) * 0.5) for name, shape in shapes.items()}
        )

    def head(self) -> Tensor:
        return self.weights["output"]

    def body(self, tokens: Tensor, positions: Tensor, mask: Tensor) -> Tensor:
        w, hidden = self.weights, self.weights["embedding"][tokens] + self.weights["places"][positions]
        for layer in (0, 1):
            scores = (hidden @ w[f"q{layer}"]) @ (hidden @ w[f"k{layer}"]).transpose(1, 2) / 4
            seen = scores.masked_fill(~mask[:, 0], -torch.inf).softmax(-1) @ (hidden @ w[f"v{layer}"])
            hidden = torch.tanh(hidden + seen + seen @ w[f"m{layer}"])
        return hidden

    def noisy_features(self, noisy: Tensor, batch: Batch, block: int, select: Tensor) -> Tensor:
        batch = repeated(batch, len(noisy) // len(batch.tokens))
        length, places = noisy.shape[1], batch.positions()
        if not 0 < block < length:
            return self.body(noisy, places, opened_only(document_mask(batch.docs), batch.opened))[select]
        mask = block_diffusion_mask(length, block, batch.docs, self.block_grid, batch.groups)
        mask = opened_only(mask, batch.opened)
        hidden = self.body(torch.cat([noisy, batch.tokens], 1), torch.cat([places, places], 1), mask)
        return hidden[:, :length][select]

    def causal_features(self, batch: Batch, select: Tensor) -> Tensor:
        return self.body(batch.tokens, batch.positions(), causal_mask(batch.docs))[:, :-1][select[:, 1:]]
