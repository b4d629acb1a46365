# Random JSON schemas of the parts that structured output takes, from a seed; whether a text is JSON that one allows.
# Entry points: schema, fits.
# The judge is jsonschema_rs, which shares nothing with the library that makes the masks.
"""Schemas for the tests of structured output."""

from __future__ import annotations

import json
import random
from decimal import Decimal
from typing import Any

import pytest

jsonschema_rs = pytest.importorskip("jsonschema_rs")
WORDS = ("name", "age", "id", "city", "tags", "ok", "x y", "größe")
PATTERNS = ("^[a-c]{1,3}$", "^[A-Z][0-9]{2}$", "^(red|green)-[0-9]+$", "^a*b$")


def schema(seed: int, depth: int = 2) -> dict[str, Any]:
    """A schema that some text fits."""
    source = random.Random(seed)
    made = _value(source, depth)
    if source.random() < 0.15:
        made = {
            "$defs": {"node": {"type": "object", "properties": {"v": made, "next": {
                "anyOf": [{"type": "null"}, {"$ref": "#/$defs/node"}]}}, "required": ["v", "next"],
                "additionalProperties": False}},
            "$ref": "#/$defs/node",
        }  # fmt: skip
    return made


def _value(source: random.Random, depth: int) -> dict[str, Any]:
    kinds = [_string, _integer, _number, _choice, _constant, _plain]
    kinds += [_object, _object, _array, _any] if depth else []
    return source.choice(kinds)(source, depth)


def _string(source: random.Random, _: int) -> dict[str, Any]:
    low = source.randrange(4)
    return source.choice([
        {"type": "string"}, {"type": "string", "minLength": low, "maxLength": low + source.randrange(5)},
        {"type": "string", "pattern": source.choice(PATTERNS)}, {"type": "string", "format": "date"},
    ])  # fmt: skip


def _integer(source: random.Random, _: int) -> dict[str, Any]:
    low = source.randrange(-200, 2000)
    return source.choice([
        {"type": "integer"}, {"type": "integer", "minimum": low, "maximum": low + source.randrange(1, 3000)},
        {"type": "integer", "exclusiveMinimum": low}, {"type": "integer", "multipleOf": source.choice([2, 5, 10])},
    ])  # fmt: skip


def _number(source: random.Random, _: int) -> dict[str, Any]:
    return source.choice([{"type": "number"}, {"type": "number", "minimum": 0, "exclusiveMaximum": 1}])


def _choice(source: random.Random, _: int) -> dict[str, Any]:
    return {"enum": source.sample(["red", "green", 3, None, True, [1], {"a": "b"}, 'quote " and \\', "🙂"], 3)}


def _constant(source: random.Random, _: int) -> dict[str, Any]:
    return {"const": source.choice(["yes", 17, {"k": [1, 2]}, None])}


def _plain(source: random.Random, _: int) -> dict[str, Any]:
    return source.choice([{"type": "boolean"}, {"type": "null"}, {"type": ["string", "null"]}])


def _object(source: random.Random, depth: int) -> dict[str, Any]:
    names = source.sample(WORDS, source.randrange(1, 4))
    required = [name for name in names if source.random() < 0.7]
    rest = source.choice([False, False, False, {"type": "integer"}, True])
    properties = {name: _value(source, depth - 1) for name in names}
    return {"type": "object", "properties": properties, "required": required, "additionalProperties": rest}


def _array(source: random.Random, depth: int) -> dict[str, Any]:
    low = source.randrange(3)
    bounds = source.choice([{}, {"minItems": low, "maxItems": low + source.randrange(3)}])
    return {"type": "array", "items": _value(source, depth - 1), **bounds}


def _any(source: random.Random, depth: int) -> dict[str, Any]:
    return {"anyOf": [_value(source, depth - 1), _value(source, depth - 1)]}


def fits(text: str, wanted: dict[str, Any]) -> bool:
    """Whether a text is JSON that a schema allows."""
    return bool(jsonschema_rs.validator_for(wanted).is_valid(json.loads(text, parse_float=_exact)))


def _exact(number: str) -> Decimal:
    """The number; where its exponent is beyond any type, one that is as large or as small."""
    size, _, exponent = number.lower().partition("e")
    return Decimal(number if len(exponent) < 6 else f"{size}e{exponent[:5]}")
