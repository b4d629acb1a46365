# Multiple choice and the scoring of endings: likelihoods by hand, the bound as a mean over all orders, planted answers.
# Entry points: pytest.
# What an ending costs is planted where the counting is tested, and computed token by token where the cost is.
"""Tests of measure/endings.py and of the task multiple_choice."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from hildanext.config import Config
from hildanext.core.batches import document_batch
from hildanext.core.likelihood import block_elbo, token_nll
from hildanext.decoding.request import Request
from hildanext.errors import DataError
from hildanext.measure import endings as endings_module
from hildanext.measure.endings import Bound, Ending, Pattern, bounds, causal, patterns
from hildanext.measure.generation import ARGenerator
from hildanext.measure.task import EvalContext, Outcome
from hildanext.measure.tasks import multiple_choice
from hildanext.models.denoiser import HFDenoiser, network
from hildanext.progress import Console
from hildanext.registry import build
from hildanext.world import story

Script = Callable[[Callable[[Request], str]], EvalContext]
PAIRS = [("Lily had a red", " ball."), ("Tom", " met a fox at the lake."), ("", "One"), ("Tom had", " a cat.")]


def endings_of(loaded: Any) -> list[Ending]:
    return [Ending.of(loaded, *pair) for pair in PAIRS]


def test_a_causal_ending_costs_its_tokens_one_by_one(loaded: Any) -> None:
    found = causal(loaded.denoiser, endings_of(loaded), 3)
    for ending, nats in zip(endings_of(loaded), found, strict=True):
        logits = network(loaded.denoiser)(torch.tensor([ending.ids])).logits[0].detach().double()
        logits[:, loaded.denoiser.mask_id] = -torch.inf
        places = range(ending.first, len(ending.ids))
        by_hand = -sum(float(logits[place - 1].log_softmax(0)[ending.ids[place]]) for place in places)
        assert nats == pytest.approx(by_hand, rel=1e-5)
    assert [one.characters for one in endings_of(loaded)] == [len(text) for _, text in PAIRS]


def _over_all_orders(denoiser: Any, ending: Ending, block: int) -> float:
    batch = document_batch([(ending.ids, ending.first)], 0, block)
    total, scored = 0.0, range(ending.first, len(ending.ids))
    for number in {place // block for place in scored}:
        inside = [place for place in scored if place // block == number]
        costs = []
        for order in itertools.permutations(inside):
            for step in range(len(order)):
                noisy, select = batch.tokens.clone(), torch.zeros_like(batch.tokens, dtype=torch.bool)
                noisy[0, list(order[step:])], select[0, order[step]] = denoiser.mask_id, True
                costs.append(float(token_nll(denoiser, noisy, batch, block, select).nll))
        total += math.fsum(costs) / math.factorial(len(inside))
    return total


@pytest.mark.parametrize("shift", ["none", "clean"])
@torch.no_grad()
def test_a_short_ending_is_enumerated_at_any_block_and_is_the_mean_over_all_orders(loaded: Any, shift: str) -> None:
    endings = endings_of(loaded)
    denoiser = HFDenoiser(network(loaded.denoiser), loaded.denoiser.mask_id, shift=shift)
    for block in (4, 16):
        found = bounds(denoiser, endings, block, 2, 3, 100)
        assert any(one.exact for one in found)
        for ending, one in zip(endings, found, strict=True):
            if one.exact:
                assert one.nats == pytest.approx(_over_all_orders(denoiser, ending, block), rel=1e-5)
                assert one.standard_error == 0.0
    assert not all(one.exact for one in found), "at block 16 one ending is too long"


@torch.no_grad()
def test_a_planted_copy_that_sees_its_own_clean_block_is_found_by_that_mean(
    loaded: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    true = endings_module.visibility

    def leaky(rows: Any, filler: int, device: Any) -> Any:
        tokens, positions, mask = true(rows, filler, device)
        places = positions // rows[0].block
        return tokens, positions, mask | (places[:, None, None, :] == places[:, None, :, None])

    monkeypatch.setattr(endings_module, "visibility", leaky)
    ending = Ending.of(loaded, "Tom had", " a cat.")
    found = bounds(loaded.denoiser, [ending], 8, 2, 3)[0]
    assert found.exact and found.nats != pytest.approx(_over_all_orders(loaded.denoiser, ending, 8), rel=1e-3)


def test_one_token_in_one_block_is_the_same_enumerated_sampled_and_alone(loaded: Any) -> None:
    endings = endings_of(loaded)
    for shift in ("none", "clean"):
        denoiser = HFDenoiser(network(loaded.denoiser), loaded.denoiser.mask_id, shift=shift)
        for ending, one in zip(endings, bounds(denoiser, endings, 1, 2, 0), strict=True):
            batch = document_batch([(ending.ids, ending.first)], 0)
            assert one.nats == pytest.approx(block_elbo(denoiser, batch, 1, torch.Generator()).nats, rel=1e-5)
            assert one.exact


@pytest.mark.parametrize("size", [1, 3, 5])
def test_draws_in_pairs_have_the_mean_of_the_enumeration(size: int) -> None:
    cost = {mask: torch.rand((), generator=torch.Generator().manual_seed(mask)).item() for mask in range(2**size)}

    def nats(found: Iterable[Pattern]) -> float:
        return sum(one.weight * cost[sum(1 << at for at in one.masked)] for one in found)

    rng = torch.Generator().manual_seed(3)
    exact = nats(patterns(size, 4, 8, rng))
    drawn = [list(patterns(size, 4, 0, rng)) for _ in range(3000)]
    totals = torch.tensor([nats(each) for each in drawn])
    assert float(totals.mean()) == pytest.approx(exact, abs=4 * float(totals.std()) / 3000**0.5 + 1e-6)
    for each in drawn[:50] if size == 5 else ():
        for pair in (0, 1):
            masked = [one.masked for one in each if one.pair == pair]
            assert len(masked) == 2 and set(masked[0]) | set(masked[1]) == set(range(size))


def test_a_context_shared_or_alone_and_a_standard_error_that_covers(loaded: Any) -> None:
    texts = [" ball and a small dog.", " ball.", " cat at the lake with the big red fox.", " fox"]
    endings = [Ending.of(loaded, "Lily had a red", text) for text in texts]
    together = bounds(loaded.denoiser, endings, 8, 4, 1)
    for ending, one in zip(endings, together, strict=True):
        alone = bounds(loaded.denoiser, [ending], 8, 4, 1)[0]
        assert (one.nats, one.standard_error) == pytest.approx((alone.nats, alone.standard_error), rel=1e-4)
        batch = document_batch([(ending.ids, ending.first)], 0, 8)
        whole = block_elbo(loaded.denoiser, batch, 8, torch.Generator().manual_seed(1), 48)
        assert one.nats == pytest.approx(whole.nats, abs=4 * (one.standard_error + whole.standard_error) + 1e-4)
    assert not math.isnan(together[0].standard_error) and math.isnan(
        bounds(loaded.denoiser, endings[:1], 8, 2, 1)[0].standard_error
    )


def rows_of(questions: Sequence[tuple[str, Sequence[str], int]], bare: bool = False) -> list[dict[str, Any]]:
    """Rows as the public sets have them: one per ending, then the same behind a bare context."""
    found = []
    for start, lead in ((0, None), (multiple_choice.BARE, "Answer:"))[: 1 + bare]:
        for number, (context, endings, label) in enumerate(questions):
            for index, text in enumerate(endings):
                asked = {"context": lead or context, "continuation": text}
                found.append({"request": asked, "doc_id": start + number, "idx": index, "label": label})
    return found


def write(path: Path, rows: Sequence[Any]) -> Path:
    path.parent.mkdir(exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def value(found: Outcome, name: str) -> float:
    return found.measures[name].value


def test_what_is_likeliest_is_counted_by_every_rule_set_and_reading(
    scripted: Script, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, story_model: Path
) -> None:
    nats = {"short": 2.0, "quite a long ending": 3.0, "x": 1.0, "y": 5.0}
    bare = {"short": 0.5, "quite a long ending": 2.9, "x": 0.0, "y": 4.9}
    texts: list[tuple[str, str]] = []
    own = lambda loaded, context, text: texts.append((context, text)) or len(texts) - 1  # noqa: E731

    def cost(each: Sequence[int], scale: float) -> list[float]:
        return [bare[texts[one][1]] if texts[one][0] == "Answer:" else scale * nats[texts[one][1]] for one in each]

    monkeypatch.setattr(multiple_choice.Ending, "of", own)
    monkeypatch.setattr(
        multiple_choice, "bounds", lambda d, each, *more: [Bound(one, 0.0, True) for one in cost(each, 1.0)]
    )
    monkeypatch.setattr(multiple_choice, "causal", lambda d, each, positions: cost(each, -1.0))
    write(
        tmp_path / "sets" / "one.jsonl",
        rows_of([("q", ("short", "quite a long ending"), 1), ("r", ("x", "y"), 0)], True),
    )
    write(tmp_path / "sets" / "two.jsonl", rows_of([("s", ("y", "x"), 0)], True))
    task = build(
        "tasks", {"type": "multiple_choice", "path": str(tmp_path / "sets"), "rules": ("nats", "character", "bare"),
                  "parent": str(story_model)},
    )  # fmt: skip
    task.ready()
    found = task.run(scripted(lambda request: ""))
    assert [value(found, f"one bound by {rule}") for rule in ("nats", "character", "bare")] == [0.5, 1.0, 0.5]
    assert value(found, "two bound by nats") == 0.0 and value(found, "mean bound by nats") == 0.25
    assert value(found, "one parent by nats") == 0.5 and value(found, "two parent by nats") == 1.0
    paired = found.measures["bound less parent by nats"]
    assert paired.value == pytest.approx(0.25 - 0.75) and paired.low <= paired.value <= paired.high
    assert value(found, "chance") == 0.5 and found.counts["questions of one"] == 2
    assert found.samples[0]["bound by character"] == "quite a long ending" == found.samples[0]["right"]


def test_the_bundled_parent_knows_its_world_and_is_no_better_than_itself(tmp_path: Path) -> None:
    from hildanext.config.model import ModelConfig
    from hildanext.models.load import load_model

    parent = load_model(ModelConfig(path="tiny-parent"))
    told = [story(f"31:{index}").sentences for index in range(6)]
    asked = [
        {"context": lines[0], "choices": [" ".join(reversed(lines[1].split())), lines[1]], "label": 1} for lines in told
    ]
    write(tmp_path / "q.jsonl", asked)
    context = EvalContext(parent, Config(), Console(quiet=True), ARGenerator(parent, Config().decode))
    found = build("tasks", {"type": "multiple_choice", "path": str(tmp_path / "q.jsonl"), "parent": "tiny-parent"}).run(
        context
    )
    assert value(found, "q autoregressive by nats") == 1.0 and found.measures["q autoregressive by nats"].low < 1.0
    same = found.measures["autoregressive less parent by nats"]
    assert (same.value, same.low, same.high) == (0.0, 0.0, 0.0)


def test_the_public_sets_are_read_whole_and_scored(scripted: Script, assets: Path) -> None:
    folder = assets / "multiple-choice"
    whole = build("tasks", {"type": "multiple_choice", "path": str(folder), "rules": ("bare",)})._questions(0)
    sizes = {name: sum(one.set == name for one in whole) for name in ("arc_easy", "piqa", "copa", "openbookqa")}
    assert sizes == {"arc_easy": 570, "piqa": 1838, "copa": 100, "openbookqa": 500} and len(whole) == 3008
    assert all(one.bare == "Answer:" and len(one.endings) >= 2 for one in whole)
    task = build("tasks", {"type": "multiple_choice", "path": str(folder / "copa.jsonl.gz"), "limit": 2, "samples": 4})
    found = task.run(scripted(lambda request: ""))
    assert {"copa bound by nats", "copa block_1 by character", "chance"} <= set(found.measures)
    assert value(found, "standard error of a sampled bound") > 0
    assert found.counts["enumerated by block_1"] == 4 and found.counts["questions of copa"] == 2


@pytest.mark.parametrize(
    ("rows", "rule", "words"),
    [
        ([], "nats", "no questions"), ([{"text": "a"}], "nats", "lacks context"),
        (rows_of([("q", ("a", "b"), 2)]), "nats", "label 2"), (rows_of([("q", ("a", "b"), 1)]), "bare", "bare context"),
        ([{"context": "q", "choices": ["a"], "label": 3}], "nats", "index of the right one"),
    ],
)  # fmt: skip
def test_rows_that_are_no_questions_are_refused(rows: Any, rule: str, words: str, tmp_path: Path) -> None:
    write(tmp_path / "q.jsonl", rows)
    with pytest.raises(DataError, match=words):
        build("tasks", {"type": "multiple_choice", "path": str(tmp_path / "q.jsonl"), "rules": (rule,)}).ready()
