# One rank of the layouts of two processes: python layout_ranks.py <folder> <shards> <parents> <rank> <port>.
# Entry points: main.
# Trains five steps in each layout, resumes some; test_layouts.py looks at what they left. Imports are paid once.
"""A rank of test_layouts.py."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest
from train.material import run

from hildanext.errors import HildaError
from hildanext.report.losses import Plot
from hildanext.train import layout, recorder
from hildanext.train.layout import Layout

COMMON = {
    "train__steps": 5, "train__checkpoint_every": 3, "train__keep_last": 5, "train__parity": False,
    "ladder": {"fixed": 8}, "train__accumulate": 2,
}  # fmt: skip
LAYOUTS = {
    "ddp": ("ddp", 1), "fsdp": ({"fsdp": 2}, 1), "replicate": ({"replicate": 2}, 1), "tp": ({"tp": 2}, 2),
}  # fmt: skip
"""Of each: train.parallel and the rows of a rank, so that a step has the same ones in all."""
FAMILIES = ("qwen3_moe", "qwen3_5_text")
"""Parents beside the dense one, trained under fsdp: a mixture and a hybrid."""
REFUSED = {
    "ep": {"ep": 2}, "sp": {"sp": 2}, "tp-fsdp": {"tp": 2, "fsdp": 2}, "four": {"fsdp": 4},
    "lora": {"tp": 2}, "muon": {"tp": 2}, "qwen3_moe": {"tp": 2}, "qwen3_5_text": {"tp": 2},
}  # fmt: skip
MORE = {"lora": {"model__adapter": {"kind": "lora", "rank": 2}}, "muon": {"optimizer__name": "muon"}}


def main() -> None:
    folder, shards, parents, rank, port = Path(sys.argv[1]), Path(sys.argv[2]), Path(sys.argv[3]), *sys.argv[4:6]
    parent = str(parents / "model")
    os.environ |= {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1"}
    recorder.plot_losses = lambda run, ladder: Plot(run / "plots" / "loss.png", "")
    ports = iter(range(int(port), int(port) + 20))
    for name, (parallel, batch) in LAYOUTS.items():
        os.environ["MASTER_PORT"] = str(next(ports))
        run(folder / name, shards, model__path=parent, train__parallel=parallel, train__batch=batch, **COMMON)
    os.environ["MASTER_PORT"] = str(next(ports))
    again = str(folder / "tp" / "checkpoints" / "step-000003")
    tp = {"train__parallel": {"tp": 2}, "train__batch": 2, "train__resume": again}
    run(folder / "tp-again", shards, model__path=parent, **tp, **COMMON)
    rows = {"train__batch": 1, **COMMON}
    for family in FAMILIES:
        os.environ["MASTER_PORT"] = str(next(ports))
        run(folder / family, shards, model__path=str(parents / family), train__parallel="fsdp2", **rows)
    os.environ["MASTER_PORT"] = str(next(ports))
    with pytest.MonkeyPatch.context() as patch:  # two processes make no 2 x 2; two copies of one share are its mesh
        patch.setattr(Layout, "of", lambda parallel, ranks: Layout("fsdp2", 2))
        run(folder / "copies", shards, model__path=parent, train__parallel="fsdp2", **rows)
    os.environ["MASTER_PORT"] = str(next(ports))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(layout, "SUMMED", "nothing")  # transformers' own hook, which sums again what was summed
        shared = {"train__parallel": {"tp": 2}, "train__batch": 2}
        run(folder / "planted", shards, model__path=parent, **shared, **COMMON)
    for name, parallel in REFUSED.items():
        os.environ["MASTER_PORT"] = str(next(ports))
        path = str(parents / name) if name in FAMILIES else parent
        changes = {"model__path": path, "train__parallel": parallel, **COMMON, **MORE.get(name, {})}
        try:
            run(folder / f"refused-{name}", shards, **changes)
        except HildaError as error:
            (folder / f"refused-{name}-{rank}.txt").write_text(str(error))


if __name__ == "__main__":
    main()
