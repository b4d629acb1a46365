# Draws stories from the plot with their exact log-probability, and reads a story's choices back from its text.
# Entry points: story, parse, Story, World, entropy, distinct_stories.
# Every choice is visible in the text, so a text has one choice sequence and log p(text) is the sum over its choices.
import math
import random
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from itertools import product

from hildanext.world.grammar import PLOT, VARIANTS, Variant, eligible
from hildanext.world.words import DETAILS, FACTS, FORMS, gender, pick, pronoun, sentences, share

BRANCHES = ("finder", "ending")


@dataclass(frozen=True)
class World:
    """The hidden state that a story tells: who, where, with what, what happened to it and how it ended."""

    hero: str
    place: str
    pet: str
    pet_name: str
    friend: str
    colour: str
    object: str
    food: str
    taker: str
    sad: str
    finder: str
    spot: str
    ending: str

    @property
    def finder_name(self) -> str:
        """Name of whoever found the object."""
        return {"hero": self.hero, "friend": self.friend, "pet": self.pet_name}[self.finder]

    @property
    def owner(self) -> str:
        """Name of whoever has the object at the end."""
        return self.friend if self.ending == "give" else self.hero


@dataclass(frozen=True)
class Story:
    """A story: canonical text, log-probability in nats under the generator, hidden state, sentences and every choice.
    `gains` holds per sentence its log-probability in nats given the sentences before it; they add up to the whole."""

    text: str
    log_probability: float
    world: World
    sentences: tuple[str, ...]
    choices: tuple[tuple[str, str], ...]
    gains: tuple[float, ...]


def story(seed: int | str, world: Mapping[str, str] | None = None) -> Story:
    """The story of `seed`, the same in every process; `world` fixes some facts.
    log_probability is always that of the text under the unconditioned generator. Raises ValueError for a fact or value
    that does not exist."""
    rng = random.Random(f"story:{seed}")
    fixed = dict(world or {})
    unknown = [f"{fact}={value}" for fact, value in fixed.items() if value not in FACTS.get(fact, ())]
    if unknown:
        raise ValueError(f"story: unknown facts {', '.join(unknown)}; known facts are {', '.join(FACTS)}")
    facts = {fact: fixed.get(fact) or pick(rng, domain) for fact, domain in FACTS.items()}
    told = [_tell(rng, step, facts) for step in range(len(PLOT))]
    return _story(facts, told)


def _tell(rng: random.Random, step: int, facts: dict[str, str]) -> tuple[Variant, dict[str, str]]:
    options = eligible(step, facts)
    variant = options[int(rng.random() * len(options))]
    return variant, {detail: pick(rng, DETAILS[detail]) for detail in variant.details}


def _story(facts: dict[str, str], told: list[tuple[Variant, dict[str, str]]]) -> Story:
    forms = {form: pronoun(form, facts[person]) for form, (person, _, _) in FORMS.items()}
    lines = tuple(variant.template.format(**facts, **forms, **details) for variant, details in told)
    choices = list(facts.items())
    for variant, details in told:
        choices += [(f"variant {variant.step}", variant.template), *details.items()]
    gains = _gains(facts, told)
    return Story(" ".join(lines), math.fsum(gains), World(**facts), lines, tuple(choices), gains)


def _gains(facts: dict[str, str], told: list[tuple[Variant, dict[str, str]]]) -> tuple[float, ...]:
    unsaid, gains = set(facts), []
    for variant, details in told:
        fresh = unsaid & {*variant.slots, *(fact for fact, _ in variant.when)}
        unsaid -= fresh
        drawn = [share(FACTS[fact], facts[fact]) for fact in sorted(fresh)]
        drawn += [share(DETAILS[name], value) for name, value in details.items()]
        gains.append(math.fsum(map(math.log, drawn)) - math.log(len(eligible(variant.step, facts))))
    return tuple(gains)


def matching(sentence: list[str]) -> Variant | None:
    """The only variant whose pattern admits these words, or None; agreement with other sentences is not looked at."""
    for variant in _BY_LENGTH.get(len(sentence), ()):
        if all(word in allowed for word, allowed in zip(sentence, variant.allowed, strict=True)):
            return variant
    return None


def _by_length() -> dict[int, tuple[Variant, ...]]:
    lengths = {len(variant.allowed) for variant in VARIANTS}
    return {length: tuple(v for v in VARIANTS if len(v.allowed) == length) for length in lengths}


_BY_LENGTH = _by_length()


def statements(sentence: list[str], variant: Variant) -> Iterable[tuple[str, str, str]]:
    """What a sentence says about the world: (fact, value, word); genders of hero and friend are facts of their own."""
    for slot, word in zip(variant.slots, sentence, strict=True):
        if slot in FACTS:
            yield slot, word, word
        if slot in ("hero", "friend"):
            yield f"{slot}'s gender", gender(word), word
        if slot in FORMS:
            person, female, _ = FORMS[slot]
            yield f"{person}'s gender", "girl" if word == female else "boy", word
    for fact, value in variant.when:
        yield fact, value, value


def parse(text: str) -> Story | None:
    """Every choice behind `text`, with the text's exact log-probability; None when no story has these words.
    White space is not judged: the returned story's `text` is the canonical one."""
    told: list[tuple[Variant, dict[str, str]]] = []
    facts: dict[str, str] = {}
    for step, sentence in enumerate(sentences(text)):
        variant = matching(sentence)
        if variant is None or variant.step != step:
            return None
        for fact, value, _ in statements(sentence, variant):
            if facts.setdefault(fact, value) != value:
                return None
        told.append((variant, {s: w for s, w in zip(variant.slots, sentence, strict=True) if s in DETAILS}))
    if len(told) != len(PLOT):
        return None
    return _story({fact: facts[fact] for fact in FACTS}, told)


def _domain_entropy(domain: tuple[str, ...]) -> float:
    return -math.fsum(n / len(domain) * math.log(n / len(domain)) for n in Counter(domain).values())


def _branches() -> Iterable[tuple[float, dict[str, str]]]:
    for values in product(*(sorted(set(FACTS[fact])) for fact in BRANCHES)):
        facts = dict(zip(BRANCHES, values, strict=True))
        yield math.prod(share(FACTS[fact], value) for fact, value in facts.items()), facts


def entropy() -> float:
    """Exact entropy of the story generator in nats per story: facts, then per branch the variants and their details."""
    total = math.fsum(_domain_entropy(domain) for domain in FACTS.values())
    for probability, facts in _branches():
        for step in range(len(PLOT)):
            options = eligible(step, facts)
            details = math.fsum(_domain_entropy(DETAILS[name]) for option in options for name in option.details)
            total += probability * (math.log(len(options)) + details / len(options))
    return total


def distinct_stories() -> int:
    """Exact number of different stories the generator can tell."""
    shared = math.prod(len(set(domain)) for fact, domain in FACTS.items() if fact not in BRANCHES)
    told = 0
    for _, facts in _branches():
        told += math.prod(
            sum(math.prod(len(set(DETAILS[name])) for name in option.details) for option in eligible(step, facts))
            for step in range(len(PLOT))
        )
    return shared * told


def as_facts(world: World) -> dict[str, str]:
    """The world as a plain dict, fit for JSON and for `story(seed, world=...)`."""
    return asdict(world)
