# Texts by number of steps: 3-gram divergence by hand, true texts score as true texts, steps reach the sampler.
# Entry points: pytest.
# The oracle of the divergence is the formula over a dictionary; that of the task, stories whose score is known.
"""Tests of measure/ngrams.py and measure/tasks/forwards.py."""

from __future__ import annotations

import json
import math
import runpy
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from hildanext.decoding.request import Request
from hildanext.measure import ngrams
from hildanext.measure.generation import Completion, DiffusionGenerator
from hildanext.measure.ngrams import Profile, divergence
from hildanext.measure.task import EvalContext, Outcome
from hildanext.measure.tasks.forwards import Forwards
from hildanext.registry import build
from hildanext.world import story

Script = Callable[[Callable[[Request], str]], EvalContext]
SEED = 7_000_001
CORPUS = ["the cat sat on a mat", "the cat ran to the mat", "a dog sat on a cat"]


def by_hand(texts: Sequence[str], corpus: Sequence[str], added: float) -> float:
    def counted(lines: Sequence[str]) -> Counter[str]:
        split = [line.split() for line in lines]
        return Counter(" ".join(one[i : i + 3]) for one in split for i in range(len(one) - 2))

    own, other = counted(texts), counted(corpus)
    kinds, total = len(set(own) | set(other)), sum(other.values())
    p = {gram: count / sum(own.values()) for gram, count in own.items()}
    q = {gram: (other[gram] + added) / (total + added * kinds) for gram in own}
    return sum(p[gram] * math.log(p[gram] / q[gram]) for gram in own)


def off(texts: Sequence[str]) -> float:
    return abs(divergence(texts, Profile.of(CORPUS)).value - by_hand(texts, CORPUS, 0.5))


def test_the_divergence_is_the_formula_and_its_interval_holds_it() -> None:
    texts = ["the cat sat on a dog", "a dog sat on a mat the cat sat"]
    found = divergence(texts, Profile.of(CORPUS))
    assert off(texts) < 1e-12 and found.low < found.value < found.high and found.items == 2
    assert divergence(["x y z"], Profile.of(CORPUS)).value > divergence(CORPUS, Profile.of(CORPUS)).value
    with pytest.raises(ValueError, match="no text has 3 words"):
        divergence(["a b", ""], Profile.of(CORPUS))


def test_a_corpus_that_is_not_smoothed_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    shares = Profile.log_shares
    monkeypatch.setattr(Profile, "log_shares", lambda self, found, added: shares(self, found, added / 10))
    assert off(["the cat sat on a dog"]) > 0.01


def test_words_in_another_order_are_further_away(monkeypatch: pytest.MonkeyPatch) -> None:
    corpus = Profile.of(story(f"1:{i}").text for i in range(60))
    true = [story(f"2:{i}").text for i in range(8)]
    mixed = [" ".join(sorted(text.split())) for text in true]
    assert divergence(true, corpus).value + 1 < divergence(mixed, corpus).value
    monkeypatch.setattr(ngrams, "grams", lambda text, size: [tuple(sorted(text.split())[:3])])
    assert divergence(true, corpus).value == pytest.approx(divergence(mixed, corpus).value)


def told(scripted: Script, reply: Callable[[Request], str], **fields: Any) -> Outcome:
    made = build("tasks", {"type": "forwards", "limit": 4, "corpus": 40, "steps": [2], **fields})
    context = scripted(reply)
    return made.run(EvalContext(context.loaded, context.config, context.console, Left(context.generator)))


class Left:
    """A generator that calls itself left to right, so that it stays the one that is asked."""

    kind = "autoregressive"

    def __init__(self, inner: Any) -> None:
        self.inner = inner

    def complete(self, requests: Sequence[Request]) -> list[Completion]:
        return list(self.inner.complete(requests))


def true_rest(request: Request) -> str:
    texts = {one.sentences[0]: one.text for one in (story(f"{SEED}:{i}") for i in range(4))}
    return texts[str(request.prompt)][len(str(request.prompt)) :]


def scores(outcome: Outcome, label: str) -> dict[str, float]:
    return {name: one.value for name, one in outcome.measures.items() if name.endswith(label)}


