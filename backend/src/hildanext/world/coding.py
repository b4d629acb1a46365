# Micro coding tasks: a comment that says what to return, a function head, and a one-line body, with tests.
# Entry points: coding, answered, passed, humaneval_row, TASKS.
# A record is also a row in HumanEval's schema; replies are judged by micropython.py, never executed.
# {a} {b} are argument names, {s} a list argument, {n} a constant.
import math
import random
from collections.abc import Mapping
from typing import Any, NamedTuple

from hildanext.world.micropython import MicroError, call


class Task(NamedTuple):
    """One kind of task: function name, what to return in words, arguments and the expression."""

    name: str
    wish: str
    arguments: str
    expression: str


PAIRS = (("a", "b"), ("x", "y"))
LISTS = ("s", "t")
HUMANEVAL_FIELDS = ("task_id", "prompt", "canonical_solution", "test", "entry_point")
TESTS = 4
TASKS: tuple[Task, ...] = (
    Task("add", "{a} plus {b}", "{a}, {b}", "{a} + {b}"),
    Task("subtract", "{a} minus {b}", "{a}, {b}", "{a} - {b}"),
    Task("multiply", "{a} times {b}", "{a}, {b}", "{a} * {b}"),
    Task("remainder", "{a} modulo {b}", "{a}, {b}", "{a} % {b}"),
    Task("larger", "the larger of {a} and {b}", "{a}, {b}", "max({a}, {b})"),
    Task("smaller", "the smaller of {a} and {b}", "{a}, {b}", "min({a}, {b})"),
    Task("equal", "whether {a} equals {b}", "{a}, {b}", "{a} == {b}"),
    Task("above", "whether {a} is above {b}", "{a}, {b}", "{a} > {b}"),
    Task("below", "whether {a} is below {b}", "{a}, {b}", "{a} < {b}"),
    Task("add_{n}", "{a} plus {n}", "{a}", "{a} + {n}"),
    Task("subtract_{n}", "{a} minus {n}", "{a}", "{a} - {n}"),
    Task("multiply_{n}", "{a} times {n}", "{a}", "{a} * {n}"),
    Task("remainder_{n}", "{a} modulo {n}", "{a}", "{a} % {n}"),
    Task("above_{n}", "whether {a} is above {n}", "{a}", "{a} > {n}"),
    Task("below_{n}", "whether {a} is below {n}", "{a}", "{a} < {n}"),
    Task("double", "{a} plus {a}", "{a}", "{a} + {a}"),
    Task("square", "{a} times {a}", "{a}", "{a} * {a}"),
    Task("even", "whether {a} is even", "{a}", "{a} % 2 == 0"),
    Task("odd", "whether {a} is odd", "{a}", "{a} % 2 == 1"),
    Task("negative", "minus {a}", "{a}", "-{a}"),
    Task("length", "the length of {s}", "{s}", "len({s})"),
    Task("total", "the sum of {s}", "{s}", "sum({s})"),
    Task("largest", "the largest value in {s}", "{s}", "max({s})"),
    Task("smallest", "the smallest value in {s}", "{s}", "min({s})"),
    Task("first", "the first value in {s}", "{s}", "{s}[0]"),
    Task("last", "the last value in {s}", "{s}", "{s}[-1]"),
    Task("backwards", "{s} backwards", "{s}", "{s}[::-1]"),
    Task("arranged", "{s} in order", "{s}", "sorted({s})"),
)
_Filled = dict[str, str]


def coding(rng: random.Random, index: int = 0) -> dict[str, Any]:
    """One task: HumanEval's five fields, messages, exact log_probability in nats of the messages, and `check`.
    The tests' inputs come from the same stream but are no part of the messages."""
    task = TASKS[int(rng.random() * len(TASKS))]
    filled, ways = _fill(rng, task)
    name = task.name.format(**filled)
    prompt = f"# Return {task.wish.format(**filled)}.\ndef {name}({task.arguments.format(**filled)}):"
    solution = f"return {task.expression.format(**filled)}"
    inputs = [_arguments(rng, task) for _ in range(TESTS)]
    cases = [[arguments, call(f"{prompt} {solution}", name, arguments)] for arguments in inputs]
    return {
        "task_id": f"storyworld/{index}",
        "prompt": prompt,
        "canonical_solution": f" {solution}\n",
        "test": _test(cases),
        "entry_point": name,
        "messages": [{"role": "user", "content": prompt}, {"role": "assistant", "content": solution}],
        "log_probability": -math.log(len(TASKS) * ways),
        "check": {"type": "code", "prompt": prompt, "entry_point": name, "cases": cases},
    }


def _fill(rng: random.Random, task: Task) -> tuple[_Filled, int]:
    a, b = PAIRS[int(rng.random() * len(PAIRS))]
    filled = {"a": a, "b": b, "s": LISTS[int(rng.random() * len(LISTS))], "n": str(2 + int(rng.random() * 98))}
    letters = len(LISTS) if "{s}" in task.arguments else len(PAIRS)
    return filled, letters * (98 if "{n}" in task.name else 1)


def _arguments(rng: random.Random, task: Task) -> list[Any]:
    if "{s}" in task.arguments:
        return [[1 + int(rng.random() * 20) for _ in range(2 + int(rng.random() * 4))]]
    return [1 + int(rng.random() * 99) for _ in task.arguments.split(",")]


def _test(cases: list[list[Any]]) -> str:
    lines = [f"    assert candidate({', '.join(map(repr, inputs))}) == {value!r}" for inputs, value in cases]
    return "\n".join(["def check(candidate):", *lines, ""])


def humaneval_row(record: Mapping[str, Any]) -> dict[str, str]:
    """The record's five fields in HumanEval's schema: prompt + canonical_solution + test is a runnable program."""
    return {name: record[name] for name in HUMANEVAL_FIELDS}


def answered(how: Mapping[str, Any], reply: str) -> bool:
    """Whether `reply`, a body for the prompt or a whole function, gives every test's value."""
    return passed(how, reply) == 1


def passed(how: Mapping[str, Any], reply: str) -> float:
    """Share of the tests whose value `reply` gives; a test at which it fails is one it does not pass."""
    body = reply.strip()
    source = body if body.startswith(("def ", "#")) else f"{how['prompt']} {body}"
    return sum(_gives(source, how["entry_point"], *case) for case in how["cases"]) / len(how["cases"])


def _gives(source: str, name: str, inputs: list[Any], value: Any) -> bool:
    try:
        return _same(call(source, name, inputs), value)
    except MicroError:
        return False


def _same(given: Any, wanted: Any) -> bool:
    return type(given) is type(wanted) and bool(given == wanted)
