# Proposals for whole blocks: a shift of zero is the child to the bit, cached texts are uncached ones, nothing leaks.
# Entry points: pytest.
# Oracles: the child itself, training's own forward, decoding without a store. Small random models.
"""Tests of core/latents/vfm.py and latents/vfm.py."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from decoding.reference import MASK, loaded
from torch import Tensor

from hildanext.config.decode import DecodeConfig
from hildanext.core.latents.vfm import NoiseAdapter, fresh, trajectory
from hildanext.core.types import Batch
from hildanext.decoding.driver import Driver
from hildanext.decoding.engine import BlockEngine
from hildanext.decoding.request import Request
from hildanext.errors import DecodeError
from hildanext.latents.vfm import Proposing, Vfm, VfmModel, _apart
from hildanext.models.latent import LatentDenoiser, ground_of

BLOCK = 4
NAMES = {"block": BLOCK, "width": 16, "layers": 2, "looks": 2, "begin": 0.5}


class Words:
    """What ground_of asks of a tokenizer."""

    eos_token_id = 1


@pytest.fixture
def made(random_model: Callable[..., Any]) -> Callable[..., VfmModel]:
    def of(strong: bool = False, **fields: Any) -> VfmModel:
        parts = loaded(random_model("qwen3", 1), None)
        parts.tokenizer = Words()
        torch.manual_seed(0)
        built = Vfm(**{**NAMES, **fields}).build(ground_of(parts))
        assert isinstance(built, VfmModel)
        for one in built.adapter.stack.parameters() if strong else ():
            one.data *= 6.0  # so that the text before a block decides its shift
        return built

    return of


def texts(denoiser: Any, lengths: tuple[int, ...] = (5, 8, 1), together: bool = True, **fields: Any) -> list[Any]:
    """Texts behind prompts of these lengths."""
    parts = loaded(denoiser.child.model if isinstance(denoiser, Proposing) else denoiser.model, None, block=BLOCK)
    parts.denoiser = denoiser
    config = DecodeConfig(**{"max_new_tokens": 13, "tau_mask": 0.3, "tau_edit": None, "requests": 3, **fields})
    asks = [Request.of(prompt_ids=tuple(range(2, 2 + length)), ignore_eos=True) for length in lengths]
    if together:
        return Driver(BlockEngine(parts, config)).run(asks)
    return [Driver(BlockEngine(parts, config)).run([ask])[0] for ask in asks]


def ids(found: list[Any]) -> list[tuple[int, ...]]:
    return [one.token_ids for one in found]


def test_a_shift_of_zero_writes_the_childs_texts_in_as_many_forwards(made: Callable[..., VfmModel]) -> None:
    model = made()
    child = model.child
    shifted = texts(model.proposing())
    assert ids(shifted) != ids(texts(child))  # the planted difference: a shift that is there
    torch.nn.init.zeros_(model.adapter.mean.weight)
    same = texts(model.proposing())
    assert ids(same) == ids(texts(child))
    assert [one.metrics.forwards for one in same] == [one.metrics.forwards for one in texts(child)]


@pytest.mark.parametrize("fields", [{"fuse": False}, {"cache": False}, {"requests": 1}, {"window": 20}])
def test_texts_do_not_depend_on_store_fusing_or_batch_mates(
    made: Callable[..., VfmModel], fields: dict[str, Any]
) -> None:
    model = made(strong=True)
    window = {"window": 20, "max_new_tokens": 11} if "window" in fields else {}
    plain = texts(model.proposing(), **window)
    assert ids(texts(model.proposing(), **{**window, **fields})) == ids(plain)
    assert ids(texts(model.proposing(), together=False, **window)) == ids(plain)


def test_a_planted_adapter_that_forgets_the_text_before_writes_others(
    made: Callable[..., VfmModel], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = made(strong=True)
    plain, forward = ids(texts(model.proposing())), NoiseAdapter.forward

    def forgetful(self: NoiseAdapter, embedded: Tensor, sight: Any) -> Any:
        from hildanext.core.latents.layers import Sight

        return forward(self, embedded, Sight(sight.positions))

    monkeypatch.setattr(NoiseAdapter, "forward", forgetful)
    assert ids(texts(model.proposing(), cache=False)) != plain


def batch(docs: list[int] | None = None) -> Batch:
    tokens = torch.randint(5, 60, (2, 16), generator=torch.Generator().manual_seed(1))
    own = torch.tensor([docs or [0] * 16] * 2)
    return Batch(tokens, torch.ones_like(tokens, dtype=torch.bool), own)


def test_training_computes_what_decoding_adds(made: Callable[..., VfmModel]) -> None:
    model, given = made().eval(), batch()
    with torch.no_grad():
        mean, _ = model.moments(given)
        trained = model.logits(given, model._masked(given), mean).view(2, 16, -1)
        proposing = model.proposing()
        assert proposing is not None
        for start in range(0, 16, BLOCK):
            stop = start + BLOCK
            tokens = torch.cat([given.tokens[:, :start], torch.full((2, BLOCK), MASK)], 1)
            positions = torch.arange(stop).expand(2, -1)
            seen = (positions[0, :, None] // BLOCK >= positions[0] // BLOCK)[None, None]
            found = proposing(tokens, positions, seen)[:, start:]
            found[..., MASK] = trained[0, 0, MASK]
            torch.testing.assert_close(found, trained[:, start:stop], atol=1e-4, rtol=1e-4)


def test_a_blocks_shift_depends_on_the_text_before_it_in_its_document_alone(made: Callable[..., VfmModel]) -> None:
    model, docs = made(), [0] * 8 + [1] * 8
    before, _ = model.moments(batch(docs))
    for place in (0, 5, 9, 15):
        given = batch(docs)
        given.tokens[1, place] = 61
        after, _ = model.moments(given)
        moved = (before - after).abs().sum(-1).gt(0)
        end = (place // BLOCK + 1) * BLOCK
        stop = 8 if place < 8 else 16
        assert not moved[0].any() and moved[1].nonzero()[:, 0].tolist() == list(range(end, stop))


def test_blocks_that_hold_a_given_token_get_no_shift(made: Callable[..., VfmModel]) -> None:
    model, given = made(), batch()
    given.learn[1, 5] = False
    mean, deviation = model.moments(given)
    assert not mean[1, 4:8].any() and mean[0, 4:8].any() and mean[1, 8:].any()
    kl = model.adapter.divergence(mean, deviation).detach()
    assert float(kl[1, 4:8].abs().max()) < 1e-6 and float(kl[0].min()) > 0
    written = torch.tensor([[True, False, False, False]])
    assert fresh(written, torch.tensor([[7, 7, 9, 9]])).tolist() == [[False, False, True, True]]


def test_the_divergence_is_the_integral(made: Callable[..., VfmModel]) -> None:
    adapter = made().adapter
    unit = float(adapter.get_buffer("scale")) * adapter.prior
    mean, deviation = torch.tensor([0.7, -0.2]).double() * unit, torch.tensor([0.5, 1.4]).double() * unit
    draws = mean + deviation * torch.randn(100_000, 2, generator=torch.Generator().manual_seed(0)).double()
    normal = torch.distributions.Normal
    ratio = normal(mean, deviation).log_prob(draws) - normal(0.0, unit).log_prob(draws)
    assert float(adapter.divergence(mean, deviation)) == pytest.approx(float(ratio.sum(-1).mean()), abs=0.01)


def fitted(model: VfmModel, steps: int, rate: float = 3e-3) -> Any:
    optimizer, rng = torch.optim.Adam(model.parameters(), lr=rate), torch.Generator().manual_seed(0)
    for _ in range(steps):
        found = model.train().loss(batch(), 0.0, rng)
        optimizer.zero_grad()
        (found.total / found.normaliser).backward()
        optimizer.step()
    with torch.no_grad():
        return model.eval().loss(batch(), 0.0, rng).parts


def test_a_large_lambda_gives_the_base_model_back(made: Callable[..., VfmModel]) -> None:
    model = made(kl=1e6, begin=0.05)
    child = ids(texts(model.child))
    before = model.eval().loss(batch(), 0.0, torch.Generator()).parts["kl"]
    parts = fitted(model, 60, 5e-3)
    assert float(parts["kl"]) < 0.01 * float(before) and ids(texts(model.proposing())) == child
    assert float(parts["consistency"]) == pytest.approx(float(parts["without"]), rel=0.02)


def test_a_small_one_makes_one_look_better_than_the_childs_own(made: Callable[..., VfmModel]) -> None:
    parts = fitted(made(kl=0.0, data=0.0, begin=0.05), 30)
    assert float(parts["consistency"]) < 0.8 * float(parts["without"])


def test_every_part_of_the_adapter_has_a_gradient_at_the_beginning_and_the_child_none(
    made: Callable[..., VfmModel],
) -> None:
    def norm(begin: float) -> float:
        model = made(begin=begin, kl=0.0)
        model.train().loss(batch(), 0.0, torch.Generator().manual_seed(0)).total.backward()
        assert all(one.grad is None for one in model.child.parameters())
        grad = model.adapter.opening.weight.grad
        return 0.0 if grad is None else float(grad.norm())

    assert norm(0.02) > 1e-3
    assert norm(1e-30) < 1e-6  # planted: the saddle of a zero beginning


def test_a_trajectory_is_the_loop_over_blocks() -> None:
    table = torch.randn(8, 9, generator=torch.Generator().manual_seed(2))
    mask_id, blocks = 8, torch.tensor([[0, 0, 0, 0, 1, 1, 1, 1]])
    opened = torch.tensor([[True, True, False, True, True, True, True, True]])

    def logits(tokens: Tensor) -> Tensor:
        moved = table + 0.5 * (tokens[0] != mask_id).sum() * table.flip(0)
        moved[:, mask_id] = -1e9
        return moved[opened[0]]

    found = trajectory(logits, torch.arange(8)[None], opened, blocks, (3, mask_id, 0.6))
    tokens = torch.where(opened, mask_id, torch.arange(8)[None])
    for look in range(3):
        scores = torch.zeros(8, 9).masked_scatter(opened[0][:, None], logits(tokens)).softmax(-1)
        step = tokens.clone()
        for block in (0, 1):
            left = [i for i in range(8) if blocks[0, i] == block and tokens[0, i] == mask_id]
            best = max(left, key=lambda i: float(scores[i].max()), default=-1)
            for i in left:
                if look == 2 or i == best or float(scores[i].max()) > 0.6:
                    step[0, i] = int(scores[i].argmax())
        tokens = step
    assert torch.equal(found, tokens) and int(found[0, 2]) == 2


def test_documents_have_blocks_of_their_own() -> None:
    blocks, docs = torch.tensor([[0, 0, 0, 0]]), torch.tensor([[0, 0, 1, 1]])
    assert len(set(_apart(blocks, docs)[0].tolist())) == 2


def test_what_proposals_cannot_follow_is_refused(made: Callable[..., VfmModel]) -> None:
    model = made()
    with pytest.raises(DecodeError, match="leave kv out|use a model of kind hf"):
        texts(model.proposing(), kv={"type": "window"})
    with pytest.raises(DecodeError, match="trained at blocks of 4"):
        texts(model.proposing(), block=8)
    whole = LatentDenoiser(model, {"type": "vfm"})
    assert whole.exact and whole.vocab_size == model.child.vocab_size
    assert whole.state_bytes(8) == model.child.state_bytes(8) + 8 * 2 * 2 * 16 * 4
    assert not {id(one) for one in whole.parameters()} & {id(one) for one in model.child.parameters()}
