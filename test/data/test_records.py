# Row formats: each known shape becomes the same chat, damage has its reason.
# Entry points: pytest.
# Rows are written out by hand.
"""Tests of data/records.py."""

from __future__ import annotations

from typing import Any

import pytest

from hildanext.data.records import Unusable, detect, to_document

ASK, TOLD = {"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Yes"}
SYSTEM = {"role": "system", "content": "Be short"}
ROWS: list[tuple[dict[str, Any], tuple[dict[str, str], ...]]] = [
    ({"messages": [ASK, TOLD]}, (ASK, TOLD)),
    ({"conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Yes"}]}, (ASK, TOLD)),
    ({"system": "Be short", "conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Yes"}]},
     (SYSTEM, ASK, TOLD)),
    ({"prompt": "Hi", "response": "Yes"}, (ASK, TOLD)),
    ({"question": "Hi", "answer": "Yes"}, (ASK, TOLD)),
    ({"instruction": "Hi", "input": "", "output": "Yes"}, (ASK, TOLD)),
    ({"instruction": "Add", "input": "1 2", "output": "3"},
     ({"role": "user", "content": "Add\n\n1 2"}, {"role": "assistant", "content": "3"})),
    ({"messages": [SYSTEM, ASK, {"role": "tool", "content": "42"}, TOLD]},
     (SYSTEM, ASK, {"role": "tool", "content": "42"}, TOLD)),
]  # fmt: skip


@pytest.mark.parametrize(("row", "messages"), ROWS)
def test_each_chat_format_is_found_and_gives_its_messages(
    row: dict[str, Any], messages: tuple[dict[str, str], ...]
) -> None:
    form = detect(row)
    assert form is not None
    document = to_document(row, form, "here", "file:1")
    assert document.messages == messages and document.text is None and document.id == "file:1"


@pytest.mark.parametrize(
    ("row", "form"),
    [
        ({"id": 3, "text": "a", "source": "x"}, "text:text"),
        ({"story": "a"}, "text:story"),
        ({"text": "a", "tokens": [1, 2]}, "text:text"),
        ({"input_ids": [1, 2]}, "tokens:input_ids"),
        ({"title": "a"}, None),
    ],
)
def test_texts_come_before_token_ids_and_unknown_rows_show_nothing(row: dict[str, Any], form: str | None) -> None:
    assert detect(row) == form


@pytest.mark.parametrize(
    ("row", "form", "reason"),
    [
        ({"text": "  "}, "text:text", "empty"),
        ({"other": "a"}, "text:text", "missing field 'text'"),
        ({"text": 3}, "text:text", "no text"),
        ({"messages": []}, "messages", "no messages"),
        ({"messages": [ASK]}, "messages", "no assistant"),
        ({"messages": [{"role": "judge", "content": "a"}]}, "messages", "unknown role"),
        ({"messages": [ASK, {"role": "assistant", "content": [1]}]}, "messages", "no text"),
        ({"instruction": "a", "output": ""}, "instruction", "empty"),
        ({"input_ids": [1, "2"]}, "tokens:input_ids", "no list of token ids"),
        ({"input_ids": []}, "tokens:input_ids", "empty"),
    ],
)
def test_a_row_that_cannot_be_used_says_why(row: dict[str, Any], form: str, reason: str) -> None:
    with pytest.raises(Unusable, match=reason):
        to_document(row, form, "here", "file:1")
