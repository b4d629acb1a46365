# bench gpu: refused without a GPU; its parts run here on the CPU at a size that takes a moment, its clock and page too.
# Entry points: pytest.
# The stand-in for a CUDA graph is the one of test/decoding/test_graphs.py; NCCL becomes gloo. Numbers are not judged.
"""bench gpu."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from decoding.test_graphs import again

from hildanext.bench import gpu
from hildanext.bench.device import decoding, rank, training
from hildanext.bench.device.sizes import Sizes, seconds_of
from hildanext.config import load_config
from hildanext.config.model import NewModelConfig
from hildanext.errors import ModelError
from hildanext.progress import Console

CPU, QUIET = torch.device("cpu"), Console(quiet=True)
SHAPE = NewModelConfig(hidden=32, layers=2, heads=4, kv_heads=2, head_dim=8, ffn=48, window=256)
TINY = Sizes(SHAPE, vocabulary=260, length=32, blocks=(4, 8), prompt=8, new=8, together=2, repeats=1)


def config(*values: str) -> Any:
    return load_config(None, ["model.device=cpu", *values])


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_without_a_gpu_it_is_refused_at_once_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="bench gpu: torch sees no CUDA device here"):
        gpu.run(config(f"paths.runs={tmp_path}"), QUIET)
    assert not list(tmp_path.iterdir())


def test_decoding_is_measured_eager_and_captured_with_equal_texts() -> None:
    found = decoding.decoding(config(), TINY, CPU, again)
    assert set(found["bfloat16"]) == {
        f"{kind}, {rows} at once" for kind in ("AR", "block 4", "block 8") for rows in (1, 2)
    }
    for part in found["float32"].values():
        assert part["equal texts"] == 1.0 and part["graphs"] >= 1 and part["eager"]["share of bandwidth"] > 0


def test_training_is_measured_against_what_is_foretold() -> None:
    found = training.attention(config(), TINY, CPU, "sliced")
    assert set(found) == {"block 4", "block 8"}
    for part in found.values():
        assert part["features"] < 1e-5 and part["gradients"] < 1e-4
    found = training.steps(config(), TINY, CPU)
    assert set(found) == set(training.RUNS) and all(part["peak of foretold"] > 0 for part in found.values())
    apart = training.drift(config(), TINY, CPU)
    assert apart["same likeliest token"] > 0.9 and apart["nats float32"] == pytest.approx(
        apart["nats bfloat16"], rel=0.1
    )


def test_a_rank_finds_its_gradients_unchanged(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0"}.items():
        monkeypatch.setenv(name, value)
    found = rank.main("cpu")
    assert found["sum"] == found["ranks"] == 1 and found["gradients"] < 1e-6 and not found["nccl"]


def test_a_part_that_fails_or_finds_no_time_is_written_down(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(config: Any, sizes: Any, device: Any) -> Any:
        raise RuntimeError("no kernel image\nand more")

    ticks = iter([0.0, 1.0, 2.0, 3.0, 4.0, 10.0])
    monkeypatch.setattr(gpu, "time", SimpleNamespace(monotonic=ticks.__next__))
    parts = {
        "decoding": ("Decoding", lambda *_: {"a": {"b": 1.5}}), "drift": ("Drift", broken), "nf4": ("NF4", broken),
    }  # fmt: skip
    found = gpu.measured(config("bench.gpu.seconds=5"), TINY, CPU, QUIET, parts)
    assert found["decoding"] == {"found": {"a": {"b": 1.5}}, "seconds": 1.0}
    assert (
        found["drift"]["skipped"] == "RuntimeError: no kernel image" and "no time was left" in found["nf4"]["skipped"]
    )
    shown = gpu._page({"device": {"name": "a card"}, "torch": "2", "parts": found})
    assert "a: b" in shown and "no kernel image" in shown and "a card" in shown


def test_seconds_are_the_median_of_turns_after_the_first() -> None:
    calls: list[int] = []
    assert seconds_of(lambda: calls.append(1), 3, CPU) >= 0 and len(calls) == 4
