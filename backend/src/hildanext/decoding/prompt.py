# From a request to the canvas it starts with: encoding, chat template, gaps to fill, stop ids.
# Entry points: Bounds, Prepared, prepare, end_ids.
# A gap is written <gap:N> in the prompt and becomes N [MASK] tokens; the text around it is fixed. With a suffix the gap
# lies between prompt and suffix, and the whole text is one block unless one is named: a gap sees its own block only.
# Where tokens carry the space before a word, the space before a gap is left to the gap.
"""Preparation of a request."""

from __future__ import annotations

import re
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from hildanext.config.decode import MOST_TOKENS
from hildanext.data.chat import prompt_ids
from hildanext.data.template import end_of_turn
from hildanext.decoding.blocks import Blocks
from hildanext.decoding.request import Request
from hildanext.errors import DataError, DecodeError, HildaError, first_line

GAP = re.compile(r"<gap:([0-9]+)>")
INFILL_NOTE = (
    "infill: a gap sees the text before it and the rest of its own block of {block} tokens; text in later blocks is "
    "not seen, and a gap's length is fixed"
)


@dataclass(frozen=True)
class Prepared:
    """A canvas to start from: layout, tokens [length] int64, editable [length] bool, the prompt shown to nobody; lead:
    what the prompt's text ends in that is left to the gap."""

    blocks: Blocks
    tokens: Tensor
    editable: Tensor
    prompt: tuple[int, ...]
    notes: tuple[str, ...] = ()
    lead: str = ""


@dataclass(frozen=True)
class Bounds:
    """What a canvas must fit: block, window in positions (0: none), new tokens, [MASK], ids the model has (0: any);
    start: ids that begin a document, None: those the tokenizer puts there; thinking: whether the reply to a chat that
    does not say so begins with a thought."""

    block: int
    window: int
    new: int
    mask_id: int
    vocabulary: int = 0
    start: Sequence[int] | None = None
    thinking: bool = False


def prepare(request: Request, tokenizer: Any, bounds: Bounds) -> Prepared:
    """The starting canvas; new tokens that nobody asked for by number are as many as the window has room for.
    DecodeError for a prompt that holds [MASK] or unknown ids, or that the tokenizer cannot encode; no room."""
    if request.suffix:
        return _between(request, tokenizer, bounds)
    if request.infill:
        return _infill(request, tokenizer, bounds)
    if request.prompt is not None and (gap := GAP.search(request.prompt)):
        raise DecodeError(
            f"prompt: {gap[0][:30]} marks a gap, and infill is off; turn infill on to fill it, or write it otherwise"
        )
    prompt = _encode(request, tokenizer, bounds)
    if bounds.mask_id in prompt:
        raise DecodeError(f"prompt: holds the mask token (id {bounds.mask_id}); use infill with <gap:N> to leave gaps")
    _known(prompt, bounds)
    new = bounds.new
    if request.max_new_tokens is None and bounds.window:
        new = min(new, max(1, bounds.window - len(prompt)))
    blocks = Blocks(len(prompt), new, bounds.block, bounds.window)
    tokens = torch.full((blocks.length,), bounds.mask_id, dtype=torch.long)
    tokens[: len(prompt)] = torch.tensor(prompt, dtype=torch.long)
    return Prepared(blocks, tokens, torch.arange(blocks.length) >= len(prompt), tuple(prompt))


def _known(prompt: Sequence[int], bounds: Bounds) -> None:
    unknown = [token for token in prompt if token < 0 or 0 < bounds.vocabulary <= token]
    if unknown:
        raise DecodeError(f"prompt: token id {unknown[0]} is none of this model's {bounds.vocabulary}; tokenize again")


def _encode(request: Request, tokenizer: Any, bounds: Bounds) -> list[int]:
    if request.prompt_ids is not None:
        return list(request.prompt_ids)
    if tokenizer is None:
        raise DecodeError("prompt: this model folder has no tokenizer; give prompt_ids")
    thinking = bounds.thinking if request.thinking is None else request.thinking
    try:
        return prompt_ids(tokenizer, request.prompt, request.messages, bounds.start, thinking, request.called)
    except HildaError:
        raise
    except Exception as error:  # tokenizers raises plain ones, for a word it has no token for
        raise DecodeError(
            f"prompt: this model's tokenizer cannot encode it ({first_line(error)}); change it"
        ) from error


