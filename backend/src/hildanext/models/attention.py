# The attention function of a loaded model, the layouts that replace a mask, and what a layer asks of a decoder's store.
# Entry points: install, Layout, Cache, Keeping, Probe; diffusion_slices, document_slices, causal_slices, flex_layout.
# A Slices object names, for every query range, the key ranges it sees in full; no mask tensor exists. FlexLayout is one
# compiled kernel that skips tiles no query sees: for GPUs only, on the CPU it has no backward. A layout travels to the
# attention layers as the keyword `layout`; without it the model attends as transformers' "sdpa" does.
"""Attention by layouts, registered with transformers' AttentionInterface."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from hildanext.core.masks import BlockDiffusionRule, block_ids, mask_mod

NAME = "hildanext"
Range = tuple[int, int]


class Layout(Protocol):
    """How queries attend to keys where no mask tensor is given."""

    def attend(self, query: Tensor, key: Tensor, value: Tensor, scale: float | None) -> Tensor:
        """query, key, value [B, H, Q, D] with equal heads -> [B, H, Q, D]."""
        ...


class Cache(Protocol):
    """What a layer asks of the decoder's store in one forward; nothing else may know what a layer's state is."""

    def update(self, key: Tensor, value: Tensor, layer_idx: int, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        """This forward's key and value [B, H, Q, D] of one layer -> those its queries attend to, [B, H, K, D]."""
        ...

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Committed positions of the longest row; transformers asks where it is given no positions."""
        ...


@runtime_checkable
class Keeping(Cache, Protocol):
    """A cache that keeps states of another kind, too. A layer whose state has a fixed size (convolution tail,
    recurrence) asks for the state at each place's start and gives one at each block's end, of which the store keeps the
    one at which a commit ends: a fused forward holds final tokens before open ones (models/mixer.py)."""

    places: tuple[Any, ...]
    blocks: tuple[int, ...]

    def state(self, layer: int, kind: type[Any]) -> Any:
        """What the store keeps for one layer, made at its first use."""
        ...


@dataclass(frozen=True)
class Slice:
    """Queries [start, stop) that see all of the key ranges, or, if causal, the one key range up to themselves. ends:
    where the blocks of a group end within the queries; the last key range is then the queries' own, and seen up to the
    end of a query's block."""

    queries: Range
    keys: tuple[Range, ...]
    causal: bool = False
    ends: tuple[int, ...] = ()


@dataclass(frozen=True)
class Slices:
    """Rows that share their slices, attended together. rows[g] lists the rows of group g, slices[g] its slices, whose
    query ranges are consecutive and cover the sequence."""

    rows: tuple[tuple[int, ...], ...]
    slices: tuple[tuple[Slice, ...], ...]

    def attend(self, query: Tensor, key: Tensor, value: Tensor, scale: float | None) -> Tensor:
        """query, key, value [B, H, Q, D] -> [B, H, Q, D], one unmasked SDPA call per part."""
        if len(self.rows) == 1:
            return _group(query, key, value, self.slices[0], scale)
        outputs = [
            _group(query[list(rows)], key[list(rows)], value[list(rows)], slices, scale)
            for rows, slices in zip(self.rows, self.slices, strict=True)
        ]
        order = torch.tensor([row for rows in self.rows for row in rows], device=query.device)
        return torch.cat(outputs)[order.argsort()]


def _group(query: Tensor, key: Tensor, value: Tensor, slices: tuple[Slice, ...], scale: float | None) -> Tensor:
    outputs = [
        scaled_dot_product_attention(
            query[:, :, slice(*part.queries)],
            _ranges(key, part.keys),
            _ranges(value, part.keys),
            attn_mask=_stairs(part, query) if len(part.ends) > 1 else None,
            is_causal=part.causal,
            scale=scale,
        )
        for part in slices
    ]
    return torch.cat(outputs, dim=2)


def _stairs(part: Slice, query: Tensor) -> Tensor:
    start, stop = part.queries
    before = sum(last - first for first, last in part.keys[:-1])
    mask, begin = torch.zeros(stop - start, before + stop - start, dtype=query.dtype, device=query.device), start
    for end in part.ends[:-1]:
        mask[begin - start : end - start, before + end - start :] = float("-inf")
        begin = end
    return mask


def _ranges(tensor: Tensor, ranges: tuple[Range, ...]) -> Tensor:
    parts = [tensor[:, :, slice(*found)] for found in ranges if found[0] < found[1]]
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim=2)


def _spans(ids: list[tuple[int, ...]]) -> list[Range]:
    cuts = [0, *(i for i in range(1, len(ids)) if ids[i] != ids[i - 1]), len(ids)]
    return list(zip(cuts[:-1], cuts[1:], strict=True))


def _grouped(rows: list[tuple[Slice, ...]]) -> Slices:
    groups: dict[tuple[Slice, ...], list[int]] = {}
    for row, slices in enumerate(rows):
        groups.setdefault(slices, []).append(row)
    return Slices(tuple(tuple(found) for found in groups.values()), tuple(groups))


def document_slices(docs: Tensor) -> Slices:
    """docs [B, L] int: every position sees all of its document (block size L)."""
    rows = [_spans([(doc,) for doc in row]) for row in docs.tolist()]
    return _grouped([tuple(Slice(span, (span,)) for span in row) for row in rows])


