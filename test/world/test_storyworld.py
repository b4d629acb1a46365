# The story world's generator: probability, entropy, determinism and size against independent counts.
# Entry points: pytest.
# Oracles: a unification proof, E[1/p] = number of stories, E[-log p] = entropy, a process with another hash seed.
import hashlib
import math
import statistics
import subprocess
import sys

import pytest

from hildanext.world import VOCABULARY, distinct_stories, entropy, parse, story
from hildanext.world.grammar import PLOT, VARIANTS, Variant, eligible
from hildanext.world.words import DETAILS, FACTS, FORMS, words

STORIES = [story(seed) for seed in range(3000)]


def _clashes(variants: tuple[Variant, ...]) -> list[tuple[str, str]]:
    return [
        (one.template, other.template)
        for index, one in enumerate(variants)
        for other in variants[:index]
        if len(one.allowed) == len(other.allowed)
        and all(a & b for a, b in zip(one.allowed, other.allowed, strict=True))
    ]


def test_no_sentence_can_come_from_two_variants_of_the_plot() -> None:
    assert _clashes(VARIANTS) == []


def test_the_clash_search_finds_a_planted_ambiguity() -> None:
    loose = Variant(3, "Then {friend} ...", (), (), tuple(allowed | {"x"} for allowed in VARIANTS[5].allowed))
    assert _clashes((*VARIANTS, loose))


def test_no_word_belongs_to_two_domains_or_to_a_domain_and_a_template() -> None:
    domains = [set(values) for name, values in (FACTS | DETAILS).items() if name not in ("finder", "ending")]
    fixed = {
        word
        for variant in VARIANTS
        for slot, allowed in zip(variant.slots, variant.allowed, strict=True)
        if not slot
        for word in allowed
    }
    fixed |= {form for forms in FORMS.values() for form in forms[1:]}
    assert sum(map(len, domains)) + len(fixed) == len(set.union(fixed, *domains))


def test_the_parser_recovers_every_choice_and_the_probability_of_every_story() -> None:
    assert all(parse(told.text) == told for told in STORIES)


def test_log_probability_is_the_sum_over_the_choices_counted_by_hand() -> None:
    for told in STORIES[:300]:
        facts = {name: value for name, value in told.choices if name in FACTS}
        expected = 0.0
        for name, value in told.choices:
            if name.startswith("variant "):
                step = int(name.split()[1])
                options = [v.template for v in PLOT[step] if all(facts[f] == w for f, w in v.when)]
                assert value in options
                expected -= math.log(len(options))
            else:
                domain = (FACTS | DETAILS)[name]
                expected += math.log(sum(entry == value for entry in domain) / len(domain))
        assert told.log_probability == pytest.approx(expected, abs=1e-9)
        assert math.fsum(told.gains) == pytest.approx(told.log_probability, abs=1e-9)


def test_every_choice_leaves_a_trace_so_different_choices_give_different_texts() -> None:
    assert len({told.text for told in STORIES}) == len({told.choices for told in STORIES}) == len(STORIES)


def test_the_mean_of_minus_log_p_is_the_exact_entropy() -> None:
    sample = [-told.log_probability for told in STORIES]
    error = statistics.stdev(sample) / math.sqrt(len(sample))
    assert abs(statistics.mean(sample) - entropy()) < 4 * error


def test_the_mean_of_one_over_p_is_the_number_of_distinct_stories() -> None:
    count = distinct_stories()
    sample = [math.exp(-told.log_probability - math.log(count)) for told in STORIES]
    error = statistics.stdev(sample) / math.sqrt(len(sample))
    assert abs(statistics.mean(sample) - 1) < 4 * error
    assert count > 10**15


def test_entropy_is_below_the_log_of_the_number_of_stories_and_above_the_log_of_ten_to_the_fifteen() -> None:
    assert math.log(1e15) < entropy() < math.log(distinct_stories())


def test_each_step_has_a_variant_for_every_finder_and_ending() -> None:
    for finder in FACTS["finder"]:
        for ending in FACTS["ending"]:
            assert all(eligible(step, {"finder": finder, "ending": ending}) for step in range(len(PLOT)))


def test_each_fact_is_said_at_least_twice_in_every_story() -> None:
    for told in STORIES[:200]:
        said = [slot for name, value in told.choices if name.startswith("variant") for slot in _slots(value)]
        assert all(said.count(fact) >= 2 for fact in FACTS)


def _slots(template: str) -> list[str]:
    variant = next(variant for variant in VARIANTS if variant.template == template)
    return [*variant.slots, *(fact for fact, _ in variant.when)]


def test_the_same_seed_gives_the_same_story_in_another_process_with_another_hash_seed() -> None:
    code = (
        "import hashlib; from hildanext.world import story, corpus;"
        "text = ''.join(story(i).text for i in range(50)) + str(list(corpus('chat', 3, 20)));"
        "print(hashlib.sha256(text.encode()).hexdigest())"
    )
    outputs = set()
    for seed in ("0", "12345"):
        done = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=True, env=_environment(seed)
        )
        outputs.add(done.stdout)
    assert len(outputs) == 1


def _environment(hash_seed: str) -> dict[str, str]:
    return {"PYTHONHASHSEED": hash_seed, "PYTHONPATH": ":".join(path for path in sys.path if path), "PATH": ""}


def test_the_world_stays_what_the_bundled_model_was_trained_on() -> None:
    text = "\n".join(told.text for told in STORIES[:20])
    assert hashlib.sha256(text.encode()).hexdigest()[:16] == "13197eaefe533191"


def test_stories_have_one_to_two_hundred_words_from_at_most_four_hundred() -> None:
    assert all(100 <= len(told.text.split()) <= 200 for told in STORIES)
    assert len(VOCABULARY) <= 400
    assert {word for told in STORIES for word in words(told.text)} <= set(VOCABULARY)


def test_facts_can_be_fixed_and_the_rest_is_still_drawn() -> None:
    told = [story(seed, world={"hero": "Mia", "pet": "fox"}) for seed in range(20)]
    assert {(one.world.hero, one.world.pet) for one in told} == {("Mia", "fox")}
    assert len({one.world.friend for one in told}) > 3
    assert all(parse(one.text) == one for one in told)


def test_a_fact_or_value_that_does_not_exist_is_refused() -> None:
    with pytest.raises(ValueError, match="pet=unicorn"):
        story(1, world={"pet": "unicorn"})
    with pytest.raises(ValueError, match="shoe"):
        story(1, world={"shoe": "fox"})
