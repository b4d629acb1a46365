# The lm-evaluation-harness model on local tasks, through its command line and directly.
# Entry points: pytest.
# The harness runs its own task code on local JSON lines; nothing is fetched.
"""Tests of measure/harness.py."""

from __future__ import annotations

import functools
import json
import math
import os
import subprocess
import sys
import tomllib
from importlib.metadata import EntryPoint
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from hildanext.core.likelihood import autoregressive_nll
from hildanext.data.tokenizers import load_tokenizer
from hildanext.decoding.prompt import Bounds, prepare
from hildanext.decoding.request import Request
from hildanext.errors import ConfigError
from hildanext.measure.scoring import pair_batch

pytest.importorskip("lm_eval")
from lm_eval.api.model import LM
from lm_eval.api.registry import Registry

from hildanext.measure.harness import HildanextLM
from hildanext.measure.harness_arguments import LOG, asked, settings
from hildanext.measure.harness_command import main

COMMON = """dataset_path: json
dataset_kwargs: {{data_files: {{test: {file}}}}}
test_split: test
doc_to_text: "{{{{question}}}}"
doc_to_target: "{{{{answer}}}}"
"""
TASKS = {
    "like_gsm8k": """output_type: generate_until
generation_kwargs: {{until: ["Question:", "\\n\\n"], max_gen_toks: 6, do_sample: false}}
metric_list: [{{metric: exact_match, aggregation: mean, higher_is_better: true}}]
""",
    "like_lambada": """output_type: loglikelihood
metric_list: [{{metric: acc, aggregation: mean, higher_is_better: true}}]
""",
    "ranked": """output_type: multiple_choice
doc_to_choice: ["{{{{answer}}}}", " a cat"]
metric_list: [{{metric: acc, aggregation: mean, higher_is_better: true}}]
""",
    "repeated": """output_type: generate_until
repeats: 4
generation_kwargs: {{until: ["\\n\\n"], max_gen_toks: 8, do_sample: true, temperature: 1.0}}
metric_list: [{{metric: exact_match, aggregation: mean, higher_is_better: true}}]
filter_list: [{{name: all, filter: [{{function: take_first_k, k: 4}}]}}]
""",
}


def _written(folder: Path, greedy: str) -> Path:
    """The tasks over one file of three questions whose answer is what greedy decoding writes, and one whose is not."""
    rows = [{"question": "Tom had", "answer": text} for text in (greedy, greedy, greedy, " a dog and a cat")]
    (folder / "items.jsonl").write_text("\n".join(map(json.dumps, rows)))
    for name, text in TASKS.items():
        (folder / f"{name}.yaml").write_text(f"task: {name}\n" + (COMMON + text).format(file=folder / "items.jsonl"))
    return folder


@pytest.fixture(scope="module")
def model(story_model: Path) -> HildanextLM:
    return HildanextLM(pretrained=str(story_model), samples=0)


def _asked(*args: Any) -> SimpleNamespace:
    return SimpleNamespace(args=args)


LEAN = """import functools, sys
from lm_eval.tasks import TaskManager
TaskManager.__init__ = functools.partialmethod(TaskManager.__init__, include_defaults=False)
from {module} import {function}
sys.exit({function}())
"""


def _run(start: list[str], where: Path, project: Path) -> subprocess.CompletedProcess[str]:
    source = str(project / "backend" / "src")
    environment = os.environ | {"PYTHONPATH": source, "HF_DATASETS_CACHE": str(where / "cache"), "HF_HUB_OFFLINE": "1"}
    return subprocess.run([sys.executable, *start], cwd=where, env=environment, capture_output=True, text=True)