def causal_slices(docs: Tensor) -> Slices:
    """docs [B, L] int: every position sees itself and what precedes it in its document (the AR model)."""
    rows = [_spans([(doc,) for doc in row]) for row in docs.tolist()]
    return _grouped([tuple(Slice(span, (span,), causal=True) for span in row) for row in rows])


def diffusion_slices(docs: Tensor, block: int, grid: str = "global", groups: Tensor | None = None) -> Slices:
    """docs [B, L] int: the block-diffusion rule over [noisy | clean] as slices; groups: Batch.groups, each one slice.
    Source: LLaDA2.0 arXiv:2512.15745 eq. 3; groups: arXiv:2606.29215."""
    blocks = block_ids(docs.shape[1], block, docs, grid).expand_as(docs)
    given = (docs.tolist(), blocks.tolist(), (blocks if groups is None else groups).tolist())
    return _grouped([_diffusion_row(*row) for row in zip(*given, strict=True)])


def _diffusion_row(docs: list[int], blocks: list[int], groups: list[int]) -> tuple[Slice, ...]:
    length = len(docs)
    begin = {stop - 1: start for start, stop in _spans([(doc,) for doc in docs])}
    first, starts = length, [0] * length
    for index in reversed(range(length)):
        first = begin.get(index, first)
        starts[index] = first
    spans = _spans(list(zip(docs, blocks, strict=True)))
    stops = [b for _, b in spans]
    noisy = [
        Slice((a, b), ((length + starts[a], length + a), (a, b)), ends=tuple(stop for stop in stops if a < stop <= b))
        for a, b in _spans(list(zip(docs, groups, strict=True)))
    ]
    clean = [Slice((length + a, length + b), ((length + starts[a], length + b),)) for a, b in spans]
    return (*noisy, *clean)


@cache
def kernel() -> Any:
    """flex_attention, compiled once per process."""
    from torch.nn.attention.flex_attention import flex_attention

    return torch.compile(flex_attention)


@dataclass(frozen=True)
class FlexLayout:
    """A FlexAttention BlockMask as an attention layout."""

    block_mask: Any

    def attend(self, query: Tensor, key: Tensor, value: Tensor, scale: float | None) -> Tensor:
        """query, key, value [B, H, 2L, D] -> [B, H, 2L, D]."""
        output: Tensor = kernel()(query, key, value, block_mask=self.block_mask, scale=scale)
        return output


def flex_layout(docs: Tensor, block: int, grid: str = "global", groups: Tensor | None = None) -> FlexLayout:
    """The block-diffusion rule for docs [B, L] int, as tiles of which FlexAttention computes the visible ones."""
    from torch.nn.attention.flex_attention import create_block_mask

    rows, length = docs.shape
    rule = BlockDiffusionRule.of(length, block, docs, grid, groups)
    return FlexLayout(create_block_mask(mask_mod(rule), rows, None, 2 * length, 2 * length, device=str(docs.device)))


class Probe:
    """A layout and cache that only watches one forward: whether every layer attends, through `attention`, to the very
    keys and values that the cache gave it, with no bias of its own in the mask. Families that keep latents, repeat or
    split what they cached, or put key biases into the mask are exact with a mask alone."""

    def __init__(self) -> None:
        self.layers: set[int] = set()
        self.calls, self.plain = 0, True
        self._held: tuple[Tensor, ...] = ()

    @property
    def passed(self) -> bool:
        """What the forward showed; False before one."""
        return self.plain and 0 < len(self.layers) <= self.calls

    def update(self, key: Tensor, value: Tensor, layer_idx: int, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        """Remember and return them."""
        self._held = (key, value)
        self.layers.add(layer_idx)
        return key, value

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """0: nothing is committed."""
        return 0

    def see(self, key: Tensor, value: Tensor, mask: Tensor | None) -> None:
        """Compare what a layer attends to with what it was given."""
        same = all(
            one.shape == held.shape and torch.equal(one, held)
            for one, held in zip((key, value), self._held, strict=False)
        )
        self.plain &= bool(self._held) and same and (mask is None or mask.numel() == 1)
        self.calls += 1

    def attend(self, query: Tensor, key: Tensor, value: Tensor, scale: float | None) -> Tensor:
        """Every query sees every key."""
        return scaled_dot_product_attention(query, key, value, scale=scale)


def attention(
    module: Any, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **keywords: Any
) -> tuple[Tensor, None]:
    """The function transformers calls in every layer: by `layout` where one is given, else SDPA with the mask."""
    from transformers.integrations.sdpa_attention import repeat_kv, sdpa_attention_forward

    layout: Layout | None = keywords.pop("layout", None)
    if layout is None:
        output, _ = sdpa_attention_forward(module, query, key, value, attention_mask, **keywords)
        return output, None
    if isinstance(layout, Probe):
        layout.see(key, value, attention_mask)
    groups = query.shape[1] // key.shape[1]
    output = layout.attend(query, repeat_kv(key, groups), repeat_kv(value, groups), keywords.get("scaling"))
    return output.transpose(1, 2).contiguous(), None


def install(model: Any) -> None:
    """Make `model` (a Hugging Face model) attend through `attention`; its own masks stay those of "sdpa"."""
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import sdpa_mask

    AttentionInterface.register(NAME, attention)
    AttentionMaskInterface.register(NAME, sdpa_mask)
    model.set_attn_implementation(NAME)
