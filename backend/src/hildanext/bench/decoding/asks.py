# What a model is asked in the contest and in tuning, and which AR parent it is measured against.
# Entry points: Ask, asks_for, parent_of, read_as.
# Chats where the model has a template, stories of the story world where the vocabulary suits those.
"""Prompts and parents of the decoding benchmarks."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import cycle, islice
from typing import Any

from hildanext.bench.decoding.modes import TINYSTORIES, prompts_for
from hildanext.config import Config
from hildanext.data.chat import prompt_ids
from hildanext.data.prompt_writer import write_prompts
from hildanext.decoding.prompt import end_ids
from hildanext.decoding.request import Request
from hildanext.models.adapter_folder import base_of
from hildanext.models.load import BUNDLED, load_model, model_folder
from hildanext.models.meta import HildaMeta
from hildanext.progress import Console

CHILD, PARENT = BUNDLED
Turns = tuple[Mapping[str, Any], ...]


@dataclass(frozen=True)
class Ask:
    """A prompt: its ids, the ids that end its text, what is shown of it, and its turns where it is a chat."""

    ids: tuple[int, ...]
    ends: frozenset[int]
    text: str
    messages: Turns | None = None

    def sized(self, count: int) -> Ask:
        """`count` ids, cut or begun again, and a text that nothing ends: what a script of so many tokens is asked."""
        return Ask(tuple(islice(cycle(self.ids), count)), frozenset(), self.text)

    def request(self, new: int, fields: Mapping[str, Any]) -> Request:
        """As our decoder is asked for at most `new` tokens."""
        said: dict[str, Any] = {"prompt_ids": self.ids} if self.messages is None else {"messages": self.messages}
        return Request.of(**said, max_new_tokens=new, temperature=0.0, **fields)


def asks_for(loaded: Any, wanted: tuple[str, ...], count: int) -> list[Ask]:
    """`count` prompts at most: `wanted`, if there are any; else openings of the story world where the vocabulary suits
    those, user's turns that no training set has where there is a chat template, openings of TinyStories. Those wanted
    are turns where there is a template."""
    tokenizer = loaded.tokenizer
    openings = prompts_for(tokenizer, wanted)
    chats = tokenizer.chat_template is not None and (bool(wanted) or openings == TINYSTORIES)
    texts = [one.text for one in write_prompts(count, held_out=True)] if chats and not wanted else openings
    return [_ask(loaded, text, chats) for text in texts[:count]]


def _ask(loaded: Any, text: str, chat: bool) -> Ask:
    turns: Turns | None = ({"role": "user", "content": text},) if chat else None
    ids = prompt_ids(loaded.tokenizer, None if chat else text, turns, loaded.meta.document_start)
    request = Request(messages=turns) if chat else Request(prompt=text)
    return Ask(tuple(ids), end_ids(request, loaded.tokenizer, loaded.denoiser.end_ids), text, turns)


def parent_of(config: Config, named: str) -> str:
    """The AR parent's folder: the one that is named, else the base of adapters, the bundled parent of the bundled
    child; empty where nothing says it. ModelError for a model.path that leads nowhere."""
    path = config.model.path
    if named or path in BUNDLED:
        return named or PARENT
    folder = model_folder(path)
    return str(base_of(folder)[0]) if HildaMeta.read(folder).kind == "adapters" else ""


def read_as(config: Config, path: str, dtype: str, console: Console) -> Any:
    """The model of `path` (empty: model.path) in a dtype, `int8` being loaded in float32; another one than model.path
    is read as its own folder says. Said in the transcript alone."""
    own = path in ("", config.model.path)
    asked: dict[str, Any] = {"path": path or config.model.path, "dtype": "float32" if dtype == "int8" else dtype}
    asked |= {} if own else {"mask_id": None, "shift": "auto", "block_grid": "auto"}
    return load_model(config.model.model_copy(update=asked), Console(quiet=True, transcript=console.transcript))
