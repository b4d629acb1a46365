# One rank of a two-process run: python ranks.py <folder> <shards> <parent> <rank>.
# Entry points: main.
# Trains with DDP and with FSDP2, four backwards for each of two micro-batches a step, so that gradients cross in the
# last of eight only; then with FSDP2 and Muon, whose checkpoint it resumes. One process: imports are paid once.
"""A rank of test_distributed.py."""

from __future__ import annotations

import os
import sys
import warnings
from pathlib import Path

import torch
from train.material import MUON, TURNS, run

from hildanext.report.losses import Plot
from hildanext.train import recorder


def main() -> None:
    folder, shards, parent, rank, port = Path(sys.argv[1]), Path(sys.argv[2]), *sys.argv[3:6]
    os.environ |= {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1"}
    warnings.filterwarnings("error", category=FutureWarning, module="hildanext")  # what torch is about to take away
    split = {"train__batch": 1, "train__accumulate": 2}
    turns = {"objective": TURNS, "train__checkpoint_every": 4}
    runs = [("ddp", "ddp", turns), ("fsdp2", "fsdp2", turns)]
    if hasattr(torch.optim, "Muon"):
        again = {**MUON, "train__resume": str(folder / "muon" / "checkpoints" / "step-000002")}
        runs += [("muon", "fsdp2", MUON), ("muon-rest", "fsdp2", again)]
    recorder.plot_losses = lambda run, ladder: Plot(run / "plots" / "loss.png", "")
    for offset, (name, kind, more) in enumerate(runs):
        os.environ["MASTER_PORT"] = str(int(port) + offset)
        changes = {"model__path": parent, "train__parallel": kind, **split, **more}
        run(folder / name, shards, **changes)


if __name__ == "__main__":
    main()
