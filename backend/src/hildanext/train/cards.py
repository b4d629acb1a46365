# What a step would take on cards that are not here, by arithmetic: an estimate, and said as one.
# Entry points: CARDS, Card, card_pace, on_cards.
# A layer takes what its products take at SHARE of the card's rate, or what reading its weights takes, if that is more.
# Not counted: what ranks tell each other, the attention over keys, and what unpacking 4-bit weights costs.
"""Times on named cards."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from hildanext.config import Config
from hildanext.core.types import Objective
from hildanext.models.footprint import OPTIMIZER_BYTES, QUANTISED_BYTES, NetworkFootprint
from hildanext.models.load import choose_device, choose_dtype
from hildanext.models.shape import Shape
from hildanext.train.rehearsal import Pace

SHARE = 0.4
"""Of the rate of products that training reaches: 0.38 to 0.43 in arXiv:2407.21783, 0.46 in arXiv:2204.02311."""


@dataclass(frozen=True)
class Card:
    """By its data sheet. rate: bfloat16 products without sparsity, operations a second; bandwidth: bytes a second;
    memory: bytes."""

    name: str
    rate: float
    bandwidth: float
    memory: float


CARDS = (
    Card("RTX 4090 24 GB", 165e12, 1008e9, 24e9), Card("RTX 5090 32 GB", 209e12, 1792e9, 32e9),
    Card("L40S 48 GB", 362e12, 864e9, 48e9), Card("A100 80 GB", 312e12, 2039e9, 80e9),
    Card("H100 80 GB", 989e12, 3350e9, 80e9), Card("H200 141 GB", 989e12, 4800e9, 141e9),
    Card("B200 180 GB", 2250e12, 8000e9, 180e9),
)  # fmt: skip


def card_pace(footprint: NetworkFootprint, config: Config, window: int, card: Card) -> Pace:
    """The pace of a run in bfloat16 on a card. A product of a forward costs 2 operations a weight and position, its
    gradients 2 for the input and 2 for the weight, where that trains; recomputing costs the forward again."""
    train, adapted = config.train, config.model.adapter.kind != "none"
    shape, rate = Shape.of(footprint.config), card.rate * SHARE
    shared = 1 if isinstance(train.parallel, str) else train.parallel.tp * train.parallel.sp
    passes = 2 + (not adapted) + train.gradient_checkpointing
    body = footprint.total - footprint.embedding
    stored = QUANTISED_BYTES.get(config.model.adapter.kind, 2.0) * body
    read = passes * stored / card.bandwidth / train.batch

    def row(positions: int) -> float:
        return max(passes * 2.0 * (body - footprint.idle) * positions / rate, read) / shared

    position = 2.0 * shape.vocabulary * shape.hidden / rate
    frozen = adapted or config.optimizer.freeze_embeddings
    trained = config.model.adapter.rank * footprint.rank_one if adapted else footprint.total
    moved = trained * (3 * 4 + 2 * OPTIMIZER_BYTES[config.optimizer.name])
    step = moved / train.shared_by(1) / card.bandwidth
    return Pace(row(2 * window), row(window), position * (2 if frozen else 3), position, step)


def on_cards(
    config: Config, footprint: Any, objective: Objective, window: int, sizes: tuple[float, float]
) -> Iterator[dict[str, Any]]:
    """Of each card {card, seconds of a step below the window, fits}; none for a run that does not compute in bfloat16.
    sizes: learned tokens of a row, bytes of a rank."""
    stored = choose_dtype(config.model.dtype, choose_device(config.model.device))[0]
    if not isinstance(footprint, NetworkFootprint) or (stored.itemsize != 2 and config.train.autocast == "none"):
        return
    learned, needed = sizes
    for card in CARDS:
        pace = card_pace(footprint, config, window, card)
        seconds = pace.seconds(config, objective, learned, whole=False)
        fits = needed <= config.model.max_vram_pct * card.memory
        yield {"card": card.name, "seconds": seconds, "fits": fits}