def _infill(request: Request, tokenizer: Any, bounds: Bounds) -> Prepared:
    if request.prompt is None or tokenizer is None:
        raise DecodeError("infill: needs a text prompt with gaps written <gap:N>")
    if request.max_new_tokens is not None:
        raise DecodeError(
            f"max_new_tokens: {request.max_new_tokens} with infill; the gaps <gap:N> have their own lengths"
        )
    pieces = GAP.split(request.prompt)
    sizes = _sizes(pieces[1::2], bounds.window)
    spaced = _spaced(tokenizer)
    texts = [*(text.removesuffix(" ") if spaced else text for text in pieces[:-1:2]), pieces[-1]]
    ids = prompt_ids(tokenizer, texts[0], None, bounds.start)
    for size, text in zip(sizes, texts[1:], strict=True):
        ids += [*[bounds.mask_id] * size, *_behind(tokenizer, text)]
    if ids.count(bounds.mask_id) > sum(sizes):
        raise DecodeError(f"prompt: holds the mask token (id {bounds.mask_id}); write <gap:N> to leave gaps")
    blocks = Blocks(0, len(ids), bounds.block, bounds.window, whole=False)
    tokens = torch.tensor(ids, dtype=torch.long)
    notes = () if bounds.block >= len(ids) else (INFILL_NOTE.format(block=bounds.block),)
    return Prepared(blocks, tokens, tokens == bounds.mask_id, (), notes)


def _between(request: Request, tokenizer: Any, bounds: Bounds) -> Prepared:
    if tokenizer is None or request.messages is not None or request.infill:
        raise DecodeError("suffix: goes behind a prompt of text or ids, without infill, on a model with a tokenizer")
    if request.max_new_tokens is None:
        raise DecodeError("max_new_tokens: beside a suffix it is how many tokens stand before it, and was not given")
    text = request.prompt or ""
    lead = " " if text.endswith(" ") and _spaced(tokenizer) else ""
    asked = request.model_copy(update={"prompt": text.removesuffix(lead)}) if lead else request
    before, after = _encode(asked, tokenizer, bounds), _behind(tokenizer, request.suffix or "")
    if bounds.mask_id in before or bounds.mask_id in after:
        raise DecodeError(f"prompt: it or the suffix holds the mask token (id {bounds.mask_id}); take it out")
    _known(before, bounds)
    gap = [bounds.mask_id] * request.max_new_tokens
    tokens = torch.tensor([*before, *gap, *after], dtype=torch.long)
    block = request.block or len(tokens)
    blocks = Blocks(len(before), len(gap), block, bounds.window, whole=False, after=len(after))
    stop = blocks.span(len(before) + len(gap) - 1).stop
    notes = () if stop == len(tokens) else (INFILL_NOTE.format(block=block),)
    return Prepared(blocks, tokens, tokens == bounds.mask_id, tuple(before), notes, lead)


def _sizes(written: Sequence[str], window: int) -> list[int]:
    most = min(window or MOST_TOKENS, MOST_TOKENS)
    sizes = [int(size) if len(size.lstrip("0")) <= len(str(MOST_TOKENS)) else most + 1 for size in written]
    if not sizes or min(sizes) < 1:
        raise DecodeError(
            f"infill: the prompt has {len(sizes)} gaps of sizes {sizes[:20]}; write <gap:N>, N >= 1, where text is"
            " missing"
        )
    if sum(sizes) > most:
        bound = f"the model's window of {most}" if window else f"{most}"
        raise DecodeError(f"infill: the gaps have more than {bound} tokens together; write smaller ones")
    return sizes


def _behind(tokenizer: Any, text: str) -> list[int]:
    lead, whole = _plain(tokenizer, "a"), _plain(tokenizer, "a" + text)
    return whole[len(lead) :] if whole[: len(lead)] == lead else _plain(tokenizer, text)


def _spaced(tokenizer: Any) -> bool:
    return len(_plain(tokenizer, "a a")) == 2 * len(_plain(tokenizer, "a"))


def _plain(tokenizer: Any, text: str) -> list[int]:
    return list(tokenizer(text, add_special_tokens=False)["input_ids"])


def end_ids(request: Request, tokenizer: Any, own: frozenset[int] = frozenset()) -> frozenset[int]:
    """Token ids that end a text: those of the tokenizer, `own`, the denoiser's end_ids, and after a chat the end of a
    turn; prompt_ids are a chat's where it is among them."""
    if request.ignore_eos or request.infill or request.suffix:
        return frozenset()
    value = getattr(tokenizer, "eos_token_id", None)
    found = set(own) | (set(value) if isinstance(value, list | tuple) else set() if value is None else {int(value)})
    if request.messages is not None and tokenizer is not None:
        found |= {end_of_turn(tokenizer).id}
    if request.prompt_ids is not None and getattr(tokenizer, "chat_template", None):
        with suppress(DataError):  # a template that writes no chat is none of these ids' concern
            found |= {end_of_turn(tokenizer).id} & {*request.prompt_ids}
    return frozenset(found)
