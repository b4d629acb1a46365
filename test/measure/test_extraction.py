# Answers read out of text, the reference answers of the real files among them.
# Entry points: pytest.
# Every reference answer of GSM8K must be found again in its own worked solution.
"""Tests of measure/extraction.py and measure/items.py."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from hildanext.errors import DataError
from hildanext.measure.extraction import code_block, completed_function, gsm8k_answer, gsm8k_gold, same_number
from hildanext.measure.items import chosen, read_items


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("9 * 2 = <<9*2=18>>18\n#### 18", "18"),
        ("The answer is $1,234.50.", "1234.50"),
        ("so \\boxed{-7} it is, not 8", "-7"),
        ("first 3, then 4.", "4"),
        ("no number", None),
        ("#### 448xx4", None),
        ("448xx4, so 5km", "5"),
        ("#### 1st step: 3 + 4. The answer is 7", "7"),
        ("\\boxed{448xx4} or 4", None),
        ("\\boxed{} or 4", None),
        ("7, so \\boxed{1", None),
        ("\\boxed{\\frac{1}{2}}", None),
        ("\\boxed{\\$1{,}234} of 9", "1234"),
        ("\\boxed{\\text{18 dollars}}", "18"),
        ("first \\boxed{3}. The answer is 4", "4"),
        ("The answer is 448xx4 or 4", "4"),
        ("at 3x5 = 15", "15"),
    ],
)
def test_the_number_of_a_reply_is_found(text: str, found: str | None) -> None:
    assert gsm8k_answer(text) == found


def test_the_strict_rule_takes_only_a_marked_number() -> None:
    assert gsm8k_answer("the answer is 4", "strict") is None and gsm8k_answer("#### 4", "strict") == "4"


@pytest.mark.parametrize("text", ["#### 448xx4", "#### 12:30", "#### 1/2", "#### 2^3", "#### 5 is wrong\n####", "####"])
def test_the_strict_rule_takes_no_part_of_a_number(text: str) -> None:
    assert gsm8k_answer(text, "strict") == ("5" if "5" in text else None)


def test_numbers_are_compared_by_value() -> None:
    assert same_number("18.00", "18") and not same_number("18.5", "18") and not same_number(None, "18")
    assert not same_number("1.2.3", "18")


def test_every_gsm8k_reference_is_found_in_its_own_solution(assets: Path) -> None:
    answers = [str(item["answer"]) for item in read_items(str(assets / "gsm8k" / "test.jsonl"), ("answer",))]
    assert len(answers) > 1000
    assert all(same_number(gsm8k_answer(answer, "strict"), gsm8k_gold(answer)) for answer in answers)


def test_a_completion_is_cut_where_top_level_code_begins() -> None:
    whole = completed_function("def f(x):\n", "    return x\n\ndef g():\n    pass", "f")
    assert whole == "def f(x):\n    return x\n"


def test_a_whole_function_replaces_the_prompt_but_keeps_its_imports() -> None:
    reply = "Sure:\n```python\ndef f(x):\n    return sqrt(x)\n```\nDone."
    whole = completed_function("from math import sqrt\n\ndef f(x):\n    'root'\n", reply, "f")
    assert whole.startswith("from math import sqrt") and "'root'" not in whole
    ast.parse(whole)


def test_unparsable_lines_after_a_bare_function_are_dropped() -> None:
    whole = completed_function("def f():\n", "def f():\n    return 1\nThis returns one.", "f")
    ast.parse(whole)
    assert "return 1" in whole and "This returns one" not in whole


def test_marks_of_mbpp_are_removed() -> None:
    assert code_block("[BEGIN]\nx = 1\n[DONE] more") == "\nx = 1\n"


def test_an_item_that_cannot_be_read_is_an_error_with_its_line(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"question": "q"}\n\n{"question": \n')
    with pytest.raises(DataError, match=r"a\.jsonl:3: invalid JSON"):
        read_items(str(path), ())
    with pytest.raises(DataError, match="item 1 lacks answer; it has question"):
        read_items(str(path), ("question", "answer"))


def test_items_drawn_by_seed_are_reproducible_and_in_file_order() -> None:
    rows = [{"i": i} for i in range(50)]
    first = chosen(rows, 10, seed=3)
    assert first == chosen(rows, 10, seed=3) == sorted(first, key=lambda row: row["i"]) != chosen(rows, 10, seed=4)
