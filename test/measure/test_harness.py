# The lm-evaluation-harness model on two local tasks: one that generates, one that ranks by likelihood.
# Entry points: pytest.
# The harness runs its own task code on local JSON lines; nothing is fetched.
"""Tests of measure/harness.py."""

from __future__ import annotations

import json
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from hildanext.core.likelihood import autoregressive_nll
from hildanext.decoding.prompt import Bounds, prepare
from hildanext.decoding.request import Request
from hildanext.measure.scoring import pair_batch

pytest.importorskip("lm_eval")
from hildanext.measure.harness import HildanextLM

GENERATES = """task: local_generate
dataset_path: json
dataset_kwargs: {{data_files: {{test: {file}}}}}
test_split: test
output_type: generate_until
doc_to_text: "{{{{question}}}}"
doc_to_target: "{{{{answer}}}}"
generation_kwargs: {{until: ["\\n"], max_gen_toks: 6, do_sample: false}}
metric_list: [{{metric: exact_match, aggregation: mean, higher_is_better: true}}]
"""
RANKS = """task: local_rank
dataset_path: json
dataset_kwargs: {{data_files: {{test: {file}}}}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{question}}}}"
doc_to_choice: ["a dog", "a cat"]
doc_to_target: 0
metric_list: [{{metric: acc, aggregation: mean, higher_is_better: true}}]
"""


@pytest.fixture(scope="module")
def model(story_model: Path) -> HildanextLM:
    return HildanextLM(pretrained=str(story_model), samples=0)


def _asked(*args: Any) -> SimpleNamespace:
    return SimpleNamespace(args=args)


def test_two_of_its_tasks_run_on_local_data(
    model: HildanextLM, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import lm_eval
    from lm_eval.tasks import TaskManager

    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    file = tmp_path / "items.jsonl"
    file.write_text("\n".join(json.dumps({"question": f"Tom had {i}", "answer": "dogs"}) for i in range(3)))
    for name, text in (("generate", GENERATES), ("rank", RANKS)):
        (tmp_path / f"{name}.yaml").write_text(text.format(file=file))
    manager = TaskManager(include_path=str(tmp_path), include_defaults=False)
    found = lm_eval.simple_evaluate(
        model, tasks=["local_generate", "local_rank"], task_manager=manager, bootstrap_iters=0
    )
    assert found["n-samples"]["local_rank"]["effective"] == 3
    assert 0 <= found["results"]["local_rank"]["acc,none"] <= 1
    assert found["results"]["local_generate"]["exact_match,none"] == 0


def test_the_exact_bound_of_a_diffusion_model_is_deterministic_and_below_zero(model: HildanextLM) -> None:
    asked = [_asked("Tom had", " a dog"), _asked("Tom had", " a dog")]
    first, second = model.loglikelihood(asked)
    assert first == second and first[0] < 0


def test_an_autoregressive_reading_gives_the_exact_likelihood(story_model: Path) -> None:
    model = HildanextLM(pretrained=str(story_model), generator="autoregressive")
    found = model.loglikelihood([_asked("Tom had", " a dog")])[0][0]
    batch = pair_batch(model.loaded.tokenizer, "Tom had", " a dog", 0)
    assert found == pytest.approx(-autoregressive_nll(model.loaded.denoiser, batch).nats)


def test_a_rolling_likelihood_covers_every_token_once(story_model: Path) -> None:
    model = HildanextLM(pretrained=str(story_model), generator="autoregressive")
    ids = model.loaded.tokenizer(" dog" * 300)["input_ids"]
    windows = model._windows(" dog" * 300)
    assert sum(int(window.learn.sum()) for window in windows) == len(ids) and len(windows) == math.ceil(len(ids) / 255)
    assert model.loglikelihood_rolling([_asked(" dog" * 300)])[0] < 0


def test_a_greedy_continuation_is_recognised(story_model: Path) -> None:
    model = HildanextLM(pretrained=str(story_model), greedy=True)
    text = model.generate_until([_asked("Tom had", {"max_gen_toks": 4, "do_sample": False})])[0]
    own, other = model.loglikelihood([_asked("Tom had", text), _asked("Tom had", " a dog and a cat")])
    assert own[1] and not other[1]


def test_a_chat_that_the_harness_renders_is_asked_with_the_ids_of_the_decoder(
    model: HildanextLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    messages, seen = [{"role": "user", "content": "Who met Lily?"}], []
    monkeypatch.setattr(type(model.generator), "complete", lambda self, requests: seen.extend(requests) or [])
    context = model.apply_chat_template(messages)
    model.generate_until([_asked(context, {}), _asked("Tom", {})])
    assert [request.messages for request in seen] == [tuple(messages), None] and seen[1].prompt == "Tom"
    wanted = prepare(Request(messages=tuple(messages)), model.loaded.tokenizer, Bounds(4, 0, 4, -1)).prompt
    rows: list[Any] = []
    monkeypatch.setattr(HildanextLM, "_nats", lambda self, batch: rows.append(batch) or 1.0)
    model.loglikelihood([_asked(context, " Tom")])
    assert tuple(rows[0].tokens[0][~rows[0].learn[0]].tolist()) == wanted


def test_generation_arguments_that_would_be_ignored_are_refused(model: HildanextLM) -> None:
    with pytest.raises(ValueError, match="num_beams"):
        model.generate_until([_asked("Tom", {"num_beams": 4})])
