# Task infill: one judge for every way, known answers scored as such, planted ones seen, baselines blind to a suffix.
# Entry points: pytest.
# The oracle is the text itself; what the ways ask for is read off their requests.
"""Tests of the task infill."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from hildanext.config import Config
from hildanext.config.model import ModelConfig
from hildanext.decoding.request import Request
from hildanext.errors import ConfigError, DataError
from hildanext.measure import generation
from hildanext.measure.generation import ARGenerator, Completion, DiffusionGenerator
from hildanext.measure.task import EvalContext, Outcome
from hildanext.measure.tasks import infill
from hildanext.measure.tasks.infill import WAYS
from hildanext.models import load
from hildanext.progress import Console
from hildanext.registry import build

CODE = {
    "task_id": "SingleLineInfilling/HumanEval/0/L0", "prompt": "def f(a):\n", "suffix": "    return b\n",
    "canonical_solution": "    b = a + 1\n", "test": "def check(f):\n    assert f(2) == 3", "entry_point": "f",
}  # fmt: skip


@pytest.fixture(scope="module")
def pair() -> tuple[Any, Any]:
    return tuple(load.load_model(ModelConfig(path=name)) for name in ("tiny-parent", "tiny"))  # type: ignore[return-value]


class Says:
    """A generator that answers by a rule and remembers what it was asked."""

    kind = "diffusion"

    def __init__(self, rule: Any) -> None:
        self.rule, self.asked = rule, list[Request]()

    def complete(self, requests: Sequence[Request]) -> list[Completion]:
        self.asked += requests
        return [Completion(self.rule(one), (1,), 2, 0, 0.1, "length") for one in requests]


def task(**fields: Any) -> Any:
    return build("tasks", {"type": "infill", "limit": 3, **fields})


def run(pair: tuple[Any, Any], generator: Any, made: Any) -> Outcome:
    found: Outcome = made.run(EvalContext(pair[1], Config(), Console(quiet=True), generator))
    return found


def truth(made: Any) -> dict[tuple[str, str], str]:
    return {(gap.before, gap.after): gap.middle for gap in made._gaps(0)}


def test_right_middles_are_right_in_every_measure_and_wrong_ones_in_none(pair: tuple[Any, Any]) -> None:
    made = task(ways=("reference", "fill_true", "fill_fixed"), fixed=5)
    known = truth(made)
    found = run(pair, Says(lambda one: known[one.prompt, one.suffix]), made).measures
    for way in made.ways:
        assert [found[f"{way}_{name}"].value for name in ("exact", "edit_similarity", "valid")] == [1, 1, 1]
    assert (
        found["fill_true_tokens"].value > found["fill_fixed_tokens"].value == 5
        and found["fill_true_forwards"].value == 2
    )
    planted = run(pair, Says(lambda one: known[one.prompt, one.suffix].replace(" a ", " the ")), made).measures
    assert planted["fill_true_valid"].value == planted["fill_true_exact"].value == 0
    assert 0.8 < planted["fill_true_edit_similarity"].value < 1 and planted["reference_valid"].value == 1


def test_baselines_see_no_suffix_and_are_told_what_they_are_told(
    pair: tuple[Any, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(load, "load_model", lambda model, console=None: pair[0])
    theirs, made = Says(lambda one: " Tom sat. He"), task(parent="tiny-parent", best=2, most=9, lengths=(3, 4))
    monkeypatch.setattr(infill, "ARGenerator", lambda loaded, config: theirs)
    own = Says(lambda one: " Tom sat.")
    found = run(pair, own, made)
    assert {*WAYS} - {"fill_edited"} == {
        name.rsplit("_valid", 1)[0] for name in found.measures if name.endswith("_valid")
    }
    assert all(one.suffix is None for one in theirs.asked)
    assert {one.sample for one in theirs.asked if one.temperature} == {0, 1}
    sizes = [len(pair[1].tokenizer(gap.middle, add_special_tokens=False)["input_ids"]) for gap in made._gaps(0)]
    assert [one.max_new_tokens for one in theirs.asked[:6]] == [*sizes, 9, 9, 9]
    blocks = {one.block for one in own.asked if one.suffix}
    assert blocks == {None, pair[1].meta.block} and sum(one.suffix is None for one in own.asked) == 3
    shown = found.samples[0]
    assert shown["parent_cut"] == " Tom sat." == shown["best_cut"] and shown["parent_true"] == " Tom sat. He"


def test_the_chosen_length_is_the_shortest_good_one_and_a_planted_choice_is_seen(
    pair: tuple[Any, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    made = task(ways=("fill_chosen",), limit=2, lengths=(3, 9, 12), slack=1.0)
    known = truth(made)
    rules = {3: " Tom sat.", 12: " It was big and it was not there, but it was."}
    says = Says(lambda one: rules.get(one.max_new_tokens) or known[one.prompt, one.suffix])
    found = run(pair, says, made).measures
    assert found["fill_chosen_valid"].value == 1 and found["fill_chosen_tokens"].value == 9
    assert found["fill_chosen_forwards"].value == 6
    monkeypatch.setattr(infill, "nats_of", lambda *_: [1.0, 5.0, 5.0])
    assert run(pair, says, made).measures["fill_chosen_valid"].value == 0


def test_an_editor_says_how_many_tokens_are_too_many(pair: tuple[Any, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    made = task(ways=("fill_edited",), editor="tiny", fixed=12, limit=2)
    known = truth(made)
    says = Says(lambda one: known[one.prompt, one.suffix] + " In her" * (one.max_new_tokens == 12))
    monkeypatch.setattr(load, "load_model", lambda model, console=None: pair[1])
    monkeypatch.setattr(infill, "shrunk", lambda editor, before, middle, after, tau: middle[:-2])
    found = run(pair, says, made).measures
    assert found["fill_edited_valid"].value == 1 and found["fill_edited_tokens"].value == 9
    assert found["fill_edited_forwards"].value == 2 + 3 + 2
    with pytest.raises(DataError, match="editor"):
        task(ways=("fill_edited",)).ready()


def test_the_best_of_several_is_the_likeliest_with_its_suffix(
    pair: tuple[Any, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(load, "load_model", lambda model, console=None: pair[0])
    made = task(ways=("best_true",), parent="tiny-parent", best=2, limit=2)
    known = {gap.before: gap.middle for gap in made._gaps(0)}
    other = Says(lambda one: known[one.prompt] if one.sample else " Tom had a fox in a fox bag.")
    monkeypatch.setattr(infill, "ARGenerator", lambda loaded, config: other)
    assert run(pair, Says(str), made).measures["best_true_valid"].value == 1


def test_code_is_run_with_its_tests(pair: tuple[Any, Any], tmp_path: Path) -> None:
    (tmp_path / "c.jsonl").write_text(json.dumps(CODE) + "\n")
    made = task(source="code", path=str(tmp_path / "c.jsonl"), ways=("reference", "fill_true"))
    made.ready()
    found = run(pair, Says(lambda one: "    b = a + 2\n"), made)
    assert found.measures["reference_pass_at_1"].value == 1 and found.measures["fill_true_pass_at_1"].value == 0
    assert found.counts["reference: passed"] == 1


def test_real_models_fill_and_continue(pair: tuple[Any, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(load, "load_model", lambda model, console=None: pair[0])
    made = task(ways=("fill_true", "parent_true"), parent="tiny-parent", limit=4)
    found = run(pair, DiffusionGenerator(pair[1], Config().decode), made).measures
    assert found["fill_true_valid"].value > 0.5 > found["parent_true_valid"].value
    assert found["fill_true_forwards"].value < found["parent_true_forwards"].value == found["parent_true_tokens"].value
    assert generation.ARGenerator is ARGenerator


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"ways": ("parent_true",)}, "parent"),
        ({"source": "code", "ways": ("parent_cut",), "parent": "tiny-parent"}, "end that a text could be cut at"),
        ({"source": "text", "sentences": 9}, "lower sentences"),
        ({"longest": 3, "source": "text"}, "raise longest"),
        ({"sentence": 18}, "sentences 1 to 17"),
        ({"source": "code", "path": ""}, "task_id|no such|names no"),
    ],
)
def test_what_cannot_be_measured_is_refused_before_anything_runs(
    fields: dict[str, Any], words: str, tmp_path: Path
) -> None:
    several = {**CODE, "task_id": "MultiLineInfilling/HumanEval/0/L0_L1", "text": "Tom ran. He had a big dog. It sat."}
    (tmp_path / "c.jsonl").write_text(json.dumps(several) + "\n")
    given = {"path": str(tmp_path / "c.jsonl")} if "source" in fields else {}
    with pytest.raises(DataError, match=words):
        task(**{**given, "sentences": 3, **fields}).ready()


def test_a_file_beside_stories_of_our_own_is_refused() -> None:
    with pytest.raises(ConfigError, match="source story makes its own texts"):
        task(path="texts.jsonl")
