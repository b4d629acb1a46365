# Recurrent layers in training: one forward over [noised | clean] is block-by-block decoding by transformers' own code.
# Entry points: pytest; the oracle is in hybrids.py.
# Documents begin anywhere, inside blocks too. Each error that the scheme invites is planted once and seen.
"""Tests of recurrent mixers under the training forward."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from models.families import Family, network, tiny
from models.hybrids import HYBRIDS, WIDTHS, Own, block_by_block, configuration, hybrid, text_by_text
from models.oracle import MASK, batch, noised
from torch import Tensor

from hildanext.core.masks import block_ids, document_starts
from hildanext.core.types import Batch
from hildanext.errors import ModelError
from hildanext.models import mixer, runs
from hildanext.models.denoiser import HFDenoiser
from hildanext.models.inspection import parity
from hildanext.models.runs import Runs
from hildanext.models.support import check_head, check_supported
from hildanext.registry import build

TOLERANCE, ROW, STEP = 1e-5, 24, 1e-6
EVERY = torch.ones(2, ROW, dtype=torch.bool)


def near(found: Tensor, expected: Tensor, tolerance: float = TOLERANCE) -> None:
    assert (found - expected).abs().max() <= tolerance * max(1.0, float(expected.abs().max()))


@torch.no_grad()
def logits(model: HFDenoiser, noisy: Tensor, data: Batch, block: int) -> Tensor:
    found = model.noisy_features(noisy, data, block, data.learn) @ model.head().T
    return found.view(*data.tokens.shape, -1)


def packed_is_block_by_block(family: str, grid: str = "global", blocks: tuple[int, ...] = (4, 1, 0)) -> None:
    own, model = Own(family), HFDenoiser(hybrid(family), MASK, block_grid=grid)
    data = batch(2, ROW, seed=3, documents=True)
    noisy = noised(data)
    for block in blocks:
        near(logits(model, noisy, data, block), block_by_block(own, noisy, data, block, grid))


@pytest.mark.parametrize("family", HYBRIDS)
def test_one_packed_forward_is_block_by_block(family: str) -> None:
    packed_is_block_by_block(family, blocks=(4, 1, 0) if family in ("lfm2", "qwen3_5_text") else (4,))


@pytest.mark.parametrize("family", ["lfm2", "qwen3_5_text"])
def test_blocks_that_restart_with_documents_and_sliced_attention(family: str) -> None:
    packed_is_block_by_block(family, "per_document", (4,))
    data = batch(2, ROW, seed=4, documents=True)
    noisy, network = noised(data), hybrid(family)
    both = [logits(HFDenoiser(network, MASK, attention=name), noisy, data, 4) for name in ("dense", "sliced")]
    near(*both)


@pytest.mark.parametrize("family", ["lfm2", "qwen3_5_text"])
def test_blocks_of_a_group_go_on_from_those_before_them_as_windows_do(family: str) -> None:
    data = batch(2, ROW, seed=5, documents=True)
    ids = block_ids(ROW, 4, data.docs).expand_as(data.docs)
    grouped = replace(data, groups=torch.maximum(ids // 2 * 2, document_starts(data.docs) // 4))
    noisy = noised(data)
    near(logits(HFDenoiser(hybrid(family), MASK), noisy, grouped, 4), block_by_block(Own(family), noisy, grouped, 4))


def test_blocks_wider_than_a_chunk_and_rows_longer_than_one() -> None:
    data = batch(1, 160, seed=6)
    noisy, own, model = noised(data), Own("qwen3_5_text"), HFDenoiser(hybrid("qwen3_5_text"), MASK)
    assert runs.WIDEST < 80
    near(logits(model, noisy, data, 80), block_by_block(own, noisy, data, 80))
    near(logits(model, noisy, data, 0), block_by_block(own, noisy, data, 0))


@pytest.mark.parametrize("family", HYBRIDS)
def test_block_one_is_the_parent(family: str) -> None:
    network = hybrid(family)
    check_supported(network.config, "folder")
    check_head(network, "folder")
    model, data = HFDenoiser(network, MASK), batch(2, ROW, seed=7, documents=True)
    found = parity(model)
    assert found["ok"] and found["worst"] < TOLERANCE and found["attention"]
    chosen = data.positions() > 0
    with torch.no_grad():
        features = model.causal_features(data, chosen) @ model.head().T
    before = torch.cat([chosen[:, 1:], torch.zeros(2, 1, dtype=torch.bool)], 1)
    # transformers' own chunks round by 1.4e-5 in qwen3_next, against float64
    near(features, text_by_text(Own(family), data)[before], 2 * TOLERANCE)


def documents_do_not_leak(family: str) -> None:
    model, data = HFDenoiser(hybrid(family), MASK), batch(2, ROW, seed=3, documents=True)
    noisy, doc = noised(data), int(data.docs[0, ROW // 2])
    inside = torch.zeros_like(EVERY)
    inside[0] = data.docs[0] == doc
    other = replace(data, tokens=torch.where(inside, (data.tokens + 7) % 60, data.tokens))
    changed = torch.where(inside, (noisy + 7) % 60, noisy)
    before, after = logits(model, noisy, data, 4), logits(model, changed, other, 4)
    assert torch.equal(before[~inside], after[~inside]) and not torch.equal(before[inside], after[inside])


def noise_stays_in_its_block(family: str) -> None:
    model, data = HFDenoiser(hybrid(family), MASK), batch(2, ROW, seed=8)
    noisy, inside = noised(data), torch.zeros_like(EVERY)
    inside[:, 8:12] = True
    before = logits(model, noisy, data, 4)
    after = logits(model, torch.where(inside, (noisy + 7) % 60, noisy), data, 4)
    assert torch.equal(before[~inside], after[~inside]) and not torch.equal(before[inside], after[inside])


@pytest.mark.parametrize("check", [documents_do_not_leak, noise_stays_in_its_block])
@pytest.mark.parametrize("family", HYBRIDS)
def test_nothing_leaks(family: str, check: Callable[[str], None]) -> None:
    check(family)


def _carried(docs: Tensor, block: int, grid: str, groups: Tensor | None = None) -> Runs:
    return DIFFUSION(docs, block, grid, torch.zeros_like(docs))


def _wrong_stream(self: Runs, reach: int) -> Tensor:
    of = self.chunks
    own = torch.where(of["link"] > 0, of["floor"] - of["link"], of["own"])
    return SOURCES(replace(self, chunks=of | {"own": own}), reach)


DIFFUSION, SOURCES = Runs.diffusion, Runs._sources
ERRORS = (
    (Runs, "diffusion", _carried, packed_is_block_by_block), (Runs, "diffusion", _carried, noise_stays_in_its_block),
    (Runs, "_sources", _wrong_stream, packed_is_block_by_block),
    (Runs, "_sources", _wrong_stream, noise_stays_in_its_block),
    (runs, "document_starts", torch.zeros_like, packed_is_block_by_block),
    (runs, "document_starts", torch.zeros_like, documents_do_not_leak),
)  # fmt: skip


@pytest.mark.parametrize("family", HYBRIDS)
@pytest.mark.parametrize(("where", "name", "error", "check"), ERRORS)
def test_a_planted_error_is_seen(family: str, where: Any, name: str, error: Any, check: Any, monkeypatch: Any) -> None:
    monkeypatch.setattr(where, name, error)
    with pytest.raises(AssertionError):
        check(family)


class Norm(torch.nn.Module):
    """A norm in float64 in place of transformers', which round to float32."""

    def forward(self, given: Tensor, gate: Tensor | None = None) -> Tensor:
        normed = given * torch.rsqrt(given.pow(2).mean(-1, keepdim=True) + 1e-3)
        return normed if gate is None else normed * torch.sigmoid(gate)


