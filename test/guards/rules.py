# The house rules as functions over a source tree: each returns one line per violation.
# Entry points: layers, headers, sizes, docstrings, shapes, heavy_imports, guessed_attributes, learning_rate_reads.
# They take the tree's root, so every rule can be shown a planted fault.
"""Checks behind the guard tests."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

LAYERS = (
    "errors", "progress", "environment", "disk", "command_files", "config", "registry", "run_dir", "core", "world",
    "data", "models", "decoding", "latents", "engines", "report", "train", "measure", "bench", "selftest", "export",
    "model", "api", "commands", "cli",
)  # fmt: skip
FORBIDDEN = {("train", "engines"): "rollouts decode with the model in training"}
LIGHT = (
    "errors", "progress", "environment", "disk", "command_files", "config", "registry", "run_dir", "commands", "cli",
)  # fmt: skip
HEAVY = ("torch", "transformers", "datasets", "fastapi", "tokenizers", "safetensors", "matplotlib", "peft")
FILE_LINES, FUNCTION_LINES, PARAMETERS, DOCSTRING_LINES = 300, 50, 6, 6
UNDIVIDED_LINES, CLOSURE_LINES = 15, 10
MODELS = re.compile(r"(^|\.)(model|denoiser|network)$")
Function = ast.FunctionDef | ast.AsyncFunctionDef


def sources(root: Path) -> Iterator[tuple[str, str, ast.Module]]:
    """(path relative to root, text, syntax tree) of every Python file."""
    for path in sorted(root.rglob("*.py")):
        text = path.read_text(encoding="utf-8")
        yield path.relative_to(root).as_posix(), text, _parsed(text)


@cache
def _parsed(text: str) -> ast.Module:
    return ast.parse(text)


def _layer(module: str) -> int | None:
    name = module.split(".")[0].removesuffix(".py")
    return LAYERS.index(name) if name in LAYERS else None


def _imports(tree: ast.AST) -> Iterator[tuple[int, str]]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.lineno, node.module
            yield from ((node.lineno, f"{node.module}.{alias.name}") for alias in node.names)


def layers(root: Path) -> list[str]:
    """Imports, anywhere in a file, of a layer right of the file's own or of a forbidden one; relative imports."""
    found = []
    for name, text, tree in sources(root):
        own = _layer(name.split("/")[0])
        if own is None:
            continue
        for line, module in _imports(tree):
            other = _layer(module.removeprefix("hildanext.")) if module.startswith("hildanext.") else None
            if other is not None and (other > own or (LAYERS[own], LAYERS[other]) in FORBIDDEN):
                found.append(f"{name}:{line}: {LAYERS[own]} imports {LAYERS[other]}")
        found += [f"{name}: relative import" for _ in re.findall(r"^\s*from \.", text, re.M)]
    return found


def heavy_imports(root: Path) -> list[str]:
    """Heavy packages imported at module level by a light module."""
    found = []
    for name, _, tree in sources(root):
        if name.split("/")[0].removesuffix(".py") not in LIGHT:
            continue
        top = [node for node in tree.body if isinstance(node, ast.Import | ast.ImportFrom)]
        for line, module in _imports(ast.Module(body=list(top), type_ignores=[])):
            if module.split(".")[0] in HEAVY:
                found.append(f"{name}:{line}: imports {module} at module level")
    return sorted(set(found))


def headers(root: Path) -> list[str]:
    """Files that do not open with 3-6 comment lines, or whose first two lines declare an encoding."""
    found = []
    for name, text, _ in sources(root):
        lines = text.splitlines()
        count = next((i for i, line in enumerate(lines) if not line.startswith("# ")), len(lines))
        if not 3 <= count <= 6:
            found.append(f"{name}: opens with {count} comment lines, 3-6 expected")
        if any(re.search(r"coding[:=]", line) for line in lines[:2]):
            found.append(f"{name}: 'coding:' in the first two lines is an encoding declaration")
    return found


def sizes(root: Path) -> list[str]:
    """Files over 300 lines, functions over 50, more than six parameters."""
    found = []
    for name, text, tree in sources(root):
        if text.count("\n") > FILE_LINES:
            found.append(f"{name}: {text.count(chr(10))} lines")
        for function in _functions(tree):
            length = _length(function)
            if length > FUNCTION_LINES:
                found.append(f"{name}:{function.lineno}: {function.name} has {length} lines")
            arguments = [a.arg for a in (*function.args.posonlyargs, *function.args.args, *function.args.kwonlyargs)]
            if len([a for a in arguments if a not in ("self", "cls")]) > PARAMETERS and name.split("/")[0] != "api":
                found.append(f"{name}:{function.lineno}: {function.name} has {len(arguments)} parameters")
    return found


