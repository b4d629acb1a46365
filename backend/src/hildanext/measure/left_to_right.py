# The same weights read left to right: a batch of unequal prompts, one token a forward, in slots of unequal lengths.
# Entry points: Row, continued. A row that ends gives its slot to the next, so that a batch stays full to the last rows.
# Draws, stop strings and texts are those of our decoder, so that what differs between both is the order of filling.
# Letters: B rows, P positions of prompts, H heads, D channels of a head, or hidden width.
"""Left-to-right generation."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad, scaled_dot_product_attention

from hildanext.core.types import Denoiser
from hildanext.decoding.randomness import SAMPLE, uniform
from hildanext.decoding.statistics import Sampling, statistics
from hildanext.decoding.store import Place
from hildanext.decoding.text import TextStream
from hildanext.models.denoiser import HFDenoiser, hugging_face

REFILL = 0.25
"""Share of the slots that is free before new rows take them: a forward over their prompts is worth that many."""
GROWTH = 128


@dataclass
class Row:
    """One text at work: prompt ids, its stream, ids that end it, tokens at most, key of its draws, and how it ended."""

    prompt: Sequence[int]
    text: TextStream
    ends: frozenset[int]
    new: int
    seed: int
    sample: int = 0
    written: int = 0
    finish: str = ""
    token: int = 0

    def take(self, token: int) -> None:
        """The next token; nothing after the end."""
        if self.finish:
            return
        self.token = token
        self.written += 1
        ended = token in self.ends
        self.text.push([token], last=ended or self.written == self.new)
        self.finish = "stop" if self.text.stopped else "eos" if ended else "length" if self.written == self.new else ""


@torch.no_grad()
def continued(denoiser: Denoiser, rows: Sequence[Row], sampling: Sampling, at_once: int = 0) -> Iterator[Row]:
    """The rows as each comes to its end, at most `at_once` (0: all) at work together, begun in their order; [MASK] is
    never written. Greedy at temperature 0; a draw depends on its row's seed, sample and position, not on who shares the
    batch. Rows of one prompt that begin together share its forward."""
    model, waiting = hugging_face(denoiser), deque(rows)
    slots, at_once = _Slots(model), at_once or len(rows)
    while waiting or slots.rows:
        free = at_once - len(slots.rows)
        if waiting and (not slots.rows or free >= max(1.0, REFILL * at_once)):
            writing = [waiting.popleft() for _ in range(min(free, len(waiting)))]
            hidden = slots.begin(writing)
        else:
            writing, hidden = list(slots.rows), slots.step()
        chosen = _chosen(hidden @ model.head().T, model.mask_id, writing, sampling)
        for row, token in zip(writing, chosen.tolist(), strict=True):
            row.take(token)
        yield from slots.leave()


@dataclass
class _Slots:
    """Keys and values of the rows at work, one slot each, dense: the cache of a forward and, where the layers attend to
    just what they are given, its layout: queries of a key's head are attended together, so that no key is repeated."""

    model: HFDenoiser
    rows: list[Row] = field(default_factory=list)
    lengths: list[int] = field(default_factory=list)
    held: dict[int, list[Tensor]] = field(default_factory=dict)
    _source: Tensor | None = None
    _ends: Tensor | None = None
    _mask: Tensor | None = None
    _layer: int = 0
    places: tuple[Place, ...] = ()
    blocks: tuple[int, ...] = ()
    pairs: dict[int, Any] = field(default_factory=dict)

    def begin(self, rows: Sequence[Row]) -> Tensor:
        """Hidden states [B, D] behind the prompts of new rows, which take the next slots."""
        device, prompts = self.model.device, dict.fromkeys(tuple(row.prompt) for row in rows)
        places = {prompt: place for place, prompt in enumerate(prompts)}
        source = torch.tensor([places[tuple(row.prompt)] for row in rows], device=device)
        longest = max(map(len, prompts))
        tokens = torch.tensor([[*prompt, *[0] * (longest - len(prompt))] for prompt in prompts], device=device)
        positions = torch.arange(longest, device=device)
        self._source, causal = source, (positions[None] <= positions[:, None])[None, None]
        # recurrent layers keep what is behind each prompt; new slots lie behind those of the rows
        self._place([len(self.rows) + row for row in range(len(prompts))], [0] * len(prompts), list(map(len, prompts)))
        hidden = self.model.body(tokens, positions.expand_as(tokens), causal, cache=self)
        for state in self.pairs.values():
            state.spread(len(self.rows), source.tolist())
        self.rows += rows
        self.lengths += [len(row.prompt) for row in rows]
        self._commit(range(len(self.rows) - len(rows), len(self.rows)))
        last = torch.tensor([len(row.prompt) - 1 for row in rows], device=device)
        return hidden[source, last]

    def step(self) -> Tensor:
        """Hidden states [B, D] behind the newest token of every row."""
        device, width = self.model.device, max(self.lengths) + 1
        self._source, self._ends = None, torch.tensor(self.lengths, device=device)
        self._mask = (torch.arange(width, device=device) <= self._ends[:, None])[:, None, None]
        tokens = torch.tensor([[row.token] for row in self.rows], device=device)
        layout = self if self.model.takes_layout else None
        self._place(range(len(self.rows)), self.lengths, [1] * len(self.rows))
        hidden = self.model.body(tokens, self._ends[:, None], self._mask, cache=self, layout=layout)
        self.lengths = [length + 1 for length in self.lengths]
        self._commit(range(len(self.rows)))
        return hidden[:, -1]

    def _place(self, slots: Iterable[int], starts: Iterable[int], sizes: Sequence[int]) -> None:
        if not self.model.mixers:
            return
        found = enumerate(zip(slots, starts, sizes, strict=True))
        self.places = tuple(Place(slot, start, size, row, 0) for row, (slot, start, size) in found)
        self.blocks = tuple(max(size, 1) for size in sizes)

    def _commit(self, slots: Iterable[int]) -> None:
        for slot in slots:
            for state in self.pairs.values():
                state.commit(slot, self.lengths[slot])

    def state(self, layer: int, kind: type[Any]) -> Any:
        """What a layer keeps of each slot beside keys and values."""
        return self.pairs.setdefault(layer, kind(0, 0))

    def leave(self) -> Iterator[Row]:
        """The rows that have ended; the last slots move into theirs."""
        for place in reversed(range(len(self.rows))):
            if not self.rows[place].finish:
                continue
            done, last = self.rows[place], len(self.rows) - 1
            for tensor in (one for pair in self.held.values() for one in pair if place < last):
                tensor[place, :, : self.lengths[last]] = tensor[last, :, : self.lengths[last]]
            for state in self.pairs.values():
                if place < last:
                    state.move(last, place, self.lengths[last])
                state.release(last)
            self.rows[place], self.lengths[place] = self.rows[last], self.lengths[last]
            del self.rows[last], self.lengths[last]
            yield done

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Positions before those of this forward, of the longest row."""
        return 0 if self._source is not None else max(self.lengths)

    def update(self, key: Tensor, value: Tensor, layer_idx: int, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        """Keep this forward's key and value [B, H, P, D]; what its queries attend to where no layout is used."""
        self._layer, count = layer_idx, len(self.rows)
        if self._source is not None:
            self._room(key, value, count + len(self._source), key.shape[2])
            for tensor, new in zip(self.held[layer_idx], (key, value), strict=True):
                tensor[count : count + len(self._source), :, : new.shape[2]] = new[self._source]
            return key, value
        assert self._ends is not None and self._mask is not None
        width = self._mask.shape[-1]
        self._room(key, value, count, width)
        slots = torch.arange(count, device=key.device)
        for tensor, new in zip(self.held[layer_idx], (key, value), strict=True):
            tensor[slots, :, self._ends] = new[:, :, 0]
        if self.model.takes_layout:
            return key, value
        keys, values = self.held[layer_idx]
        return keys[:count, :, :width], values[:count, :, :width]

    def _room(self, key: Tensor, value: Tensor, slots: int, positions: int) -> None:
        held = self.held.setdefault(self._layer, [new[:0, :, :0] for new in (key, value)])
        for index, tensor in enumerate(held):
            more = max(0, slots - tensor.shape[0])
            longer = -(-positions // GROWTH) * GROWTH - tensor.shape[2] if positions > tensor.shape[2] else 0
            if more or longer:
                held[index] = pad(tensor, (0, 0, 0, longer, 0, 0, 0, more))

    def attend(self, query: Tensor, key: Tensor, value: Tensor, scale: float | None) -> Tensor:
        """query [B, H, 1, D] -> [B, H, 1, D], over the slots of the layer that has just been kept."""
        assert self._mask is not None
        count, width = len(query), self._mask.shape[-1]
        keys, values = (tensor[:count, :, :width] for tensor in self.held[self._layer])
        grouped = query.reshape(count, keys.shape[1], -1, query.shape[3])
        found = scaled_dot_product_attention(grouped, keys, values, attn_mask=self._mask, scale=scale)
        return found.reshape(count, query.shape[1], 1, -1)


def _chosen(logits: Tensor, mask_id: int, rows: Sequence[Row], sampling: Sampling) -> Tensor:
    draws = None
    if sampling.temperature:
        places = [torch.tensor([len(row.prompt) + row.written]) for row in rows]
        drawn = [uniform(row.seed, row.sample, place, 0, SAMPLE) for row, place in zip(rows, places, strict=True)]
        draws = torch.cat(drawn).to(logits.device)
    best: Tensor = statistics(logits, mask_id, sampling, frozenset(), draws, None).best
    return best
