# Says whether a text is a story of this world and, if not, which sentence contradicts what.
# Entry points: check, contradictions, Verdict, Problem.
# Kinds of problem: a fact's name (sentences disagree), 'grammar' (no such sentence), 'order' (plot), 'unfinished'.
# A fact's accepted value is the one most sentences say (ties: the earliest), so one wrong word is one problem.
from collections import Counter
from dataclasses import dataclass, field
from typing import NamedTuple

from hildanext.world.grammar import PLOT, Variant
from hildanext.world.story import matching, statements
from hildanext.world.words import gender, sentences


class Problem(NamedTuple):
    """One fault: the sentence's index and words, what it contradicts or breaks, and the kind of fault."""

    sentence_index: int
    sentence: str
    contradicts: str
    kind: str


@dataclass(frozen=True)
class Verdict:
    """Whether a text is a story of this world, every fault found, and the facts that most sentences agree on."""

    valid: bool
    problems: tuple[Problem, ...] = ()
    facts: dict[str, str] = field(default_factory=dict)


class _Mention(NamedTuple):
    sentence: int
    value: str
    word: str


def check(text: str, partial: bool = False) -> Verdict:
    """Judge `text` sentence by sentence; white space is not judged. With `partial`, a text that stops at the end of a
    sentence before the plot does is valid."""
    pieces = sentences(text)
    variants = [matching(piece) for piece in pieces]
    problems = _plot_problems(pieces, variants, partial)
    mentions = _mentions(pieces, variants)
    facts = {fact: _accepted(said) for fact, said in mentions.items()}
    _settle_genders(facts)
    disagreements = [_disagreement(pieces, fact, facts, said) for fact, said in mentions.items()]
    seen: dict[tuple[int, str], Problem] = {}
    for word, problem in sorted((pair for found in disagreements for pair in found), key=lambda pair: pair[1]):
        seen.setdefault((problem.sentence_index, word), problem)
    problems = sorted([*problems, *seen.values()])
    return Verdict(not problems, tuple(problems), facts)


def contradictions(text: str) -> int:
    """Number of faults that `check` finds in a finished story."""
    return len(check(text).problems)


def _plot_problems(pieces: list[list[str]], variants: list[Variant | None], partial: bool) -> list[Problem]:
    problems, due = [], 0
    for index, (piece, variant) in enumerate(zip(pieces, variants, strict=True)):
        if variant is None:
            problems.append(Problem(index, " ".join(piece), _nearest(piece, due), "grammar"))
            due += 1
        elif variant.step == due:
            due += 1
        elif variant.step > due:
            missing = " and ".join(PLOT[step][0].template for step in range(due, variant.step))
            problems.append(Problem(index, " ".join(piece), f"before it this should be told: {missing}", "order"))
            due = variant.step + 1
        else:
            problems.append(Problem(index, " ".join(piece), "its place in the plot has passed", "order"))
    if due < len(PLOT) and not (partial and pieces):
        problems.append(Problem(len(pieces), "", f"the story stops before: {PLOT[due][0].template}", "unfinished"))
    return problems


def _nearest(piece: list[str], due: int) -> str:
    if due >= len(PLOT):
        return "the story was over"
    best = min(PLOT[due], key=lambda variant: _mismatches(piece, variant))
    for word, slot, allowed in zip(piece, best.slots, best.allowed, strict=False):
        if word not in allowed:
            wanted = f"a {slot}" if slot else " or ".join(allowed)
            return f"'{word}' where {wanted} was expected in: {best.template}"
    return f"{len(piece)} words where {len(best.allowed)} were expected in: {best.template}"


def _mismatches(piece: list[str], variant: Variant) -> int:
    wrong = sum(word not in allowed for word, allowed in zip(piece, variant.allowed, strict=False))
    return wrong + abs(len(piece) - len(variant.allowed))


def _mentions(pieces: list[list[str]], variants: list[Variant | None]) -> dict[str, list[_Mention]]:
    mentions: dict[str, list[_Mention]] = {}
    for index, (piece, variant) in enumerate(zip(pieces, variants, strict=True)):
        for fact, value, word in statements(piece, variant) if variant else ():
            mentions.setdefault(fact, []).append(_Mention(index, value, word))
    return mentions


def _accepted(said: list[_Mention]) -> str:
    return Counter(mention.value for mention in said).most_common(1)[0][0]


def _settle_genders(facts: dict[str, str]) -> None:
    for person in ("hero", "friend"):
        if person in facts:
            facts[f"{person}'s gender"] = gender(facts[person])


def _disagreement(
    pieces: list[list[str]], fact: str, facts: dict[str, str], said: list[_Mention]
) -> list[tuple[str, Problem]]:
    accepted = facts[fact]
    first = next((mention.sentence for mention in said if mention.value == accepted), None)
    source = f"sentence {first} says" if first is not None else "the name says"
    truth = f"{fact} is {accepted} as {source}"
    return [
        (m.word, Problem(m.sentence, " ".join(pieces[m.sentence]), f"{truth}, not {m.value}", fact))
        for m in said
        if m.value != accepted
    ]