def _functions(tree: ast.AST) -> list[Function]:
    return [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]


def docstrings(root: Path) -> list[str]:
    """Public functions and classes without a docstring, and docstrings over six lines."""
    found = []
    for name, _, tree in sources(root):
        for node, public in _definitions(tree, True):
            text = ast.get_docstring(node)
            if public and text is None:
                found.append(f"{name}:{node.lineno}: {node.name} has no docstring")
            elif text is not None and len(text.splitlines()) > DOCSTRING_LINES:
                found.append(f"{name}:{node.lineno}: {node.name}'s docstring has {len(text.splitlines())} lines")
    return found


def _definitions(tree: ast.AST, public: bool) -> Iterator[tuple[Function | ast.ClassDef, bool]]:
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            here = public and not node.name.startswith("_")
            yield node, here
            if isinstance(node, ast.ClassDef):
                yield from _definitions(node, here)


def shapes(root: Path) -> list[str]:
    """Nested functions of over ten lines that are no decorators; blank lines in functions of up to fifteen lines but
    those the formatter puts in."""
    found = []
    for name, text, tree in sources(root):
        lines = text.splitlines()
        for function in _functions(tree):
            inner = [node for child in function.body for node in _functions(child) if _length(node) > CLOSURE_LINES]
            if inner and not _is_decorator(function):
                found.append(f"{name}:{inner[0].lineno}: {inner[0].name} is nested in {function.name}")
            if _length(function) > UNDIVIDED_LINES:
                continue
            body = range(_first_line(function), function.end_lineno or 0)
            free = _string_lines(function) | _formatter_lines(function)
            blank = [i + 1 for i in body if not lines[i].strip() and i + 1 not in free]
            found += [f"{name}:{line}: blank line in {function.name}" for line in blank]
    return found


def _length(function: Function) -> int:
    return (function.end_lineno or 0) - function.lineno + 1


def _formatter_lines(function: Function) -> set[int]:
    after = [node for node in ast.walk(function) if isinstance(node, ast.Import | ast.ImportFrom)]
    inner = [node for child in function.body for node in _functions(child)]
    around = {line for node in inner for line in range(node.lineno - 3, (node.end_lineno or 0) + 2)}
    return {(node.end_lineno or 0) + 1 for node in after} | around


def _is_decorator(function: Function) -> bool:
    returned = [node.value for node in ast.walk(function) if isinstance(node, ast.Return)]
    names = {inner.name for child in function.body for inner in _functions(child)}
    return any(isinstance(value, ast.Name) and value.id in names for value in returned)


def _first_line(function: Function) -> int:
    first = function.body[0]
    is_doc = isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant)
    return (first.end_lineno or first.lineno) + (1 if is_doc else 0) if is_doc else first.lineno


def _string_lines(function: Function) -> set[int]:
    inside: set[int] = set()
    for node in ast.walk(function):
        if isinstance(node, ast.Constant | ast.JoinedStr) and node.end_lineno and node.end_lineno > node.lineno:
            inside |= set(range(node.lineno, node.end_lineno + 1))
    return inside


def guessed_attributes(root: Path) -> list[str]:
    """getattr(model, name, default) in core, decoding, engines and train: the protocol declares what a model has."""
    found = []
    for name, _, tree in sources(root):
        if name.split("/")[0] not in ("core", "decoding", "engines", "train"):
            continue
        for node in ast.walk(tree):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "getattr":
                of = ast.unparse(node.args[0])
                if len(node.args) == 3 and MODELS.search(of):
                    found.append(f"{name}:{node.lineno}: {ast.unparse(node)} guesses what {of} declares")
    return found


def learning_rate_reads(root: Path) -> list[str]:
    """Reads of optimizer.lr, and of any `.lr` in train, beyond the first: one place says what the learning rate is."""
    reads = []
    for name, _, tree in sources(root):
        for node in ast.walk(tree):
            if not isinstance(node, ast.Attribute) or node.attr != "lr":
                continue
            if name.startswith("train/") or ast.unparse(node.value).endswith("optimizer"):
                reads.append(f"{name}:{node.lineno}: {ast.unparse(node)} reads the learning rate again")
    return reads[1:]
