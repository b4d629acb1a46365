# The attention backends against each other in value and gradient; which one is chosen; shift; a decoder's cache.
# Entry points: pytest.
# FlexAttention has no backward on the CPU: its layout is compared in the forward pass, uncompiled.
"""Tests of models/backend.py, attention.py and the adapter's shift."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from models.oracle import FAMILIES, MASK, batch, logits, noised, plain, portable, visibility

from hildanext.core.masks import additive, block_diffusion_mask
from hildanext.core.types import Batch
from hildanext.errors import ModelError
from hildanext.models import attention, backend
from hildanext.models.backend import choose_backend
from hildanext.models.denoiser import HFDenoiser
from hildanext.models.support import recompute

Make = Callable[..., Any]
CPU = torch.device("cpu")


def loss_and_gradients(features: torch.Tensor, model: HFDenoiser, data: Batch) -> tuple[float, list[torch.Tensor]]:
    found = (features @ model.head().T).view(-1, model.vocab_size)
    loss = torch.nn.functional.cross_entropy(found, data.tokens.reshape(-1))
    return float(loss.detach()), list(torch.autograd.grad(loss, list(model.parameters())))


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("block", [4, 12])
def test_backends_agree_in_loss_and_gradient(family: str, block: int, random_model: Make) -> None:
    data = batch(rows=3, documents=True)
    noisy, everywhere = noised(data), torch.ones_like(data.learn)
    results = {}
    for name in ("dense", "sliced"):
        model = HFDenoiser(portable(random_model(family)), MASK, attention=name)
        results[name] = loss_and_gradients(model.noisy_features(noisy, data, block, everywhere), model, data)
    reference = plain(model.model, "eager")
    mask = block_diffusion_mask(12, block, data.docs)
    hidden = reference.base_model(
        input_ids=torch.cat([noisy, data.tokens], 1), position_ids=data.positions().repeat(1, 2),
        attention_mask=additive(mask, torch.float32).clamp_min(torch.finfo(torch.float32).min), use_cache=False,
    ).last_hidden_state[:, :12]  # fmt: skip
    found = (hidden @ reference.get_output_embeddings().weight.T).view(-1, model.vocab_size)
    loss = torch.nn.functional.cross_entropy(found, data.tokens.reshape(-1))
    expected = torch.autograd.grad(loss, list(reference.parameters()))
    for value, gradients in results.values():
        assert abs(value - float(loss.detach())) <= 1e-5
        assert max(float((a - b).abs().max()) for a, b in zip(gradients, expected, strict=True)) <= 1e-4


def in_groups(data: Batch, block: int) -> Batch:
    """Two blocks to a group in even rows, three in odd ones, cut at documents."""
    groups = torch.zeros_like(data.docs)
    for row, docs in enumerate(data.docs.tolist()):
        for i, doc in enumerate(docs):
            size = block * (2 + row % 2)
            begins = max(i // size * size, docs.index(doc))
            groups[row, i] = begins // block
    return replace(data, groups=groups)


@pytest.mark.parametrize("grid", ["global", "per_document"])
def test_backends_agree_in_loss_and_gradient_for_groups_of_blocks(grid: str, random_model: Make) -> None:
    data = in_groups(batch(rows=3), 2) if grid == "per_document" else in_groups(batch(rows=3, documents=True), 2)
    noisy, results = noised(data), []
    for name in ("dense", "sliced"):
        model = HFDenoiser(random_model(), MASK, attention=name, block_grid=grid)
        results.append(
            loss_and_gradients(model.noisy_features(noisy, data, 2, torch.ones_like(data.learn)), model, data)
        )
    assert abs(results[0][0] - results[1][0]) <= 1e-5
    assert max(float((a - b).abs().max()) for a, b in zip(results[0][1], results[1][1], strict=True)) <= 1e-4
    alone = replace(data, groups=None)
    assert (
        abs(loss_and_gradients(model.noisy_features(noisy, alone, 2, data.learn), model, data)[0] - results[0][0])
        > 1e-4
    )


@pytest.mark.parametrize("shift", ["none", "clean"])
@pytest.mark.parametrize("name", ["dense", "sliced"])
def test_a_group_is_trained_as_a_window_is_decoded(name: str, shift: str, random_model: Make) -> None:
    model, block = HFDenoiser(random_model(), MASK, attention=name, shift=shift), 2
    data = in_groups(batch(), block)
    noisy = noised(data)
    with torch.no_grad():
        found = model.noisy_features(noisy, data, block, data.learn) @ model.head().T
        for start in range(0, 12, 2 * block):
            seen = torch.cat([data.tokens[:, :start], noisy[:, start : start + 2 * block]], 1)
            places = torch.arange(seen.shape[1])[None]
            mask = (places[..., None] // block >= places[:, None] // block)[:, None]
            wanted = model(seen, places, mask)[0, start:]
            torch.testing.assert_close(found[start : start + 2 * block], wanted, atol=2e-5, rtol=0)


def test_an_annealed_mask_is_followed_by_dense_attention_and_refused_by_the_others(random_model: Make) -> None:
    data = batch(rows=2, documents=True)
    drawn = torch.rand(12, 12, generator=torch.Generator().manual_seed(2)) < 0.5
    opened = drawn | torch.ones(12, 12, dtype=torch.bool).tril()
    given, noisy = replace(data, opened=opened), noised(data)
    model = HFDenoiser(random_model(), MASK, attention="dense")
    reference = plain(model.model, "eager")
    everywhere = torch.ones_like(data.learn)
    with torch.no_grad():
        found = (model.noisy_features(noisy, given, 4, everywhere) @ model.head().T).view(2, 12, -1)
        for row, docs in enumerate(data.docs.tolist()):
            clean, blocks = [False] * 12 + [True] * 12, [place // 4 for place in range(12)] * 2
            mask = visibility(docs * 2, clean, blocks)
            for query in range(24):
                for key in range(24):
                    if clean[query] == clean[key] and not opened[query % 12, key % 12]:
                        mask[0, 0, query, key] = False
            tokens = torch.cat([noisy[row : row + 1], data.tokens[row : row + 1]], 1)
            places = data.positions()[row : row + 1].repeat(1, 2)
            wanted = logits(reference, tokens, places, mask)[0, :12]
            torch.testing.assert_close(found[row], wanted, atol=2e-5, rtol=0)
        causal = replace(data, opened=torch.ones(12, 12, dtype=torch.bool).tril())
        alone = model.causal_features(replace(data, tokens=noisy), data.positions() > 0)
        first = model.noisy_features(noisy, causal, 0, everywhere).view(2, 12, -1)[:, :-1]
        torch.testing.assert_close(first[(data.positions() > 0)[:, 1:]], alone, atol=2e-5, rtol=0)
        model.attention = "sliced"
        with pytest.raises(ModelError, match="set model.attention=dense, or objective.anneal=0"):
            model.noisy_features(noisy, given, 4, everywhere)


@pytest.mark.parametrize("name", ["dense", "sliced"])
def test_gradient_checkpointing_changes_no_gradient(name: str, random_model: Make) -> None:
    model = HFDenoiser(random_model(), MASK, attention=name).train()
    data = batch(rows=2, documents=True)
    noisy = noised(data)
    plainly = loss_and_gradients(model.noisy_features(noisy, data, 4, data.learn), model, data)
    recompute(model.model)
    again = loss_and_gradients(model.noisy_features(noisy, data, 4, data.learn), model, data)
    assert plainly[0] == again[0]
    assert max(float((a - b).abs().max()) for a, b in zip(plainly[1], again[1], strict=True)) <= 1e-6


@pytest.mark.parametrize("grid", ["global", "per_document"])
def test_flex_layout_equals_the_dense_mask(grid: str, random_model: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    from torch.nn.attention.flex_attention import flex_attention

    monkeypatch.setattr(attention, "kernel", lambda: flex_attention)
    monkeypatch.setattr(backend, "capability", lambda device: (8, 0))
    data = batch(rows=2, length=16, documents=True)
    model = HFDenoiser(random_model(), MASK, attention="dense", block_grid=grid)
    with torch.no_grad():
        for given in (data, in_groups(batch(rows=2, length=16), 4)):
            model.attention = "dense"
            dense = model.noisy_features(noised(given), given, 4, given.learn)
            model.attention = "flex"
            flexible = model.noisy_features(noised(given), given, 4, given.learn)
            assert (dense - flexible).abs().max() <= 1e-5 * max(1.0, float(dense.abs().max()))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("length", [64, 512])
def test_compiled_flex_equals_dense_on_the_gpu(length: int, random_model: Make) -> None:
    model = HFDenoiser(random_model(head_dim=32), MASK).cuda()
    data = batch(rows=2, length=length, documents=True).to("cuda")
    noisy = noised(batch(rows=2, length=length, documents=True)).cuda()
    results = []
    for name in ("dense", "flex"):
        model.attention = name
        results.append(loss_and_gradients(model.noisy_features(noisy, data, 16, data.learn), model, data))
    assert abs(results[0][0] - results[1][0]) <= 1e-5
    assert max(float((a - b).abs().max()) for a, b in zip(results[0][1], results[1][1], strict=True)) <= 1e-4


def test_dense_on_an_old_gpu_uses_the_math_kernel_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backend, "capability", lambda device: (6, 1))
    with backend.dense_kernel(CPU):
        assert torch.backends.cuda.math_sdp_enabled()
        assert not torch.backends.cuda.flash_sdp_enabled() and not torch.backends.cuda.mem_efficient_sdp_enabled()


@pytest.mark.parametrize(
    ("level", "length", "block", "expected"),
    [
        (None, 1024, 32, "sliced"), (None, 1024, 1, "dense"), (None, 64, 32, "dense"), (None, 256, 16, "dense"),
        (None, 256, 32, "sliced"), (None, 1024, 1024, "dense"), ((6, 1), 1024, 32, "sliced"),
        ((9, 0), 1024, 32, "dense"), ((9, 0), 4096, 32, "flex"), ((9, 0), 4096, 4096, "dense"),
    ],
)  # fmt: skip
def test_the_backend_follows_device_length_and_block_and_says_why(
    level: Any, length: int, block: int, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(backend, "capability", lambda device: level)
    found = choose_backend("auto", CPU, length, block)
    assert found.name == expected and str(length) in found.reason
    assert choose_backend("sliced", CPU, length, block).reason == "asked for"


def test_flex_on_the_cpu_is_refused_with_the_reason() -> None:
    with pytest.raises(ModelError, match=r"7\.0 or more, this is cpu; use sliced or dense"):
        choose_backend("flex", CPU, 64, 8)


def shift_batch() -> tuple[Batch, torch.Tensor]:
    data = batch(rows=2)
    return data, data.positions() > 0


def test_shift_at_block_one_is_the_ar_loss(random_model: Make) -> None:
    model = HFDenoiser(random_model(), MASK, shift="clean")
    data, select = shift_batch()
    features = model.noisy_features(torch.full_like(data.tokens, MASK), data, 1, select)
    found = torch.nn.functional.cross_entropy(features @ model.head().T, data.tokens[select])
    expected = plain(model.model)(input_ids=data.tokens, labels=data.tokens).loss
    assert abs(float((found - expected).detach())) <= 1e-5


def test_a_shift_that_reads_the_noisy_stream_is_not_the_ar_loss(random_model: Make) -> None:
    model = HFDenoiser(random_model(), MASK)
    data, select = shift_batch()
    before = torch.cat([select[:, 1:], torch.zeros_like(select[:, :1])], 1)
    features = model.noisy_features(torch.full_like(data.tokens, MASK), data, 1, before)
    found = torch.nn.functional.cross_entropy(features @ model.head().T, data.tokens[select])
    expected = plain(model.model)(input_ids=data.tokens, labels=data.tokens).loss
    assert abs(float((found - expected).detach())) > 1e-2


@pytest.mark.parametrize("backend_name", ["dense", "sliced"])
def test_shift_reads_a_blocks_first_token_from_the_clean_stream(backend_name: str, random_model: Make) -> None:
    model = HFDenoiser(random_model(), MASK, shift="clean", attention=backend_name)
    data, block = batch(), 4
    noisy = noised(data)
    with torch.no_grad():
        found = model.noisy_features(noisy, data, block, data.learn) @ model.head().T
    reference, positions = plain(model.model), torch.arange(12)[None]
    clean = logits(reference, data.tokens, positions, visibility([0] * 12, [True] * 12, [i // 4 for i in range(12)]))
    for index in range(1, 12):
        start = index // block * block
        tokens = torch.cat([data.tokens[:, :start], noisy[:, start : start + block]], 1)
        size = start + block
        blocks = [i // block for i in range(size)]
        own = logits(reference, tokens, positions[:, :size], visibility([0] * size, [True] * size, blocks))
        expected = clean[0, index - 1] if index == start else own[0, index - 1]
        torch.testing.assert_close(found[index], expected, atol=2e-5, rtol=0)


def test_shifted_logits_predict_their_own_position(random_model: Make) -> None:
    model = HFDenoiser(random_model(), MASK, shift="clean")
    data = batch()
    mask = torch.ones(1, 1, 12, 12, dtype=torch.bool).tril()
    with torch.no_grad():
        found = model(data.tokens, data.positions(), mask)
        expected = plain(model.model)(input_ids=data.tokens, use_cache=False).logits
    torch.testing.assert_close(found[:, 1:], expected[:, :-1], atol=1e-5, rtol=0)
    with pytest.raises(ValueError, match="begin before the first selected"):
        model(data.tokens, data.positions() + 3, mask)


class Held:
    """The smallest cache a decoder may pass: update() returns all keys and values of a layer."""

    def __init__(self) -> None:
        self.layers: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}

    def update(self, key: torch.Tensor, value: torch.Tensor, layer: int, *_: Any, **__: Any) -> Any:
        if layer in self.layers:
            key, value = (torch.cat(pair, 2) for pair in zip(self.layers[layer], (key, value), strict=True))
        self.layers[layer] = (key, value)
        return self.layers[layer]


@pytest.mark.parametrize("family", FAMILIES)
def test_a_cache_that_only_updates_gives_the_uncached_logits(family: str, random_model: Make) -> None:
    model = HFDenoiser(portable(random_model(family, dtype=torch.float64)), MASK)
    data, cache = batch(), Held()
    mask = visibility([0] * 12, [True] * 12, [i // 4 for i in range(12)])
    expected = logits(plain(model.model), data.tokens, data.positions(), mask)
    for start in range(0, 12, 4):
        own = slice(start, start + 4)
        with torch.no_grad():
            found = model(data.tokens[:, own], data.positions()[:, own], mask[:, :, own, : start + 4], cache=cache)
        torch.testing.assert_close(found, expected[:, own], atol=1e-10, rtol=0)
