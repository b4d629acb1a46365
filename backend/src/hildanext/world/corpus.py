# Records of the four registers, each reproducible from (kind, seed, index) alone, and the judge of replies.
# Entry points: corpus, check_answer, KINDS, VOCABULARY.
# A record has id, register, log_probability in nats and either `text` (stories) or `messages` and `check` (the others).
import random
from collections.abc import Callable, Iterator, Mapping
from string import Formatter
from typing import Any

from hildanext.world import arithmetic, chat, coding
from hildanext.world.grammar import VARIANTS
from hildanext.world.story import as_facts, story
from hildanext.world.words import DETAILS, FACTS, FORMS, words

Record = dict[str, Any]


def _stories(seed: int, index: int) -> Record:
    told = story(f"{seed}:{index}")
    return {"text": told.text, "log_probability": told.log_probability, "world": as_facts(told.world)}


def _chat(seed: int, index: int) -> Record:
    return chat.chat(random.Random(f"chat:{seed}:{index}"), story(f"chat:{seed}:{index}"))


def _arithmetic(seed: int, index: int) -> Record:
    return arithmetic.arithmetic(random.Random(f"arithmetic:{seed}:{index}"))


def _coding(seed: int, index: int) -> Record:
    return coding.coding(random.Random(f"coding:{seed}:{index}"), index)


KINDS: dict[str, Callable[[int, int], Record]] = {
    "stories": _stories,
    "chat": _chat,
    "arithmetic": _arithmetic,
    "coding": _coding,
}


def corpus(kind: str, seed: int, count: int, start: int = 0) -> Iterator[Record]:
    """Records `start` .. `start + count - 1` of a register; record i depends on (kind, seed, i) alone.
    Raises ValueError for an unknown kind."""
    if kind not in KINDS:
        raise ValueError(f"corpus: unknown kind {kind!r}, expected one of {', '.join(KINDS)}")
    for index in range(start, start + count):
        yield {"id": f"{kind}-{seed}-{index}", "register": kind, **KINDS[kind](seed, index)}


_JUDGES: dict[str, Callable[[Mapping[str, Any], str], bool]] = {
    "chat": chat.answered,
    "arithmetic": arithmetic.answered,
    "coding": coding.answered,
}


def check_answer(record: Mapping[str, Any], reply: str) -> bool:
    """Whether `reply` in place of a record's last assistant message is right. Raises ValueError for a plain story."""
    if record["register"] not in _JUDGES:
        raise ValueError(f"check_answer: register {record['register']!r} asks nothing, use check(text)")
    return _JUDGES[record["register"]](record["check"], reply)


def _literals(template: str) -> list[str]:
    return [word for literal, *_ in Formatter().parse(template) for word in words(literal)]


def _vocabulary() -> tuple[str, ...]:
    templates = [variant.template for variant in VARIANTS] + [chat.CONTINUE, chat.READ, "# Return def return ( ) : ,"]
    templates += [ask for ask, _ in chat.ASKS]
    templates += [text for question in chat.QUESTIONS for text in (question.ask, question.answer)]
    templates += [text for problem in arithmetic.PROBLEMS for text in (problem.ask, problem.reply)]
    templates += [text for task in coding.TASKS for text in (task.name, task.wish, task.expression)]
    known = {word for template in templates for word in _literals(template)}
    known.update(word for name, domain in FACTS.items() if name not in ("finder", "ending") for word in domain)
    known.update(word for domain in (*DETAILS.values(), *(form[1:] for form in FORMS.values())) for word in domain)
    known.update("0123456789", arithmetic.ITEMS, coding.LISTS, *coding.PAIRS)
    return tuple(sorted(known))


VOCABULARY: tuple[str, ...] = _vocabulary()
