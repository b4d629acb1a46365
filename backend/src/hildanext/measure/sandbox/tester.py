# The trusted side: runs the tests in a process of its own and asks the program's process for what they need of it.
# Entry points: examine.
# The program never shares memory with this process; what it answers is compared here, as plain data of exact types.
# Standard library only.
"""The tests' process."""

from __future__ import annotations

import ast
import builtins
import importlib
import linecache
import os
import sys
import traceback
from typing import Any

from hildanext.measure.sandbox.splitting import loaded_names, parts
from hildanext.measure.sandbox.values import Line, packed, unpacked

PASSED, FAILED, LEFT = 0, 1, 3


def examine(source: str, whole: bool, line: Line) -> int:
    """PASSED where the program says it reached its end and every test then held; FAILED, with the traceback on stderr,
    where not; LEFT where the program's process ended first. whole: `source` is the program with its tests."""
    remote = _Remote(line)
    try:
        remote.heard()
        tree = parts(source)[1] if whole else ast.parse(source, "<tests>")
        name = "<program>" if whole else "<tests>"
        linecache.cache[name] = (len(source), None, source.splitlines(True), name)
        exec(compile(tree, name, "exec"), _Names(remote, loaded_names(tree)))
    except BaseException as error:
        sys.stderr.write(_told(error))
        return FAILED
    return PASSED


def _told(error: BaseException) -> str:
    told = traceback.TracebackException.from_exception(error)
    told.stack = traceback.StackSummary.from_list([frame for frame in told.stack if frame.filename.startswith("<")])
    return "".join(told.format())


class _Names(dict[str, Any]):
    def __init__(self, remote: _Remote, wanted: set[str]) -> None:
        super().__init__(__name__="__main__", __builtins__=builtins)
        self.remote = remote
        self.shadowed = all(hasattr(builtins, name) for name in wanted)

    def __missing__(self, name: str) -> Any:
        if hasattr(builtins, name) and not self.shadowed:
            raise KeyError(name)
        try:
            value = self.remote.named(name)
        except NameError:
            raise KeyError(name) from None
        if isinstance(value, _Held | type):
            self[name] = value
        return value


class _Remote:
    def __init__(self, line: Line) -> None:
        self.line = line
        self.errors: dict[str, type[Exception]] = {}

    def ask(self, asked: str, *args: Any, **named: Any) -> Any:
        sent = [packed(arg, _number) for arg in args]
        try:
            self.line.send([asked, sent, {name: packed(value, _number) for name, value in named.items()}])
        except ConnectionError:
            _end(LEFT)
        return self.heard(args)

    def heard(self, args: tuple[Any, ...] = ()) -> Any:
        try:
            told = self.line.receive()
            if "raise" in told:
                content, text, trace = told["raise"]
                error = self._error(content)(str(text))
                error.add_note(f"In the program:\n{trace}")
            else:
                value = unpacked(told["value"], self.found)
                error = None
                for place, new in told.get("changed", {}).items():
                    _change(args[int(place)], unpacked(new, self.found))
        except (EOFError, ConnectionError):
            _end(LEFT)
        except Exception as fault:
            print(f"the program's process answers nonsense: {type(fault).__name__}: {fault}"[:300], file=sys.stderr)
            _end(FAILED)
        if error is not None:
            raise error
        return value

    def named(self, name: str) -> Any:
        value = self.ask("name", name)
        return importlib.import_module(name) if value is _Module and name in sys.stdlib_module_names else value

    def found(self, content: Any) -> Any:
        if content is None:
            return _Module
        return _Held(self, int(content)) if isinstance(content, int) else self._error(content)

    def _error(self, content: Any) -> type[Exception]:
        _, name, base = map(str, content if isinstance(content, list) else (0, "Exception", "Exception"))
        own = getattr(builtins, name, None)
        if isinstance(own, type) and issubclass(own, Exception) and not issubclass(own, UnicodeError):
            return own
        if name not in self.errors:
            parent = getattr(builtins, base, None)
            if not isinstance(parent, type) or not issubclass(parent, Exception) or issubclass(parent, UnicodeError):
                parent = RuntimeError
            self.errors[name] = type(name, (parent,), {})
        return self.errors[name]


class _Module:
    pass


class _Held:
    __slots__ = ("_number", "_remote")

    def __init__(self, remote: _Remote, number: int) -> None:
        object.__setattr__(self, "_remote", remote)
        object.__setattr__(self, "_number", number)

    def __call__(self, *args: Any, **named: Any) -> Any:
        return self._remote.ask("call", self, *args, **named)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") and name not in ("__name__", "__doc__", "__annotations__"):
            raise AttributeError(name)
        return self._remote.ask("attribute", self, name)

    def __setattr__(self, name: str, value: Any) -> None:
        self._remote.ask("set attribute", self, name, value)

    def __getitem__(self, key: Any) -> Any:
        return self._remote.ask("item", self, key)

    def __setitem__(self, key: Any, value: Any) -> None:
        self._remote.ask("set item", self, key, value)

    def __delitem__(self, key: Any) -> None:
        self._remote.ask("delete item", self, key)

    def __len__(self) -> Any:
        return self._remote.ask("length", self)

    def __iter__(self) -> Any:
        return self._remote.ask("iterate", self)

    def __next__(self) -> Any:
        return self._remote.ask("next", self)

    def __bool__(self) -> Any:
        return self._remote.ask("truth", self)

    def __contains__(self, wanted: Any) -> bool:
        return any(item is wanted or item == wanted for item in self)

    def __str__(self) -> Any:
        return self._remote.ask("text", self)

    def __repr__(self) -> Any:
        return self._remote.ask("spelling", self)

    def __hash__(self) -> int:
        return hash(self._number)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Held) and self._remote.ask("equal", self, other) is True

    def __lt__(self, other: Any) -> Any:
        return self._remote.ask("less", self, other) is True if isinstance(other, _Held) else NotImplemented

    def __le__(self, other: Any) -> Any:
        return self._remote.ask("at most", self, other) is True if isinstance(other, _Held) else NotImplemented

    def __instancecheck__(self, value: Any) -> bool:
        return isinstance(value, _Held) and self._remote.ask("instance", value, self) is True


def _number(value: Any) -> int:
    if isinstance(value, _Held):
        return int(value._number)
    raise TypeError(f"tests can give a program plain data, not {type(value).__name__}")


def _change(old: Any, new: Any) -> None:
    if type(old) is not type(new):
        return
    if isinstance(old, list | bytearray):
        old[:] = new
    else:
        old.clear()
        old.extend(new) if hasattr(old, "extend") else old.update(new)


def _end(status: int) -> Any:
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)
