# One rank of a two-process run: python ranks.py <folder> <shards> <parent> <rank>.
# Entry points: main.
# Trains with DDP, then with FSDP2, in one process, so that imports are paid once; two micro-batches a step, four
# backwards each, so that gradients cross in the last of eight only.
"""A rank of test_distributed.py."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from train.material import TURNS, run


def main() -> None:
    folder, shards, parent, rank, port = Path(sys.argv[1]), Path(sys.argv[2]), *sys.argv[3:6]
    os.environ |= {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1"}
    split = {"train__batch": 1, "train__accumulate": 2, "objective": TURNS}
    for offset, kind in enumerate(("ddp", "fsdp2")):
        os.environ["MASTER_PORT"] = str(int(port) + offset)
        run(folder / kind, shards, model__path=parent, train__parallel=kind, train__checkpoint_every=4, **split)


if __name__ == "__main__":
    main()
