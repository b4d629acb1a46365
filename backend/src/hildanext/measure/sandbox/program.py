# The untrusted side: runs the program, then answers what its tests ask of it.
# Entry points: serve.
# Everything here shares memory with the program, so nothing here is believed: an answer is only an answer.
# Standard library only.
"""The program's process."""

from __future__ import annotations

import builtins
import importlib
import linecache
import operator
import os
import sys
import traceback
import types
from collections import deque
from collections.abc import Callable
from typing import Any

from hildanext.measure.sandbox.splitting import parts
from hildanext.measure.sandbox.values import Line, packed, unpacked

LONGEST = 2000
CHANGING = (list, dict, set, bytearray, deque)
ANSWERS: dict[str, Callable[..., Any]] = {
    "call": lambda function, *args, **named: function(*args, **named),
    "attribute": getattr, "set attribute": setattr, "item": operator.getitem, "set item": operator.setitem,
    "delete item": operator.delitem, "length": len, "iterate": iter, "next": next, "truth": bool, "text": str,
    "spelling": repr, "equal": operator.eq, "less": operator.lt, "at most": operator.le, "instance": isinstance,
    "import": lambda name: importlib.import_module(name).__name__,
}  # fmt: skip


def serve(source: str, whole: bool, line: Line) -> None:
    """Run a source text as __main__, say how that ended, and answer until nobody asks. whole: the text holds its tests,
    of which the last ones are left to the other side. SystemExit passes through."""
    module = types.ModuleType("__main__")
    sys.modules["__main__"] = module
    sys.argv = sys.orig_argv = ["<program>"]
    linecache.cache["<program>"] = (len(source), None, source.splitlines(True), "<program>")
    answering = _Answers(module.__dict__)
    try:
        exec(compile(parts(source)[0] if whole else source, "<program>", "exec"), module.__dict__)
        reply: dict[str, Any] = {"value": None}
    except SystemExit:
        raise
    except BaseException as error:
        reply = answering.failure(error)
    while True:
        _flush()
        line.send(reply)
        try:
            reply = answering.answer(*line.receive())
        except EOFError:
            return


def _flush() -> None:
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except Exception:  # the program may have put anything in their place; its output is no verdict
            continue


class _Answers:
    def __init__(self, space: dict[str, Any]) -> None:
        self.space = space
        self.kept: list[Any] = []

    def answer(self, asked: str, sent: list[Any], named: dict[str, Any]) -> dict[str, Any]:
        try:
            if asked == "name":
                return {"value": packed(self._name(sent[0]), self.keep)}
            args = [unpacked(item, self.kept.__getitem__) for item in sent]
            value = ANSWERS[asked](
                *args, **{name: unpacked(item, self.kept.__getitem__) for name, item in named.items()}
            )
            now = {place: packed(arg, self.keep) for place, arg in enumerate(args) if type(arg) in CHANGING}
            changed = {str(place): new for place, new in now.items() if new != sent[place]}
            return {"value": packed(value, self.keep), "changed": changed}
        except BaseException as error:
            return self.failure(error)

    def _name(self, name: str) -> Any:
        if name not in self.space:
            raise NameError(f"name {name!r} is not defined")
        return self.space[name]

    def keep(self, value: Any) -> Any:
        self.kept.append(value)
        number = len(self.kept) - 1
        if isinstance(value, type) and issubclass(value, BaseException):
            base = next(kind for kind in value.__mro__ if getattr(builtins, kind.__name__, None) is kind)
            return [number, value.__name__, base.__name__]
        return number

    def failure(self, error: BaseException) -> dict[str, Any]:
        try:
            text = str(error)
        except BaseException as second:
            text = type(second).__name__
        inner = error.__traceback__ and error.__traceback__.tb_next
        told = "".join(traceback.format_exception(type(error), error, inner))
        return {"raise": [self.keep(type(error)), text[-LONGEST:], told[-LONGEST:]]}


def leave(status: int) -> None:
    """End this process with what it printed, and without its exit handlers."""
    _flush()
    os._exit(status)
