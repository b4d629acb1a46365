# A denoiser whose forward is an onnxruntime session over an exported step; policies, canvas, batching and events see
# no difference. onnxruntime is imported when a session is opened, not before.
# Entry points: OnnxDenoiser (OnnxDenoiser.open), Columns (what it keeps of committed tokens), runtime.
# Letters: B rows, Q positions of a row, K keys, P cells of the past, n selected positions, V vocabulary, S slots.
"""Denoiser over onnxruntime."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor

from hildanext.errors import ModelError, first_line
from hildanext.models.decoding_only import DecodesOnly, places_read
from hildanext.models.onnx.facts import MODEL, Facts

CELLS = 64
Kind = TypeVar("Kind")


class Rows(Protocol):
    """What it reads of the decoder's store in a forward: which slots, from where on, and each layer's state."""

    places: Sequence[Any]

    def state(self, layer: int, kind: type[Kind]) -> Kind:
        """The state of one layer, made at its first use."""
        ...


class Columns:
    """Keys and values [S, H, P, D] of one layer (a LayerState of the store). P grows by 64 cells as text comes, so that
    the rows of a forward are whole tensors, handed to the session without a copy, and little of them is unused."""

    def __init__(self, slots: int, capacity: int) -> None:
        self.slots, self.capacity = slots, capacity
        self.held: tuple[Tensor, ...] = ()

    def rows(self, first: int, count: int, shape: tuple[int, int]) -> tuple[Tensor, Tensor]:
        """Keys and values [count, H, P, D] of consecutive slots; shape: H and D of the model. P is at least 1."""
        if not self.held:
            self._allot(0, shape, 0)
        return self.held[0][first : first + count], self.held[1][first : first + count]

    def append(self, places: Sequence[Any], *new: Tensor) -> None:
        """Write keys and values [B, H, Q, D] behind each row's start."""
        self._reach(max(start + size for _, start, size, _, _ in places), (new[0].shape[1], new[0].shape[3]))
        for held, one in zip(self.held, new, strict=True):
            for slot, start, size, row, _ in places:
                held[slot, :, start : start + size] = one[row, :, :size]

    def keep(self, slot: int, start: int, stop: int) -> tuple[Tensor, ...]:
        """Copies [H, stop - start, D] of a slot's committed cells."""
        return tuple(held[slot, :, start:stop].clone() for held in self.held)

    def put(self, slot: int, start: int, kept: Sequence[Tensor]) -> None:
        """Write what `keep` gave from cell `start` on."""
        self._reach(start + kept[0].shape[1], (kept[0].shape[0], kept[0].shape[2]))
        for held, one in zip(self.held, kept, strict=True):
            held[slot, :, start : start + one.shape[1]] = one

    def _reach(self, cells: int, shape: tuple[int, int]) -> None:
        if not self.held or cells > self.held[0].shape[2]:
            self._allot(cells, shape, self.held[0].shape[2] if self.held else 0)

    def _allot(self, cells: int, shape: tuple[int, int], kept: int) -> None:
        size = max(1, min(self.capacity, -(-cells // CELLS) * CELLS))
        new = tuple(torch.zeros(self.slots, shape[0], size, shape[1]) for _ in range(2))
        for held, one in zip(self.held, new, strict=False):
            rows = min(self.slots, held.shape[0])
            one[:rows, :, :kept] = held[:rows, :, :kept]
        self.held = new

    def commit(self, slot: int, length: int) -> None:
        """Nothing to do: what lies behind the length is hidden by the mask and overwritten."""

    def move(self, source: int, target: int, length: int) -> None:
        """Copy the committed cells."""
        for held in self.held:
            held[target, :, :length] = held[source, :, :length]

    def release(self, slot: int) -> None:
        """Nothing to do: a slot is written before it is read."""

    def grow(self, slots: int, capacity: int, lengths: Sequence[int]) -> None:
        """Room for other slots; the cells that are committed stay."""
        self.slots, self.capacity = slots, capacity
        if self.held:
            kept = max(lengths, default=0)
            self._allot(kept, (self.held[0].shape[1], self.held[0].shape[3]), kept)

    def bytes(self) -> int:
        """Of both tensors."""
        return sum(held.numel() * held.element_size() for held in self.held)


@dataclass
class OnnxDenoiser(DecodesOnly):
    """An exported step as core.types.Denoiser: logits only, on the CPU, in float32 or from quantised weights, whose
    results are not exact. It takes boolean masks and no layout, and has no features: it decodes, nothing else."""

    refusal = "an ONNX export decodes and gives no likelihoods; use the folder it was made of"
    session: Any
    facts: Facts
    mask_id: int
    shift: str = "none"
    block_grid: str = "global"

    @classmethod
    def open(cls, folder: Path, mask_id: int, shift: str, block_grid: str) -> OnnxDenoiser:
        """The denoiser of a folder that `hildanext export --format onnx` wrote, on torch's number of threads.
        ModelError where onnxruntime is missing, the folder is no such export or it holds statistics alone."""
        facts = Facts.read(folder)
        if facts.outputs != "logits":
            raise ModelError(f"{folder}: its graph gives {facts.outputs} only, and decoding needs logits; export those")
        return cls.over(folder / MODEL, facts, mask_id, shift, block_grid)

    @classmethod
    def over(cls, model: Path, facts: Facts, mask_id: int, shift: str, block_grid: str = "global") -> OnnxDenoiser:
        """The same over a graph whose facts are known."""
        return cls(session(model), facts, mask_id, shift, block_grid)

    @property
    def vocab_size(self) -> int:
        """V."""
        return self.facts.vocabulary

    @property
    def window(self) -> int:
        """Longest sequence, tokens; 0 unknown."""
        return self.facts.window

    @property
    def exact(self) -> bool:
        """Whether the weights are float32."""
        return self.facts.weights == "float32"

    @property
    def end_ids(self) -> frozenset[int]:
        """Token ids that end a text by the model's own configuration."""
        return frozenset(self.facts.end_ids)

    def state_bytes(self, positions: int) -> int:
        """Key and value bytes of `positions` tokens in all layers."""
        return positions * 8 * self.facts.layers * self.facts.kv_heads * self.facts.head_dim

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
            raise ValueError("OnnxDenoiser: it takes boolean masks and no layout")
        read = self._read(positions, select)
        states = [cache.state(index, Columns) for index in range(self.facts.layers)] if cache else None
        held = self._held(states, cache, len(tokens))
        starts = [place.start for place in cache.places] if cache else [0] * len(tokens)
        feed = {
            "tokens": tokens.numpy(), "positions": positions.numpy(), "read": read.numpy(),
            "mask": _visible(mask[:, 0].expand(len(tokens), -1, -1), starts, held[0][0].shape[2]).numpy(),
        }  # fmt: skip
        for index, (keys, values) in enumerate(held):
            feed[f"past_key.{index}"], feed[f"past_value.{index}"] = keys.numpy(), values.numpy()
        found = [torch.from_numpy(one) for one in self.session.run(None, feed)]
        for index, state in enumerate(states or ()):
            state.append(cache.places, *found[1 + 2 * index : 3 + 2 * index])  # type: ignore[union-attr]
        return found[0].view(*tokens.shape, -1) if select is None else found[0][: int(select.sum())]

    def _read(self, positions: Tensor, select: Tensor | None) -> Tensor:
        asked = torch.ones_like(positions, dtype=torch.bool) if select is None else select
        chosen = places_read(positions, asked, self.shift)
        return chosen if len(chosen) else chosen.new_zeros(1)

    def _held(self, states: list[Columns] | None, cache: Rows | None, rows: int) -> list[tuple[Tensor, Tensor]]:
        shape = self.facts.kv_heads, self.facts.head_dim
        if states is None or cache is None:
            nothing = torch.zeros(rows, shape[0], 1, shape[1])
            return [(nothing, nothing)] * self.facts.layers
        return [state.rows(cache.places[0].slot, rows, shape) for state in states]


def _visible(mask: Tensor, starts: Sequence[int], cells: int) -> Tensor:
    begin = torch.tensor(starts).view(-1, 1, 1)
    keys, own = mask.shape[2], begin + torch.arange(mask.shape[1])
    past = torch.zeros(*mask.shape[:2], cells, dtype=torch.bool)
    past[:, :, :keys] = mask[:, :, :cells]
    past &= torch.arange(cells) < begin
    new = mask.gather(2, own.clamp(max=keys - 1).expand_as(mask[:, :, :1].expand(-1, -1, mask.shape[1])))
    return torch.cat([past, new & (own < keys)], dim=2)


def runtime() -> Any:
    """The package onnxruntime. ModelError, with the line that installs it, where it is missing."""
    try:
        return import_module("onnxruntime")
    except ImportError as error:
        raise ModelError(
            f"onnxruntime cannot be imported ({first_line(error)}); pip install -e 'backend[onnx]'"
        ) from error


def session(model: Path) -> Any:
    """An onnxruntime session on the CPU with torch's number of threads, which spin within a run and stop with it, so
    that torch's are not disturbed. ModelError where the file cannot be read."""
    onnxruntime = runtime()
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.add_session_config_entry("session.force_spinning_stop", "1")
    try:
        return onnxruntime.InferenceSession(str(model), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime has an error class per failure, none of them public
        raise ModelError(
            f"{model}: onnxruntime cannot read it ({first_line(error)}); export the model again"
        ) from error
