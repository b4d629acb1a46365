# Where a program ends and its tests begin, for a text that does not say so.
# Entry points: parts, loaded_names.
# Run on both sides of a sandbox, never in the process that asks for a verdict. Standard library only.
"""A program and the tests at its end."""

from __future__ import annotations

import ast
import builtins

PURE = frozenset((
    "abs", "all", "any", "ascii", "bin", "bool", "bytes", "bytearray", "callable", "chr", "complex", "dict", "divmod",
    "enumerate", "filter", "float", "frozenset", "hash", "hex", "int", "isinstance", "iter", "len", "list", "map",
    "max", "min", "next", "oct", "ord", "pow", "range", "repr", "reversed", "round", "set", "slice", "sorted", "str",
    "sum", "tuple", "zip", "Exception", "ValueError", "TypeError", "KeyError", "IndexError", "ZeroDivisionError",
    "AssertionError",
))  # fmt: skip
MODULES = frozenset((
    "bisect", "cmath", "collections", "copy", "datetime", "decimal", "fractions", "functools", "heapq", "itertools",
    "math", "re", "string",
))  # fmt: skip


def parts(source: str) -> tuple[ast.Module, ast.Module]:
    """The program and the tests of a text: the asserts at its end, or a `check` function and its call, as long as
    they name only pure built-ins and what the program defines. SyntaxError as compile's."""
    body = ast.parse(source, "<program>").body
    imports = [node for node in body if isinstance(node, ast.Import | ast.ImportFrom)]
    imported = {name for node in imports for name in _defined(node)}
    plain = {alias.name for node in imports if isinstance(node, ast.Import) for alias in node.names if not alias.asname}
    defined = {name for node in body for name in _defined(node)} - imported | plain & MODULES
    start = len(body)
    while start and _is_test(body[start - 1], defined):
        start -= 1
    return ast.Module(body[:start], []), ast.Module(body[start:], [])


def loaded_names(tree: ast.AST) -> set[str]:
    """Names a piece of code reads and does not bind itself."""
    nodes = list(ast.walk(tree))
    read = {node.id for node in nodes if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load)}
    return read - _bound(nodes)


def _bound(nodes: list[ast.AST]) -> set[str]:
    bound = {node.id for node in nodes if isinstance(node, ast.Name) and not isinstance(node.ctx, ast.Load)}
    bound |= {node.arg for node in nodes if isinstance(node, ast.arg)}
    for node in nodes:
        bound |= set(_defined(node))
        bound |= {node.name} if isinstance(node, ast.ExceptHandler) and node.name else set()
    return bound


def _defined(node: ast.AST) -> list[str]:
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
        return [node.name]
    if isinstance(node, ast.Assign):
        return [target.id for target in node.targets if isinstance(target, ast.Name)]
    if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
        return [node.target.id]
    if isinstance(node, ast.Import | ast.ImportFrom):
        return [(alias.asname or alias.name).split(".")[0] for alias in node.names]
    return []


def _is_test(node: ast.stmt, defined: set[str]) -> bool:
    if isinstance(node, ast.Assign):
        return [getattr(target, "id", "") for target in node.targets] == ["METADATA"]
    called = node.value.func if isinstance(node, ast.Expr) and isinstance(node.value, ast.Call) else None
    is_check = isinstance(node, ast.FunctionDef) and node.name == "check" or getattr(called, "id", "") == "check"
    if not is_check and not isinstance(node, ast.Assert):
        return False
    return all(name in PURE or name in defined and not hasattr(builtins, name) for name in loaded_names(node))
