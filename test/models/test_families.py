# Parity, masks and cached decoding over the families of transformers, each against the verdict it must get.
# Entry points: pytest.
# The oracle of the masks is transformers' own attention under a mask written entry by entry (oracle.py); that of the
# cached forward is the uncached one over the whole text.
"""Sweep over tiny configurations of many families."""

from __future__ import annotations

import pytest
import torch
from models.families import EXACT, FAMILIES, PARITY, Family, network, tiny
from models.oracle import MASK, batch, logits, noised, plain, visibility

from hildanext.decoding.forward import ForwardRow, forward
from hildanext.decoding.store import StateStore
from hildanext.errors import ModelError
from hildanext.models.denoiser import HFDenoiser
from hildanext.models.inspection import parity
from hildanext.models.support import check_head, check_supported

BLOCK, LENGTH_OF_ROW, TOLERANCE = 4, 12, 2e-5


def verdict(family: Family) -> str:
    """exact, the line that refuses, or the word parity."""
    config = tiny(family)
    try:
        check_supported(config, "folder")
        held = network(config)
        check_head(held, "folder")
        model = HFDenoiser(held, MASK)
        if not parity(model)["ok"]:
            return PARITY
    except ModelError as error:
        return str(error)
    masks_are_exact(model)
    cached_is_uncached(model)
    return EXACT


@torch.no_grad()
def masks_are_exact(model: HFDenoiser) -> None:
    """Each noisy block of one training forward equals a separate forward of the block on its clean prefix."""
    reference, data = plain(model.model), batch(length=LENGTH_OF_ROW)
    noisy = noised(data)
    for backend in ("dense", "sliced") if model.takes_layout else ("auto",):
        model.attention = backend
        found = model.noisy_features(noisy, data, BLOCK, data.learn) @ model.head().T
        for start in range(0, LENGTH_OF_ROW, BLOCK):
            tokens = torch.cat([data.tokens[:, :start], noisy[:, start : start + BLOCK]], 1)
            size = tokens.shape[1]
            mask = visibility([0] * size, [True] * size, [i // BLOCK for i in range(size)])
            expected = logits(reference, tokens, torch.arange(size)[None], mask)[0, start:]
            near(found[start : start + BLOCK], expected)


@torch.no_grad()
def cached_is_uncached(model: HFDenoiser) -> None:
    """A block on committed states equals the whole text in one forward; packed (one row) and padded (two) alike."""
    tokens, device = batch(length=LENGTH_OF_ROW).tokens[0], torch.device("cpu")
    blocks = range(0, LENGTH_OF_ROW, BLOCK)
    everything = torch.ones(LENGTH_OF_ROW, dtype=torch.bool)
    expected = forward(model, None, [ForwardRow(0, 0, tokens, everything, BLOCK)], device)[0]
    for rows in (1, 2):
        store = StateStore()
        store.reserve(rows, LENGTH_OF_ROW)
        slots = [store.add() for _ in range(rows)]
        for start in blocks:
            part, asked = tokens[start : start + BLOCK], everything[:BLOCK]
            found = forward(model, store, [ForwardRow(slot, start, part, asked, BLOCK) for slot in slots], device)
            for slot in slots:
                near(found[slot], expected[start : start + BLOCK])
                store.commit(slot, BLOCK)


def near(found: torch.Tensor, expected: torch.Tensor) -> None:
    assert (found - expected).abs().max() <= TOLERANCE * max(1.0, float(expected.abs().max()))


@pytest.mark.slow
@pytest.mark.parametrize("name", FAMILIES)
def test_a_family_gets_its_verdict(name: str) -> None:
    from transformers import CONFIG_MAPPING

    family = FAMILIES[name]
    if family.model_type not in CONFIG_MAPPING:
        pytest.skip(f"this transformers has no {family.model_type}")
    assert family.verdict in verdict(family)


def test_the_sweep_holds_at_least_forty_exact_families() -> None:
    assert len({one.model_type for one in FAMILIES.values() if one.verdict == EXACT}) >= 40
