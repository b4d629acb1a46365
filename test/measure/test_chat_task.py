# Answers beside the parent's: the parent agrees with itself wholly, planted answers are scored as by hand.
# Entry points: pytest.
# The bundled parent answers questions of its own world; the texts beside its own are scripted.
"""Tests of the task chat."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from hildanext.config import Config, load_config
from hildanext.config.model import ModelConfig
from hildanext.data.chat import generation_prompt
from hildanext.errors import DataError
from hildanext.measure.generation import ARGenerator, Completion
from hildanext.measure.task import EvalContext, Outcome
from hildanext.measure.tasks.chat import token_f1
from hildanext.models import load
from hildanext.models.denoiser import network
from hildanext.progress import Console
from hildanext.registry import build
from hildanext.world import corpus


@pytest.fixture(scope="module")
def parent() -> Any:
    return load.load_model(ModelConfig(path="tiny-parent"))


@pytest.fixture
def task(parent: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setattr(load, "load_model", lambda model, console=None: parent)
    rows = [{"messages": list(record["messages"])} for record in corpus("arithmetic", 6, 4)]
    (tmp_path / "p.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    made = build(
        "tasks", {"type": "chat", "file": str(tmp_path / "p.jsonl"), "parent": "tiny-parent", "max_new_tokens": 16}
    )
    made.ready()
    return made


def context(parent: Any, config: Config | None = None) -> EvalContext:
    config = config or Config()
    return EvalContext(parent, config, Console(quiet=True), ARGenerator(parent, config.decode))


def value(found: Outcome, name: str) -> float:
    return found.measures[name].value


@pytest.mark.parametrize(
    ("text", "reference", "wanted"),
    [
        ("a b", "a b", 1.0),
        ("A, b", "a , B", 1.0),
        ("a a b", "a c", 2 / 5),
        ("", "", 1.0),
        ("", "a", 0.0),
        ("x", "y", 0.0),
    ],
)
def test_token_f1_is_that_of_two_bags_of_words(text: str, reference: str, wanted: float) -> None:
    assert token_f1(text, reference) == pytest.approx(wanted)


def test_the_parent_agrees_with_itself(task: Any, parent: Any) -> None:
    found = task.run(context(parent))
    assert all(value(found, name) == 1.0 for name in ("exact_match", "token_f1", "nats_of_parents"))
    for name in ("repetition", "stopped", "nats_per_character", "tokens_per_text"):
        assert value(found, name) == value(found, f"parent_{name}")
    assert value(found, "stopped_where_parent_does") == 1.0 and found.counts == {"prompts": 4, "compared": 4}


def test_planted_answers_are_scored_as_by_hand(task: Any, parent: Any) -> None:
    replies = ["Tom has 3.", "the the the the the the", "Tom has 3.", "no"]

    class Planted:
        kind = "diffusion"

        def complete(self, requests: Any) -> list[Completion]:
            return [
                Completion(replies[one.sample], (5,) * 3, 2, 0, 0.5, "eos" if one.sample else "length")
                for one in requests
            ]

    found = task.run(replace(context(parent), generator=Planted()))
    nats = 0.0
    for prompt, text in zip(task._prompts(0), replies, strict=True):
        lead = generation_prompt(prompt.messages, parent.tokenizer)
        ids = [*lead, *parent.tokenizer(text, add_special_tokens=False)["input_ids"]]
        logits = network(parent.denoiser)(torch.tensor([ids])).logits[0].detach().double()
        logits[:, parent.denoiser.mask_id] = -torch.inf
        nats -= sum(float(logits[at - 1].log_softmax(0)[ids[at]]) for at in range(len(lead), len(ids)))
    assert value(found, "nats_per_character") == pytest.approx(nats / sum(map(len, replies)), rel=1e-4)
    assert value(found, "stopped") == 0.75 and value(found, "repetition") == pytest.approx(2 / 3 / 4)
    assert value(found, "nats_of_parents") > 1 and value(found, "tokens_per_forward") == 1.5


def test_agreement_is_with_greedy_answers_at_any_temperature(task: Any, parent: Any) -> None:
    warm = load_config(None, ["decode.temperature=1.5"])
    drawn = task.run(context(parent, warm))
    assert value(drawn, "nats_of_parents") == 1.0 and value(drawn, "exact_match") < 1.0
    cold = replace(context(parent, warm), generator=ARGenerator(parent, Config().decode))
    assert value(task.run(cold), "exact_match") == 1.0


def test_without_prompts_or_parent_nothing_begins(tmp_path: Path) -> None:
    (tmp_path / "p.txt").write_text("Who?\n")
    for fields, words in (({}, "chat.file ''"), ({"file": str(tmp_path / "p.txt")}, "chat.parent")):
        with pytest.raises(DataError, match=words):
            build("tasks", {"type": "chat", **fields}).ready()
