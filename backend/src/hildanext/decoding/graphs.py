# Decoding forwards of fixed shape, captured once and replayed: a denoiser for the engine that spares the launches.
# Entry points: Graphed, Bucket, cuda_capture.
# Keys and values lie at fixed addresses behind the engine's store; rows, queries and keys are padded to buckets, and
# what is padding is invisible: it writes to a scratch position that nobody sees. Long prefills run as they are.
# Letters: R rows of a bucket, Q queries, K keys, C capacity in positions, V vocabulary.
"""CUDA graphs of decoding steps."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor

from hildanext.core.mixture import Mixture
from hildanext.decoding.store import KeysValues, PaddedView
from hildanext.errors import ModelError
from hildanext.models.denoiser import HFDenoiser

Replay = Callable[[], None]
WIDTHS, KEYS, WIDEST = 8, 128, 72
WARM_UPS = 2


class Bucket(NamedTuple):
    """The shape of a captured forward: rows, queries of a row, keys a query may see."""

    rows: int
    queries: int
    keys: int

    @classmethod
    def of(cls, rows: int, queries: int, keys: int) -> Bucket:
        """The least one that holds them: rows in powers of two, queries in steps of WIDTHS, keys in steps of KEYS."""
        return cls(1 << (rows - 1).bit_length(), -(-queries // WIDTHS) * WIDTHS, -(-keys // KEYS) * KEYS)


def cuda_capture(work: Replay) -> Replay:
    """The work as a CUDA graph, after warm-ups on a stream of their own."""
    stream: Any = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(WARM_UPS):
            work()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        work()
    return graph.replay


@dataclass
class Fixed(KeysValues):
    """Keys and values of one layer that stay where they are while they fit. The last position is scratch."""

    def grow(self, slots: int, capacity: int, lengths: Sequence[int]) -> None:
        """Move to larger tensors, but only where these are too small."""
        if slots > self.slots or capacity >= self.capacity:
            super().grow(max(slots, self.slots), max(capacity + 1, self.capacity), lengths)


@dataclass
class _Step:
    """The tensors of one bucket. It is the cache of its forward, too: what the layers ask of one."""

    bucket: Bucket
    layers: dict[int, Fixed]
    room: tuple[int, int]
    tokens: Tensor
    positions: Tensor
    mask: Tensor
    rows: Tensor
    places: Tensor
    logits: Tensor = field(default_factory=lambda: torch.empty(0))
    replay: Replay | None = None

    @classmethod
    def of(cls, bucket: Bucket, layers: dict[int, Fixed], room: tuple[int, int], device: torch.device) -> _Step:
        numbers = torch.zeros(3, bucket.rows, bucket.queries, dtype=torch.long, device=device)
        mask = torch.zeros(bucket.rows, 1, bucket.queries, bucket.keys, dtype=torch.bool, device=device)
        rows = torch.arange(bucket.rows, device=device)[:, None]
        return cls(bucket, layers, room, numbers[0], numbers[1], mask, rows, numbers[2])

    def fill(self, view: PaddedView, tokens: Tensor, positions: Tensor, mask: Tensor) -> None:
        """Put a forward's inputs in place; everything else is padding, which sees one key and writes to scratch."""
        first, (count, width) = view.places[0].slot, tokens.shape
        own = (slice(first, first + count), slice(0, width))
        for held, value in ((self.tokens, 0), (self.positions, 0), (self.places, self.room[1])):
            held.fill_(value)
        self.mask.zero_()
        self.mask[..., 0] = True
        self.tokens[own], self.positions[own] = tokens, positions
        self.mask[first : first + count, :, :width, : mask.shape[3]] = mask
        for row, place in enumerate(view.places):
            columns = torch.arange(place.start, place.start + place.size, device=self.places.device)
            self.places[first + row, : place.size] = columns

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """0: positions are given."""
        return 0

    def update(self, key: Tensor, value: Tensor, layer_idx: int, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        """key, value [R, H, Q, D] -> views [R, H, K, D] of the layer's fixed tensors, the new ones written there."""
        layer = self.layers.setdefault(layer_idx, Fixed(self.room[0], self.room[1] + 1))
        if not layer.held:
            shape = (layer.slots, key.shape[1], layer.capacity)
            layer.held = tuple(one.new_zeros(*shape, one.shape[3]) for one in (key, value))
        for held, new in zip(layer.held, (key, value), strict=True):
            held.transpose(1, 2).index_put_((self.rows, self.places), new.transpose(1, 2))
        keys, values = layer.held
        return (
            keys[: self.bucket.rows, :, : self.bucket.keys],
            values[: self.bucket.rows, :, : self.bucket.keys],
        )  # fmt: skip


class Graphed:
    """A Denoiser over HFDenoiser whose decoding forwards are captured per bucket. slots, capacity: rows and positions
    there is room for from the start (more is made when needed, and everything captured anew); capture: cuda_capture."""

    takes_layout = False

    def __init__(self, denoiser: HFDenoiser, slots: int, capacity: int, capture: Callable[[Replay], Replay]) -> None:
        if denoiser.mixers:
            raise ModelError(
                "graphs: recurrent layers keep another state than keys and values, which captured forwards do not know;"
                " decode without capture"
            )
        self.denoiser, self.capture = denoiser, capture
        self.room = (1 << (slots - 1).bit_length(), -(-capacity // KEYS) * KEYS)
        self.layers: dict[int, Fixed] = {}
        self.steps: dict[Bucket, _Step] = {}
        self.captured = 0
        self.mixture: Mixture | None = None

    @contextmanager
    def mixing(self, mixture: Mixture) -> Iterator[None]:
        """As of HFDenoiser; what was captured knows no mixture, so forwards within run as they are."""
        self.mixture = mixture
        try:
            yield
        finally:
            self.mixture = None

    def __getattr__(self, name: str) -> Any:
        return getattr(self.__dict__["denoiser"], name)

    @torch.no_grad()
    def __call__(
        self, tokens: Tensor, positions: Tensor, mask: Tensor, cache: Any = None, select: Tensor | None = None,
        layout: Any = None,
    ) -> Tensor:  # fmt: skip
        """As Denoiser.__call__; cache: a PaddedView, or None for a forward without one, which is not captured."""
        if cache is None:
            with self._mixed(0):
                uncached: Tensor = self.denoiser(tokens, positions, mask, None, select)
            return uncached
        first, (count, width) = cache.places[0].slot, tokens.shape
        self._room_for(cache, first + count)
        bucket = Bucket.of(first + count, width, mask.shape[3])
        step = self.steps.get(bucket) or _Step.of(bucket, self.layers, self.room, tokens.device)
        step.fill(cache, tokens, positions, mask)
        own = (slice(first, first + count), slice(0, width))
        if self.mixture or width > WIDEST:  # a prefill: most of its logits are not wanted
            with self._mixed(first):
                logits = self._as_it_is(step, own, select)
            cache.store.layers.update(self.layers)
            return logits
        self._replayed(step)
        cache.store.layers.update(self.layers)
        logits = step.logits[own]
        if self.denoiser.shift == "clean":
            before = torch.cat([logits[:, :1], logits[:, :-1]], 1)
            logits = torch.where((positions == 0)[..., None], logits, before)
        return logits if select is None else logits[select]

    def _mixed(self, first: int) -> AbstractContextManager[Any]:
        # the rows of a bucket begin with slot 0
        return nullcontext() if self.mixture is None else self.denoiser.mixing(self.mixture.moved(first, 0))

    def _room_for(self, cache: PaddedView, rows: int) -> None:
        wanted = (max(rows, cache.store.slots), cache.store.capacity)
        if wanted[0] <= self.room[0] and wanted[1] <= self.room[1]:
            return
        self.room = (max(self.room[0], 1 << (wanted[0] - 1).bit_length()), max(self.room[1], _rounded(wanted[1])))
        for layer in self.layers.values():
            layer.grow(*self.room, cache.store.lengths)
        self.steps.clear()

    def _as_it_is(self, step: _Step, own: tuple[slice, slice], select: Tensor | None) -> Tensor:
        wanted = torch.zeros_like(step.tokens, dtype=torch.bool)
        wanted[own] = True if select is None else select
        found: Tensor = self.denoiser(step.tokens, step.positions, step.mask, step, wanted)
        return found if select is not None else found.reshape(*wanted[own].shape, -1)

    def _run(self, step: _Step) -> None:
        hidden = self.denoiser.body(step.tokens, step.positions, step.mask, cache=step)
        step.logits = hidden @ self.denoiser.head().T

    def _replayed(self, step: _Step) -> None:
        if step.replay is None:
            step.replay = self.capture(lambda: self._run(step))
            self.steps[step.bucket] = step
            self.captured += 1
        step.replay()


def _rounded(capacity: int) -> int:
    return -(-capacity // KEYS) * KEYS
