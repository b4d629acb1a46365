# A denoiser whose forward is llama.cpp's; policies, canvas, batching and events see no difference.
# Entry points: LlamaCppDenoiser (LlamaCppDenoiser.open).
# Letters: B rows, Q positions of a row, K keys, n selected positions, V vocabulary.
"""Denoiser over llama.cpp."""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from hildanext.errors import ModelError
from hildanext.models.decoding_only import DecodesOnly, places_read
from hildanext.models.llamacpp.cells import Cells, Piece, token_bytes
from hildanext.models.llamacpp.library import Weights
from hildanext.models.meta import HildaMeta
from hildanext.models.onnx.denoiser import Rows

FILE_TYPES = {"0": "f32", "1": "f16", "2": "q4_0", "3": "q4_1", "7": "q8_0", "32": "bf16"}


@dataclass
class LlamaCppDenoiser(DecodesOnly):
    """A GGUF file as core.types.Denoiser: logits only, where llama.cpp computes. It takes masks in which a position
    sees its own block and all before it, no layout, and has no features: it decodes, nothing else."""

    refusal = "a GGUF file under llama.cpp decodes and gives no likelihoods; use its folder"
    weights: Weights
    stored: str
    keys: str
    meta: HildaMeta
    mask_id: int
    shift: str
    block_grid: str
    ends: frozenset[int]
    kind: type[Cells] = field(init=False)

    def __post_init__(self) -> None:
        self.kind = type("Cells", (Cells,), {"weights": self.weights, "keys": self.keys})

    @classmethod
    def open(cls, file: Path, keys: str = "") -> LlamaCppDenoiser:
        """The denoiser of a file that `hildanext export --format gguf` wrote, on torch's number of threads. keys:
        float32 or float16; empty: float32 where the weights are. ModelError for another file."""
        weights = Weights.open(file)
        told, stored = weights.fact("hildanext.meta"), FILE_TYPES.get(weights.fact("general.file_type") or "", "mixed")
        ends = weights.fact("hildanext.ends")
        if not told or not ends:
            raise ModelError(f"{file}: no export of this version; write it with `hildanext export --format gguf`")
        meta = HildaMeta.model_validate_json(told)
        if meta.mask_id is None:
            raise ModelError(f"{file}: names no [MASK]; export the model again")
        return cls(
            weights, stored, keys or ("float32" if stored == "f32" else "float16"), meta, meta.mask_id, meta.shift,
            meta.block_grid, frozenset(int(one) for one in ends.split() if one != "none"),
        )  # fmt: skip

    @property
    def vocab_size(self) -> int:
        """V."""
        return self.weights.vocabulary

    @property
    def window(self) -> int:
        """Longest sequence, tokens."""
        return self.weights.window

    @property
    def exact(self) -> bool:
        """Whether weights, keys and values are float32."""
        return self.stored == "f32" and self.keys == "float32"

    @property
    def end_ids(self) -> frozenset[int]:
        """Token ids that end a text by the model's own configuration."""
        return self.ends

    def state_bytes(self, positions: int) -> int:
        """Key and value bytes of `positions` tokens in all layers."""
        return positions * token_bytes(self.weights, self.keys)

    def __call__(
        self,
        tokens: Tensor,
        positions: Tensor,
        mask: Tensor,
        cache: Rows | None = None,
        select: Tensor | None = None,
        layout: Any = None,
    ) -> Tensor:
        """tokens, positions [B, Q] int64; mask [B or 1, 1, Q, K] bool; cache: a padded view of the store; select [B, Q]
        bool. Logits [n, V] float32, or [B, Q, V] without select. ValueError for a layout or another mask."""
        if layout is not None or mask.dtype != torch.bool:
            raise ValueError("LlamaCppDenoiser: it takes boolean masks and no layout")
        places = cache.places if cache else [_Place(row, 0, tokens.shape[1]) for row in range(len(tokens))]
        read, order = self._read(positions, select)
        rows = [
            self._pieces(place, tokens[row], positions[row], mask[row % len(mask), 0], read[row])
            for row, place in enumerate(places)
        ]
        state = cache.state(0, self.kind) if cache else self.kind(len(tokens), tokens.shape[1])
        found = state.run(rows, self.vocab_size, int(read.max()) + 1 if read.numel() else 0)
        found = found if order is None else found[order]
        return found.view(*tokens.shape, -1) if select is None else found

    def _pieces(self, place: Any, tokens: Tensor, positions: Tensor, mask: Tensor, read: Tensor) -> list[Piece]:
        size, start = place.size, place.start
        stops = mask[:size].sum(dim=1)
        wanted = torch.arange(mask.shape[1]) < stops[:, None]
        ends = [0, *(torch.nonzero(stops[1:] != stops[:-1])[:, 0] + 1).tolist(), size]
        seen = [int(stops[end - 1]) - start for end in ends[1:]]
        if seen != ends[1:] or bool((wanted != mask[:size]).any()) or positions[:size].tolist() != [
            *range(start, start + size)
        ]:  # fmt: skip
            raise ValueError("LlamaCppDenoiser: a position sees its own block and all before it, places have no gap")
        own, at = tokens.tolist(), read.tolist()
        return [Piece(place.slot, start + a, own[a:b], at[a:b]) for a, b in pairwise(ends)]

    def _read(self, positions: Tensor, select: Tensor | None) -> tuple[Tensor, Tensor | None]:
        asked = torch.ones_like(positions, dtype=torch.bool) if select is None else select
        if self.shift == "none":
            return torch.where(asked, asked.flatten().cumsum(0).view_as(positions) - 1, -1), None
        chosen = places_read(positions, asked, self.shift)
        places, order = torch.unique(chosen, return_inverse=True)
        read = torch.full((positions.numel(),), -1)
        read[places] = torch.arange(len(places))
        return read.view_as(positions), order


class _Place(NamedTuple):
    slot: int
    start: int
    size: int
