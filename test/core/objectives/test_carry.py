# Objective carry: the loss by hand from dense embeddings, plain rows as mask_and_edit to the bit, where gradients go.
# Entry points: pytest. The network is run by transformers on embeddings that the test mixes itself.
# A reference model gives its predictions without a gradient; the embeddings mixed are the trained model's own.
"""Training for carry-over."""

from __future__ import annotations

import math
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from torch import Tensor

from hildanext.core.batches import document_batch
from hildanext.core.masks import additive, block_diffusion_mask
from hildanext.core.objectives.carry import Carried, CarryOver
from hildanext.core.objectives.mask_and_edit import MaskAndEdit
from hildanext.core.types import About, Batch
from hildanext.errors import ConfigError
from hildanext.models.denoiser import HFDenoiser
from hildanext.registry import build

MASK, BLOCK = 66, 4
NOISE = {"replace": 0.1, "draw": "count"}


def rows() -> Batch:
    rng = torch.Generator().manual_seed(0)
    ids = torch.randint(0, 60, (4, 16), generator=rng).tolist()
    return document_batch([(one, 0) for one in ids], 0, 8)


def prepared(models: dict[str, HFDenoiser] | None = None, **fields: Any) -> CarryOver:
    made = build("objectives", {"type": "carry", "noise": NOISE, **fields})
    about = About(66, (), torch.device("cpu"), lambda path: (models or {})[path], nullcontext)
    found: CarryOver = made.prepare(about)
    return found


def by_hand(objective: CarryOver, model: HFDenoiser, batch: Batch, view: Carried, source: HFDenoiser) -> Tensor:
    """sum of weight x nll, with (1 - a) E[MASK] + a sum p_v E_v over the whole vocabulary at the masks that carry."""
    length, matrix = batch.tokens.shape[1], model.model.get_input_embeddings().weight
    mask = additive(block_diffusion_mask(length, BLOCK, batch.docs), torch.float32)
    places = torch.cat([batch.positions()] * 2, dim=1)

    def logits(network: Any, inputs: Tensor) -> Tensor:
        found = network(inputs_embeds=inputs, attention_mask=mask, position_ids=places, use_cache=False).logits
        found = found[:, :length].clone()
        found[..., MASK] = -math.inf
        return found

    own = source.model.get_input_embeddings().weight
    with torch.no_grad():
        p = logits(source.model, own[torch.cat([view.before, batch.tokens], dim=1)]).softmax(dim=2)
    inputs = matrix[torch.cat([view.tokens, batch.tokens], dim=1)].clone()
    for row in range(len(batch.tokens)):
        for column in range(length):
            if view.m2t[row, column] and view.carries[row]:
                q = p[row, column]
                a = float(-(q * q.clamp(min=1e-30).log()).sum()) / math.log(matrix.shape[0] - 1)
                inputs[row, column] = (1 - a) * matrix[MASK] + a * (q[:, None] * matrix).sum(dim=0)
    nll = -logits(model.model, inputs).log_softmax(dim=2).gather(2, batch.tokens[..., None])[..., 0]
    weight = objective.weights(view, batch)
    return (torch.where(weight > 0, nll, 0.0) * weight).sum()


@pytest.mark.parametrize(("reference", "behind"), [("", 0.0), ("other", 0.4)])
def test_the_loss_and_its_gradient_are_those_by_hand(random_model: Any, reference: str, behind: float) -> None:
    model, other = HFDenoiser(random_model(seed=1), MASK).eval(), HFDenoiser(random_model(seed=2), MASK).eval()
    objective = prepared({"other": other}, reference=reference, behind=behind, carry={"type": "rcd", "top_k": 66})
    batch = rows()
    (view,) = objective.views(model, batch, BLOCK, torch.Generator().manual_seed(3))
    assert isinstance(view, Carried) and 0 < int(view.carries.sum()) < 4
    found = objective.loss(model, batch, BLOCK, torch.Generator().manual_seed(3)).total
    wanted = by_hand(objective, model, batch, view, other if reference else model)
    assert found.item() == pytest.approx(wanted.item(), rel=1e-5)
    weights = list(model.parameters())
    pairs = zip(torch.autograd.grad(found, weights), torch.autograd.grad(wanted, weights), strict=True)
    assert all(torch.allclose(one, two, atol=2e-4, rtol=1e-3) for one, two in pairs)
    assert all(weight.grad is None for weight in other.parameters())
    hard = objective.model_copy(update={"plain": 1.0})
    assert hard.loss(model, batch, BLOCK, torch.Generator().manual_seed(3)).total.item() != found.item()


def test_rows_that_carry_nothing_are_mask_and_edit_to_the_bit(random_model: Any) -> None:
    model, batch = HFDenoiser(random_model(seed=1), MASK).eval(), rows()
    plain = build("objectives", {"type": "mask_and_edit", "noise": NOISE})
    assert isinstance(plain, MaskAndEdit)
    reports = [one.loss(model, batch, BLOCK, torch.Generator().manual_seed(3)) for one in (prepared(plain=1.0), plain)]
    assert torch.equal(reports[0].total, reports[1].total) and torch.equal(reports[0].normaliser, reports[1].normaliser)


def test_what_the_forward_before_saw_has_more_masks_and_no_other_token(random_model: Any) -> None:
    model, batch = HFDenoiser(random_model(seed=1), MASK).eval(), rows()
    (view,) = prepared(behind=0.5).views(model, batch, BLOCK, torch.Generator().manual_seed(4))
    assert isinstance(view, Carried)
    more = view.before != view.tokens
    assert bool(more.any()) and bool((view.before[more] == MASK).all()) and not bool((more & view.m2t).any())
    (same,) = prepared().views(model, batch, BLOCK, torch.Generator().manual_seed(4))
    assert isinstance(same, Carried) and torch.equal(same.before, same.tokens) and torch.equal(same.m2t, view.m2t)


def test_soft_tokens_are_trained_by_another_objective() -> None:
    with pytest.raises(ConfigError, match="train for it with own_errors"):
        prepared(carry={"type": "soft"})