def test_plain_lm_eval_runs_lambada_like_gsm8k_like_and_repeated_tasks(
    model: HildanextLM, story_model: Path, project: Path, tmp_path: Path
) -> None:
    greedy = model.generate_until([_asked("Tom had", {"max_gen_toks": 4, "do_sample": False})])[0]
    _written(tmp_path, greedy)
    script = tomllib.loads((project / "backend" / "pyproject.toml").read_text())["project"]["scripts"]["lm_eval"]
    arguments = ["--model", "hildanext", "--model_args", f"pretrained={story_model},samples=2", "--device", "cuda:0"]
    arguments += ["--include_path", str(tmp_path), "--tasks", ",".join(TASKS), "--output_path", str(tmp_path / "out")]
    module, _, function = script.partition(":")
    start = ["-c", LEAN.format(module=module, function=function)]  # without the index of its 14,000 own tasks
    ran = _run([*start, *arguments, "--log_samples"], tmp_path, project)
    assert ran.returncode == 0, ran.stderr[-2000:]
    found = json.loads(next((tmp_path / "out").rglob("results_*.json")).read_text())["results"]
    assert found["like_lambada"]["acc,none"] == 0.75 and found["like_gsm8k"]["exact_match,none"] == 0.0
    assert 0 <= found["ranked"]["acc,none"] <= 1
    samples = next((tmp_path / "out").rglob("samples_repeated_*.jsonl")).read_text().splitlines()
    assert all(len(set(json.loads(line)["resps"][0])) == 4 for line in samples)


def test_the_module_starts_lm_eval(project: Path, tmp_path: Path) -> None:
    shown = _run(["-m", "hildanext.measure.harness", "run", "--help"], tmp_path, project)
    assert shown.returncode == 0 and "--model_args" in shown.stdout, shown.stderr[-2000:]


def test_arguments_that_are_not_understood_are_refused_on_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from lm_eval.tasks import TaskManager

    lean = functools.partialmethod(TaskManager.__init__, include_defaults=False)
    monkeypatch.setattr(TaskManager, "__init__", lean)
    monkeypatch.setattr("lm_eval.__main__.setup_logging", lambda: None)
    given = "pretrained=tiny,dtype=float8,parallelize=True,greedy=False,temperature=1"
    arguments = ["--model", "hildanext", "--model_args", given, "--tasks", str(_written(tmp_path, "a") / "ranked.yaml")]
    monkeypatch.setattr(sys, "argv", ["lm_eval", *arguments])
    with pytest.raises(SystemExit, match="2"):
        main()
    line = capsys.readouterr().err.strip().splitlines()[-1]
    assert line.startswith("error: model_args: ")
    assert all(name in line for name in ("dtype", "parallelize", "greedy", "temperature"))


def test_later_releases_of_lm_eval_find_the_model_by_its_entry_point(project: Path) -> None:
    points = tomllib.loads((project / "backend" / "pyproject.toml").read_text())["project"]["entry-points"]
    ((name, value),) = points["lm_eval.models"].items()
    registry = Registry("model", base_cls=LM)
    registry.register(name, target=EntryPoint(name, value, "lm_eval.models"))
    assert name == "hildanext" and registry.get(name) is HildanextLM


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
    first, second = (window.tokens[0].tolist() for window in windows)
    assert first == [model.loaded.tokenizer.eos_token_id, *ids[:255]] and second == ids[-256:]
    assert [int(window.learn.sum()) for window in windows] == [255, len(ids) - 255]
    model.window = 4
    rows = [window.tokens[0].tolist() for window in model._windows(" dog cat ran to the zoo with a")]
    ids = model.loaded.tokenizer(" dog cat ran to the zoo with a")["input_ids"]
    assert rows[1] == ids[2:6] and rows[-1] == ids[-4:] and len(rows) == math.ceil(len(ids) / 3)
    assert model.loglikelihood_rolling([_asked(" dog" * 300)])[0] < 0


@pytest.mark.parametrize("generator", ["diffusion", "autoregressive"])
def test_a_greedy_continuation_is_recognised_without_being_asked_for(generator: str, story_model: Path) -> None:
    model = HildanextLM(pretrained=str(story_model), generator=generator, samples=1)
    text = model.generate_until([_asked("Tom had", {"max_gen_toks": 4, "do_sample": False})])[0]
    found = model.loglikelihood([_asked("Tom had", given) for given in (text, " a dog and a cat", f"{text} a cat")])
    assert [greedy for _, greedy in found] == [True, False, False]


