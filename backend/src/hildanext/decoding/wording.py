# A message of the decoder in the words of the interface that asked: its names for the fields, no advice it cannot take.
# Entry points: in_words_of, field_of.
# Messages are written as `field: what is wrong; what to do`; what to do is dropped where it names a withheld field.
"""Errors in an interface's own words."""

from __future__ import annotations

import re

from hildanext.decoding.request import INTERFACES, names_in

FIELD = re.compile(r"([a-z_]+): ")
OWN_FORM = {
    "openai": {"prompt", "messages", "suffix"}, "native": {"prompt", "messages"},
    "cli": {"prompt", "trace", "infill", "suffix"},
}  # fmt: skip
"""Fields that INTERFACES withholds because the interface has them in a form of its own."""


def in_words_of(interface: str, text: str, prompt: str = "prompt") -> str:
    """`text` with renamed fields renamed, `prompt` (the field a prompt is in, "messages" in a chat) at its head, and
    without the clauses whose advice names a field that the interface ("native", "openai", "cli") does not take."""
    named = names_in(interface)
    lacking = [field for field in INTERFACES[interface] if field not in {*named, *OWN_FORM[interface]}]
    lacks = re.compile(rf"\b(?:{'|'.join(lacking) or '(?!)'})\b")
    head, *advice = re.sub(r"^(?:prompt|chat): ", f"{prompt}: ", text).removesuffix(" or drop the row").split("; ")
    kept = "; ".join([head, *(clause for clause in advice if not lacks.search(clause))])
    renamed = {field: name for field, name in named.items() if name != field}
    return re.sub(r"[a-z_]+", lambda word: renamed.get(word[0], word[0]), kept) if renamed else kept


def field_of(interface: str, text: str) -> str | None:
    """The field that a message begins with, if the interface has one of that name."""
    found = FIELD.match(text)
    known = {*names_in(interface).values(), *OWN_FORM[interface]}
    return found[1] if found and found[1] in known else None
