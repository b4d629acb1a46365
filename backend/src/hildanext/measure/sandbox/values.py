# Values on their way between a program and its tests: plain data is copied, everything else stays and gets a number.
# Entry points: packed, unpacked, Line.
# What arrives is of exact built-in (or listed standard) types, whatever the sender overrode. Standard library only.
"""Plain data between two processes."""

from __future__ import annotations

import datetime
import json
import socket
import struct
import types
from collections import Counter, OrderedDict, defaultdict, deque
from collections.abc import Callable
from decimal import Decimal
from fractions import Fraction
from typing import Any

DEEPEST, LONGEST = 100, 1 << 26
KINDS = (bool, int, float, str, bytes, list, tuple, dict, set, frozenset, complex, type(None), object)
TYPES = {kind.__name__: kind for kind in KINDS}
SEQUENCES: dict[str, type] = {"list": list, "tuple": tuple, "set": set, "frozenset": frozenset}
NAMES = {kind: name for name, kind in SEQUENCES.items()}
SPELLED: dict[type, tuple[str, Callable[[Any], Any]]] = {
    bytes: ("bytes", bytes.hex), bytearray: ("bytearray", bytearray.hex), Decimal: ("decimal", str),
    Fraction: ("fraction", lambda x: [str(x.numerator), str(x.denominator)]),
    complex: ("complex", lambda x: [x.real, x.imag]), range: ("range", lambda x: [x.start, x.stop, x.step]),
    datetime.datetime: ("datetime", datetime.datetime.isoformat), datetime.date: ("date", datetime.date.isoformat),
    datetime.time: ("time", datetime.time.isoformat),
    datetime.timedelta: ("timedelta", lambda x: [x.days, x.seconds, x.microseconds]),
}  # fmt: skip
READ: dict[str, Callable[[Any], Any]] = {
    "int": lambda x: int(x, 16), "bytes": bytes.fromhex, "bytearray": bytearray.fromhex, "decimal": Decimal,
    "fraction": lambda x: Fraction(int(x[0]), int(x[1])), "complex": lambda x: complex(*x),
    "range": lambda x: range(*x),
    "datetime": datetime.datetime.fromisoformat, "date": datetime.date.fromisoformat,
    "time": datetime.time.fromisoformat, "timedelta": lambda x: datetime.timedelta(*x), "type": TYPES.__getitem__,
}  # fmt: skip


class Line:
    """JSON messages over a stream socket, each behind its length in four bytes."""

    def __init__(self, socket: socket.socket) -> None:
        self.socket = socket

    def send(self, message: Any) -> None:
        """Send one message. ConnectionError where nobody listens."""
        text = json.dumps(message).encode()
        self.socket.sendall(struct.pack("!I", len(text)) + text)

    def receive(self) -> Any:
        """The next message; EOFError at the end. ValueError where it is no JSON or longer than LONGEST bytes."""
        length = struct.unpack("!I", self._exactly(4))[0]
        if length > LONGEST:
            raise ValueError(f"a message of {length} bytes, at most {LONGEST}")
        return json.loads(self._exactly(length))

    def _exactly(self, count: int) -> bytes:
        found = bytearray()
        while len(found) < count:
            part = self.socket.recv(min(count - len(found), 1 << 20))
            if not part:
                raise EOFError("the other side has left")
            found += part
        return bytes(found)


def packed(value: Any, keep: Callable[[Any], Any], depth: int = 0) -> Any:
    """A value as JSON: None, bool, str, float and short ints as they are, other plain data as [kind, content].
    keep: gives the content of ["other", content] for what is no plain data, or raises TypeError."""
    kind = type(value)
    if value is None or kind in (bool, str, float):
        return value
    if kind is int:
        return value if -(1 << 62) < value < 1 << 62 else ["int", hex(value)]
    if depth > DEEPEST:
        raise ValueError(f"nested more than {DEEPEST} deep")
    if kind in NAMES:
        return [NAMES[kind], [packed(item, keep, depth + 1) for item in value]]
    if kind in (dict, Counter, OrderedDict, defaultdict):
        items = dict.items(value)
        return ["dict", [[packed(key, keep, depth + 1), packed(item, keep, depth + 1)] for key, item in items]]
    if kind in SPELLED:
        name, spell = SPELLED[kind]
        return [name, spell(value)]
    if kind is deque:
        return ["deque", [[packed(item, keep, depth + 1) for item in value], value.maxlen]]
    if kind is type and value in KINDS:
        return ["type", value.__name__]
    if kind.__bases__ == (tuple,) and isinstance(getattr(kind, "_fields", None), tuple):
        return ["tuple", [packed(item, keep, depth + 1) for item in tuple.__iter__(value)]]
    return ["other", None if kind is types.ModuleType else keep(value)]


def unpacked(sent: Any, find: Callable[[Any], Any], depth: int = 0) -> Any:
    """The value of packed JSON. find: turns the content of ["other", content] into a value.
    ValueError, TypeError or LookupError where it is nothing `packed` makes."""
    if not isinstance(sent, list):
        return sent
    kind, content = sent
    if depth > 2 * DEEPEST:
        raise ValueError(f"nested more than {DEEPEST} deep")
    if kind in SEQUENCES:
        return SEQUENCES[kind](unpacked(item, find, depth + 1) for item in content)
    if kind == "dict":
        return {unpacked(key, find, depth + 1): unpacked(item, find, depth + 1) for key, item in content}
    if kind == "deque":
        return deque((unpacked(item, find, depth + 1) for item in content[0]), content[1])
    if kind in READ:
        return READ[kind](content)
    if kind == "other":
        return find(content)
    raise ValueError(f"{kind!r} is no kind of value")
