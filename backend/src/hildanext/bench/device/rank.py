# One rank of torchrun on a GPU: NCCL sums, and a step through DDP gives the gradients of a step without.
# Entry points: main; started by bench gpu as a module under torch.distributed.run.
# Prints one line of JSON. The wrapper is the one that training uses.
"""A rank, for the device benchmark."""

from __future__ import annotations

import json
import sys

import torch

from hildanext.bench.device.sizes import Sizes, network_of, rows_of
from hildanext.config.model import NewModelConfig
from hildanext.core.objectives.mask_and_edit import MaskAndEdit
from hildanext.models.denoiser import HFDenoiser
from hildanext.train.distributed import Replica, leave, open_ranks

SMALL = Sizes(NewModelConfig(hidden=64, layers=2, heads=4, kv_heads=2, ffn=96), vocabulary=260, length=64, blocks=(8,))


def main(device: str) -> dict[str, float]:
    """Join, sum, and compare the gradients of one step with and without the wrapper; the largest relative gap."""
    ranks = open_ranks("ddp", device)
    place = torch.device(device)
    total = ranks.sum(torch.ones(1, dtype=torch.float64, device=place))
    denoiser, batch = HFDenoiser(network_of(SMALL), SMALL.vocabulary - 1).to(place), rows_of(SMALL, 2, place)
    held = []
    for model in (denoiser, Replica(denoiser, ranks)):
        denoiser.zero_grad()
        loss = MaskAndEdit().loss(model, batch, SMALL.blocks[0], torch.Generator().manual_seed(0)).total
        loss.backward()  # type: ignore[no-untyped-call]
        held.append([one.grad.clone() for one in denoiser.parameters() if one.grad is not None])
    (own, theirs), largest = held, max(float(one.abs().max()) for one in held[0])
    apart = max(float((one - other).abs().max()) for one, other in zip(own, theirs, strict=True)) / largest
    backend = torch.distributed.get_backend()
    leave()
    return {"ranks": ranks.size, "sum": float(total), "gradients": apart, "nccl": float("nccl" in str(backend))}


if __name__ == "__main__":
    print(json.dumps(main(sys.argv[-1])), flush=True)
