# The toy tasks: their answers by other means, held-out questions, and that a short training lowers the loss.
# Entry points: pytest.
# Exactness after full training is the demo's own proof; here training is far too short for it.
"""Tests of selftest/demo/toy_tasks.py."""

from __future__ import annotations

import pytest

from hildanext.selftest.demo import toy_tasks as toy


def _solved(item: toy.Item) -> str:
    kind, _, question = item.prompt.partition("?")
    if kind == "r":
        return "".join(reversed(question))
    if kind == "s":
        return "".join(sorted(question))
    left, right = question.split("+")
    return str(int(left) + int(right)).zfill(4)


@pytest.mark.parametrize("task", list(toy.TASKS))
def test_answers_are_right(task: str) -> None:
    assert all(_solved(item) == item.answer for item in toy.items(task, 0, 50))


@pytest.mark.parametrize("task", list(toy.TASKS))
def test_no_held_out_question_is_a_training_question(task: str) -> None:
    trained = {item.prompt for item in toy.items(task, 0, 300)}
    assert not trained & {item.prompt for item in toy.items(task, 1, 100, held_out=True)}


def test_text_comes_back_from_its_ids_and_strange_characters_are_refused() -> None:
    assert toy.decode(toy.encode("s?0194", toy.QUESTION)) == "s?0194"
    with pytest.raises(ValueError):
        toy.encode("!", toy.QUESTION)


def test_only_the_answer_is_learned() -> None:
    batch = toy.batch_of(list(toy.items("add", 0, 2)))
    assert batch.tokens.shape == (2, toy.CANVAS)
    assert not batch.learn[:, : toy.QUESTION].any() and batch.learn[:, toy.QUESTION :].all()


def test_a_short_training_lowers_the_loss_and_one_by_one_takes_a_forward_per_character() -> None:
    losses: list[float] = []

    def note(count: int, loss: float) -> None:
        losses.append(loss)

    loaded = toy.new_toy(0)
    training = toy.train_toy(loaded, 12, 0, note)
    assert training.steps == 12 and min(losses[-3:]) < losses[0]
    assert toy.measure_toy(loaded, "sort", 3, 1, tau_mask=1.0, tau_edit=None)["forwards"]["value"] >= toy.ANSWER