def differentiable(family: str) -> HFDenoiser:
    network = hybrid(family).double()
    for name, one in list(network.named_modules()):
        if "RMSNorm" in type(one).__name__:
            network.set_submodule(name, Norm())
    return HFDenoiser(network, MASK)


@pytest.mark.parametrize("family", ["lfm2", "qwen3_5_text"])
def test_gradients_are_those_of_finite_differences_and_reach_the_clean_text(family: str) -> None:
    model, data = differentiable(family), batch(1, 12, seed=9, documents=True)
    noisy, rng = torch.full_like(data.tokens, MASK), torch.Generator().manual_seed(0)
    weights = torch.randn(12, 32, generator=rng, dtype=torch.float64)

    def loss() -> Tensor:
        return (model.noisy_features(noisy, data, 4, data.learn) * weights).sum()

    loss().backward()
    embedding = model.model.get_input_embeddings().weight
    assert embedding.grad is not None and embedding.grad[:MASK].abs().max() > 0
    chosen = [
        one for name, one in model.named_parameters() if "layers.0" in name and ("conv" in name or "attn" in name)
    ]
    for parameter in (embedding, *chosen):
        assert parameter.grad is not None
        direction, values = torch.randn(parameter.shape, generator=rng, dtype=torch.float64), []
        with torch.no_grad():
            for side in (-STEP, STEP):
                parameter.add_(side * direction)
                values.append(float(loss()))
                parameter.sub_(side * direction)
        slope = float((parameter.grad * direction).sum())
        assert slope and slope == pytest.approx((values[1] - values[0]) / (2 * STEP), rel=1e-5, abs=1e-7)


