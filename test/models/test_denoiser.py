# The denoiser against separate forwards of transformers' own model: exactness of block diffusion in every family.
# Entry points: pytest.
# The oracle (oracle.py) is eager attention under a mask written entry by entry, on a copy of the model.
"""Tests of models/denoiser.py: what the features are."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from models.oracle import FAMILIES, MASK, batch, logits, noised, plain, portable, visibility

from hildanext.core.types import Batch
from hildanext.models.denoiser import HFDenoiser

BACKENDS = ("dense", "sliced")
Make = Callable[..., Any]


def denoiser(make: Make, family: str = "qwen3", dtype: torch.dtype = torch.float64, **options: Any) -> HFDenoiser:
    return HFDenoiser(portable(make(family, dtype=dtype)), MASK, **options)


def everywhere(data: Batch) -> torch.Tensor:
    return torch.ones_like(data.learn)


@torch.no_grad()
def noisy_logits(model: HFDenoiser, noisy: torch.Tensor, data: Batch, block: int) -> torch.Tensor:
    features = model.noisy_features(noisy, data, block, everywhere(data))
    return (features @ model.head().T).view(*data.tokens.shape, -1)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("family", FAMILIES)
def test_noisy_block_equals_a_separate_forward_on_its_clean_prefix(
    family: str, backend: str, random_model: Make
) -> None:
    model = denoiser(random_model, family, attention=backend)
    reference = plain(model.model, "eager")
    data, block = batch(length=12), 4
    noisy = noised(data)
    found = noisy_logits(model, noisy, data, block)
    for start in range(0, 12, block):
        tokens = torch.cat([data.tokens[:, :start], noisy[:, start : start + block]], 1)
        size = tokens.shape[1]
        mask = visibility([0] * size, [True] * size, [i // block for i in range(size)])
        expected = logits(reference, tokens, torch.arange(size)[None], mask)
        # eager softmax runs in float32 inside transformers
        torch.testing.assert_close(found[:, start : start + block], expected[:, start:], atol=5e-6, rtol=0)
        expected = logits(plain(model.model, "sdpa"), tokens, torch.arange(size)[None], mask)
        torch.testing.assert_close(found[:, start : start + block], expected[:, start:], atol=1e-10, rtol=0)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 2e-5), (torch.bfloat16, 5e-2)])
def test_noisy_block_equals_a_separate_forward_in_lower_precision(
    dtype: torch.dtype, tolerance: float, random_model: Make
) -> None:
    model = denoiser(random_model, dtype=dtype, attention="sliced")
    data, block = batch(length=12), 4
    noisy = noised(data)
    found = noisy_logits(model, noisy, data, block)
    for start in range(0, 12, block):
        tokens = torch.cat([data.tokens[:, :start], noisy[:, start : start + block]], 1)
        size = tokens.shape[1]
        mask = visibility([0] * size, [True] * size, [i // block for i in range(size)])
        expected = logits(plain(model.model), tokens, torch.arange(size)[None], mask)[:, start:]
        scale = max(1.0, float(expected.abs().max()))
        assert (found[:, start : start + block] - expected).abs().max() <= tolerance * scale


@torch.no_grad()
def halves(model: HFDenoiser, noisy: torch.Tensor, data: Batch, block: int) -> tuple[torch.Tensor, torch.Tensor]:
    from hildanext.core.masks import block_diffusion_mask

    tokens = torch.cat([noisy, data.tokens], 1)
    positions = data.positions().repeat(1, 2)
    mask = block_diffusion_mask(data.tokens.shape[1], block, data.docs)
    found = model(tokens, positions, mask)
    return found.chunk(2, dim=1)


@torch.no_grad()
@pytest.mark.parametrize("family", FAMILIES)
def test_clean_half_at_block_one_equals_the_ar_model(family: str, random_model: Make) -> None:
    for dtype, tolerance in ((torch.float64, 1e-12), (torch.float32, 1e-5)):
        model = denoiser(random_model, family, dtype=dtype)
        data = batch(rows=2)
        expected = plain(model.model)(input_ids=data.tokens, use_cache=False).logits
        _, clean = halves(model, noised(data), data, 1)
        assert (clean - expected).abs().max() <= tolerance * max(1.0, float(expected.abs().max()))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("family", FAMILIES)
def test_causal_features_are_the_ar_model_of_each_document(family: str, backend: str, random_model: Make) -> None:
    model = denoiser(random_model, family, attention=backend)
    data = batch(rows=2, documents=True)
    select = data.positions() > 0
    with torch.no_grad():
        found = model.causal_features(data, select) @ model.head().T
    expected = []
    for row in range(2):
        for doc in data.docs[row].unique():
            tokens = data.tokens[row][data.docs[row] == doc][None]
            expected.append(plain(model.model)(input_ids=tokens, use_cache=False).logits[0, :-1])
    torch.testing.assert_close(found, torch.cat(expected), atol=1e-6, rtol=0)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("block", [1, 2, 3, 4, 6])
def test_with_clean_input_both_halves_agree(block: int, family: str, backend: str, random_model: Make) -> None:
    model = denoiser(random_model, family, attention=backend)
    data = batch(documents=True)
    _, clean = halves(model, data.tokens, data, block)
    assert (noisy_logits(model, data.tokens, data, block) - clean).abs().max() <= 1e-12 * clean.abs().max()


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("family", FAMILIES)
def test_one_block_is_a_bidirectional_forward(family: str, backend: str, random_model: Make) -> None:
    model = denoiser(random_model, family, attention=backend)
    data = batch()
    noisy = noised(data)
    everything = torch.ones(1, 1, 12, 12, dtype=torch.bool)
    expected = logits(plain(model.model), noisy, torch.arange(12)[None], everything)
    for block in (12, 0, -1, 64):
        torch.testing.assert_close(noisy_logits(model, noisy, data, block), expected, atol=1e-10, rtol=0)


def test_dropping_the_clean_half_changes_neither_loss_nor_gradient(random_model: Make) -> None:
    model = denoiser(random_model)
    data = batch(documents=True)
    noisy = noised(data)
    docs, blocks = data.docs[0].tolist() * 2, [0] * 24
    mask = visibility(docs, [False] * 12 + [True] * 12, blocks)
    full = model(torch.cat([noisy, data.tokens], 1), data.positions().repeat(1, 2), mask)[:, :12]
    short = model.noisy_features(noisy, data, 12, everywhere(data)) @ model.head().T
    losses = [torch.nn.functional.cross_entropy(found.reshape(12, -1), data.tokens[0]) for found in (full, short)]
    gradients = [torch.autograd.grad(loss, list(model.parameters())) for loss in losses]
    assert abs(float((losses[0] - losses[1]).detach())) <= 1e-10
    assert max(float((a - b).abs().max()) for a, b in zip(*gradients, strict=True)) <= 1e-10


@pytest.mark.parametrize("grid", ["global", "per_document"])
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("family", FAMILIES)
def test_nothing_leaks_from_the_future_the_own_clean_block_or_another_document(
    family: str, backend: str, grid: str, random_model: Make
) -> None:
    model = denoiser(random_model, family, attention=backend, block_grid=grid)
    docs = torch.tensor([[0] * 8 + [1] * 4])
    data = Batch(batch().tokens, torch.ones(1, 12, dtype=torch.bool), docs)
    noisy = noised(data)
    before = noisy_logits(model, noisy, data, 4)
    for first in (0, 4, 8):
        clean = data.tokens.clone()
        clean[:, first:] = (clean[:, first:] + 7) % 60
        other = noisy.clone()
        other[:, :first], other[:, first + 4 :] = (noisy[:, :first] + 3) % 60, (noisy[:, first + 4 :] + 3) % 60
        after = noisy_logits(model, other, Batch(clean, data.learn, docs), 4)
        own = slice(first, first + 4)
        torch.testing.assert_close(after[:, own], before[:, own], atol=1e-12, rtol=0)
    clean, other = data.tokens.clone(), noisy.clone()
    clean[:, :8], other[:, :8] = (clean[:, :8] + 7) % 60, (noisy[:, :8] + 3) % 60
    after = noisy_logits(model, other, Batch(clean, data.learn, docs), 4)
    torch.testing.assert_close(after[:, 8:], before[:, 8:], atol=1e-12, rtol=0)


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_clean_prefix_and_the_own_noisy_block_do_matter(backend: str, random_model: Make) -> None:
    model = denoiser(random_model, attention=backend)
    data = batch()
    noisy = noised(data)
    before = noisy_logits(model, noisy, data, 4)
    prefix, own = data.tokens.clone(), noisy.clone()
    prefix[:, 2], own[:, 9] = (prefix[:, 2] + 1) % 60, (own[:, 9] + 1) % 60
    changed = noisy_logits(model, noisy, Batch(prefix, data.learn, data.docs), 4) - before
    assert (changed.abs().amax(-1)[0] > 1e-6).tolist() == [False] * 4 + [True] * 8
    changed = noisy_logits(model, own, data, 4) - before
    assert (changed.abs().amax(-1)[0] > 1e-6).tolist() == [False] * 8 + [True] * 4


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("family", FAMILIES)
def test_a_pack_equals_its_documents_run_alone(family: str, backend: str, random_model: Make) -> None:
    model = denoiser(random_model, family, attention=backend, block_grid="per_document")
    docs = torch.tensor([[0] * 4 + [1] * 8, [0] * 12])
    data = Batch(batch(rows=2).tokens, torch.ones(2, 12, dtype=torch.bool), docs)
    noisy = noised(data)
    packed = noisy_logits(model, noisy, data, 4)
    for row, span in ((0, slice(0, 4)), (0, slice(4, 12)), (1, slice(0, 12))):
        tokens = data.tokens[row : row + 1, span]
        alone = Batch(tokens, torch.ones_like(tokens, dtype=torch.bool), torch.zeros_like(tokens))
        found = noisy_logits(model, noisy[row : row + 1, span], alone, 4)
        torch.testing.assert_close(packed[row : row + 1, span], found, atol=1e-10, rtol=0)


def test_packed_loss_is_the_sum_of_the_unpacked_losses(random_model: Make) -> None:
    model = denoiser(random_model, block_grid="per_document")
    docs = torch.tensor([[0] * 4 + [1] * 8])
    data = Batch(batch().tokens, torch.ones(1, 12, dtype=torch.bool), docs)
    noisy = noised(data)
    packed = torch.nn.functional.cross_entropy(noisy_logits(model, noisy, data, 4)[0], data.tokens[0], reduction="sum")
    total = torch.zeros((), dtype=torch.float64)
    for span in (slice(0, 4), slice(4, 12)):
        tokens = data.tokens[:, span]
        alone = Batch(tokens, torch.ones_like(tokens, dtype=torch.bool), torch.zeros_like(tokens))
        found = noisy_logits(model, noisy[:, span], alone, 4)[0]
        total += torch.nn.functional.cross_entropy(found, tokens[0], reduction="sum")
    assert abs(float(packed / total) - 1) <= 1e-10


def test_positions_that_restart_with_each_document_change_nothing(random_model: Make) -> None:
    from hildanext.core.masks import block_causal_mask

    model = denoiser(random_model, dtype=torch.float32)
    data = batch(rows=2, length=24, documents=True)
    mask = block_causal_mask(24, 4, data.docs)
    with torch.no_grad():
        restarted = model(data.tokens, data.positions(), mask)
        running = model(data.tokens, torch.arange(24).expand(2, 24), mask)
    assert (restarted - running).abs().max() <= 1e-5 * restarted.abs().max()


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_block_that_does_not_divide_the_row_is_refused(backend: str, random_model: Make) -> None:
    model = denoiser(random_model, attention=backend)
    data = batch()
    with pytest.raises(ValueError, match="block size 5 does not divide the length 12"):
        model.noisy_features(data.tokens, data, 5, everywhere(data))


def test_a_document_start_has_no_causal_features(random_model: Make) -> None:
    data = batch()
    with pytest.raises(ValueError, match="first position"):
        denoiser(random_model).causal_features(data, everywhere(data))


def test_logits_are_computed_at_selected_positions_only(random_model: Make) -> None:
    model = denoiser(random_model)
    data = batch(rows=2)
    mask = torch.ones(1, 1, 12, 12, dtype=torch.bool)
    select = torch.rand(2, 12, generator=torch.Generator().manual_seed(6)) < 0.4
    with torch.no_grad():
        full = model(data.tokens, data.positions(), mask)
        some = model(data.tokens, data.positions(), mask, select=select)
    assert some.shape == (int(select.sum()), model.vocab_size)
    torch.testing.assert_close(some, full[select], atol=1e-12, rtol=0)


def test_an_additive_bias_is_honoured(random_model: Make) -> None:
    model = denoiser(random_model)
    data = batch()
    bias = torch.randn(1, 1, 12, 12, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        found = model(data.tokens, data.positions(), bias)
        expected = plain(model.model, "eager")(
            input_ids=data.tokens, position_ids=data.positions(), attention_mask=bias, use_cache=False
        ).logits
        without = model(data.tokens, data.positions(), torch.ones_like(bias, dtype=torch.bool))
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=0)
    assert (found - without).abs().max() > 1e-3


def test_the_support_of_the_jacobian_is_the_mask(random_model: Make) -> None:
    model = denoiser(random_model)
    model.model.base_model.layers = model.model.base_model.layers[:1]
    model.config.num_hidden_layers = 1
    data = batch(length=8, documents=True, seed=3)
    embedded: list[torch.Tensor] = []
    hook = model.model.get_input_embeddings().register_forward_hook(lambda *call: embedded.append(call[2]))
    features = model.noisy_features(noised(data), data, 4, everywhere(data))
    hook.remove()
    rows = [torch.autograd.grad(row.sum(), embedded[0], retain_graph=True)[0].abs().sum(-1)[0] for row in features]
    docs, blocks = data.docs[0].tolist() * 2, [i // 4 for i in range(8)] * 2
    expected = visibility(docs, [False] * 8 + [True] * 8, blocks)[0, 0, :8]
    assert torch.equal(torch.stack(rows) > 0, expected)
