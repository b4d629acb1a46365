# Cola's networks: what sees what by gradients, the mask entry by entry, reconstruction of a toy, cache on = off.
# Entry points: pytest.
# Gradients are the oracle of visibility; a decoding without a store, the whole text anew each time, that of the cache.
"""Tests of core/latents/cola.py and latents/cola.py."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from hildanext.core.latent import Draw, Ground
from hildanext.core.latents import cola as networks
from hildanext.core.latents.cola import blocks_behind, causal_bias, divergence, pair_bias, rule_of
from hildanext.core.latents.flow import guided, walked
from hildanext.core.latents.layers import Sight
from hildanext.core.masks import block_diffusion_mask, block_ids
from hildanext.core.types import Batch
from hildanext.latents.cola import Cola, ColaModel, ColaSampler

BLOCK, LENGTH, VOCABULARY, MASK = 4, 16, 12, 11


def model(seed: int = 0, **fields: Any) -> ColaModel:
    small = {"block": BLOCK, "latent": 3, "heads": 2, "vae_layers": 1, "layers": 2, "prompt": 0.0, "alone": 0.0}
    torch.manual_seed(seed)
    made = Cola(**{**small, **fields}).build(Ground(VOCABULARY, 16, 2, MASK))
    assert isinstance(made, ColaModel)
    for part in made.dit.modules():  # a DiT that begins as zero shows nothing
        if isinstance(part, torch.nn.Linear):
            torch.nn.init.normal_(part.weight, std=0.3)
    return made


def batch(docs: list[int] | None = None, learn: bool = True) -> Batch:
    tokens = torch.randint(0, MASK, (2, LENGTH), generator=torch.Generator().manual_seed(1))
    own = torch.tensor([[0] * LENGTH, docs or [0] * LENGTH])
    return Batch(tokens, torch.full_like(tokens, learn, dtype=torch.bool), own)


DOCS = [0] * 6 + [1] * 10


@pytest.mark.parametrize("docs", [None, DOCS])
def test_without_prompts_the_blocks_and_the_mask_are_those_of_the_discrete_model(docs: list[int] | None) -> None:
    own = batch(docs).docs
    blocks = blocks_behind(own, BLOCK, torch.zeros_like(own))
    assert torch.equal(blocks, block_ids(LENGTH, BLOCK, own, "per_document").expand_as(own))
    expected = block_diffusion_mask(LENGTH, BLOCK, own, "per_document")
    assert torch.equal(pair_bias(rule_of(own, blocks), None, torch.float32) == 0, expected)
    assert torch.equal(causal_bias(own, blocks, torch.float32) == 0, expected[:, :, LENGTH:, LENGTH:])


def test_a_prompt_is_one_block_more_and_the_others_count_from_its_end() -> None:
    own = torch.tensor([DOCS])
    prompts = torch.tensor([[3] * 6 + [0] * 10])
    assert blocks_behind(own, BLOCK, prompts).tolist() == [[-1] * 3 + [0] * 3 + [0] * 4 + [1] * 4 + [2] * 2]


def flow_of(
    made: ColaModel, given: Batch, prompts: int = 0, alone: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """Velocities with the noisy and the clean latents they came from, both with gradients."""
    rng = torch.Generator().manual_seed(3)
    noisy, clean = (torch.randn(*given.tokens.shape, 3, generator=rng, requires_grad=True) for _ in range(2))
    blocks = blocks_behind(given.docs, BLOCK, torch.full_like(given.docs, prompts))
    time = torch.full(given.tokens.shape, 0.5)
    return made.velocity(noisy, clean, time, given, (blocks, alone)), noisy, clean


def reach(made: ColaModel, given: Batch, place: int, prompts: int = 0, **more: Any) -> tuple[set[int], set[int]]:
    """Positions of row 1, noisy and clean, on which the velocity at a place depends."""
    found, noisy, clean = flow_of(made, given, prompts, **more)
    grads = torch.autograd.grad(found[1, place].sum(), (noisy, clean))
    assert not grads[0][0].any() and not grads[1][0].any()  # nothing of the other row
    return tuple(set(grad[1].abs().sum(-1).nonzero()[:, 0].tolist()) for grad in grads)  # type: ignore[return-value]


def test_a_later_block_sees_earlier_clean_ones_and_never_the_reverse() -> None:
    made = model()
    for place in range(LENGTH):
        start = place // BLOCK * BLOCK
        noisy, clean = reach(made, batch(), place)
        assert noisy == set(range(start, start + BLOCK)) and clean == set(range(start))


def test_a_planted_mask_that_shows_the_own_clean_block_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = networks.pair_bias

    def leaking(rule: Any, alone: Tensor | None, dtype: torch.dtype) -> Tensor:
        bias = whole(rule, alone, dtype)
        return bias.index_put(
            (torch.tensor(1), torch.tensor(0), torch.tensor(2), torch.tensor(LENGTH + 2)), torch.tensor(0.0)
        )

    monkeypatch.setattr("hildanext.latents.cola.pair_bias", leaking)
    assert reach(model(), batch(), 2)[1] == set(range(BLOCK))


def test_documents_do_not_leak_and_a_prompt_is_seen_whole() -> None:
    made = model()
    for place in range(LENGTH):
        noisy, clean = reach(made, batch(DOCS), place)
        first, stop = (0, 6) if place < 6 else (6, LENGTH)
        assert noisy | clean <= set(range(first, stop))
    noisy, clean = reach(made, batch(), 7, prompts=5)
    assert noisy == {5, 6, 7, 8} and clean == {0, 1, 2, 3, 4}
    alone = torch.ones(2, LENGTH, dtype=torch.bool)
    assert reach(made, batch(), 7, alone=alone) == ({4, 5, 6, 7}, set())


def test_the_vae_sees_no_later_block_and_no_other_document() -> None:
    made, given = model(), batch(DOCS)
    blocks = blocks_behind(given.docs, BLOCK, torch.zeros_like(given.docs))
    sight = Sight(given.positions(), causal_bias(given.docs, blocks, torch.float32))
    before = made.vae.decode(made.vae.encode(given.tokens, sight)[0], sight)
    changed = given.tokens.clone()
    changed[1, 9] = (changed[1, 9] + 1) % MASK
    after = made.vae.decode(made.vae.encode(changed, sight)[0], sight)
    moved = (before - after).abs().sum(-1).gt(0)
    assert not moved[0].any() and moved[1].nonzero()[:, 0].tolist() == list(range(6, LENGTH))


def test_the_divergence_is_the_integral() -> None:
    mean, spread = torch.tensor([[[0.7, -0.3]]]).double(), torch.tensor([[[-1.0, 0.4]]]).double()
    draws = mean + (spread / 2).exp() * torch.randn(200_000, 1, 2, generator=torch.Generator().manual_seed(0)).double()
    ratio = torch.distributions.Normal(mean, (spread / 2).exp()).log_prob(draws) - torch.distributions.Normal(
        0.0, 1.0
    ).log_prob(draws)
    assert float(divergence(mean, spread)) == pytest.approx(float(ratio.sum(-1).mean()), abs=0.01)


def test_no_gradient_of_the_flow_reaches_the_vae_and_the_averages_follow_the_latents() -> None:
    made, given = model(decay=0.0).train(), batch()
    latent = torch.randn(2, LENGTH, 3, generator=torch.Generator().manual_seed(5)) * 3 + 2
    made._seen(latent, given.learn)
    standard = made.standard(latent).flatten(0, 1)
    torch.testing.assert_close(standard.mean(0), torch.zeros(3), atol=1e-5, rtol=0)
    torch.testing.assert_close(standard.std(0, unbiased=False), torch.ones(3), atol=1e-4, rtol=0)
    torch.testing.assert_close(made.plain(made.standard(latent)), latent)
    found = made.loss(given, 0.5, torch.Generator().manual_seed(0))
    flow = [value for name, value in found.parts.items() if name == "flow"]
    assert flow and not flow[0].requires_grad
    blocks = blocks_behind(given.docs, BLOCK, torch.zeros_like(given.docs))
    total, _ = made._flow(made.standard(latent), given, blocks, torch.Generator().manual_seed(0))
    total.backward()
    assert all(one.grad is None for one in made.vae.parameters())
    assert any(one.grad is not None for one in made.dit.parameters())


def test_the_vae_learns_a_toy_to_98_percent() -> None:
    made = model(latent=8, denoise=0.0, alone=0.99).train()
    optimizer, rng = torch.optim.Adam(made.parameters(), lr=1e-2), torch.Generator().manual_seed(0)
    for _ in range(60):
        tokens = torch.randint(0, MASK, (8, LENGTH), generator=rng)
        given = Batch(tokens, torch.ones_like(tokens, dtype=torch.bool), torch.zeros_like(tokens))
        found = made.loss(given, 0.0, rng)
        optimizer.zero_grad()
        (found.total / found.normaliser).backward()
        optimizer.step()
    fresh = torch.randint(0, MASK, (8, LENGTH), generator=rng)
    given = Batch(fresh, torch.ones_like(fresh, dtype=torch.bool), torch.zeros_like(fresh))
    blocks = blocks_behind(given.docs, BLOCK, torch.zeros_like(fresh))
    sight = Sight(given.positions(), causal_bias(given.docs, blocks, torch.float32))

    def right(latent: Tensor) -> float:
        return float((made.vae.lm_head(made.vae.decode(latent, sight)).argmax(-1) == fresh).float().mean())

    mean, spread = made.vae.encode(fresh, sight)
    noisy = mean + (spread / 2).exp() * torch.randn(mean.shape, generator=rng)
    assert right(mean) >= 0.98 and right(noisy) >= 0.98
    assert right(torch.zeros_like(mean)) < 0.5  # planted: a decoder that is given nothing knows nothing


def uncached(made: ColaModel, prompt: list[int], blocks: int, draw: Draw, seed: int) -> list[int]:
    """The whole text anew at every evaluation, the block in question noisy behind clean latents: no store."""
    rng, text, kept = torch.Generator().manual_seed(seed), list[int](), list[Tensor]()
    if prompt:
        index = torch.arange(len(prompt))[None]
        kept.append(made.standard(made.vae.encode(torch.tensor([prompt]), Sight(index))[0]))
    for _ in range(blocks):
        before = torch.cat(kept, 1) if kept else torch.zeros(1, 0, 3)
        start = before.shape[1]

        def field(latent: Tensor, time: float, before: Tensor = before, start: int = start) -> Tensor:
            whole = torch.cat([before, latent], 1)
            times = torch.cat([torch.zeros(1, start), torch.full((1, BLOCK), time)], 1)
            seen = sight(len(prompt), start + BLOCK)
            found = made.dit(whole, times, seen)[:, start:]
            alone = made.dit(latent, times[:, start:], Sight(torch.arange(BLOCK)[None]))
            return found if draw.guidance == 1.0 else guided(found, alone, draw.guidance)

        kept.append(walked(field, torch.randn(BLOCK, 3, generator=rng)[None], draw.steps, draw.sampler))
        whole = torch.cat(kept, 1)
        scores = made.vae.lm_head(made.vae.decode(made.plain(whole), sight(len(prompt), whole.shape[1])))[:, -BLOCK:]
        scores[..., MASK] = -torch.inf
        text += scores.argmax(-1)[0].tolist()
    return text


def sight(prompt: int, length: int) -> Sight:
    docs = torch.zeros(1, length, dtype=torch.long)
    blocks = blocks_behind(docs, BLOCK, torch.full_like(docs, prompt))
    return Sight(torch.arange(length)[None], causal_bias(docs, blocks, torch.float32))


@pytest.mark.parametrize("draw", [Draw(3, "euler"), Draw(2, "heun", 2.5)])
@torch.no_grad()
def test_texts_with_the_store_are_those_without_it_whoever_is_drawn_beside_them(draw: Draw) -> None:
    made, prompts = model(2).eval(), [[1, 2, 3, 4, 5], [], [7, 8]]
    rngs = [torch.Generator().manual_seed(seed) for seed in range(3)]
    pieces = list(made.sample(prompts, 10, draw, rngs))
    assert len(pieces) == 3
    for row, prompt in enumerate(prompts):
        text = [token for piece in pieces for token in piece.tokens[row]]
        assert text == uncached(made, prompt, 3, draw, row)


@torch.no_grad()
def test_a_planted_store_that_keeps_noisy_keys_writes_other_texts(monkeypatch: pytest.MonkeyPatch) -> None:
    made, draw = model(2).eval(), Draw(3, "euler")
    kept = ColaSampler._kept

    def stale(self: Any, latent: Tensor, starts: list[int], sizes: list[int]) -> Tensor:
        return kept(self, latent + (1.0 if starts[0] else 0.0), starts, sizes)

    monkeypatch.setattr(ColaSampler, "_kept", stale)
    pieces = list(made.sample([[1, 2, 3]], 12, draw, [torch.Generator().manual_seed(0)]))
    assert [token for piece in pieces for token in piece.tokens[0]] != uncached(made, [1, 2, 3], 3, draw, 0)


@torch.no_grad()
def test_the_exact_field_of_a_known_text_writes_that_text(monkeypatch: pytest.MonkeyPatch) -> None:
    made, given = model(4).eval(), torch.tensor([[1, 2, 3, 4]])
    target = made.standard(made.vae.encode(given, Sight(torch.arange(BLOCK)[None]))[0])
    start = torch.randn(BLOCK, 3, generator=torch.Generator().manual_seed(0))[None]
    monkeypatch.setattr(ColaSampler, "_velocity", lambda self, latent, time, starts, sizes: start - target)
    (piece,) = made.sample([[]], BLOCK, Draw(5, "euler"), [torch.Generator().manual_seed(0)])
    logits = made.vae.lm_head(made.vae.decode(made.plain(target), Sight(torch.arange(BLOCK)[None])))
    assert list(piece.tokens[0]) == logits[..., :MASK].argmax(-1)[0].tolist()