def test_what_gives_no_order_is_refused() -> None:
    model = HFDenoiser(hybrid("lfm2"), MASK)
    tokens, mask = torch.zeros(1, 6, dtype=torch.long), torch.ones(1, 1, 6, 6, dtype=torch.bool)
    with torch.no_grad():
        assert model.body(tokens, torch.arange(6)[None], mask).shape == (1, 6, 32)
    for positions in ([0, 1, 2, 1, 2, 3], [0, 1, 2, 0, 1, 2], [3, 4, 5, 6, 7, 8]):
        with pytest.raises(ModelError, match="beginning"):
            model.body(tokens, torch.tensor([positions]), mask)


REFUSED = {
    "bamba": "forgets the recurrent state", "jamba": "forgets the recurrent state", "kimi_linear": "its own cache",
    "mamba2": "", "minimax": "linear_attention",
}  # fmt: skip


@torch.no_grad()
def continues(network: Any) -> bool:
    """Whether transformers' own code reads a text in pieces of 4 as it reads it at once."""
    from transformers import DynamicCache

    tokens, kept, parts = batch(1, 12, seed=2).tokens, DynamicCache(config=network.config), []
    whole = network(input_ids=tokens, use_cache=False).logits
    for piece in tokens.split(4, 1):
        parts.append(network(input_ids=piece, past_key_values=kept, use_cache=True).logits)
    return bool((torch.cat(parts, 1) - whole).abs().max() <= 1e-3)


@pytest.mark.parametrize("family", HYBRIDS)
def test_transformers_own_code_of_every_supported_family_continues_from_its_cache(family: str) -> None:
    assert continues(hybrid(family))


@pytest.mark.parametrize("family", ["bamba", "jamba"])
def test_the_families_refused_for_it_do_not(family: str) -> None:
    attention = {"attn_layer_indices": [0], **WIDTHS} if family == "bamba" else {"attn_layer_offset": 0}
    assert not continues(network(tiny(Family(family, "", {"num_hidden_layers": 3, **attention}))))


@pytest.mark.parametrize("family", REFUSED)
def test_a_family_that_cannot_be_driven_is_refused_by_name(family: str) -> None:
    from transformers import AutoConfig

    with pytest.raises(ModelError, match=f"{family} .*{REFUSED[family]}"):
        check_supported(AutoConfig.for_model(family), "folder")


def test_sliding_layers_among_recurrent_ones_are_refused() -> None:
    kinds = ["conv", "sliding_attention", "full_attention"]
    with pytest.raises(ModelError, match="sliding-window"):
        check_supported(configuration("lfm3", layer_types=kinds), "folder")


def test_a_mixer_whose_module_is_another_is_refused(monkeypatch: Any) -> None:
    network = hybrid("lfm2")
    monkeypatch.setattr(type(build("mixers", {"type": "short_conv"})), "modules", ())
    with pytest.raises(ModelError, match="layer 0"):
        mixer.install(network)
