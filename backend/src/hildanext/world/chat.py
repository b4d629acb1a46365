# Chats about stories: write one about ..., continue one, answer questions on one, over one or several turns.
# Entry points: chat, answered, QUESTIONS, ASKS, FORMS.
# The last assistant message is the one that is checked; a record's `check` says how, in plain JSON.
# log_probability is exact for the messages: form, wording and questions are drawn besides the story.
import math
import random
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from hildanext.world.check import check
from hildanext.world.story import Story, as_facts, parse
from hildanext.world.words import FACTS, pronoun, words


class Question(NamedTuple):
    """A question on a story: its words, the full answer and the slot of the one word that must be right."""

    ask: str
    answer: str
    key: str


Record = dict[str, Any]
ASKS: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("Write a story about {hero} and a {pet}.", ("hero", "pet")),
    ("Write a story about {hero} and a {colour} {object}.", ("hero", "colour", "object")),
    ("Write a story about {hero} at the {place}.", ("hero", "place")),
)
CONTINUE = "Continue this story."
READ = "Read this story."
EARLY_SENTENCES = 7
EARLY_QUESTIONS: tuple[Question, ...] = (
    Question("What colour was the {object}?", "The {object} was {colour}.", "colour"),
    Question("What did {hero} have in {hers} bag?", "{hero} had a {colour} {object}.", "object"),
    Question("Where did {hero} go?", "{hero} went to the {place}.", "place"),
    Question("What pet did {hero} have?", "{hero} had a {pet}.", "pet"),
    Question("What was the {pet} called?", "The {pet} was called {pet_name}.", "pet_name"),
    Question("Who met {hero} at the {place}?", "{friend} met {hero} at the {place}.", "friend"),
    Question("What did {friend} have in the box?", "{friend} had some {food}.", "food"),
    Question("Who took the {object}?", "A big {taker} took the {object}.", "taker"),
)
QUESTIONS: tuple[Question, ...] = (
    *EARLY_QUESTIONS,
    Question("How did {hero} feel without the {object}?", "{hero} felt {sad}.", "sad"),
    Question("Who found the {object}?", "{finder_name} found the {object}.", "finder_name"),
    Question("Where was the {object}?", "The {object} was behind the {spot}.", "spot"),
    Question("Who has the {object} now?", "{owner} has the {object} now.", "owner"),
)


def slots(told: Story) -> dict[str, str]:
    """Every word a question can name, from the story's hidden state."""
    world = told.world
    more = {"finder_name": world.finder_name, "owner": world.owner, "hers": pronoun("hers", world.hero)}
    return as_facts(world) | more


def chat(rng: random.Random, told: Story) -> Record:
    """A chat about `told`: messages, log_probability in nats, and `check` for the last assistant message."""
    form = FORMS[int(rng.random() * len(FORMS))]
    record = form(rng, told)
    record["log_probability"] -= math.log(len(FORMS))
    return record


def _turn(user: str, assistant: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": user}, {"role": "assistant", "content": assistant}]


def _record(messages: list[dict[str, str]], log_probability: float, how: dict[str, Any]) -> Record:
    return {"messages": messages, "log_probability": log_probability, "check": how}


def write(rng: random.Random, told: Story) -> Record:
    """Ask for a story about some facts of it; the reply must be a story with those facts."""
    ask, facts = ASKS[int(rng.random() * len(ASKS))]
    known = as_facts(told.world)
    how = {"type": "story", "facts": {fact: known[fact] for fact in facts}}
    return _record(_turn(ask.format(**known), told.text), told.log_probability - math.log(len(ASKS)), how)


def proceed(rng: random.Random, told: Story) -> Record:
    """Give one to twelve sentences; the reply must finish the story without contradicting them."""
    kept = 1 + int(rng.random() * 12)
    start, rest = " ".join(told.sentences[:kept]), " ".join(told.sentences[kept:])
    return _record(
        _turn(f"{CONTINUE} {start}", rest), told.log_probability - math.log(12), {"type": "continue", "start": start}
    )


def _question(question: Question, told: Story) -> tuple[list[dict[str, str]], dict[str, Any]]:
    known = slots(told)
    answer = question.answer.format(**known)
    return _turn(question.ask.format(**known), answer), {"type": "answer", "key": known[question.key], "full": answer}


def write_and_ask(rng: random.Random, told: Story) -> Record:
    """Ask for a story, then one question on it."""
    opening = write(rng, told)
    turn, how = _question(QUESTIONS[int(rng.random() * len(QUESTIONS))], told)
    return _record([*opening["messages"], *turn], opening["log_probability"] - math.log(len(QUESTIONS)), how)


def read_and_ask(rng: random.Random, told: Story) -> Record:
    """Give a whole story with one question on it."""
    turn, how = _question(QUESTIONS[int(rng.random() * len(QUESTIONS))], told)
    turn[0]["content"] = f"{READ} {told.text} {turn[0]['content']}"
    return _record(turn, told.log_probability - math.log(len(QUESTIONS)), how)


def ask_thrice(rng: random.Random, told: Story) -> Record:
    """Give the start of a story, then three different questions on it, one a turn."""
    left = list(EARLY_QUESTIONS)
    log_probability = math.fsum(told.gains[:EARLY_SENTENCES])
    messages: list[dict[str, str]] = []
    how: dict[str, Any] = {}
    for _ in range(3):
        log_probability -= math.log(len(left))
        turn, how = _question(left.pop(int(rng.random() * len(left))), told)
        messages += turn
    messages[0]["content"] = f"{READ} {' '.join(told.sentences[:EARLY_SENTENCES])} {messages[0]['content']}"
    return _record(messages, log_probability, how)


FORMS: tuple[Callable[[random.Random, Story], Record], ...] = (write, proceed, write_and_ask, read_and_ask, ask_thrice)
_VALUES = frozenset(word for fact, domain in FACTS.items() if fact not in ("finder", "ending") for word in domain)


def answered(how: Mapping[str, Any], reply: str) -> bool:
    """Whether `reply` does what a chat record's `check` asks for."""
    return _JUDGES[how["type"]](how, reply)


def _story_fits(how: Mapping[str, Any], reply: str) -> bool:
    told = parse(reply)
    return told is not None and how["facts"].items() <= as_facts(told.world).items()


def _continues(how: Mapping[str, Any], reply: str) -> bool:
    return check(f"{how['start']} {reply}").valid


def _answers(how: Mapping[str, Any], reply: str) -> bool:
    said = words(reply)
    return how["key"] in said and _VALUES.intersection(said) <= set(words(how["full"]))


_JUDGES: dict[str, Callable[[Mapping[str, Any], str], bool]] = {
    "story": _story_fits,
    "continue": _continues,
    "answer": _answers,
}
