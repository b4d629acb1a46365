# Libraries for token masks side by side: reading a tokenizer, compiling schemas, masks, places that are forced.
# Entry points: python -m decoding.mask_libraries TOKENIZER llguidance|xgrammar|outlines_core [SCHEMAS], in test/.
# Each needs its package, of which the project installs llguidance alone; docs/results.md has the figures.
"""Comparison of libraries for token masks."""

from __future__ import annotations

import json
import statistics
import sys
import time
from collections.abc import Callable
from importlib import import_module
from typing import Any

from decoding.schemas import schema

PERSON: dict[str, Any] = {
    "type": "object", "required": ["name", "age", "tags", "unit"], "additionalProperties": False,
    "properties": {
        "name": {"type": "string"}, "age": {"type": "integer"},
        "tags": {"type": "array", "items": {"type": "string"}, "maxItems": 5}, "unit": {"enum": ["C", "F"]},
    },
}  # fmt: skip
TEXT = json.dumps({"name": "Lily and the fox", "age": 7, "tags": ["red", "blue"], "unit": "C"})
SCHEMAS = [PERSON, *(schema(seed) for seed in range(60))]
Matcher = tuple[Callable[[], Any], Callable[[], Any], Callable[[int], Any]]
"""The mask of what may come next, what must come next, and taking a token."""


def llguidance(tokenizer: Any) -> Callable[[dict[str, Any]], Matcher]:
    """Reads with our spacing."""
    library, reader = import_module("llguidance"), import_module("llguidance.hf").from_tokenizer(tokenizer)
    spacing = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}

    def compiled(wanted: dict[str, Any]) -> Matcher:
        matcher = library.LLMatcher(reader, library.LLMatcher.grammar_from_json_schema(wanted, overrides=spacing))
        if matcher.is_error():
            raise ValueError(matcher.get_error())
        return matcher.compute_bitmask, matcher.compute_ff_tokens, matcher.consume_token

    return compiled


def xgrammar(tokenizer: Any) -> Callable[[dict[str, Any]], Matcher]:
    """Reads with our spacing, one thread, without its cache."""
    library = import_module("xgrammar")
    info = library.TokenizerInfo.from_huggingface(tokenizer, vocab_size=len(tokenizer))
    compiler = library.GrammarCompiler(info, max_threads=1, cache_enabled=False)
    bits = library.allocate_token_bitmask(1, len(tokenizer))

    def compiled(wanted: dict[str, Any]) -> Matcher:
        made = compiler.compile_json_schema(json.dumps(wanted), any_whitespace=False, separators=(", ", ": "))
        matcher = library.GrammarMatcher(made)
        return lambda: matcher.fill_next_token_bitmask(bits), matcher.find_jump_forward_string, matcher.accept_token

    return compiled


def outlines_core(tokenizer: Any) -> Callable[[dict[str, Any]], Matcher]:
    """Schemas as regular expressions; the bytes of tokens come from llguidance."""
    library = import_module("outlines_core")
    as_regex = import_module("outlines_core.json_schema").build_regex_from_schema
    reader, end = import_module("llguidance.hf").from_tokenizer(tokenizer), tokenizer.eos_token_id
    tokens: dict[bytes, list[int]] = {}
    for token in set(range(len(tokenizer))) - {end}:
        tokens.setdefault(reader.decode_bytes([token]) or bytes([0xFF]), []).append(token)
    vocabulary = library.Vocabulary(end, tokens)

    def compiled(wanted: dict[str, Any]) -> Matcher:
        guide = library.Guide(library.Index(as_regex(json.dumps(wanted)), vocabulary))
        return guide.get_tokens, lambda: None, guide.advance

    return compiled


def main(folder: str, name: str, count: str = "61") -> None:
    """Print one line of figures."""
    tokenizer = import_module("transformers").AutoTokenizer.from_pretrained(folder)
    began = time.perf_counter()
    read = {"llguidance": llguidance, "xgrammar": xgrammar, "outlines_core": outlines_core}[name](tokenizer)
    loaded, compiles, refused = time.perf_counter() - began, list[float](), 0
    for wanted in SCHEMAS[: int(count)]:
        began = time.perf_counter()
        try:
            read(wanted)
        except Exception:  # each library has errors of its own
            refused += 1
        compiles.append(1e3 * (time.perf_counter() - began))
    (mask, forced, take), masks, places = read(PERSON), list[float](), 0
    ids = tokenizer(TEXT, add_special_tokens=False)["input_ids"]
    for token in ids:
        began = time.perf_counter()
        mask()
        masks.append(1e6 * (time.perf_counter() - began))
        places += bool(forced())
        if take(token) is False:
            raise ValueError(f"{name} does not take {tokenizer.decode([token])!r}")
    print(
        f"{name}: tokenizer {loaded:.2f} s, compile median {statistics.median(compiles):.2f} ms,"
        f" slowest {max(compiles):.0f} ms, mask median {statistics.median(masks):.1f} us, slowest {max(masks):.0f} us,"
        f" refused {refused} of {len(compiles)}, forced at {places} of {len(ids)} places"
    )


if __name__ == "__main__":
    main(*sys.argv[1:])
