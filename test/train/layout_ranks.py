# Ranks of test_layouts.py, forks of one process (forked.py): two pairs side by side, all four, the pairs again.
# Entry points: Case, ONE, PAIRS, FOURS, AGAIN, REFUSED; before (what one process does), rank.
# A step has the same eight rows in every layout, in two micro-batches. test_layouts.py looks at what the runs left.
"""Ranks of the layouts' tests."""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from torch.distributed.fsdp import FSDPModule
from train.material import TURNS, run

from hildanext.errors import HildaError
from hildanext.models.sequence import Pieces
from hildanext.report.losses import Plot
from hildanext.train import layout, recorder

COMMON: dict[str, Any] = {
    "train__steps": 5, "train__checkpoint_every": 3, "train__keep_last": 5, "train__parity": False,
    "ladder": {"fixed": 8}, "train__accumulate": 2,
}  # fmt: skip
ROWS = 4
MOE, HYBRID, BOTH = "qwen3_moe", "qwen3_5_text", "qwen3_next"
LORA: dict[str, Any] = {"model__adapter": {"kind": "lora", "rank": 2, "targets": ["q_proj", "v_proj"]}}


@dataclass(frozen=True)
class Case:
    """A run. parallel: train.parallel; parent: whose folder; ranks: of different rows, which share ROWS; one: whose
    losses it must give; plant: a fault, inside which it runs."""

    parallel: Any = "none"
    parent: str = "model"
    ranks: int = 2
    one: str = "one"
    changes: dict[str, Any] = field(default_factory=dict)
    plant: Callable[[], AbstractContextManager[Any]] = nullcontext

    def train(self, place: Path, shards: Path, parents: Path) -> None:
        """Into a directory."""
        values = {"train__parallel": self.parallel, "train__batch": ROWS // self.ranks, **COMMON, **self.changes}
        run(place, shards, model__path=str(parents / self.parent), **values)


def summed_again() -> AbstractContextManager[Any]:
    """tp with transformers' own hook for norms, which sums again what was summed."""
    return patch.object(layout, "SUMMED", "nothing")


def joined_alone() -> AbstractContextManager[Any]:
    """sp whose features' gradient is not counted for all ranks that share them."""

    def joined(self: Pieces, hidden: torch.Tensor) -> torch.Tensor:
        own = right(self, hidden)
        if own.requires_grad:
            own.register_hook(lambda gradient: gradient / self.ranks)
        return own

    right = Pieces.joined
    return patch.object(Pieces, "joined", joined)


def undivided() -> AbstractContextManager[Any]:
    """ep whose experts' gradients are divided by the ranks that have the same ones, not by all."""
    return patch.object(FSDPModule, "set_gradient_divide_factor", lambda self, factor: None)


ONE = {
    "one": Case(ranks=1), "one-turns": Case(ranks=1, changes={"objective": TURNS}),
    "one-lora": Case(ranks=1, changes=LORA),
    "one-moe": Case(parent=MOE, ranks=1), "one-both": Case(parent=BOTH, ranks=1),
    "one-hybrid": Case(parent=HYBRID, ranks=1),
}  # fmt: skip
PAIRS: tuple[dict[str, Case], dict[str, Case]] = (
    {
        "ddp": Case("ddp"), "fsdp": Case({"fsdp": 2}), "replicate": Case({"replicate": 2}),
        "tp": Case({"tp": 2}, ranks=1),
        "tp-again": Case({"tp": 2}, ranks=1, changes={"train__resume": "tp/checkpoints/step-000003"}),
        "tp-turns": Case({"tp": 2}, ranks=1, one="one-turns", changes={"objective": TURNS}),
        "planted-tp": Case({"tp": 2}, ranks=1, plant=summed_again),
        "fsdp-moe": Case("fsdp2", MOE, one="one-moe"), "fsdp-hybrid": Case("fsdp2", HYBRID, one="one-hybrid"),
    },
    {
        "sp": Case({"sp": 2}, ranks=1),
        "sp-turns": Case({"sp": 2}, ranks=1, one="one-turns", changes={"objective": TURNS}),
        "sp-lora": Case({"sp": 2}, ranks=1, one="one-lora", changes=LORA),
        "sp-moe": Case({"sp": 2}, MOE, ranks=1, one="one-moe"),
        "planted-sp": Case({"sp": 2}, ranks=1, plant=joined_alone),
        "ep": Case({"ep": 2}, MOE, one="one-moe"), "ep-both": Case({"ep": 2}, BOTH, one="one-both"),
        "planted-ep": Case({"ep": 2}, MOE, one="one-moe", plant=undivided),
        "ddp-lora": Case("ddp", one="one-lora", changes=LORA), "ddp-hybrid": Case("ddp", HYBRID, one="one-hybrid"),
    },
)  # fmt: skip
BESIDE: dict[str, Any] = {"train__checkpoint_beside": True}
FOURS = {
    "hsdp": Case({"replicate": 2, "fsdp": 2}, ranks=4, changes=BESIDE),
    "sp-fsdp": Case({"sp": 2, "fsdp": 2}, changes=BESIDE), "sp-replicate": Case({"sp": 2, "replicate": 2}),
    "ep-fsdp": Case({"ep": 2, "fsdp": 2}, MOE, ranks=4, one="one-moe", changes=BESIDE),
    "hsdp-again": Case({"replicate": 2, "fsdp": 2}, ranks=4, changes={"train__resume": "hsdp/checkpoints/step-000003"}),
}  # fmt: skip
AGAIN = {
    "hsdp-in-two": Case({"fsdp": 2}, changes={"train__resume": "hsdp/checkpoints/step-000003"}),
    "ep-in-two": Case({"ep": 2}, MOE, one="one-moe", changes={"train__resume": "ep-fsdp/checkpoints/step-000003"}),
}  # fmt: skip
REFUSED = {
    "tp-fsdp": Case({"tp": 2, "fsdp": 2}), "four": Case({"fsdp": 4}), "tp-lora": Case({"tp": 2}, changes=LORA),
    "tp-muon": Case({"tp": 2}, changes={"optimizer__name": "muon"}), "tp-moe": Case({"tp": 2}, MOE),
    "tp-hybrid": Case({"tp": 2}, HYBRID), "sp-hybrid": Case({"sp": 2}, HYBRID), "ep-dense": Case({"ep": 2}),
    "ep-lora": Case({"ep": 2}, MOE, changes=LORA), "ep-muon": Case({"ep": 2}, MOE, changes={"optimizer__name": "muon"}),
    "sp-noise": Case({"sp": 2}, changes={"model__embedding_noise": {"steps": 2}}),
    "sp-inside": Case({"sp": 2}, MOE, changes={"objective": {"type": "balance", "z": 0.1}}),
    "sp-heads": Case({"sp": 2}, "odd"),
    "ddp-beside": Case("ddp", changes=BESIDE),
}  # fmt: skip


def before(folder: str, shards: str, parents: str, port: str) -> None:
    """What one process trains, before it forks."""
    recorder.plot_losses = lambda run, ladder: Plot(run / "plots" / "loss.png", "")
    for name, case in ONE.items():
        case.train(Path(folder) / name, Path(shards), Path(parents))


def rank(number: int, folder: str, shards: str, parents: str, port: str) -> None:
    """One of four forks."""
    os.chdir(folder)
    pair, within = divmod(number, 2)
    ports = iter(range(int(port) + 40 * pair, int(port) + 40 * pair + 40))
    given = Path(folder), Path(shards), Path(parents)
    for name, case in PAIRS[pair].items():
        _trained(name, case, _ranked(within, 2, next(ports)), *given)
    for name, case in list(REFUSED.items())[pair::2]:
        try:
            _trained(f"refused-{name}", case, _ranked(within, 2, next(ports)), *given)
        except HildaError as error:
            Path(f"refused-{name}-{within}.txt").write_text(str(error))
    for place, (name, case) in enumerate(FOURS.items()):
        _trained(name, case, _ranked(number, 4, int(port) + 80 + place), *given)
    name, case = list(AGAIN.items())[pair]
    _trained(name, case, _ranked(within, 2, next(ports)), *given)


def _ranked(number: int, ranks: int, port: int) -> dict[str, str]:
    return {
        "RANK": str(number), "LOCAL_RANK": str(number), "WORLD_SIZE": str(ranks), "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }  # fmt: skip


def _trained(name: str, case: Case, ranks: dict[str, str], folder: Path, shards: Path, parents: Path) -> None:
    os.environ |= ranks
    with case.plant():
        case.train(folder / name, shards, parents)
