# Word problems of one or two steps over numbers below 100, with the names of the story world.
# Entry points: arithmetic, answered, PROBLEMS.
# The reply shows the sum and then says the answer; its last number counts. Each digit is one word of the vocabulary.
import math
import random
import re
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from hildanext.world.words import FACTS, pick

ITEMS = ("coins", "shells", "cards", "nuts")
_NUMBER = re.compile(r"\d(?:\s*\d)*")


class Numbers(NamedTuple):
    """The numbers of one problem, its answer and the natural log of the probability of drawing them."""

    values: dict[str, int]
    answer: int
    log_probability: float


class Problem(NamedTuple):
    """A kind of word problem: question, worked reply and how its numbers are drawn."""

    ask: str
    reply: str
    draw: Callable[[random.Random], Numbers]


def _uniform(rng: random.Random, low: int, high: int) -> int:
    return low + int(rng.random() * (high - low + 1))


def draw_sum(rng: random.Random) -> Numbers:
    """a + b with both in 2..49."""
    a, b = _uniform(rng, 2, 49), _uniform(rng, 2, 49)
    return Numbers({"a": a, "b": b}, a + b, -2 * math.log(48))


def draw_difference(rng: random.Random) -> Numbers:
    """a - b with a in 10..99 and b in 2..a-1."""
    a = _uniform(rng, 10, 99)
    b = _uniform(rng, 2, a - 1)
    return Numbers({"a": a, "b": b}, a - b, -math.log(90) - math.log(a - 2))


def draw_product(rng: random.Random) -> Numbers:
    """a * b with both in 2..9."""
    a, b = _uniform(rng, 2, 9), _uniform(rng, 2, 9)
    return Numbers({"a": a, "b": b}, a * b, -2 * math.log(8))


def draw_two_steps(rng: random.Random) -> Numbers:
    """a + b - c with a and b in 2..49 and c in 1..a+b-1."""
    a, b = _uniform(rng, 2, 49), _uniform(rng, 2, 49)
    c = _uniform(rng, 1, a + b - 1)
    return Numbers({"a": a, "b": b, "c": c, "d": a + b}, a + b - c, -2 * math.log(48) - math.log(a + b - 1))


PROBLEMS: tuple[Problem, ...] = (
    Problem(
        "{hero} had {a} {items}. {friend} gave {hero} {b} more {items}. How many {items} does {hero} have now?",
        "{a} + {b} = {answer}. {hero} has {answer} {items} now.",
        draw_sum,
    ),
    Problem(
        "{hero} had {a} {items}. {hero} gave {b} {items} to {friend}. How many {items} does {hero} have now?",
        "{a} - {b} = {answer}. {hero} has {answer} {items} now.",
        draw_difference,
    ),
    Problem(
        "{hero} had {a} bags with {b} {items} in each bag. {friend} had no {items}. "
        "How many {items} does {hero} have now?",
        "{a} * {b} = {answer}. {hero} has {answer} {items} now.",
        draw_product,
    ),
    Problem(
        "{hero} had {a} {items}. {friend} gave {hero} {b} more {items}. Then {hero} gave away {c} {items}. "
        "How many {items} does {hero} have now?",
        "{a} + {b} = {d}. {d} - {c} = {answer}. {hero} has {answer} {items} now.",
        draw_two_steps,
    ),
)


def arithmetic(rng: random.Random) -> dict[str, Any]:
    """One word problem: messages, exact log_probability in nats, and `check` with the answer."""
    problem = PROBLEMS[int(rng.random() * len(PROBLEMS))]
    names = {"hero": pick(rng, FACTS["hero"]), "friend": pick(rng, FACTS["friend"]), "items": pick(rng, ITEMS)}
    numbers = problem.draw(rng)
    filled: dict[str, object] = {**names, **numbers.values, "answer": numbers.answer}
    choices = len(PROBLEMS) * len(FACTS["hero"]) * len(FACTS["friend"]) * len(ITEMS)
    return {
        "messages": [
            {"role": "user", "content": problem.ask.format(**filled)},
            {"role": "assistant", "content": problem.reply.format(**filled)},
        ],
        "log_probability": numbers.log_probability - math.log(choices),
        "check": {"type": "number", "answer": numbers.answer},
    }


def answered(how: Mapping[str, Any], reply: str) -> bool:
    """Whether the last number in `reply` is the answer; spaces between digits are not judged."""
    numbers = _NUMBER.findall(reply)
    return bool(numbers) and int("".join(numbers[-1].split())) == how["answer"]