def test_true_texts_score_as_the_references_do(scripted: Script) -> None:
    found = told(scripted, true_rest, parent="tiny-parent")
    own, true = scores(found, "left_to_right"), scores(found, "of_references")
    for name in ("valid", "nll", "3_gram_kl", "repetition", "distinct_2"):
        assert own[f"{name} left_to_right"] == pytest.approx(true[f"{name} of_references"])
    assert own["valid left_to_right"] == 1 and own["nll left_to_right"] < 0.5
    assert [point["steps"] for point in found.series["steps"]] == [0]


def test_texts_that_contradict_or_repeat_themselves_are_seen(scripted: Script) -> None:
    found = told(scripted, lambda request: " They all walked home from the home from the home from the home.")
    own, true = scores(found, "left_to_right"), scores(found, "of_references")
    assert own["valid left_to_right"] == 0 < true["valid of_references"] == 1
    assert own["repetition left_to_right"] > true["repetition of_references"] + 0.2
    assert own["3_gram_kl left_to_right"] > true["3_gram_kl of_references"]


def test_nothing_given_asks_for_whole_texts(scripted: Script) -> None:
    context = scripted(lambda request: story(f"{SEED}:{request.sample}").text)
    made = build("tasks", {"type": "forwards", "limit": 2, "corpus": 20, "given": "nothing"})
    found = made.run(EvalContext(context.loaded, context.config, context.console, Left(context.generator)))
    assert [request.prompt for request in context.generator.asked] == ["", ""]  # type: ignore[attr-defined]
    assert scores(found, "left_to_right")["valid left_to_right"] == 1


def measured(loaded: Any, scripted: Script, steps: tuple[int, ...]) -> Outcome:
    context = scripted(lambda request: "")
    config = context.config.model_copy(
        update={"decode": context.config.decode.model_copy(update={"block": 4, "tau_edit": None})}
    )
    context = EvalContext(loaded, config, context.console, DiffusionGenerator(loaded, config.decode))
    made = Forwards(limit=2, corpus=4, steps=steps, max_new_tokens=8)
    return made.run(context)


def asked(loaded: Any, scripted: Script, steps: tuple[int, ...]) -> list[float]:
    found = measured(loaded, scripted, steps)
    return [found.measures[f"forwards_per_text at_{one}_steps"].value for one in steps]


def test_steps_are_the_forwards_of_a_block_of_a_discrete_model(loaded: Any, scripted: Script) -> None:
    one, four = asked(loaded, scripted, (1, 4))
    assert four - one == pytest.approx(6, abs=2) and one <= 4


def test_of_steps_beyond_a_block_the_fewest_stand_for_all(loaded: Any, scripted: Script) -> None:
    found = measured(loaded, scripted, (3, 8, 4, 16)).measures
    assert [name for name in found if name.startswith("forwards_per_text")] == [
        f"forwards_per_text at_{steps}_steps" for steps in (3, 4)
    ]
    assert asked(loaded, scripted, (8,)) == asked(loaded, scripted, (4,)) == asked(loaded, scripted, (64,))


def test_reports_become_one_table_and_one_picture(scripted: Script, tmp_path: Path, project: Path) -> None:
    report = {"run": "one", "tasks": [{"task": "forwards", **told(scripted, true_rest).as_dict()}]}
    (tmp_path / "report.json").write_text(json.dumps(report))
    script = runpy.run_path(str(project / "docs" / "latents.py"))
    rows, true = script["rows_of"]([f"one={tmp_path}", f"two={tmp_path / 'report.json'}"])
    lines = script["table"](rows, true).splitlines()
    assert [line.split(" | ")[0].strip("| ") for line in lines[2:]] == ["true texts", "one", "two"]
    value = report["tasks"][0]["measures"]["3_gram_kl left_to_right"]["value"]
    assert f"| {value:.4g} |" in lines[3] and lines[3].count("|") == lines[0].count("|")
    assert not script["picture"](tmp_path / "a.png", lambda figure: script["draw"](rows, true, figure))
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")
