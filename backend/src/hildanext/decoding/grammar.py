# What a text must match: a JSON schema, a regular expression, a Lark or GBNF grammar; and the library that reads them.
# Entry points: compiled, checked, refused, Vocabulary (of a tokenizer), missing.
# llguidance is the extra `grammar`; it is imported when somebody asks. What it cannot read is refused by its own words.
"""Grammars of texts."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from hildanext.decoding.request import Grammar
from hildanext.errors import DecodeError, first_line

SPACING = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}
CLOSING, LETTERS, OPENING = b"}])\"'>", b"abcdefghijklmnopqrstuvwxyz", b"{[(,\\ \t\n\r"


def missing() -> str:
    """Why no grammar can be served here, "" where one can."""
    return (
        "" if find_spec("llguidance") else "the package llguidance is not installed; pip install 'hildanext[grammar]'"
    )


def compiled(grammar: Grammar) -> str:
    """The grammar as llguidance writes it. DecodeError for what it does not read, with its words for the part."""
    if why := missing():
        raise DecodeError(f"grammar: {why}")
    from llguidance import LLMatcher
    from llguidance.gbnf_to_lark import any_to_lark

    text = grammar.text if isinstance(grammar.text, str) else json.dumps(grammar.text)
    if grammar.type in ("json_schema", "json_object"):
        made = LLMatcher.grammar_from_json_schema(_schema(grammar, text), overrides=SPACING)
    elif grammar.type == "regex":
        made = LLMatcher.grammar_from_regex(text)
    else:
        try:
            made = LLMatcher.grammar_from_lark(text if grammar.type == "lark" else any_to_lark(text))
        except Exception as error:  # the reader of GBNF has an exception of its own, which the package does not export
            raise DecodeError(f"grammar: no GBNF ({first_line(error)})") from error
    return str(made)


def checked(grammar: Grammar) -> str:
    """As compiled, after the library has read every part of it. DecodeError."""
    made = compiled(grammar)
    from llguidance import LLMatcher

    wrong, words = LLMatcher.validate_grammar_with_warnings(made)
    if wrong:
        raise refused(grammar, words[0])
    return made


def refused(grammar: Grammar, words: str) -> DecodeError:
    """The error of a grammar that the library does not read, in its words."""
    return DecodeError(f"grammar: {grammar.type} that cannot be served: {_line(words)}")


def _schema(grammar: Grammar, text: str) -> dict[str, Any]:
    if grammar.type == "json_object":
        return {"type": "object"}
    try:
        found = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise DecodeError(f"grammar: json_schema is no JSON ({first_line(error)})") from error
    if not isinstance(found, Mapping):
        raise DecodeError("grammar: json_schema is no JSON object; {} takes any value")
    return dict(found)


def _line(text: str) -> str:
    return " ".join(text.split())[:400]


@dataclass(frozen=True)
class Vocabulary:
    """The tokens of a tokenizer as the library knows them. size: ids of the model, a count; end: the id by which the
    library marks an end; rank [size] float32: tokens that soon bring a text to its end are low."""

    reader: Any
    size: int
    end: int
    rank: Tensor

    @classmethod
    def of(cls, tokenizer: Any, size: int) -> Vocabulary:
        """Made once for a tokenizer, which takes a second for 50,000 tokens. DecodeError where the library cannot read
        it."""
        held = _KNOWN.get(tokenizer)
        if held is None or held.size != size:
            held = _KNOWN[tokenizer] = cls._made(tokenizer, size)
        return held

    @classmethod
    def _made(cls, tokenizer: Any, size: int) -> Vocabulary:
        from llguidance.hf import from_tokenizer

        end = tokenizer.eos_token_id
        end = end[0] if isinstance(end, list | tuple) else end
        try:
            reader = from_tokenizer(tokenizer, n_vocab=len(tokenizer), eos_token=end)
        except (ValueError, RuntimeError) as error:
            raise DecodeError(
                f"grammar: this model's tokenizer cannot be read for one ({_line(str(error))}); leave grammar out"
            ) from error
        count = min(size, len(tokenizer))
        rank = torch.full((size,), torch.inf)
        rank[:count] = torch.tensor([_rank(reader.decode_bytes([token])) for token in range(count)])
        return cls(reader, size, int(end), rank)

    def allowed(self, bits: bytes) -> Tensor:
        """[size] bool of a mask of the library's."""
        packed = torch.frombuffer(bytearray(bits), dtype=torch.uint8)
        found = (packed[:, None] >> torch.arange(8, dtype=torch.uint8) & 1).flatten().bool()
        return torch.cat([found, found.new_zeros(max(0, self.size - len(found)))])[: self.size]


_KNOWN: WeakKeyDictionary[Any, Vocabulary] = WeakKeyDictionary()


def _rank(token: bytes) -> float:
    if not token:
        return 1000.0
    if not token.strip(CLOSING):
        return 10.0 - min(len(token), 9)
    if token.strip() == b",":
        return 15.0
    if token.isdigit():
        return 20.0 + len(token)
    if len(token) == 1:
        return 30.0 + (token not in LETTERS) * 10 + (token in OPENING) * 20
    return 80.0 + len(token) + 100.0 * (token[:1] in OPENING)
