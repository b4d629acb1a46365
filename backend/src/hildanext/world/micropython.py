# A safe evaluator for one-line functions over small integers and lists: nothing outside the micro language can run.
# Entry points: call, MicroError, FUNCTIONS.
# It walks the syntax tree itself, so code written by a model is judged without executing it.
import ast
import operator
from collections.abc import Callable, Sequence
from typing import Any

LARGEST = 10**9
MOST_CHARACTERS = 200
FUNCTIONS: dict[str, Callable[..., Any]] = {
    "max": max, "min": min, "abs": abs, "len": len, "sum": sum, "sorted": sorted, "list": list, "reversed": reversed
}  # fmt: skip
_BINARY: dict[type[ast.operator], Callable[[Any, Any], Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Mod: operator.mod,
    ast.FloorDiv: operator.floordiv,
}
_COMPARE: dict[type[ast.cmpop], Callable[[Any, Any], bool]] = {
    ast.Eq: operator.eq,
    ast.NotEq: operator.ne,
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
}


class MicroError(ValueError):
    """The source is no one-line function of the micro language, or its evaluation failed."""


def call(source: str, name: str, arguments: Sequence[Any]) -> Any:
    """Value of the function `name` defined by `source` (one `def` with one `return`) for these arguments.
    Raises MicroError for anything else, a runtime error included."""
    try:
        function = _function(source, name)
        parameters = [parameter.arg for parameter in function.args.args]
        names = dict(zip(parameters, arguments, strict=True))
        return _value(_returned(function), names)
    except (SyntaxError, ValueError, TypeError, IndexError, ZeroDivisionError, KeyError, RecursionError) as error:
        raise MicroError(f"{name}: {error}") from error


def _function(source: str, name: str) -> ast.FunctionDef:
    if len(source) > MOST_CHARACTERS:
        raise MicroError(f"{len(source)} characters, at most {MOST_CHARACTERS} are read")
    body = ast.parse(source).body
    if len(body) != 1 or not isinstance(body[0], ast.FunctionDef) or body[0].name != name:
        raise MicroError(f"one function {name} was expected")
    return body[0]


def _returned(function: ast.FunctionDef) -> ast.expr:
    body = function.body
    if len(body) != 1 or not isinstance(body[0], ast.Return) or body[0].value is None or function.decorator_list:
        raise MicroError("one return statement was expected")
    return body[0].value


def _value(node: ast.expr, names: dict[str, Any]) -> Any:
    visit = _VISITORS.get(type(node))
    if visit is None:
        raise MicroError(f"{type(node).__name__} is not in the micro language")
    return visit(node, names)


def _constant(node: ast.Constant, names: dict[str, Any]) -> int:
    if not isinstance(node.value, int) or abs(node.value) > LARGEST:
        raise MicroError(f"constant {node.value!r}")
    return node.value


def _name(node: ast.Name, names: dict[str, Any]) -> Any:
    return names[node.id]


def _binary(node: ast.BinOp, names: dict[str, Any]) -> int:
    left, right = _value(node.left, names), _value(node.right, names)
    if not isinstance(left, int) or not isinstance(right, int) or max(abs(left), abs(right)) > LARGEST:
        raise MicroError("arithmetic is for small integers")
    return int(_BINARY[type(node.op)](left, right))


def _unary(node: ast.UnaryOp, names: dict[str, Any]) -> Any:
    value = _value(node.operand, names)
    return not value if isinstance(node.op, ast.Not) else -value


def _compare(node: ast.Compare, names: dict[str, Any]) -> bool:
    values = [_value(part, names) for part in (node.left, *node.comparators)]
    return all(_COMPARE[type(op)](a, b) for op, a, b in zip(node.ops, values, values[1:], strict=False))


def _call(node: ast.Call, names: dict[str, Any]) -> Any:
    if not isinstance(node.func, ast.Name) or node.keywords:
        raise MicroError("only plain calls of built-in functions")
    return FUNCTIONS[node.func.id](*(_value(argument, names) for argument in node.args))


def _subscript(node: ast.Subscript, names: dict[str, Any]) -> Any:
    value = _value(node.value, names)
    if isinstance(node.slice, ast.Slice):
        bounds = (node.slice.lower, node.slice.upper, node.slice.step)
        return value[slice(*(None if bound is None else _value(bound, names) for bound in bounds))]
    return value[_value(node.slice, names)]


_VISITORS: dict[type[ast.expr], Callable[..., Any]] = {
    ast.Constant: _constant,
    ast.Name: _name,
    ast.BinOp: _binary,
    ast.UnaryOp: _unary,
    ast.Compare: _compare,
    ast.Call: _call,
    ast.Subscript: _subscript,
}
