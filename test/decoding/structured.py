# Structured output of a real model over many random schemas: how many texts fit, and what a forward writes.
# Entry points: python -m decoding.structured [FOLDER COUNT FIRST], in test/; exits with 1 where a text does not fit.
# The suite does the same for fewer schemas (test_grammar.py).
"""A run over random schemas."""

from __future__ import annotations

import random
import sys
import time
from collections import Counter

from decoding.schemas import fits, schema

import hildanext
from hildanext.config.decode import DecodeConfig
from hildanext.decoding.engine import BlockEngine
from hildanext.decoding.events import Done
from hildanext.decoding.request import Request
from hildanext.errors import DecodeError

ROOMS = (40, 80, 120)


def main(folder: str = "tiny", count: str = "500", first: str = "0") -> int:
    """Print one line; 1 where a text does not fit its schema."""
    model, source = hildanext.load(folder), random.Random(int(first))
    seen, wrong, began = Counter[str](), 0, time.monotonic()
    for start in range(int(first), int(first) + int(count), 8):
        engine, asked = BlockEngine(model.loaded, DecodeConfig(prefix_bytes=0)), {}
        for seed in range(start, min(start + 8, int(first) + int(count))):
            fields = {"prompt": "One day", "seed": seed, "temperature": source.choice([0.0, 1.0, 3.0])}
            for room in (source.choice(ROOMS), 400):
                grammar = {"type": "json_schema", "text": schema(seed)}
                try:
                    asked[engine.submit(Request.of(grammar=grammar, max_new_tokens=room, **fields))] = seed
                    break
                except DecodeError:
                    seen["no room"] += 1
        while engine.pending:
            for event in engine.step():
                if isinstance(event, Done) and event.result.metrics.grammar is not None:
                    seen[event.result.finish_reason] += 1
                    seen.update({name: int(value) for name, value in event.result.metrics.grammar.items()})
                    wrong += not fits(event.result.text, schema(asked[event.request]))
    rate = seen["tokens"] / seen["forwards"]
    print(
        f"{count} schemas, {wrong} do not fit, {dict(seen)}, {rate:.2f} per forward, {time.monotonic() - began:.0f} s"
    )
    return int(wrong > 0)


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
