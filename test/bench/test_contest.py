# The contest: every way of reading the parent gives its text, quality is what it says, turns are turns, llama.cpp is
# a process that may be missing or end.
# Entry points: pytest.
# Oracles: transformers' own generate and forward on the bundled parent; a stand-in process for llama.cpp.
"""bench decode, the contest."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

import hildanext
from hildanext.bench.decode import run
from hildanext.bench.decoding import contest, llamacpp
from hildanext.bench.decoding.asks import Ask, asks_for, parent_of
from hildanext.bench.decoding.contest import answer, race, speed, verdict
from hildanext.bench.decoding.llamacpp import LlamaCpp, Runtime, runtime
from hildanext.bench.decoding.quality import Agreement, Quality
from hildanext.bench.decoding.readers import Generate, LeftToRight, Reading, exact_engine
from hildanext.config import load_config
from hildanext.config.model import ModelConfig
from hildanext.errors import ConfigError, RunError
from hildanext.models.denoiser import network
from hildanext.models.load import load_model
from hildanext.progress import Console

BUNDLED = Path(hildanext.__file__).parent / "tiny"
QUIET = Console(quiet=True)
STAND_IN = """
import json, sys
job = json.loads(sys.argv[-1])
print("a line of the library's own")
print("a line about a tensor\\n" * 20_000, file=sys.stderr)  # more than a pipe holds
print(json.dumps({"threads": job["threads"]}), flush=True)
for line in sys.stdin:
    asked = json.loads(line)
    if asked["new"] == 99:
        sys.exit("error: out of memory")
    ids = [asked["prompt"][-1] + 1 + i for i in range(asked["new"])]
    print(json.dumps({"ids": ids, "wall": 2.0, "cpu": 1.0}), flush=True)
