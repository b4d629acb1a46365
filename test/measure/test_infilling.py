# Infilling: which sentence is left out, the true one as the perfect answer, the parent's nats by hand, a real fill.
# Entry points: pytest.
# The oracle of the scores is the text itself; that of the likelihood, the parent's own logits token by token.
"""Tests of the task infilling."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from hildanext.config import Config
from hildanext.config.model import ModelConfig
from hildanext.errors import DataError
from hildanext.measure.generation import Completion, DiffusionGenerator
from hildanext.measure.task import EvalContext, Outcome
from hildanext.measure.tasks.infilling import Hole, edit_similarity, filled
from hildanext.models import load
from hildanext.models.denoiser import network
from hildanext.progress import Console
from hildanext.registry import build
from hildanext.world import story


@pytest.fixture(scope="module")
def pair() -> tuple[Any, Any]:
    return tuple(load.load_model(ModelConfig(path=name)) for name in ("tiny-parent", "tiny"))  # type: ignore[return-value]


@pytest.fixture
def task(pair: tuple[Any, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setattr(load, "load_model", lambda model, console=None: pair[0])
    rows = [{"text": story(f"fill:{index}").text} for index in range(8)]
    (tmp_path / "s.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    made = build(
        "tasks",
        {"type": "infilling", "path": str(tmp_path / "s.jsonl"), "parent": "tiny-parent", "sentences": 5, "limit": 2},
    )
    made.ready()
    return made


class Knows:
    """A generator that fills every gap with what it is told."""

    kind = "diffusion"

    def __init__(self, task: Any, texts: tuple[str, ...] = ()) -> None:
        self.texts = {f"{one.before} {one.after}": one.middle for one in task._holes(0)}
        self.texts |= dict(zip(self.texts, texts, strict=False))

    def complete(self, requests: Any) -> list[Completion]:
        found = []
        for one in requests:
            before, _, after = one.prompt.partition(" <gap:")
            after = after.partition("> ")[2]
            text = f"{before} {self.texts[f'{before} {after}']} {after}"
            found.append(Completion(text, tuple(range(200)), 4, 1, 0.5, "length"))
        return found


def context(pair: tuple[Any, Any], generator: Any) -> EvalContext:
    return EvalContext(pair[1], Config(), Console(quiet=True), generator)


def value(found: Outcome, name: str) -> float:
    return found.measures[name].value


def test_the_middle_sentence_is_left_out() -> None:
    text = 'Tom ran.  He had\na dog. "It is a very big dog," he said. Lily saw it. They sat! The sun was hot.'
    assert Hole.of(text, 5) == Hole(
        "Tom ran. He had a dog.", '"It is a very big dog," he said.', "Lily saw it. They sat!"
    )
    assert Hole.of(text, 7) is None and Hole.of("Tom ran. He sat. Lily saw it.", 3) is None
    assert Hole.of("Tom ran. He had <gap:2> dogs here. Lily saw it.", 3) is None
    assert filled(Hole("a", "b c", "d"), "a b c d") == "b c" and edit_similarity("a b c d", "a x c d") == 0.75


def test_the_true_sentence_is_a_perfect_answer(task: Any, pair: tuple[Any, Any]) -> None:
    found = task.run(context(pair, Knows(task)))
    assert value(found, "token_f1") == value(found, "edit_similarity") == 1.0
    assert value(found, "nats_per_character") == value(found, "true_nats_per_character")
    assert found.counts == {"texts": 2, "compared": 2} and value(found, "parent_token_f1") < 1.0
    sizes = [len(pair[0].tokenizer(f" {one.middle}", add_special_tokens=False)["input_ids"]) for one in task._holes(0)]
    assert value(found, "tokens_per_forward") == pytest.approx(sum(sizes) / 8)


def test_a_planted_sentence_costs_what_the_parent_says_token_by_token(task: Any, pair: tuple[Any, Any]) -> None:
    parent, planted = pair[0], ("Lily had a red ball.", "Tom sat.")
    found = task.run(context(pair, Knows(task, planted)))
    nats, characters = 0.0, 0
    for hole, middle in zip(task._holes(0), planted, strict=True):
        rest = f" {middle} {hole.after}"
        lead = parent.tokenizer(hole.before, add_special_tokens=False)["input_ids"]
        ids = parent.tokenizer(hole.before + rest, add_special_tokens=False)["input_ids"]
        logits = network(parent.denoiser)(torch.tensor([ids])).logits[0].detach().double()
        logits[:, parent.denoiser.mask_id] = -torch.inf
        nats -= sum(float(logits[at - 1].log_softmax(0)[ids[at]]) for at in range(len(lead), len(ids)))
        characters += len(rest)
    assert value(found, "nats_per_character") == pytest.approx(nats / characters, rel=1e-4)


def test_the_bundled_child_fills_a_sentence_between_what_was_given(task: Any, pair: tuple[Any, Any]) -> None:
    child = context(pair, DiffusionGenerator(pair[1], Config().decode))
    found = task.run(child)
    for shown in found.samples:
        assert shown["filled"] and shown["before"] not in shown["filled"] and shown["after"] not in shown["filled"]
    assert value(found, "tokens_per_forward") > 1


def test_without_texts_or_parent_nothing_begins(tmp_path: Path) -> None:
    (tmp_path / "s.jsonl").write_text(json.dumps({"text": "Tom ran. He had a big dog. It sat."}) + "\n")
    for fields, words in (
        ({"sentences": 5}, "has 5 sentences"), ({"sentences": 3}, "infilling.parent"),
    ):  # fmt: skip
        with pytest.raises(DataError, match=words):
            build("tasks", {"type": "infilling", "path": str(tmp_path / "s.jsonl"), **fields}).ready()
