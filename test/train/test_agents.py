# Two agents of torchrun on this machine, as two nodes would have: one is killed in the middle, with its rank.
# Entry points: pytest. Marked slow: every agent and every rank imports torch.
# The lines are those that `hildanext launch` prints. A killed node is replaced, or with --nnodes 1:2 the other goes on.
"""Tests of a run that survives a lost machine."""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from train.material import losses, overrides, records, run
from waiting import free_ports

from hildanext.cli import main

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not os.environ.get("HILDANEXT_AGENTS"), reason="90 seconds of agents waiting for each other: HILDANEXT_AGENTS=1"
    ),
]
STEPS, EVERY = 40, 8
COMMON = {
    "train__parity": False, "ladder": {"fixed": 8}, "train__steps": STEPS, "train__checkpoint_every": EVERY,
    "train__keep_last": 9,
}  # fmt: skip
QUICK = "timeout=60,last_call_timeout=1,keep_alive_interval=1,keep_alive_max_attempt=2,join_timeout=60"


def kill_node(agent: subprocess.Popen[bytes]) -> None:
    """End an agent and its ranks as a lost machine does."""
    ranks = Path(f"/proc/{agent.pid}/task/{agent.pid}/children").read_text().split()
    for number in (agent.pid, *map(int, ranks)):
        os.kill(number, signal.SIGKILL)
    agent.wait()


class Agents:
    """torchrun agents of one run, each with a rank."""

    def __init__(self, root: Path, shards: Path, parent: Path, least: int, capsys: pytest.CaptureFixture[str]) -> None:
        self.root, self.run, self.started = root, root / "run", list[subprocess.Popen[bytes]]()
        sets = overrides(shards, model__path=str(parent), train__parallel="ddp", **COMMON)
        values = [word for one in sets for word in ("--set", one)]
        own = [
            "--nodes",
            "2",
            "--processes",
            "1",
            "--set",
            f"launch.port={free_ports(1)}",
            "--set",
            f"launch.least={least}",
        ]
        assert main(["launch", "convert-wsd", "--run-dir", str(self.run), *own, *values]) == 0
        setting, _, *self.words = shlex.split(capsys.readouterr().out.replace("HOST", "127.0.0.1"))
        self.setting = dict([setting.split("=")])

    def start(self, host: bool) -> subprocess.Popen[bytes]:
        """An agent more; host: the one where the others meet."""
        settings = f"{QUICK},is_host={int(host)}"
        command = [sys.executable, "-m", "torch.distributed.run", "--rdzv-conf", settings, *self.words]
        log = (self.root / f"agent-{len(self.started)}").open("wb")
        environment = os.environ | {"OMP_NUM_THREADS": "1"} | self.setting
        agent = subprocess.Popen(command, stdout=log, stderr=log, env=environment)
        self.started.append(agent)
        return agent

    def saved(self, step: int, seconds: float = 120) -> None:
        """Return when the checkpoint of a step is there."""
        until = time.monotonic() + seconds
        while not (self.run / "checkpoints" / f"step-{step:06d}").is_dir():
            assert time.monotonic() < until and self.started[0].poll() is None, self.said()
            time.sleep(0.01)

    def said(self) -> str:
        """What all agents wrote last."""
        return "\n".join((self.root / f"agent-{n}").read_text()[-1500:] for n in range(len(self.started)))

    def end(self) -> None:
        """Kill what is left."""
        for agent in self.started:
            if agent.poll() is None:
                kill_node(agent)


def kept(path: Path) -> list[float]:
    """The loss of every step, of a step that was made twice the last."""
    found = {one["step"]: one["loss"] for one in records(path) if "loss" in one}
    assert sorted(found) == list(range(1, STEPS + 1))
    return [found[step] for step in sorted(found)]


def state(path: Path) -> dict[str, Any]:
    """Of the last checkpoint."""
    return dict(json.loads((path / "checkpoints" / f"step-{STEPS:06d}" / "trainer" / "state.json").read_text()))


def test_a_killed_node_is_replaced_and_the_losses_are_those_of_an_undisturbed_run(
    shards: Path, parent: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    agents = Agents(tmp_path, shards, parent, 2, capsys)
    try:
        first, second = agents.start(True), agents.start(False)
        agents.saved(EVERY)
        kill_node(second)
        made = len(losses(agents.run))
        third = agents.start(False)
        assert (first.wait(240), third.wait(60)) == (0, 0), agents.said()
    finally:
        agents.end()
    assert EVERY <= made < STEPS and len(losses(agents.run)) >= STEPS
    run(tmp_path / "one", shards, model__path=str(parent), train__batch=4, **COMMON)
    assert kept(agents.run) == pytest.approx(losses(tmp_path / "one"), rel=2e-4)
    assert state(agents.run)["loader"] == state(tmp_path / "one")["loader"]


def test_the_node_that_is_left_goes_on_alone_and_no_row_is_lost_or_seen_twice(
    shards: Path, parent: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    agents = Agents(tmp_path, shards, parent, 1, capsys)
    try:
        first, second = agents.start(True), agents.start(False)
        agents.saved(EVERY)
        kill_node(second)
        assert first.wait(240) == 0, agents.said()
    finally:
        agents.end()
    resumed = [line for line in (agents.run / "log.txt").read_text().splitlines() if "resumed from" in line]
    step = int(resumed[-1].rpartition(" ")[2])
    assert step % EVERY == 0 and 0 < step < STEPS
    saved = state(agents.run)["loader"]
    assert saved["position"] == step * 4 + (STEPS - step) * 2  # two rows a rank: two ranks before, one after
    alone = kept(agents.run)[step:]
    folder = str(agents.run / "checkpoints" / f"step-{step:06d}")
    run(tmp_path / "again", shards, model__path=str(parent), train__resume=folder, **COMMON)
    assert alone == pytest.approx(losses(tmp_path / "again"), rel=1e-6)
