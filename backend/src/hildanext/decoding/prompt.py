# From a request to the canvas it starts with: encoding, chat template, gaps to fill, stop ids.
# Entry points: Bounds, Prepared, prepare, end_ids.
# A gap is written <gap:N> in the prompt and becomes N [MASK] tokens; the text around it is fixed.
# Where tokens carry the space before a word, the space before a gap is left to the gap.
"""Preparation of a request."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from hildanext.data.chat import prompt_ids
from hildanext.data.template import end_of_turn
from hildanext.decoding.blocks import Blocks
from hildanext.decoding.request import Request
from hildanext.errors import DecodeError

GAP = re.compile(r"<gap:(\d+)>")
INFILL_NOTE = (
    "infill: a gap sees the text before it and the rest of its own block of {block} tokens; text in later blocks is "
    "not seen, and a gap's length is fixed"
)


@dataclass(frozen=True)
class Prepared:
    """A canvas to start from: layout, tokens [length] int64, editable [length] bool, the prompt shown to nobody."""

    blocks: Blocks
    tokens: Tensor
    editable: Tensor
    prompt: tuple[int, ...]
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Bounds:
    """What a canvas must fit: block, window in positions (0: none), new tokens, [MASK], ids the model has (0: any); and
    whether a request that does not say so begins with a thought."""

    block: int
    window: int
    new: int
    mask_id: int
    vocabulary: int = 0
    thinking: bool = False


def prepare(request: Request, tokenizer: Any, bounds: Bounds) -> Prepared:
    """The starting canvas. DecodeError for a prompt that holds [MASK] or unknown ids, gaps without infill, no room."""
    if request.infill:
        return _infill(request, tokenizer, bounds)
    prompt = _encode(request, tokenizer, bounds.thinking)
    if bounds.mask_id in prompt:
        raise DecodeError(f"prompt: holds the mask token (id {bounds.mask_id}); use infill with <gap:N> to leave gaps")
    unknown = [token for token in prompt if token < 0 or 0 < bounds.vocabulary <= token]
    if unknown:
        raise DecodeError(f"prompt: token id {unknown[0]} is none of this model's {bounds.vocabulary}; tokenize again")
    blocks = Blocks(len(prompt), bounds.new, bounds.block, bounds.window)
    tokens = torch.full((blocks.length,), bounds.mask_id, dtype=torch.long)
    tokens[: len(prompt)] = torch.tensor(prompt, dtype=torch.long)
    return Prepared(blocks, tokens, torch.arange(blocks.length) >= len(prompt), tuple(prompt))


def _encode(request: Request, tokenizer: Any, thinking: bool) -> list[int]:
    if request.prompt_ids is not None:
        return list(request.prompt_ids)
    if tokenizer is None:
        raise DecodeError("prompt: this model folder has no tokenizer; give prompt_ids")
    thinking = thinking if request.thinking is None else request.thinking
    return prompt_ids(tokenizer, request.prompt, request.messages, thinking=thinking)


def _infill(request: Request, tokenizer: Any, bounds: Bounds) -> Prepared:
    if request.prompt is None or tokenizer is None:
        raise DecodeError("infill: needs a text prompt with gaps written <gap:N>")
    if request.max_new_tokens is not None:
        raise DecodeError(
            f"max_new_tokens: {request.max_new_tokens} with infill; the gaps <gap:N> have their own lengths"
        )
    pieces = GAP.split(request.prompt)
    sizes = [int(size) for size in pieces[1::2]]
    if not sizes or min(sizes) < 1:
        raise DecodeError(
            f"infill: the prompt has {len(sizes)} gaps of sizes {sizes}; write <gap:N>, N >= 1, where text is missing"
        )
    texts = [*(_before_gap(text, tokenizer) for text in pieces[:-1:2]), pieces[-1]]
    ids: list[int] = list(tokenizer(texts[0])["input_ids"])
    for size, text in zip(sizes, texts[1:], strict=True):
        ids += [bounds.mask_id] * size + _continued(text, tokenizer)
    tokens = torch.tensor(ids, dtype=torch.long)
    blocks = Blocks(0, len(ids), bounds.block, bounds.window, whole=False)
    return Prepared(blocks, tokens, tokens == bounds.mask_id, (), (INFILL_NOTE.format(block=bounds.block),))


def _before_gap(text: str, tokenizer: Any) -> str:
    one, two = (len(tokenizer(words, add_special_tokens=False)["input_ids"]) for words in ("a", "a a"))
    return text.removesuffix(" ") if two == 2 * one else text


def _continued(text: str, tokenizer: Any) -> list[int]:
    lead = list(tokenizer("a", add_special_tokens=False)["input_ids"])
    whole = list(tokenizer("a" + text, add_special_tokens=False)["input_ids"])
    if whole[: len(lead)] == lead:
        return whole[len(lead) :]
    return list(tokenizer(text, add_special_tokens=False)["input_ids"])


def end_ids(request: Request, tokenizer: Any, own: frozenset[int] = frozenset()) -> frozenset[int]:
    """Token ids that end a text: those of the tokenizer, the chat turn's end, and `own`, the denoiser's end_ids."""
    if request.ignore_eos or request.infill:
        return frozenset()
    value = getattr(tokenizer, "eos_token_id", None)
    found = set(own) | (set(value) if isinstance(value, list | tuple) else set() if value is None else {int(value)})
    if request.messages is not None and tokenizer is not None:
        found |= {end_of_turn(tokenizer).id}
    return frozenset(found)
