# The story world's checker: every corruption that breaks agreement or the plot is refused and named.
# Entry points: pytest.
# Corruptions are made on words and sentences from the story's own slots, not through the parser.
import random

import pytest

from hildanext.world import Story, check, contradictions, parse, story
from hildanext.world.grammar import VARIANTS, Variant
from hildanext.world.words import DETAILS, FACTS, FORMS, domain_of, words

BY_TEMPLATE = {variant.template: variant for variant in VARIANTS}


def _told(seed: int) -> tuple[Story, list[list[str]], list[Variant]]:
    told = story(seed)
    variants = [BY_TEMPLATE[value] for name, value in told.choices if name.startswith("variant")]
    return told, [words(sentence) for sentence in told.sentences], variants


def _text(pieces: list[list[str]]) -> str:
    return " ".join(" ".join(piece) for piece in pieces)


def _replaced(pieces: list[list[str]], sentence: int, position: int, word: str) -> str:
    changed = [list(piece) for piece in pieces]
    changed[sentence][position] = word
    return _text(changed)


def test_every_generated_story_is_accepted() -> None:
    assert all(check(story(seed).text).valid for seed in range(2000, 4000))


def _bound(variants: list[Variant]) -> list[tuple[int, int, str]]:
    return [
        (number, position, slot)
        for number, variant in enumerate(variants)
        for position, slot in enumerate(variant.slots)
        if slot in FACTS or slot in FORMS
    ]


def _corrupted(pieces: list[list[str]], mention: tuple[int, int, str], rng: random.Random) -> str:
    number, position, slot = mention
    others = sorted(set(domain_of(slot)) - {pieces[number][position]})
    return _replaced(pieces, number, position, rng.choice(others))


def test_every_single_slot_corruption_that_breaks_agreement_is_rejected() -> None:
    rng = random.Random(5)
    for seed in range(2000):
        _, pieces, variants = _told(seed)
        mentions = _bound(variants)
        chosen = mentions if seed < 20 else rng.sample(mentions, 3)
        assert len(mentions) > 50
        assert not any(check(_corrupted(pieces, mention, rng)).valid for mention in chosen)


def test_another_value_for_a_free_detail_is_another_valid_story() -> None:
    _, pieces, variants = _told(11)
    for number, variant in enumerate(variants):
        for position, slot in enumerate(variant.slots):
            for value in set(DETAILS.get(slot, ())):
                assert parse(_replaced(pieces, number, position, value)) is not None


@pytest.mark.parametrize("fact", ["hero", "friend", "colour", "object"])
def test_one_wrong_mention_is_one_problem_in_its_sentence_with_the_fact_as_its_kind(fact: str) -> None:
    told, pieces, variants = _told(3)
    world = {name: value for name, value in told.choices if name in FACTS}
    wrong = next(value for value in FACTS[fact][::-1] if value != world[fact])
    for number, variant in enumerate(variants):
        for position in (i for i, slot in enumerate(variant.slots) if slot == fact):
            (problem,) = check(_replaced(pieces, number, position, wrong)).problems
            assert problem.sentence_index == number
            assert problem.kind.startswith(fact)
            assert world[fact] in problem.contradicts or "gender" in problem.kind


def test_a_pronoun_that_does_not_fit_the_hero_is_named() -> None:
    text = story(0, world={"hero": "Mia", "ending": "keep"}).text
    verdict = check(text.replace("and she felt", "and he felt"))
    (problem,) = verdict.problems
    assert problem.kind == "hero's gender"
    assert "he felt" in problem.sentence


@pytest.mark.parametrize(
    ("fact", "step"), [("finder", 10), ("finder", 11), ("finder", 13), ("ending", 14), ("ending", 15)]
)
def test_a_sentence_of_another_finder_or_ending_is_rejected(fact: str, step: int) -> None:
    for seed in range(40):
        told, _, _ = _told(seed)
        for value in sorted(set(FACTS[fact])):
            other = story(seed, world=vars(told.world) | {fact: value})
            mixed = [*told.sentences]
            mixed[step] = other.sentences[step]
            same = value == getattr(told.world, fact)
            assert check(" ".join(mixed)).valid is same


def test_a_dropped_doubled_or_swapped_sentence_breaks_the_plot() -> None:
    for seed in range(20):
        lines = list(story(seed).sentences)
        for i in range(len(lines)):
            dropped = lines[:i] + lines[i + 1 :]
            doubled = lines[: i + 1] + lines[i:]
            assert not check(" ".join(dropped)).valid
            assert not check(" ".join(doubled)).valid
            for j in range(i):
                swapped = list(lines)
                swapped[i], swapped[j] = swapped[j], swapped[i]
                assert not check(" ".join(swapped)).valid


def test_checker_and_parser_agree_on_random_single_word_noise() -> None:
    rng = random.Random(9)
    for seed in range(400):
        _, pieces, _ = _told(seed)
        number = rng.randrange(len(pieces))
        donor = rng.choice(rng.choice(pieces))
        text = _replaced(pieces, number, rng.randrange(len(pieces[number])), donor)
        assert check(text).valid == (parse(text) is not None)


def test_a_sentence_of_no_template_names_the_word_that_does_not_fit() -> None:
    told = story(4)
    verdict = check(told.text.replace("played", "flew"))
    (problem,) = verdict.problems
    assert problem.kind == "grammar"
    assert "'flew' where played was expected" in problem.contradicts


@pytest.mark.parametrize("text", ["", "Hello.", "Once upon a time there was a fox.", "12 + 7 = 19.", "\x00\ufffd"])
def test_free_text_is_no_story(text: str) -> None:
    assert not check(text).valid
    assert parse(text) is None


def test_a_story_cut_short_is_unfinished_unless_partial_is_asked_for() -> None:
    lines = story(8).sentences
    for count in range(1, len(lines)):
        text = " ".join(lines[:count])
        assert [problem.kind for problem in check(text).problems] == ["unfinished"]
        assert check(text, partial=True).valid
    assert not check("", partial=True).valid
    assert not check(" ".join(lines)[:-12], partial=True).valid


def test_text_after_the_end_is_rejected() -> None:
    assert not check(story(1).text + " Then").valid


def test_contradictions_counts_the_wrong_words() -> None:
    told = story(21, world={"colour": "red"})
    assert contradictions(told.text) == 0
    assert contradictions(told.text.replace(" red ", " blue ", 2)) == 2
    swapped = told.text.replace(told.world.hero, "Zoe" if told.world.hero != "Zoe" else "Mia", 1)
    assert contradictions(swapped) == 1


def test_white_space_is_not_judged() -> None:
    told = story(2)
    assert check("  " + told.text.replace(". ", " .\n")).valid
