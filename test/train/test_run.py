# Whole runs of a tiny model: resuming, signals, NaN, metrics, reports.
# Entry points: pytest.
# The oracle of a resumed run is the uninterrupted run, loss by loss and bit by bit.
"""Tests of train/recipes/conversion.py, training.py, recorder.py and plan.py."""

from __future__ import annotations

import json
import math
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from train.material import losses, records, run, stop_after

from hildanext.core.objectives.mask_and_edit import MaskAndEdit
from hildanext.errors import ConfigError, DataError, HildaError, Interrupted, RunError
from hildanext.models.denoiser import HFDenoiser
from hildanext.models.meta import HildaMeta
from hildanext.report.losses import plot_losses
from hildanext.run_dir import read_status
from hildanext.train import recorder


def weights(path: Path) -> dict[str, torch.Tensor]:
    return load_file(path / "model" / "model.safetensors")


@pytest.mark.parametrize(("number", "noise"), [(signal.SIGTERM, {"sigma": 0.1}), (signal.SIGINT, {})])
def test_a_stopped_and_resumed_run_repeats_every_loss_of_an_uninterrupted_one(
    number: int, noise: dict[str, Any], shards: Path, parent: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    changes: dict[str, Any] = {
        "model__path": str(parent), "train__accumulate": 2, "train__shorten": 0.3,
        "model__embedding_noise": {"steps": 6, **noise},
    }  # fmt: skip
    run(tmp_path / "whole", shards, **changes)
    with monkeypatch.context() as patch:
        stop_after(patch, 3, number)
        with pytest.raises(Interrupted, match="step 4") as stopped:
            run(tmp_path / "parts", shards, **changes)
    assert stopped.value.exit_code == 130
    status = read_status(tmp_path / "parts")
    assert (status["state"], status["step"]) == ("cancelled", 4)
    run(tmp_path / "parts", shards, **changes, train__resume="latest")
    assert len(losses(tmp_path / "whole")) == 8
    assert losses(tmp_path / "parts") == losses(tmp_path / "whole")
    ours, theirs = weights(tmp_path / "parts"), weights(tmp_path / "whole")
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_a_row_drawn_twice_in_a_step_has_noise_of_its_own_each_time(
    shards: Path, parent: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain, seen = HFDenoiser.noisy_features, list[tuple[bytes, bytes]]()

    def spy(self: Any, noisy: Any, batch: Any, block: int, select: Any) -> Any:
        if self.training:
            rows = zip(batch.tokens.numpy(), noisy.numpy(), strict=True)
            seen.extend((clean.tobytes(), masked.tobytes()) for clean, masked in rows)
        return plain(self, noisy, batch, block, select)

    monkeypatch.setattr(HFDenoiser, "noisy_features", spy)
    split = {"train__batch": 16, "train__accumulate": 3, "train__steps": 1, "ladder": {"fixed": 8}}
    run(tmp_path, shards, model__path=str(parent), **split)
    assert len(seen) == 48 > len({clean for clean, _ in seen}) > 1
    assert len({masked for _, masked in seen}) == 48


def test_other_noise_gives_other_losses(shards: Path, parent: Path, tmp_path: Path) -> None:
    run(tmp_path / "a", shards, model__path=str(parent), train__steps=8)
    run(tmp_path / "b", shards, model__path=str(parent), train__steps=8, seed=1)
    assert losses(tmp_path / "a") != losses(tmp_path / "b")


def test_every_metric_is_written_and_the_evaluation_names_each_block(
    shards: Path, parent: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recorder, "plot_losses", plot_losses)
    report = run(tmp_path, shards, model__path=str(parent), train__eval_every=4)
    step = next(record for record in records(tmp_path) if "loss" in record)
    assert step.keys() >= {
        "step", "loss", "m2t", "t2t", "keep", "block", "phase", "lr", "grad_norm", "tokens_per_second", "m2t_tokens",
        "memory", "time",
    }  # fmt: skip
    scores = [record["eval"] for record in records(tmp_path) if "eval" in record]
    assert [record["step"] for record in records(tmp_path) if "eval" in record] == [0, 4, 8]
    assert scores[-1]["nll"].keys() == {"1", "4", "8", "16", "32"}
    assert scores[-1]["repair"].keys() == scores[-1]["false_edit"].keys() == {"0", "0.5", "0.9"}
    assert report["parent_nll"] == scores[-1]["parent_nll"] > 0
    assert (tmp_path / "plots" / "loss.png").read_bytes().startswith(b"\x89PNG")
    assert json.loads((tmp_path / "inspect.json").read_text())["parity"]["ok"]
    assert json.loads((tmp_path / "model" / "hildanext.json").read_text())["block"] == 8


def test_a_child_names_its_autoregressive_parent_also_after_a_second_stage(
    shards: Path, parent: Path, tmp_path: Path
) -> None:
    few = {"train__steps": 2, "train__eval_every": 0, "ladder__fixed": 8}
    run(tmp_path / "ar", shards, model__path=str(parent), objective__type="autoregressive", **few)
    run(tmp_path / "child", shards, model__path=str(tmp_path / "ar" / "model"), **few)
    run(tmp_path / "child-2", shards, model__path=str(tmp_path / "child" / "model"), **few)
    metas = [HildaMeta.read(tmp_path / name / "model") for name in ("ar", "child", "child-2")]
    assert [meta.parent for meta in metas] == [parent.parent.name, "ar", "ar"]
    assert [entry["run"] for entry in metas[-1].history] == [parent.parent.name, "ar", "child", "child-2"]


def test_accumulation_equals_one_larger_batch(shards: Path, parent: Path, tmp_path: Path) -> None:
    run(tmp_path / "small", shards, model__path=str(parent), train__batch=1, train__accumulate=4)
    run(tmp_path / "large", shards, model__path=str(parent), train__batch=4)
    assert losses(tmp_path / "small") == pytest.approx(losses(tmp_path / "large"), rel=1e-4)


def broken(monkeypatch: pytest.MonkeyPatch, *calls: int) -> None:
    plain, seen = MaskAndEdit.losses, [0]

    def losses(self: Any, *args: Any) -> Any:
        for report in plain(self, *args):
            seen[0] += 1
            bad = report.total * math.nan if seen[0] in calls else report.total
            yield type(report)(bad, report.normaliser, report.parts, report.counts)

    monkeypatch.setattr(MaskAndEdit, "losses", losses)


def test_a_loss_that_is_not_finite_stops_with_rows_and_the_last_good_checkpoint(
    shards: Path, parent: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken(monkeypatch, 6)
    with pytest.raises(RunError, match=r"step 5, rows \[\d+, \d+\].*step-000004"):
        run(tmp_path, shards, model__path=str(parent), train__checkpoint_every=2)
    assert read_status(tmp_path)["state"] == "failed"
    assert all(
        value.isfinite().all() for value in load_file(tmp_path / "checkpoints/step-000004/model.safetensors").values()
    )


def test_at_most_n_bad_steps_are_skipped(
    shards: Path, parent: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken(monkeypatch, 3, 5)
    run(tmp_path / "two", shards, model__path=str(parent), train__skip_nonfinite=2)
    assert losses(tmp_path / "two").count(None) == 2
    broken(monkeypatch, 3, 5)
    with pytest.raises(RunError, match="1 steps were skipped"):
        run(tmp_path / "one", shards, model__path=str(parent), train__skip_nonfinite=1)


def test_training_lowers_the_loss(shards: Path, tmp_path: Path) -> None:
    run(tmp_path, shards, objective__type="autoregressive", train__steps=40, train__batch=8, optimizer__lr=0.02)
    found = losses(tmp_path)
    assert sum(found[-5:]) < 0.7 * sum(found[:5])


def test_another_ladder_or_tokenizer_is_refused(shards: Path, parent: Path, tmp_path: Path) -> None:
    run(tmp_path, shards, model__path=str(parent), train__checkpoint_every=4)
    with pytest.raises(HildaError, match="ladder differs"):
        run(tmp_path, shards, model__path=str(parent), train__steps=9, train__resume="latest")
    manifest = tmp_path / "shards" / "train" / "manifest.json"
    _copy(shards, tmp_path / "shards")
    manifest.write_text(manifest.read_text().replace('"tokenizer_hash": "', '"tokenizer_hash": "0'))
    with pytest.raises(DataError, match="tokenize again"):
        run(tmp_path / "other", tmp_path / "shards", model__path=str(parent))


def _copy(source: Path, target: Path) -> None:
    import shutil

    shutil.copytree(source, target)


def test_resuming_with_another_thread_count_says_that_it_is_not_exact_and_keeps_the_record(
    shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    changes: dict[str, Any] = {"objective__type": "autoregressive", "train__steps": 4, "train__resume": "latest"}
    run(tmp_path, shards, objective__type="autoregressive", train__steps=4, train__checkpoint_every=4)
    before, threads = json.loads((tmp_path / "env.json").read_text()), torch.get_num_threads()
    run(tmp_path, shards, **changes)
    assert "bit for bit" not in capsys.readouterr().err
    try:
        torch.set_num_threads(threads + 1)
        run(tmp_path, shards, **changes)
    finally:
        torch.set_num_threads(threads)
    said = f"threads {threads} before, {threads + 1} now: the run goes on, but not bit for bit as it would have"
    assert said in capsys.readouterr().err and said in (tmp_path / "log.txt").read_text()
    after = json.loads((tmp_path / "env.json").read_text())
    assert len(after.pop("resumed")) == 2 and after == before


def test_metrics_that_are_no_text_stop_a_resume_in_one_line_and_stay(shards: Path, tmp_path: Path) -> None:
    run(tmp_path, shards, objective__type="autoregressive", train__steps=4, train__checkpoint_every=4)
    (tmp_path / "metrics.jsonl").write_bytes(b'{"step": 1}\n\xff\xfe\n')
    with pytest.raises(RunError, match=r"metrics.jsonl: not text \(.* at byte 12\)"):
        run(tmp_path, shards, objective__type="autoregressive", train__steps=4, train__resume="latest")
    assert (tmp_path / "metrics.jsonl").read_bytes() == b'{"step": 1}\n\xff\xfe\n'


def test_resuming_without_a_checkpoint_says_so(shards: Path, tmp_path: Path) -> None:
    with pytest.raises(HildaError, match="holds no checkpoint"):
        run(tmp_path, shards, train__resume="latest")


def test_parallel_training_without_torchrun_is_refused(shards: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="torchrun"):
        run(tmp_path, shards, train__parallel="ddp")


def test_missing_shards_are_prepared_when_asked_and_named_otherwise(tmp_path: Path) -> None:
    changes: dict[str, Any] = {
        "paths.data": str(tmp_path / "data"), "train.data": "", "train.prepare": True, "data.workers": 1,
        "data.sources": [{"type": "storyworld", "stories": 12, "chat": 4, "arithmetic": 0, "coding": 0}],
        "data.eval_share": 0.3, "tokenize.window": 64, "tokenize.packing": "concat", "objective.type": "autoregressive",
        "train.steps": 1,
    }  # fmt: skip
    assert run(tmp_path / "run", tmp_path, **changes)["steps"] == 1
    changes |= {"train.prepare": False, "paths.data": str(tmp_path / "none")}
    with pytest.raises(DataError, match="hildanext tokenize"):
        run(tmp_path / "other", tmp_path, **changes)
