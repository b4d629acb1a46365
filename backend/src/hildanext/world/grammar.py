# The plot of a story: an ordered list of slots, each one sentence with one or more variants.
# Entry points: PLOT, VARIANTS, Variant, eligible.
# `{x}` names a fact, a detail or a pronoun form of words.py; `when` states facts that have no word of their own.
# No two variants of the plot can produce the same words (a test unifies all pairs): a sentence parses in one way.
from dataclasses import dataclass

from hildanext.world.words import DETAILS, domain_of, words


@dataclass(frozen=True)
class Variant:
    """One way to tell one step of the plot: per word its slot's name (or '') and the words allowed there."""

    step: int
    template: str
    when: tuple[tuple[str, str], ...]
    slots: tuple[str, ...]
    allowed: tuple[frozenset[str], ...]

    @property
    def details(self) -> tuple[str, ...]:
        """Names of the free choices made inside this sentence, in order."""
        return tuple(slot for slot in self.slots if slot in DETAILS)


_Told = tuple[str, dict[str, str]]
_PLOT: tuple[tuple[_Told, ...], ...] = (
    (
        ("One {weather} {time} a {girl} called {hero} went to the {place}.", {}),
        ("On a {weather} {time} the {girl} {hero} walked to the {place}.", {}),
    ),
    (("{She} had brought the little {pet} {pet_name}.", {}), ("With {her} came the little {pet} {pet_name}.", {})),
    (
        ("At the {place} {hero} met a {friend_girl} called {friend}.", {}),
        ("At the {place} a {friend_girl} called {friend} met {hero}.", {}),
    ),
    (("{hero} had a {colour} {object} in {hers} bag.", {}), ("In {hers} bag {hero} had a {colour} {object}.", {})),
    (
        ("{friend} had some fresh {food} in {friend_hers} box.", {}),
        ("In {friend_hers} box {friend} had some fresh {food}.", {}),
    ),
    (("They ate the fresh {food} and played {manner} with the {colour} {object}.", {}),),
    (("But a big {taker} took the {colour} {object} away.", {}),),
    (("Now {hero} had no {object} and felt so {sad}.", {}),),
    (("{friend} said that {hero} should not be so {sad}.", {}),),
    (("They looked under the {search}, but it was not there.", {}),),
    (
        ("Then {hero} looked behind the old {spot}.", {"finder": "hero"}),
        ("Then {friend} looked behind the old {spot}.", {"finder": "friend"}),
        ("Then the little {pet} {pet_name} looked behind the old {spot}.", {"finder": "pet"}),
    ),
    (
        ("Behind the old {spot} {hero} found the {colour} {object}.", {"finder": "hero"}),
        ("Behind the old {spot} {friend} found the {colour} {object}.", {"finder": "friend"}),
        ("Behind the old {spot} the little {pet} {pet_name} found the {colour} {object}.", {"finder": "pet"}),
    ),
    (("The big {taker} had left it behind the old {spot}.", {}),),
    (
        ("{friend} hugged {hero} and said well done.", {"finder": "hero"}),
        ("{hero} hugged {friend} and said thank you.", {"finder": "friend"}),
        ("{hero} hugged the little {pet} {pet_name} and said thank you.", {"finder": "pet"}),
    ),
    (
        ("{hero} put the {colour} {object} back in {hers} bag.", {"ending": "keep"}),
        ("{hero} gave the {colour} {object} to {friend} to keep.", {"ending": "give"}),
    ),
    (
        ("Now the {colour} {object} belonged to {hero}, and {she} felt {glad}.", {"ending": "keep"}),
        ("Now the {colour} {object} belonged to {friend}, and {friend_she} felt {proud}.", {"ending": "give"}),
    ),
    (("{hero} was not so {sad} any more.", {}),),
    (
        ("They all walked home from the {place} together.", {}),
        ("{hero}, {friend} and the little {pet} {pet_name} left the {place}.", {}),
    ),
    (("At night {hero} and the little {pet} {pet_name} dreamed of the big {taker}.", {}),),
)


def _variant(step: int, told: _Told) -> Variant:
    template, when = told
    marked = words(template.replace("{", " 0").replace("}", " ").replace("_", "Q"))
    slots: list[str] = []
    for index, word in enumerate(marked):
        if word != "0":
            slots.append(word.replace("Q", "_") if index and marked[index - 1] == "0" else "")
    literals = [word for word in marked if word != "0"]
    allowed = [
        frozenset(domain_of(slot)) if slot else frozenset((word,)) for slot, word in zip(slots, literals, strict=True)
    ]
    return Variant(step, template, tuple(when.items()), tuple(slots), tuple(allowed))


PLOT: tuple[tuple[Variant, ...], ...] = tuple(
    tuple(_variant(step, told) for told in tellings) for step, tellings in enumerate(_PLOT)
)
VARIANTS: tuple[Variant, ...] = tuple(variant for tellings in PLOT for variant in tellings)


def eligible(step: int, facts: dict[str, str]) -> list[Variant]:
    """The variants of plot step `step` that agree with `facts`; one of them is drawn uniformly."""
    return [variant for variant in PLOT[step] if all(facts[fact] == value for fact, value in variant.when)]
