# The registers of the story world: chat, arithmetic and coding records and the judges of replies.
# Entry points: pytest.
# Oracles: answers recomputed from the question's words, solutions executed by Python, probabilities that sum to one.
import json
import math
import random
import re
from typing import Any

import pytest

from hildanext.world import KINDS, VOCABULARY, check, check_answer, corpus, humaneval_row, parse, story
from hildanext.world.chat import FORMS, QUESTIONS, ask_thrice
from hildanext.world.micropython import MicroError, call
from hildanext.world.words import words


def _reply(record: dict[str, Any]) -> str:
    return str(record["messages"][-1]["content"])


@pytest.mark.parametrize("kind", list(KINDS))
def test_a_record_depends_on_kind_seed_and_index_alone(kind: str) -> None:
    whole = list(corpus(kind, 5, 40))
    assert whole[17:30] == list(corpus(kind, 5, 13, start=17))
    assert len({record["id"] for record in whole}) == 40
    assert whole != list(corpus(kind, 6, 40))
    assert json.loads(json.dumps(whole)) == whole


@pytest.mark.parametrize("kind", list(KINDS))
def test_the_words_of_every_register_are_in_the_vocabulary(kind: str) -> None:
    known = set(VOCABULARY)
    for record in corpus(kind, 1, 600):
        texts = [record["text"]] if kind == "stories" else [turn["content"] for turn in record["messages"]]
        assert {word for text in texts for word in words(text)} <= known
        assert record["log_probability"] < 0 and record["register"] == kind


def test_every_word_of_the_vocabulary_is_used() -> None:
    seen: set[str] = set()
    for kind in KINDS:
        for record in corpus(kind, 2, 1500):
            texts = [record["text"]] if kind == "stories" else [turn["content"] for turn in record["messages"]]
            seen.update(word for text in texts for word in words(text))
    assert seen == set(VOCABULARY)


@pytest.mark.parametrize("kind", ["chat", "arithmetic", "coding"])
def test_the_reference_reply_is_right_and_others_are_wrong(kind: str) -> None:
    records = list(corpus(kind, 3, 300))
    assert all(check_answer(record, _reply(record)) for record in records)
    assert not any(check_answer(record, "") or check_answer(record, "The story .") for record in records)
    wrong = sum(check_answer(record, _reply(other)) for record, other in zip(records, records[1:], strict=False))
    assert wrong < len(records) * 0.15


def test_stories_ask_nothing_and_unknown_kinds_are_refused() -> None:
    with pytest.raises(ValueError, match="asks nothing"):
        check_answer(next(corpus("stories", 1, 1)), "x")
    with pytest.raises(ValueError, match="poems"):
        next(corpus("poems", 1, 1))


