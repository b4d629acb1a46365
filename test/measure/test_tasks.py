# Every task end to end: with the reference answers as replies its score is perfect, with wrong ones it is not.
# Entry points: pytest.
# The random model runs the tasks that read likelihoods; their bounds are checked against each other.
"""Tests of measure/tasks."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hildanext.config import Config
from hildanext.core.likelihood import autoregressive_nll
from hildanext.data.packing import FILLER, Piece
from hildanext.data.shards import ShardWriter
from hildanext.data.tokenizers import tokenizer_hash
from hildanext.decoding.request import Request
from hildanext.errors import DataError, DecodeError
from hildanext.measure.generation import Completion
from hildanext.measure.scoring import causal_nats, pair_batch
from hildanext.measure.task import EvalContext, Outcome, Task
from hildanext.progress import Console
from hildanext.registry import build, names
from hildanext.world import corpus, story

Script = Callable[[Callable[[Request], str]], EvalContext]


def task(name: str, **fields: Any) -> Task:
    found: Task = build("tasks", {"type": name, **fields})
    return found


def value(outcome: Outcome, name: str) -> float:
    return outcome.measures[name].value


def test_every_task_has_a_version_and_a_limit() -> None:
    kinds = [build("tasks", {"type": name}) for name in names("tasks")]
    assert len(kinds) >= 8 and all(isinstance(kind, Task) and kind.version >= 1 for kind in kinds)


READERS = [name for name in names("tasks") if "path" in type(build("tasks", {"type": name})).model_fields]


@pytest.mark.parametrize("name", READERS)
def test_a_task_reaches_the_network_only_with_download(
    name: str, scripted: Script, monkeypatch: pytest.MonkeyPatch
) -> None:
    datasets, seen = pytest.importorskip("datasets"), list[str]()

    def load(dataset: str, **more: Any) -> None:
        seen.append(dataset)
        raise OSError("no network here")

    monkeypatch.setattr(datasets, "load_dataset", load)
    given = {} if type(task(name)).model_fields["path"].default else {"path": "hub:a/b:test"}
    given |= {"source": "code"} if name == "infill" else {}
    with pytest.raises(DataError, match="download=true"):
        task(name, **given).run(scripted(lambda request: ""))
    assert seen == []
    with pytest.raises(DataError, match="no network here"):
        task(name, download=True, **given).run(scripted(lambda request: ""))
    assert len(seen) == 1


def _rest_of(seed: int) -> Callable[[Request], str]:
    texts = {told.sentences[0]: told.text for told in (story(f"{seed}:{i}") for i in range(20))}

    def reply(request: Request) -> str:
        return texts[request.prompt or ""][len(request.prompt or "") :]

    return reply


def test_real_stories_are_all_valid(scripted: Script) -> None:
    found = task("storyworld", stories=6, answers=0, seed=5).run(scripted(_rest_of(5)))
    assert value(found, "valid") == 1.0 and value(found, "problems_per_story") == 0.0
    assert value(found, "tokens_per_forward") == 4.0


def test_a_contradicting_story_is_invalid_and_its_kind_is_counted(scripted: Script) -> None:
    rest = _rest_of(5)
    found = task("storyworld", stories=4, answers=0, seed=5).run(scripted(lambda r: rest(r).replace(" back", " hat")))
    assert value(found, "valid") < 1.0 and found.counts["problem: grammar"] >= 1


def test_reference_answers_are_right_and_others_wrong(scripted: Script) -> None:
    known = {
        record["messages"][-2]["content"]: record["messages"][-1]["content"]
        for register in ("chat", "arithmetic", "coding")
        for record in corpus(register, 5, 4)
    }
    asked = task("storyworld", stories=0, answers=4, seed=5)
    right = asked.run(scripted(lambda request: known[request.messages[-1]["content"]]))  # type: ignore[index]
    wrong = asked.run(scripted(lambda request: "I do not know"))
    for register in ("chat", "arithmetic", "coding"):
        assert value(right, f"{register}_right") == 1.0
        assert value(wrong, f"{register}_right") < 1.0


def test_micro_solutions_pass_and_a_wrong_one_fails(scripted: Script) -> None:
    good = task("humaneval_micro", limit=3, canonical=True).run(scripted(lambda request: ""))
    bad = task("humaneval_micro", limit=3).run(scripted(lambda request: "return 'wrong'"))
    assert value(good, "pass_at_1") == 1.0 and value(bad, "pass_at_1") == 0.0 and bad.counts["failed"] == 3


def test_humaneval_solutions_pass_and_an_exit_does_not(scripted: Script, assets: Path) -> None:
    path = str(assets / "humaneval" / "HumanEval.jsonl.gz")
    good = task("humaneval", path=path, limit=4, canonical=True).run(scripted(lambda request: ""))
    bad = task("humaneval", path=path, limit=2).run(scripted(lambda request: "    import os; os._exit(0)"))
    assert value(good, "pass_at_1") == 1.0 and value(bad, "pass_at_1") == 0.0 and bad.counts["no nonce"] == 2


@pytest.mark.parametrize("file", ["mbpp.jsonl", "MBPP_sanitized.json", "mbpp_test.jsonl"])
def test_mbpp_solutions_pass_in_all_three_schemas(file: str, scripted: Script, assets: Path) -> None:
    found = task("mbpp", path=str(assets / "mbpp" / file), limit=3, canonical=True).run(scripted(lambda request: ""))
    assert value(found, "pass_at_1") == 1.0


def test_gsm8k_scores_by_the_final_number(scripted: Script, assets: Path) -> None:
    path = str(assets / "gsm8k" / "test.jsonl")
    solved = {
        row["question"]: row["answer"] for row in map(json.loads, Path(path).read_text(encoding="utf-8").splitlines())
    }
    given = task("gsm8k", path=path, limit=5, shots=str(assets / "gsm8k" / "train.jsonl"), shot_count=2)
    context = scripted(lambda r: solved[(r.prompt or "").rpartition("Question: ")[2].removesuffix("\nAnswer:")])
    assert value(given.run(context), "exact_match") == 1.0
    assert (context.generator.asked[0].prompt or "").count("Question:") == 3  # type: ignore[attr-defined]
    assert value(given.run(scripted(lambda request: "no idea")), "exact_match") == 0.0


def test_tinystories_reports_diversity_and_a_judge(scripted: Script, story_model: Path, tmp_path: Path) -> None:
    rows = [{"text": story(seed).text} for seed in range(4)]
    (tmp_path / "s.jsonl").write_text("\n".join(map(json.dumps, rows)))
    fields = {"path": str(tmp_path / "s.jsonl"), "judge": str(story_model)}
    same = task("tinystories", **fields).run(scripted(lambda request: " the the the the the the"))
    assert value(same, "distinct_1") == pytest.approx(1 / 24) and value(same, "repetition") == pytest.approx(2 / 3)
    assert value(same, "judge_bits_per_character") > 0 and value(same, "judge_bits_per_character_of_references") > 0


def test_the_bound_of_block_one_is_exact_and_larger_blocks_agree_with_enumeration(loaded: Any) -> None:
    context = EvalContext.of(loaded, Config(), Console(quiet=True))
    exact = task("nll", limit=2, blocks=(1, 4), samples=0).run(context)
    drawn = task("nll", limit=2, blocks=(1, 4), samples=48).run(context)
    assert value(exact, "block_1") == pytest.approx(value(drawn, "block_1"))
    error = drawn.series["bound"][1]["standard_error"]
    assert error > 0 and abs(value(exact, "block_4") - value(drawn, "block_4")) < 5 * error
    assert 0.1 < value(exact, "true_entropy") < 0.3


def test_intervals_of_the_nll_task_are_over_documents_however_many_rows_share_a_forward(loaded: Any) -> None:
    context = EvalContext.of(loaded, Config(), Console(quiet=True))
    alone, together = (task("nll", limit=6, blocks=(1,), rows=rows).run(context).measures for rows in (1, 6))
    for name in ("autoregressive", "block_1"):
        assert alone[name].items == together[name].items == 6
        assert (together[name].low, together[name].high) == pytest.approx((alone[name].low, alone[name].high))
        assert together[name].low < together[name].value < together[name].high


@dataclass(frozen=True)
class Narrow:
    """A scripted generator whose window some prompts exceed."""

    inner: Any
    longest: int
    kind: str = "diffusion"

    def complete(self, requests: Sequence[Request]) -> list[Completion]:
        for request in requests:
            if len(request.prompt or "") > self.longest:
                raise DecodeError(f"max_new_tokens: a prompt of {len(request.prompt or '')} exceeds the window")
        found: list[Completion] = self.inner.complete(requests)
        return found


def test_a_long_item_fails_alone_is_counted_and_loses_nothing(
    scripted: Script, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [{"question": "q" * size, "answer": "#### 4"} for size in (5, 5, 900, 5, 5)]
    (tmp_path / "q.jsonl").write_text("\n".join(map(json.dumps, rows)))
    whole = scripted(lambda request: "#### 4")
    context = replace(whole, generator=Narrow(whole.generator, 100))
    found = task("gsm8k", path=str(tmp_path / "q.jsonl")).run(context)
    assert value(found, "exact_match") == 0.8 and value(found, "tokens_per_text") == 8
    assert len(context.failed) == 1 and "item 3 of 5 failed: max_new_tokens" in capsys.readouterr().err
    with pytest.raises(DecodeError, match="exceeds the window"):
        task("gsm8k", path=str(tmp_path / "q.jsonl")).run(replace(whole, generator=Narrow(whole.generator, 1)))


def test_a_text_longer_than_the_judges_window_is_scored_whole(loaded: Any) -> None:
    words = [" dog", " cat", " Tom", " had", " a"] * 160
    told = [causal_nats(loaded, "Tom", "".join(words[:count])) for count in (100, 240, 400, 800)]
    assert told[0] < told[1] < told[2] < told[3]
    assert told[3] / 800 == pytest.approx(told[1] / 240, rel=0.1)
    batch = pair_batch(loaded.tokenizer, "Tom", "".join(words[:240]), 0)
    assert told[1] == pytest.approx(autoregressive_nll(loaded.denoiser, batch).nats)


def test_a_failed_story_or_answer_is_not_right(scripted: Script) -> None:
    starts = [story(f"5:{index}").sentences[0] for index in range(3)]
    whole = scripted(_rest_of(5))
    longest = sorted(map(len, starts))[1]
    found = task("storyworld", stories=3, answers=0, seed=5).run(
        replace(whole, generator=Narrow(whole.generator, longest))
    )
    assert value(found, "valid") == pytest.approx(sum(len(start) <= longest for start in starts) / 3)
    assert value(found, "valid") < 1 and value(found, "problems_per_story") == 0.0


def test_the_true_entropy_of_the_nll_task_is_that_of_the_sentences_scored(loaded: Any) -> None:
    found = task("nll", limit=3, blocks=(1,), autoregressive=False, seed=5).run(
        EvalContext.of(loaded, Config(), Console(quiet=True))
    )
    told = [story(f"5:{index}") for index in range(3)]
    assert value(found, "true_entropy") * found.counts["tokens"] == pytest.approx(
        -sum(math.fsum(one.gains[1:]) for one in told)
    )


def test_steps_gives_a_point_per_setting_and_filling_one_by_one_costs_most(loaded: Any) -> None:
    inner = {"type": "storyworld", "stories": 2, "answers": 0, "max_new_tokens": 8}
    found = task("steps", task=inner, tau_mask=(0.0, 1.0), tau_edit=(None,)).run(
        EvalContext.of(loaded, Config(), Console(quiet=True))
    )
    fast, slow = found.series["frontier"]
    assert fast["x"] > slow["x"] and slow["x"] <= 1.0


@pytest.fixture(scope="module")
def rows_of_text(loaded: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder, end = tmp_path_factory.mktemp("rows"), int(loaded.tokenizer.eos_token_id)
    writer = ShardWriter(folder, 64, len(loaded.tokenizer), end)
    for index in range(10):
        ids = loaded.tokenizer(story(f"rows:{index}").text, add_special_tokens=False)["input_ids"][:40]
        marks = np.array([1] * (len(ids) + 1) + [FILLER] * (63 - len(ids)))
        writer.write([Piece(index, np.array([*ids] + [end] * (64 - len(ids))), marks)])
    writer.close({"tokenizer_hash": tokenizer_hash(loaded.tokenizer)})
    return folder


def test_rows_up_to_the_limit_are_scored_whatever_shares_a_forward_and_filler_is_not(
    rows_of_text: Path, loaded: Any
) -> None:
    context = EvalContext.of(loaded, Config(), Console(quiet=True))
    found = [
        task("nll", shards=str(rows_of_text), limit=7, rows=rows, blocks=(1, 16), samples=2).run(context)
        for rows in (1, 3, 4, 16)
    ]
    for one in found:
        assert one.counts == found[0].counts and one.counts["rows"] == 7 and one.counts["documents"] == 7
        for name, measure in one.measures.items():
            assert measure.value == pytest.approx(found[0].measures[name].value, rel=1e-5)
    assert found[0].counts["tokens"] == 7 * 40
    names = ("autoregressive", "block_1", "block_16")
    assert set(found[0].measures) == {*names, *(f"{name}_without_ends" for name in names)}
    assert task("nll", shards=str(rows_of_text), limit=64, rows=4, blocks=(1,)).run(context).counts["rows"] == 10


def test_bounds_of_stories_do_not_depend_on_the_rows_of_a_forward(loaded: Any) -> None:
    context = EvalContext.of(loaded, Config(), Console(quiet=True))
    one, other = (
        task("nll", limit=5, rows=rows, blocks=(16,), samples=2, autoregressive=False).run(context) for rows in (2, 5)
    )
    assert value(one, "block_16") == pytest.approx(value(other, "block_16"), rel=1e-5)


def test_shards_without_rows_or_without_anything_learned_are_refused(loaded: Any, tmp_path: Path) -> None:
    known = {"tokenizer_hash": tokenizer_hash(loaded.tokenizer)}
    ShardWriter(tmp_path / "empty", 16, 300, 0).close(known)
    with pytest.raises(DataError, match="has no rows"):
        task("nll", shards=str(tmp_path / "empty")).ready()
    writer = ShardWriter(tmp_path / "seen", 16, 300, 0)
    writer.write([Piece(0, np.arange(8), np.zeros(8))])
    writer.close(known)
    with pytest.raises(DataError, match="nothing in these rows is scored"):
        task("nll", shards=str(tmp_path / "seen"), blocks=(1,)).run(
            EvalContext.of(loaded, Config(), Console(quiet=True))
        )