"""


@pytest.fixture(scope="module")
def parent() -> Any:
    return load_model(ModelConfig(path="tiny-parent"))


@pytest.fixture(scope="module")
def asks(parent: Any) -> list[Ask]:
    return asks_for(parent, (), 2)


def stand_in(folder: Path) -> Runtime:
    return Runtime("stand-in", (sys.executable, "-c", STAND_IN), folder)


@torch.no_grad()
def test_all_ways_of_reading_the_parent_give_its_greedy_text(parent: Any, asks: list[Ask]) -> None:
    model, config = network(parent.denoiser), load_config(None, [])
    tokens = torch.tensor([asks[0].ids])
    for _ in range(12):
        tokens = torch.cat([tokens, model(tokens).logits[:, -1:].argmax(-1)], 1)
    wanted = tuple(tokens[0, len(asks[0].ids) :].tolist())
    readers = (Generate(model, "cpu"), LeftToRight(parent, "cpu"), exact_engine(parent, config))
    assert [reader.read(asks[0], 12).ids for reader in readers] == [wanted] * 3


@torch.no_grad()
def test_quality_is_the_parents_likelihood_and_agreement_with_its_text(parent: Any, asks: list[Ask]) -> None:
    quality = Quality.of(parent, asks, 8)
    own = quality.own()
    assert own["equal"] == own["token_f1"] == 1.0 and quality.worlds and own["valid"] == 1.0
    nats, model = 0.0, network(parent.denoiser)
    for ask, ids in zip(asks, quality.texts, strict=True):
        scores = model(torch.tensor([[*ask.ids, *ids]])).logits[0, len(ask.ids) - 1 : -1].log_softmax(-1)
        nats -= float(scores[torch.arange(len(ids)), list(ids)].sum())
    assert own["nats"] == pytest.approx(nats / 16, rel=1e-4) and own["tokens"] == 16
    worse = quality.of_texts([quality.texts[0], tuple(reversed(quality.texts[1]))])
    assert worse["equal"] == 0.5 and worse["nats"] > own["nats"]
    assert quality.of_texts([(), ()])["nats"] is None and quality.of_texts([asks[0].ids] * 2)["valid"] == 0.0


def test_agreement_is_the_share_in_common_order() -> None:
    judge = Agreement([(1, 2, 3, 4)])
    assert judge.of_texts([(1, 2, 3, 4)]) == {"agreement": 1.0}
    assert judge.of_texts([(1, 9, 3, 4)]) == {"agreement": 0.75} and judge.of_texts([()]) == {"agreement": 0.0}


class Counted:
    """A reader that notes when it is asked."""

    def __init__(self, name: str, order: list[str]) -> None:
        self.name, self.order = name, order

    def read(self, ask: Ask, new: int) -> Reading:
        self.order.append(f"{self.name}{ask.text}{new}")
        return Reading((1,) * new, 0.5 * new)


def test_variants_take_turns_on_every_prompt_after_a_warm_up() -> None:
    order: list[str] = []
    readers = {name: Counted(name, order) for name in "ab"}
    found = race(readers, [Ask((1,), frozenset(), text) for text in "xy"], 6, 2, QUIET)
    assert order == ["ax4", "bx4", *["ax6", "bx6", "ay6", "by6"] * 2]
    assert [[len(turn) for turn in rounds] for rounds in found.values()] == [[2, 2], [2, 2]]
    assert speed(found["a"][0]) == pytest.approx(2.0)


def test_the_answer_names_the_setting_and_the_best_baseline() -> None:
    setting = {"mode": "S_MODE", "block": 8, "window": 1, "dtype": "float32", "threads": 2, "engine": "transformers"}
    rows = {
        "S": {"kind": "model", "setting": setting, "tokens_per_second": 30.0},
        "Q": {"kind": "model", "setting": {}, "tokens_per_second": 10.0},
        "generate": {"kind": "baseline", "tokens_per_second": 15.0},
        "llama.cpp": {"kind": "baseline", "tokens_per_second": 60.0},
    }
    found = verdict(rows)
    assert found == {"best": "llama.cpp", "fastest": "S", "times": {"generate": 2.0, "llama.cpp": 0.5}}
    assert answer({"variants": rows, **found}) == (
        "fastest setting on this machine: S_MODE, block 8, window 1, float32, threads 2, engine transformers;"
        " 0.50 times the best AR baseline (llama.cpp, 60.0 tokens/s); left to right is faster here"
    )
    alone = {name: rows[name] for name in ("generate", "llama.cpp")}
    assert "reading left to right, llama.cpp" in answer({"variants": alone, **verdict(alone)})


def test_llama_cpp_is_read_by_lines_and_its_end_is_one_line(tmp_path: Path) -> None:
    with LlamaCpp.open(stand_in(tmp_path), tmp_path / "a.gguf", 64, 1, "cpu") as process:
        assert process.read([5, 6], 3, {1}) == ((7, 8, 9), 1.0)
        with pytest.raises(RunError, match=r"a\.gguf: llama\.cpp ended \(error: out of memory\)"):
            process.read([5], 99, {1})
    assert process.process.returncode is not None


def test_a_runtime_is_found_in_a_folder_above_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(llamacpp, "find_spec", lambda name: None)
    monkeypatch.setattr(llamacpp.shutil, "which", lambda name: "node")
    assert runtime(str(tmp_path)) is None
    package = tmp_path / llamacpp.PACKAGE
    package.parent.mkdir(parents=True)
    package.write_text("{}")
    (tmp_path / "below").mkdir()
    found = runtime(str(tmp_path / "below"))
    assert found is not None and found.folder == tmp_path and Path(found.command[1]).is_file()


def test_a_contest_names_what_is_beaten_and_what_is_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(contest, "runtime", lambda node: stand_in(tmp_path))
    values = {
        "measures": ["contest"], "texts": 1, "text_tokens": 8, "repeats": 1, "precisions": ["float32"],
        "gguf": ["q8.gguf"], "onnx": ["float32"],
    }  # fmt: skip
    sets = [f"bench.decode.{name}={json.dumps(value)}" for name, value in values.items()]
    places = [f"paths.{name}={tmp_path}" for name in ("runs", "models")]
    report = run(load_config(None, ["model.path=tiny", *places, *sets]), Console())
    found = report["contest"]
    assert found["variants"]["Q_MODE, block 16, float32, onnx"]["setting"]["engine"] == "onnx"
    names = ["transformers generate, float32", "our own cache, float32", "our engine at block 1, float32"]
    assert [f"AR, {name}" for name in names] + ["AR, llama.cpp, q8"] == list(found["times"])
    assert found["variants"]["AR, our own cache, float32"]["equal"] == 1.0 and found["parent"] == "tiny-parent"
    assert found["variants"]["AR, llama.cpp, q8"]["tokens_per_second"] == 4.0
    assert {row["kind"] for row in found["variants"].values()} == {"model", "baseline"} and "precisions" not in report
    said = capsys.readouterr().err
    assert "beats AR, llama.cpp, q8" in said and "fastest setting on this machine: " in said.splitlines()[-1]
    monkeypatch.setattr(contest, "runtime", lambda node: None)
    with pytest.raises(RunError, match="npm install node-llama-cpp"):
        contest.contest(load_config(None, ["model.path=tiny", *sets]), QUIET)


def scripts(folder: Path, **more: Any) -> Any:
    values = {
        "measures": ["contest"], "texts": 2, "prompt_tokens": 48, "text_tokens": 16, "repeats": 1, "blocks": [8, 16],
        "scripted": [1, 4, 8], "precisions": ["float32"], "onnx": ["float32"], "gguf": ["q8.gguf"], **more,
    }  # fmt: skip
    sets = [f"bench.decode.{name}={json.dumps(value)}" for name, value in values.items()]
    return load_config(None, ["model.path=tiny", *(f"paths.{name}={folder}" for name in ("runs", "models")), *sets])


def test_scripts_keep_their_tokens_per_forward_and_claim_no_quality(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(contest, "runtime", lambda node: stand_in(tmp_path))
    found = run(scripts(tmp_path), Console())["contest"]
    rows = {name: row for name, row in found["variants"].items() if row["kind"] == "model"}
    wanted = {
        f"scripted {count} per forward, block {block}, float32{engine}": count
        for block in (8, 16) for count in (1, 4, 8) for engine in ("", ", onnx")
    }  # fmt: skip
    assert {name: row["tokens_per_forward"] for name, row in rows.items()} == wanted
    assert all(row["setting"]["scripted"] == wanted[name] for name, row in rows.items())
    assert {row["tokens"] for row in found["variants"].values()} == {2 * 16} and len(found["prompts"]) == 2
    judged = {"equal", "token_f1", "nats", "repetition", "valid"}
    assert not any(judged & row.keys() for row in found["variants"].values()) and found["parents_own"] is None
    said = capsys.readouterr().err
    assert "no text is judged" in said and "greedy texts" not in said and ": scripted 8, block " in said


def test_what_a_script_is_asked_has_its_length_and_no_end() -> None:
    ask = Ask((5, 6, 7), frozenset({9}), "said", ({"role": "user", "content": "said"},))
    assert ask.sized(7) == Ask((5, 6, 7, 5, 6, 7, 5), frozenset(), "said") and ask.sized(2).ids == (5, 6)


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"scripted": [3]}, "3 tokens per forward and blocks of 8"),
        ({"prompt_tokens": 44}, "prompt_tokens 44 and blocks of 8"),
        ({"blocks": [32]}, "prompt_tokens 48 and blocks of 32"),
    ],
)
def test_scripts_that_do_not_come_out_even_are_refused(wrong: dict[str, Any], said: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=said):
        scripts(tmp_path, **wrong)
    assert scripts(tmp_path, scripted=[], **{name: value for name, value in wrong.items() if name != "scripted"})


def test_the_parent_is_the_one_named_or_the_bundled_one() -> None:
    config = load_config(None, ["model.path=tiny"])
    assert parent_of(config, "") == "tiny-parent" and parent_of(config, "other") == "other"
    assert parent_of(load_config(None, [f"model.path={BUNDLED / 'child'}"]), "") == ""


def test_a_prompt_that_is_wanted_is_a_users_turn_where_there_is_a_template(parent: Any) -> None:
    (turn,) = asks_for(parent, ("What pet did Lily have?",), 5)
    assert turn.messages is not None and turn.messages[0]["role"] == "user" and len(turn.ids) > 8
    assert turn.request(4, {"mode": "S_MODE"}).messages is not None