def test_turns_alternate_and_every_chat_form_and_question_occurs() -> None:
    records = list(corpus("chat", 4, 800))
    for record in records:
        assert [turn["role"] for turn in record["messages"]] == ["user", "assistant"] * (len(record["messages"]) // 2)
    assert {len(record["messages"]) for record in records} == {2, 4, 6}
    heads = {" ".join(words(record["messages"][-2]["content"])[-3:-1]) for record in records}
    assert len(heads) > len(QUESTIONS) > len(FORMS)


def test_a_requested_story_with_another_hero_is_wrong() -> None:
    record = next(r for r in corpus("chat", 8, 100) if r["check"]["type"] == "story")
    other = next(r for r in corpus("stories", 8, 50) if r["world"]["hero"] != record["check"]["facts"]["hero"])
    assert parse(other["text"]) is not None
    assert not check_answer(record, other["text"])


def test_a_continuation_that_contradicts_the_start_is_wrong() -> None:
    record = next(r for r in corpus("chat", 8, 100) if r["check"]["type"] == "continue")
    facts = check(f"{record['check']['start']} {_reply(record)}").facts
    other = "Max" if facts["hero"] != "Max" else "Leo"
    assert not check_answer(record, _reply(record).replace(facts["hero"], other))


def test_an_answer_that_also_names_another_value_is_wrong() -> None:
    record = next(r for r in corpus("chat", 8, 100) if r["check"]["type"] == "answer")
    assert check_answer(record, f"Well , {record['check']['full']}")
    assert not check_answer(record, f"{record['check']['full']} Or a tiger and a swan and a wolf .")


def test_the_start_of_a_story_counts_with_its_own_probability() -> None:
    told = story(1)
    record = ask_thrice(random.Random(1), told)
    assert record["log_probability"] == pytest.approx(math.fsum(told.gains[:7]) - math.log(8 * 7 * 6))


def _recomputed(question: str) -> int:
    numbers = [int(number) for number in re.findall(r"\d+", question)]
    if "in each bag" in question:
        return numbers[0] * numbers[1]
    if "gave away" in question:
        return numbers[0] + numbers[1] - numbers[2]
    return numbers[0] + numbers[1] if "more" in question else numbers[0] - numbers[1]


def test_answers_of_word_problems_are_right_and_below_one_hundred() -> None:
    for record in corpus("arithmetic", 6, 2000):
        answer = _recomputed(record["messages"][0]["content"])
        assert 0 < answer < 100 and record["check"]["answer"] == answer
        assert check_answer(record, f"So {' '.join(str(answer))} it is .")
        assert not check_answer(record, f"{answer + 1}")
        for left, value in re.findall(r"([\d +*-]+) = (\d+)\.", _reply(record)):
            assert eval(left) == int(value)


def test_humaneval_rows_run_and_pass_their_own_tests() -> None:
    for record in corpus("coding", 7, 300):
        row = humaneval_row(record)
        assert set(row) == {"task_id", "prompt", "canonical_solution", "test", "entry_point"}
        program = f"{row['prompt']}{row['canonical_solution']}\n{row['test']}\ncheck({row['entry_point']})\n"
        exec(compile(program, "row", "exec"), {})


def test_a_wrong_solution_fails_the_tests_of_its_row() -> None:
    row = humaneval_row(next(corpus("coding", 7, 1)))
    with pytest.raises(AssertionError):
        exec(f"{row['prompt']} return None\n{row['test']}\ncheck({row['entry_point']})\n", {})


def test_a_whole_function_is_as_good_as_its_body() -> None:
    for record in corpus("coding", 9, 50):
        head = record["prompt"].splitlines()[1]
        assert check_answer(record, f"{head} {_reply(record)}")
        assert check_answer(record, f"{record['prompt']}\n    {_reply(record)}\n")


def test_probabilities_of_coding_messages_sum_to_one() -> None:
    distinct = {str(record["messages"]): record["log_probability"] for record in corpus("coding", 10, 20000)}
    assert 0.98 < math.fsum(map(math.exp, distinct.values())) <= 1 + 1e-9


@pytest.mark.parametrize(
    "body",
    [
        "__import__('os').system('true')",
        "open('x')",
        "a.__class__",
        "(lambda: 1)()",
        "9 ** 99999999",
        "[a] * 10 ** 9",
        "f(a)",
        "a[",
        "max(a, key=print)",
        "a / 0",
        "a % 0",
        "1000000000 * 1000000000 * 2",
        "[x for x in a]",
        "'text'",
        "sum(a)",
    ],
)
def test_code_outside_the_micro_language_is_refused_not_run(body: str) -> None:
    with pytest.raises(MicroError):
        call(f"def f(a): return {body}", "f", [3])


@pytest.mark.parametrize(
    "source", ["return 1", "def g(a): return 1", "def f(a): pass", "@x\ndef f(a): return 1", "\x00"]
)
def test_a_source_that_is_no_single_function_is_refused(source: str) -> None:
    with pytest.raises(MicroError):
        call(source, "f", [3])


def test_deep_or_long_code_is_refused() -> None:
    with pytest.raises(MicroError):
        call(f"def f(a): return {'-' * 150}a" + " " * 100, "f", [3])


def test_the_micro_evaluator_agrees_with_python_on_expressions() -> None:
    expressions = [
        "a + b * 2",
        "max(a, b) - min(a, b)",
        "a % b == 0",
        "-a",
        "not a > b",
        "a // b",
        "1 < a < b",
        "abs(b - a)",
    ]
    for expression in expressions:
        for a, b in ((3, 4), (9, 2), (7, 7)):
            assert call(f"def f(a, b): return {expression}", "f", [a, b]) == eval(expression)
    for expression in ("s[::-1]", "sorted(s)", "len(s)", "s[-1]", "s[1:]", "list(reversed(s))", "sum(s)"):
        assert call(f"def f(s): return {expression}", "f", [[4, 1, 3]]) == eval(expression, {"s": [4, 1, 3]})
