# Validation errors in words: the dotted place, what is wrong, the value found and the nearest valid key.
# Entry points: nearest (did you mean), describe (pydantic's errors of one model as lines).
# Used by the loader for the whole config and by the registry for one plugin.
"""Problems of a configuration as readable lines."""

from __future__ import annotations

import re
from collections.abc import Iterable
from difflib import get_close_matches
from typing import Any, get_args

from pydantic import BaseModel, ValidationError

MOVED = {
    "data.bench": "bench.data", "train.bench": "bench.train", "decode.bench": "bench.decode",
    "objective.masked_weight": "objective.m2t_weight", "objective.edit_weight": "objective.t2t_weight",
}  # fmt: skip
TAG = re.compile(r"(constrained-)?(float|int|str|bool)|(literal|list|tuple|dict)\[.*\]")


def nearest(name: str, known: Iterable[str], listed: bool = False) -> str:
    """`did you mean 'x'?`, or a list of what there is when nothing is close; listed: the list in either case."""
    known = list(known)
    close, valid = get_close_matches(name, known, n=1, cutoff=0.5), f"valid are {', '.join(sorted(known))}"
    if not close:
        return valid
    return f"did you mean {close[0]!r}?" + (f" ({valid})" if listed else "")


def model_at(model: type[BaseModel], path: Iterable[Any]) -> type[BaseModel] | None:
    """The section class at a dotted place below `model`, or None where the place is no section."""
    here: type[BaseModel] | None = model
    for key in path:
        if isinstance(key, int):
            continue
        if here is None or key not in here.model_fields:
            return None
        here = section_in(here.model_fields[key].annotation)
    return here


def section_in(annotation: Any) -> type[BaseModel] | None:
    """The section class inside a field's annotation (optional, tuple, ...), or None."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    found = [section_in(part) for part in get_args(annotation)]
    return next((part for part in found if part is not None), None)


def describe(error: ValidationError, model: type[BaseModel], prefix: str) -> list[str]:
    """One line per problem: `place: what is wrong (value), what was expected`. A value that fits none of several types
    is one problem."""
    groups: dict[tuple[Any, ...], list[Any]] = {}
    for item in error.errors():
        loc = _place(item)
        groups.setdefault((*loc, item["type"]) if loc == item["loc"] else loc, []).append({**item, "loc": loc})
    return [_line(_merged(items), model, prefix) for items in groups.values()]


def _place(item: Any) -> tuple[Any, ...]:
    key = item["loc"][-1:] if item["type"] == "extra_forbidden" else ()
    outer = item["loc"][: len(item["loc"]) - len(key)]
    return (*(part for part in outer if not TAG.fullmatch(str(part))), *key)


def _merged(items: list[Any]) -> Any:
    first, *others = (str(item["msg"]) for item in items)
    return {**items[0], "msg": ", or ".join([first, *(one.removeprefix("Input should be ") for one in others)])}


def _line(item: Any, model: type[BaseModel], prefix: str) -> str:
    place = prefix + ".".join(str(part) for part in item["loc"])
    if item["type"] == "extra_forbidden":
        if place in MOVED:
            return f"{place}: unknown key, it is now {MOVED[place]}"
        section = model_at(model, item["loc"][:-1]) or model
        key, renamed = str(item["loc"][-1]), getattr(section, "renamed", {})
        hint = f"did you mean {renamed[key]!r}?" if key in renamed else nearest(key, section.model_fields)
        return f"{place}: unknown key, {hint}"
    if item["type"] == "missing":
        return f"{place}: missing"
    message = str(item["msg"]).removeprefix("Value error, ")
    return f"{place}: {message[0].lower()}{message[1:]} (found {item['input']!r})"
