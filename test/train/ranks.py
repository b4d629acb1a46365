# The ranks of test_distributed.py, two forks of one process (forked.py).
# Entry points: rank.
# Trains with DDP and with FSDP2, four backwards for each of two micro-batches a step, so that gradients cross in the
# last of eight only; then with FSDP2 and Muon, whose checkpoint it resumes.
"""A rank of test_distributed.py."""

from __future__ import annotations

import os
import warnings
from pathlib import Path

import torch
from train.material import MUON, TURNS, run

from hildanext.report.losses import Plot
from hildanext.train import recorder


def rank(number: int, folder: str, shards: str, parent: str, port: str) -> None:
    """One of two forks."""
    own = str(number)
    os.environ |= {"RANK": own, "LOCAL_RANK": own, "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1"}
    warnings.filterwarnings("error", category=FutureWarning, module="hildanext")  # what torch is about to take away
    split = {"train__batch": 1, "train__accumulate": 2}
    turns = {"objective": TURNS, "train__checkpoint_every": 4}
    runs = [("ddp", "ddp", turns), ("fsdp2", "fsdp2", turns)]
    if hasattr(torch.optim, "Muon"):
        again = {**MUON, "train__resume": str(Path(folder) / "muon" / "checkpoints" / "step-000002")}
        runs += [("muon", "fsdp2", MUON), ("muon-rest", "fsdp2", again)]
    recorder.plot_losses = lambda run, ladder: Plot(run / "plots" / "loss.png", "")
    for offset, (name, kind, more) in enumerate(runs):
        os.environ["MASTER_PORT"] = str(int(port) + offset)
        changes = {"model__path": parent, "train__parallel": kind, **split, **more}
        run(Path(folder) / name, Path(shards), **changes)
