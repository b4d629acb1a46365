# tune: the space is a product of places, worse texts are cut with a reason, and what is written is used where it holds.
# Entry points: pytest.
# The search itself runs once, on the bundled child, as small as it gets.
"""hildanext tune."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

import hildanext
from hildanext.bench.tuning import space
from hildanext.bench.tuning.search import tune, worse
from hildanext.bench.tuning.space import axes, reference, trials
from hildanext.config import Config, load_config
from hildanext.config.places import exists, given, value_at, with_values
from hildanext.engines.choose import choose
from hildanext.errors import ConfigError, ModelError
from hildanext.models import recommended
from hildanext.models.hardware import machine
from hildanext.models.load import load_model
from hildanext.models.meta import HildaMeta, Recommended
from hildanext.models.recommended import recommend, with_recommended
from hildanext.models.save import save_model
from hildanext.progress import Console

BUNDLED = Path(hildanext.__file__).parent / "tiny"
QUIET = Console(quiet=True)


def config_of(*values: str, axes: dict[str, Any] | None = None) -> Config:
    return load_config(None, [*values, f"tune.axes={json.dumps(axes or {})}"])


def test_the_space_is_every_engine_by_every_value(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(space, "names", lambda kind: ["tiny", "transformers", "sglang", "dinfer"])
    monkeypatch.setattr(space, "usable_cores", lambda: 4)
    config = config_of("model.path=tiny")
    varied = axes(config, 8)
    assert varied["decode.block"] == (8, 16, 4) and varied["runtime.threads"] == (4, 2)
    assert ("decode.window_blocks" in varied) == exists("decode.window_blocks")
    found = trials(config, 8)
    windows = len(varied.get("decode.window_blocks", (1,)))
    own = [trial for trial in found if trial.engine["type"] == "tiny"]
    precisions = {(one.opened["model.dtype"], one.opened["decode.int8"]) for one in own}
    assert len(own) == len(precisions) * 2 * 3 * 3 * windows and ("float32", True) in precisions
    assert {trial.engine["type"] for trial in found} == {"tiny", "dinfer"}
    groups = [trial.group for trial in found]
    assert all(groups.index(group) + groups.count(group) - 1 == len(groups) - 1 - groups[::-1].index(group)
               for group in set(groups))  # fmt: skip
    usual = reference(found, config)
    assert usual.asked["mode"] == "Q_MODE" and usual.asked["block"] == 8 and usual.opened["model.dtype"] == "float32"


def test_an_axis_is_any_place_and_a_wrong_one_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(space, "names", lambda kind: ["tiny"])
    only = {"decode.fuse": [True, False], "decode.mode": ["S_MODE"], "decode.block": [4], "runtime.threads": [1],
            "model.dtype": ["float32"], "decode.int8": [False]}  # fmt: skip
    found = trials(config_of("model.path=tiny", axes=only), 8)
    assert {trial.opened["decode.fuse"] for trial in found} == {True, False}
    assert {(trial.asked["mode"], trial.asked["block"]) for trial in found} == {("S_MODE", 4)}
    assert all(trial.values["decode.block"] == 4 for trial in found)
    with pytest.raises(ConfigError, match="decode.blok"):
        axes(config_of(axes={"decode.blok": [4]}), 8)
    with pytest.raises(ConfigError, match="decode.block has no values"):
        axes(config_of(axes={"decode.block": []}), 8)


@pytest.mark.parametrize(
    ("found", "why"),
    [
        ({}, ""),
        ({"nats": 1.09}, ""),
        ({"nats": 1.2}, "1.20 nats per token, the reference has 1.00"),
        ({"nats": None}, "40 tokens"),
        ({"tokens": 10.0}, "10 tokens, the reference has 40"),
        ({"repetition": 0.4}, "repetition 0.40"),
        ({"agreement": 0.95}, ""),
        ({"agreement": 0.7}, "agreement 0.70"),
    ],
)
def test_worse_texts_are_cut_with_a_reason(found: dict[str, Any], why: str) -> None:
    base = {"nats": 1.0, "tokens": 40.0, "repetition": 0.1}
    said = worse(base | found, base, 0.1)
    assert said.startswith(why) and bool(said) == bool(why)


def test_the_winner_is_written_and_used_and_given_values_stay(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "child"
    shutil.copytree(BUNDLED / "child", folder)
    only = {"decode.mode": ["Q_MODE", "S_MODE"], "decode.block": [16], "runtime.threads": [1],
            "model.dtype": ["float32"], "decode.int8": [False],
            "serve.engines": [{"type": "transformers"}]}  # fmt: skip
    monkeypatch.setattr(space, "exists", lambda place: place != "decode.window_blocks" and exists(place))
    sizes = [
        "tune.seconds=1000",
        "tune.texts=1",
        "tune.text_tokens=12",
        "tune.first_tokens=8",
        "tune.repeats=1",
        "tune.tolerance=1",
    ]
    paths = [f"model.path={folder}", f"tune.parent={BUNDLED / 'parent'}", f"paths.runs={tmp_path / 'runs'}"]
    report = tune(config_of(*paths, *sizes, "tune.write=true", axes=only), Console())
    said = capsys.readouterr().err
    assert "fastest setting on this machine: " in said.splitlines()[-1]
    assert len(report["tried"]) == 2 and all("first_tokens_per_second" in row for row in report["tried"])
    assert len(report["times"]) == 1 and next(iter(report["times"])).startswith("AR, ")
    meta = HildaMeta.read(folder)
    assert meta.recommended is not None and meta.recommended.values == report["values"] and meta.decode
    session, _ = choose(config_of(f"model.path={folder}", "decode.block=4"), Console())
    said = capsys.readouterr().err
    assert f"tuned settings of {folder}: serve.engines=" in said and "decode.block as given" in said
    assert session.config.decode.mode == report["values"]["decode.mode"] and session.config.decode.block == 4


def tuned(folder: Path, values: dict[str, Any], where: str = "") -> Config:
    folder.mkdir(exist_ok=True)
    held = Recommended(values=values, machine=where or machine())
    (folder / "hildanext.json").write_text(HildaMeta(recommended=held).text())
    return load_config(None, [f"model.path={folder}"])


def test_recommended_values_of_another_machine_or_version_are_not_used(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = tuned(tmp_path / "a", {"decode.mode": "S_MODE"})
    assert with_recommended(config, QUIET).decode.mode == "S_MODE"
    config = tuned(tmp_path / "a", {"decode.mode": "S_MODE"}, "a pocket calculator")
    assert with_recommended(config, Console()) == config and "a pocket calculator" in capsys.readouterr().err
    config = tuned(tmp_path / "a", {"decode.warp": 9})
    assert with_recommended(config, QUIET) == config and "decode.warp" in capsys.readouterr().err
    assert with_recommended(load_config(None, ["model.path=tiny"]), QUIET).decode.mode == "Q_MODE"


def test_a_bundled_model_is_not_written_to_and_new_weights_forget(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="export it"):
        recommend(BUNDLED / "child", {}, {})
    loaded = load_model(load_config(None, ["model.path=tiny"]).model)
    meta = loaded.meta.model_copy(update={"recommended": Recommended(values={}, machine="here")})
    save_model(loaded.denoiser, loaded.tokenizer, tmp_path / "saved", meta)
    assert HildaMeta.read(tmp_path / "saved").recommended is None


def test_threads_are_set_unless_the_environment_said_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []
    monkeypatch.setattr(recommended.torch, "set_num_threads", asked.append)
    monkeypatch.setattr(recommended, "usable_cores", lambda: 4)
    config = tuned(tmp_path / "a", {"runtime.threads": 2})
    for said in ("4", "1"):
        monkeypatch.setenv("OMP_NUM_THREADS", said)
        with_recommended(config, QUIET)
    assert asked == [2]


def test_values_are_read_and_changed_by_place() -> None:
    config = load_config(None, ["decode.block=8"])
    assert given(config, "decode.block") and not given(config, "decode.mode") and value_at(config, "decode.block") == 8
    changed = with_values(config, {"decode.mode": "S_MODE", "serve.engines": [{"type": "tiny"}]})
    assert (changed.decode.mode, changed.decode.block, changed.serve.engines[0].type) == ("S_MODE", 8, "tiny")
    assert given(changed, "decode.mode") and not given(changed, "decode.fuse") and config.decode.mode == "Q_MODE"
    with pytest.raises(ConfigError, match="decode.block"):
        with_values(config, {"decode.block": "many"})
