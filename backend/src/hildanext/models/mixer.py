# Recurrent layers of hybrid networks behind the denoiser: what a mixer gives, how it gets into a network, and what a
# store keeps of it: the last inputs of its convolution and its state, of one size whatever the length of the text.
# Entry points: Mixer (base class), Pairs (a layer's state in a store), mixers_of, install, convolved, pair_bytes.
# A network keeps its modules and weights; the forward of a mixer is replaced, and acts only where `runs` are given.
"""Recurrent mixers."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from types import MethodType
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn.functional import conv1d

from hildanext.errors import ModelError
from hildanext.models.runs import Runs
from hildanext.models.support import FULL, INERT, layer_kinds, mixer_of
from hildanext.registry import Plugin


class Mixer(Plugin):
    """A kind of recurrent layer. layer_types: its names in the configuration's layer_types; families: model types
    whose layers it is exact for; modules: the classes of transformers it stands for."""

    layer_types: ClassVar[tuple[str, ...]] = ()
    families: ClassVar[tuple[str, ...]] = ()
    modules: ClassVar[tuple[str, ...]] = ()

    @abstractmethod
    def shapes(self, module: Any) -> tuple[tuple[int, ...], ...]:
        """Shapes of what is kept of a text: the convolution's tail [r, C] in the network's dtype, then states, in
        float32 at least."""

    @abstractmethod
    def mix(
        self, module: Any, hidden: Tensor, runs: Runs, kept: tuple[Tensor, ...]
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        """The layer over hidden [B, T, D] in the order of `runs`; kept: of each shape, [1 + n, ...], row 0 zeros.
        Returns [B, T, D] and, where runs has places, what is to be kept behind each chunk."""


class Pairs:
    """What a recurrent layer keeps of each slot: its pair at the committed length, and at one position less where the
    decoder looks back; aside: of the last forward, at every length that may be committed."""

    def __init__(self, slots: int, capacity: int) -> None:
        self.slots = slots
        self.past: dict[int, dict[int, tuple[Tensor, ...]]] = {}
        self.aside: dict[int, dict[int, tuple[Tensor, ...]]] = {}

    def begin(self, places: Sequence[Any], empty: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """[1 + n, ...] of each tensor: zeros, then what each place goes on from. ValueError where nothing is kept at a
        place's start."""
        rows = [tuple(empty)]
        for place in places:
            held = self.past.get(place.slot, {})
            if place.start and place.start not in held:
                raise ValueError(f"mixer: slot {place.slot} keeps nothing at {place.start}, only at {sorted(held)}")
            rows.append(held[place.start] if place.start else tuple(empty))
        return tuple(torch.stack(parts) for parts in zip(*rows, strict=True))

    def append(self, places: Sequence[Any], *new: Any) -> None:
        """new: (committed lengths, their rows) of each place, then the tensors [E, ...]."""
        for place, (lengths, rows) in zip(places, new[0], strict=True):
            found = zip(lengths, rows, strict=True)
            self.aside[place.slot] = {length: tuple(one[row] for one in new[1:]) for length, row in found}

    def commit(self, slot: int, length: int) -> None:
        """The pair behind `length` positions is kept. ValueError where the last forward did not end a block there."""
        found = {**self.past.get(slot, {}), **self.aside.pop(slot, {})}
        if length not in found:
            raise ValueError(f"mixer: slot {slot} has no state behind {length} positions, only at {sorted(found)}")
        kept = {one: found[one] for one in (length - 1, length) if one in found}
        self.past[slot] = {one: tuple(part.clone() for part in parts) for one, parts in kept.items()}

    def spread(self, first: int, source: Sequence[int]) -> None:
        """What is aside of the slots from `first` on goes to as many: slot first + n takes what slot first + source[n]
        has."""
        aside = [self.aside.pop(first + one) for one in range(max(source) + 1)]
        self.aside |= {first + place: aside[one] for place, one in enumerate(source)}

    def move(self, source: int, target: int, length: int) -> None:
        """The pair of a slot is that of another."""
        for held in (self.past, self.aside):
            held.pop(target, None)
            if source in held:
                held[target] = held[source]

    def release(self, slot: int) -> None:
        """Forget a slot."""
        self.past.pop(slot, None)
        self.aside.pop(slot, None)

    def grow(self, slots: int, capacity: int, lengths: Sequence[int]) -> None:
        """Nothing to do: a slot takes room when it commits, and always the same."""
        self.slots = slots

    def bytes(self) -> int:
        """Of what is kept and of what is aside."""
        return sum(
            one.numel() * one.element_size()
            for held in (*self.past.values(), *self.aside.values())
            for parts in held.values()
            for one in parts
        )


