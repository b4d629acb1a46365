# The decoding benchmark end to end on models that take a second: what it reports, and that its stopwatch is right.
# Entry points: the tests.
# Speed itself is not tested: the machine that runs the tests is shared.
"""bench decode."""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import Any

import pytest
import torch

import hildanext
from hildanext.bench.decode import run
from hildanext.bench.decoding.modes import TINYSTORIES, differences, prompts_for, settings, show
from hildanext.bench.decoding.timing import Timed, fastest, time_engine, time_forwards
from hildanext.config import load_config
from hildanext.data.tokenizers import load_tokenizer
from hildanext.decoding.request import Metrics, Result
from hildanext.models.denoiser import HFDenoiser
from hildanext.progress import Console

BUNDLED = Path(hildanext.__file__).parent / "tiny"
SMALL = {
    "measures": ["forwards", "modes"],
    "prompt_tokens": 16,
    "new_tokens": 16,
    "context_tokens": 32,
    "blocks": [4, 8],
    "requests": 2,
    "repeats": 1,
}


def bench(model: Path, folder: Path, **more: Any) -> dict[str, Any]:
    values = [f"bench.decode.{name}={json.dumps(value)}" for name, value in {**SMALL, **more}.items()]
    paths = [f"model.path={model}", f"paths.runs={folder}", "model.device=cpu"]
    return run(load_config(None, [*paths, *values]), Console(quiet=True))


def test_a_folder_without_weights_is_measured_with_random_ones(random_model: Any, tmp_path: Path) -> None:
    random_model("qwen3", vocab_size=1100).config.save_pretrained(tmp_path / "shape")
    report = bench(tmp_path / "shape", tmp_path / "runs", tokens_per_forward=2.0)
    assert not report["trained"] and set(report["precisions"]) == {"float32", "bfloat16", "int8"}
    for part in report["precisions"].values():
        assert part["autoregressive"]["tokens"] == 16
        for row in part["engine"].values():
            assert row["tokens_per_forward"] == 2.0 and row["tokens"] == 16 * row["requests"]
            assert 1.0 < row["tokens_per_forward_unfused"] < 2.0 < row["positions_per_forward"]
    written = json.loads((Path(report["run"]) / "report.json").read_text(encoding="utf-8"))
    assert written["fastest"] == report["fastest"] and Path(report["plot"]).read_bytes()[:4] == b"\x89PNG"


def test_modes_are_compared_on_trained_weights(assets: Path, tmp_path: Path, capsys: Any) -> None:
    report = bench(assets / "stories260k-hf", tmp_path, precisions=["float32"], blocks=[8], windows=[1, 2])
    modes = report["modes"]
    assert report["trained"] and 0.0 < modes["s_against_q"]["tokens_that_differ"] <= 1.0
    assert modes["prompts"] == list(TINYSTORIES) and modes["S_MODE"]["requests"] == len(TINYSTORIES)
    for name in ("tokens_per_forward", "tokens_per_second"):
        assert modes["s_against_q"][name] == modes["S_MODE"][name] / modes["Q_MODE"][name]
    assert modes["Q_MODE, 2 blocks open"]["tokens"] == modes["Q_MODE"]["tokens"] and len(settings((1, 2, 4))) == 9
    show(modes, Console())
    shown = "".join(capsys.readouterr())
    assert "most tokens/s here" in shown and "S_MODE, 2 blocks open" in shown
    assert "TPF unfused" in shown and f"{modes['Q_MODE']['positions_per_forward']:.1f}" in shown
    assert f"{100 * modes['s_against_q']['tokens_that_differ']:.1f} % of tokens by position" in shown
    assert f"{modes['s_against_q']['tokens_per_forward']:.2f} times the tokens per forward" in shown


def test_a_shifted_model_is_timed_with_the_token_before_its_block(random_model: Any) -> None:
    from decoding.reference import MASK, loaded

    config = load_config(None, [f"bench.decode.{name}={json.dumps(value)}" for name, value in SMALL.items()])
    parts = loaded(random_model("qwen3"))
    parts.denoiser = HFDenoiser(parts.denoiser.model, MASK, shift="clean").eval()
    bench = config.bench.decode.model_copy(update={"context_tokens": 30})
    parts.denoiser.model.resize_token_embeddings(1100)
    seconds = time_forwards(parts, bench)
    assert {"ar", "bare 4", "engine 4", "bare 8", "engine 8"} == set(seconds) and min(seconds.values()) > 0
    fields = {"block": 4, "policy": {"type": "static_quota", "steps": 2}}
    assert time_engine(parts, config, fields, 2)["tokens"] == 2 * SMALL["new_tokens"]


def test_made_up_prompts_hold_no_mask_whatever_its_id(tmp_path: Path) -> None:
    prompts = {
        "prompt_tokens": 128,
        "new_tokens": 16,
        "prompts": ["One windy morning a girl called Nora went to the zoo."],
    }
    report = bench(BUNDLED / "child", tmp_path, precisions=["float32"], blocks=[16], **prompts)
    assert report["precisions"]["float32"]["engine"]["block 16, 2 at once"]["tokens"] == 2 * 16


def results(texts: tuple[str, ...]) -> list[Result]:
    return [Result(text, tuple(map(ord, text)), "length", Metrics()) for text in texts]


def test_differences_count_texts_positions_and_what_has_no_common_order() -> None:
    found = differences(list(zip(results(("abcd", "same", "abc")), results(("xabc", "same", "abz")), strict=True)))
    wanted = {"texts_that_differ": 2 / 3, "tokens_that_differ": 5 / 11, "tokens_not_shared": 1 - 2 * (3 + 4 + 2) / 22}
    assert found == pytest.approx(wanted)


def test_prompts_suit_the_vocabulary_unless_they_are_given() -> None:
    child = load_tokenizer(str(BUNDLED / "child"))
    openings = prompts_for(child, ())
    assert len(openings) == 8 and "Once upon a time" not in openings
    assert all(child.decode(child(text)["input_ids"]) == text for text in openings)
    assert prompts_for(child, ("Once",)) == ("Once",)
    assert prompts_for(lambda text, **_: {"input_ids": text.split()}, ()) == TINYSTORIES


def test_the_stopwatch_counts_the_denoiser_and_nothing_else() -> None:
    ticks = iter([0.0, 2.0, 10.0, 13.0])
    timed = Timed(torch.zeros, ticks.__next__)
    timed(1)
    timed(1)
    assert timed.seconds == 5.0


def test_variants_take_turns_and_the_fastest_round_counts() -> None:
    order: list[str] = []
    best = fastest({"a": functools.partial(order.append, "a"), "b": functools.partial(order.append, "b")}, 2, "cpu")
    assert order == ["a", "b"] * 3 and set(best) == {"a", "b"}