def test_a_context_longer_than_the_window_loses_its_left_with_a_warning(
    model: HildanextLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    warned: list[str] = []
    monkeypatch.setattr(LOG, "warning", lambda message, *values: warned.append(message % values))
    long, arguments = " Tom" * 260 + " had a dog.", {"max_gen_toks": 16, "do_sample": False}
    ids = model.loaded.tokenizer(long)["input_ids"]
    cut = model.generator.complete([Request(prompt_ids=tuple(ids[-240:]), max_new_tokens=16)])[0].text
    assert model.generate_until([_asked(long, arguments)]) == [cut]
    (nats, _), (same, _) = model.loglikelihood([_asked(long, " Lily"), _asked(" Tom" + long, " Lily")])
    assert nats == same < 0
    assert [line.count("cut on the left") for line in warned] == [1, 1, 1]
    with pytest.raises(ConfigError, match="--gen_kwargs max_gen_toks=128"):
        model.generate_until([_asked("Tom", {"max_gen_toks": 256})])


def test_the_same_request_again_is_another_sample(model: HildanextLM) -> None:
    arguments = {"max_gen_toks": 8, "do_sample": True}
    texts = model.generate_until([_asked("Tom had", arguments)] * 5)
    assert len(set(texts)) == 5 and texts == model.generate_until([_asked("Tom had", arguments)] * 5)


def test_model_arguments_of_lm_eval_are_taken() -> None:
    given = {"pretrained": "tiny", "device": "cuda:7", "dtype": "torch.half", "trust_remote_code": True}
    given |= {"max_new_tokens": 9, "max_length": 99, "batch_size": 4, "max_batch_size": None, "enable_thinking": False}
    found = settings({**given, "tau_mask": 0.9, "tau_edit": None, "samples": 0, "seed": 3, "mode": "S_MODE"})
    assert (found.model.device, found.model.dtype, found.model.trust_remote_code) == ("auto", "float16", True)
    assert (found.new_tokens, found.decode.window, found.decode.requests, found.samples) == (9, 99, 4, 0)
    assert (found.decode.tau_mask, found.decode.tau_edit, found.decode.seed) == (0.9, None, 3)


def test_a_temperature_alone_draws_and_is_dropped_where_the_task_is_greedy() -> None:
    assert asked({"temperature": 0.7, "max_tokens": 5}, 1) == {"stop": (), "temperature": 0.7, "max_new_tokens": 5}
    assert asked({"temperature": 0.7, "do_sample": False, "until": "a"}, 1)["temperature"] == 0.0


def test_a_chat_is_rendered_as_training_renders_it(assets: Path, model: HildanextLM) -> None:
    qwen = load_tokenizer(assets / "qwen3-tokenizer")
    other = object.__new__(HildanextLM)
    other.loaded, other._chats = SimpleNamespace(tokenizer=qwen), {}
    turns = [{"role": "system", "content": "Be short."}, {"role": "user", "content": "Who met Lily?"}]
    text = other.apply_chat_template(turns)
    assert text.endswith("<|im_start|>assistant\n<think>\n\n</think>\n\n")
    begun = other.apply_chat_template([*turns, {"role": "assistant", "content": "It was"}], add_generation_prompt=False)
    assert begun == f"{text}It was" and other._chats[begun][1][: len(other._chats[text][1])] == other._chats[text][1]


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
    monkeypatch.setattr(HildanextLM, "_greedy", lambda self, rows: [False])
    model.loglikelihood([_asked(context, " Tom")])
    assert tuple(rows[0].tokens[0][~rows[0].learn[0]].tolist()) == wanted


def test_generation_arguments_that_would_be_ignored_are_refused(model: HildanextLM) -> None:
    with pytest.raises(ConfigError, match="num_beams"):
        model.generate_until([_asked("Tom", {"num_beams": 4})])