def convolved(module: Any, windows: Tensor) -> Tensor:
    """windows [M, r + w, C] -> [M, w, C]: the depthwise convolution of a module, each position and the r before it."""
    weight, bias = module.weight, module.bias
    mixed = conv1d(windows.to(weight.dtype).transpose(1, 2), weight, bias, groups=weight.shape[0])
    return mixed.transpose(1, 2).to(windows.dtype)


def mixers_of(network: Any) -> Iterator[tuple[int, Mixer, Any]]:
    """(layer, mixer, module) of every recurrent layer of a network. ModelError where one has no known module."""
    kinds = layer_kinds(network.config)
    if not set(kinds) - {FULL}:
        return
    modules = {module.layer_idx: module for module in network.modules() if _known(network.config, module)}
    for layer, kind in enumerate(kinds):
        if kind in (FULL, *INERT):
            continue
        mixer = mixer_of(network.config, kind)
        if mixer is None or layer not in modules:
            raise ModelError(
                f"model: {network.config.model_type}: layer {layer} ({kind}) is no mixer that is known here"
            )
        yield layer, mixer, modules[layer]


def _known(config: Any, module: Any) -> bool:
    found = (mixer_of(config, kind) for kind in set(layer_kinds(config)) - {FULL})
    return any(mixer is not None and type(module).__name__ in mixer.modules for mixer in found)


def install(network: Any) -> tuple[tuple[int, Mixer, Any], ...]:
    """Let every recurrent layer of a network read in the order of the `runs` a forward is given; returns them. Without
    runs the layers are transformers' own."""
    found = tuple(mixers_of(network))
    for layer, mixer, module in found:
        module.forward = MethodType(_forward_of(layer, mixer), module)
    return found


def _forward_of(layer: int, mixer: Mixer) -> Callable[..., Tensor]:
    def forward(module: Any, hidden_states: Tensor, runs: Runs | None = None, **given: Any) -> Tensor:
        if runs is None:
            own: Tensor = type(module).forward(module, hidden_states, **given)
            return own
        empty = empty_pair(mixer, module, hidden_states)
        # below 0: a layer may keep keys and values beside its pair
        if not runs.places:
            return mixer.mix(module, hidden_states, runs, tuple(one[None] for one in empty))[0]
        state = (given.get("cache_params") or given["past_key_values"]).state(-1 - layer, Pairs)
        mixed, ends = mixer.mix(module, hidden_states, runs, state.begin(runs.places, empty))
        state.append(runs.places, runs.ends, *ends)
        return mixed

    return forward


def empty_pair(mixer: Mixer, module: Any, like: Tensor) -> tuple[Tensor, ...]:
    """What is kept of no text: zeros, in the dtypes and on the device of a forward."""
    wide = torch.promote_types(like.dtype, torch.float32)
    tail, *states = mixer.shapes(module)
    return like.new_zeros(tail), *(like.new_zeros(shape, dtype=wide) for shape in states)


def pair_bytes(found: Iterable[tuple[int, Mixer, Any]], dtype: torch.dtype) -> int:
    """Bytes that recurrent layers keep of one text, whatever its length."""
    like, total = torch.zeros(0, dtype=dtype, device="meta"), 0
    for _, mixer, module in found:
        total += sum(one.numel() * one.element_size() for one in empty_pair(mixer, module, like))
    return total
