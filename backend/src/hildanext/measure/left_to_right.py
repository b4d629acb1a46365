# The same weights read left to right: a batch of unequal prompts, one token a forward, with the model's own cache.
# Entry points: Row, write. Prompts are padded on the left and count their positions from their own first token.
# Draws, stop strings and texts are those of our decoder, so that what differs between both is the order of filling.
# Letters: B rows, L positions, V vocabulary.
"""Left-to-right generation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from hildanext.core.types import Denoiser
from hildanext.decoding.randomness import SAMPLE, uniform
from hildanext.decoding.statistics import Sampling, statistics
from hildanext.decoding.text import TextStream
from hildanext.models.denoiser import network


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

    def take(self, token: int) -> None:
        """The next token; nothing after the end."""
        if self.finish:
            return
        self.written += 1
        ended = token in self.ends
        self.text.push([token], last=ended or self.written == self.new)
        self.finish = "stop" if self.text.stopped else "eos" if ended else "length" if self.written == self.new else ""


@torch.no_grad()
def write(denoiser: Denoiser, rows: Sequence[Row], sampling: Sampling) -> None:
    """Continue every row to its end; [MASK] is never written. Greedy at temperature 0; a draw depends on its row's
    seed, sample and position, not on who shares the batch."""
    model, device = network(denoiser), denoiser.device
    longest = max(len(row.prompt) for row in rows)
    tokens, seen = (torch.zeros(len(rows), longest, dtype=torch.long) for _ in range(2))
    for index, row in enumerate(rows):
        tokens[index, longest - len(row.prompt) :] = torch.tensor(list(row.prompt))
        seen[index, longest - len(row.prompt) :] = 1
    tokens, seen = tokens.to(device), seen.to(device)
    positions, past = (seen.cumsum(dim=1) - 1).clamp(min=0), None

    while not all(row.finish for row in rows):
        found = model(
            input_ids=tokens, attention_mask=seen, position_ids=positions, past_key_values=past, use_cache=True,
            logits_to_keep=1,
        )  # fmt: skip
        past = found.past_key_values
        chosen = _chosen(found.logits[:, -1], denoiser.mask_id, rows, sampling)
        for row, token in zip(rows, chosen.tolist(), strict=True):
            row.take(token)
        tokens, positions = chosen[:, None], positions[:, -1:] + 1
        seen = torch.cat([seen, torch.ones_like(tokens)], dim=1)


def _chosen(logits: Tensor, mask_id: int, rows: Sequence[Row], sampling: Sampling) -> Tensor:
    draws = None
    if sampling.temperature:
        places = [torch.tensor([len(row.prompt) + row.written]) for row in rows]
        drawn = [uniform(row.seed, row.sample, place, 0, SAMPLE) for row, place in zip(rows, places, strict=True)]
        draws = torch.cat(drawn).to(logits.device)
    best: Tensor = statistics(logits, mask_id, sampling, frozenset(), draws, None).best
    return best
