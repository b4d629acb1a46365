# Replay: shares counted, rows by an independent count of slots, resumed exactly, other data refused.
# Entry points: pytest.
# The oracle walks the slots one after the other with running totals; the loader knows only the slot's number.
"""Tests of data/replay.py."""

from __future__ import annotations

import signal
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
import torch
from train.material import configuration, losses, make_shards, run, stop_after

from hildanext.config import load_config
from hildanext.data import replay
from hildanext.data.loader import Loader, order
from hildanext.data.replay import REPLAYED, Earlier, Replayed
from hildanext.data.shards import ShardSet
from hildanext.errors import ConfigError, DataError, Interrupted


@pytest.fixture(scope="module")
def others(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_shards(tmp_path_factory.mktemp("others"), 11)


def mixed(shards: Path, others: Path, ranks: int = 1, rank: int = 0, batch: int = 4) -> Replayed:
    sources = [
        Earlier(ShardSet.open(others / "train"), Fraction("0.2")), Earlier(None, Fraction("0.05")),
        Earlier(ShardSet.open(others / "sft_train"), Fraction("0.1")),
    ]  # fmt: skip
    return Replayed(Loader(ShardSet.open(shards / "train"), batch, 3, rank, ranks), sources)


def taken(loader: Replayed, steps: int) -> list[tuple[int, Any]]:
    rows = iter(loader)
    batches = [next(rows) for _ in range(steps)]
    return [(name, row) for batch in batches for name, row in zip(batch.ids, batch.tokens, strict=True)]


def assert_shares_and_rows(loader: Replayed, shards: Path, others: Path, steps: int = 100) -> None:
    found = taken(loader, steps)
    for start in range(0, len(found), 4):
        replayed = sum(name >= REPLAYED for name, _ in found[start : start + 4])
        assert 1 <= replayed <= 2
    sets = [ShardSet.open(others / "train"), None, ShardSet.open(others / "sft_train")]
    own, places, main, counts = ShardSet.open(shards / "train"), 0, list[Any](), [0, 0, 0]
    for name, row in found:
        if name < REPLAYED:
            epoch, place = divmod(places, len(own))
            index = int(order(len(own), 3, epoch)[place])
            assert name == index + epoch * len(own) and torch.equal(row, torch.from_numpy(own[index].tokens))
            places, main = places + 1, [*main, row]
            continue
        kind, position = divmod(name - REPLAYED, REPLAYED)
        assert position == counts[kind]
        counts[kind] += 1
        shard = sets[kind]
        if shard is None:
            assert any(torch.equal(row, seen) for seen in main) or len(main) < 4
            continue
        epoch, place = divmod(position, len(shard))
        wanted = shard[int(order(len(shard), 4 + kind, epoch)[place])]
        assert torch.equal(row, torch.from_numpy(wanted.tokens))
    assert counts == [0.2 * len(found), 0.05 * len(found), 0.1 * len(found)]


def test_every_batch_has_its_share_and_every_stream_its_own_order(shards: Path, others: Path) -> None:
    assert_shares_and_rows(mixed(shards, others), shards, others)


def test_a_share_rounded_in_every_batch_is_seen(shards: Path, others: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Replayed, "_before", lambda self, slot: slot // 4 + int(slot % 4 > 2))
    with pytest.raises(AssertionError):
        assert_shares_and_rows(mixed(shards, others), shards, others)


def test_the_split_over_ranks_changes_no_row(shards: Path, others: Path) -> None:
    whole = taken(mixed(shards, others), 6)
    halves = [taken(mixed(shards, others, 2, rank, 2), 6) for rank in (0, 1)]
    joined = [one for step in range(6) for half in halves for one in half[2 * step : 2 * step + 2]]
    main = [(name, row) for name, row in whole if name // REPLAYED != 2]
    assert [name for name, _ in joined] == [name for name, _ in whole]
    assert all(
        torch.equal(row, other) for (n, row), (m, other) in zip(whole, joined, strict=True) if n // REPLAYED != 2
    )
    assert len(main) > 20


def test_a_resumed_run_with_replay_equals_an_uninterrupted_one(
    shards: Path, others: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sources = [{"data": str(others), "share": 0.3}, {"share": 0.1}]
    given: dict[str, Any] = {"train__replay": sources, "train__steps": 6, "train__parity": False}
    run(tmp_path / "whole", shards, **given)
    with monkeypatch.context() as patch, pytest.raises(Interrupted):
        stop_after(patch, 2, signal.SIGTERM)
        run(tmp_path / "cut", shards, **given)
    with pytest.raises(DataError, match=r"train\.replay: the saved place replayed"):
        changed = {**given, "train__replay": [{**sources[0], "share": 0.25}, sources[1]]}
        run(tmp_path / "cut", shards, **changed, train__resume="latest")
    run(tmp_path / "cut", shards, **given, train__resume="latest")
    assert losses(tmp_path / "cut") == losses(tmp_path / "whole")
    run(tmp_path / "plain", shards, **{**given, "train__replay": []})
    assert losses(tmp_path / "plain") != losses(tmp_path / "whole")


def test_what_cannot_be_replayed_is_said(shards: Path, others: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"the shares add up to 1\.1"):
        load_config(None, ['train.replay=[{"share":0.6},{"share":0.5}]'])
    with pytest.raises(DataError, match="no shards here"):
        run(tmp_path / "a", shards, train__replay=[{"data": str(tmp_path)}])
    wider = ShardSet.open(others / "train")
    wider.manifest["window"] = 64
    with pytest.raises(DataError, match="has window 64, the rows trained on 32"):
        replay.earlier_rows(wider, 0.2, ShardSet.open(shards / "train"))
    assert configuration(shards).train.replay == ()
