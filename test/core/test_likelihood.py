# The chunked cross-entropy against F.cross_entropy in float64, and the KL against the plain formula.
# Entry points: pytest.
# A check is a function; a planted error (wrong target, lost weight, lost chunk) is shown to fail it.
"""Tests of core/linear_cross_entropy.py, core/linear_kl.py and token_nll."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from core.stand_ins import LayerModel, UniformModel, batch_of
from torch import Tensor
from torch.nn import functional

from hildanext.core import linear_cross_entropy as module
from hildanext.core.head import HeadOptions, HeadSums, chunk_rows
from hildanext.core.likelihood import autoregressive_nll, block_elbo, token_nll
from hildanext.core.linear_cross_entropy import linear_cross_entropy, weighted_cross_entropy
from hildanext.core.linear_kl import Teacher, linear_kl, weighted_kl

EXCLUDED = 29


def inputs(dtype: torch.dtype = torch.float64, count: int = 50) -> list[Tensor]:
    rng = torch.Generator().manual_seed(0)
    features = torch.randn(count, 8, generator=rng, dtype=torch.float64).to(dtype).requires_grad_()
    weight = torch.randn(30, 8, generator=rng, dtype=torch.float64).to(dtype).requires_grad_()
    targets = torch.randint(0, EXCLUDED, (count,), generator=rng)
    return [features, weight, targets, torch.rand(2, count, generator=rng, dtype=torch.float64)]


def plain(features: Tensor, weight: Tensor, targets: Tensor, exclude: int | None, smoothing: float):
    logits = features.double() @ weight.double().T
    logits = logits if exclude is None else torch.cat([logits[:, :exclude], logits[:, exclude + 1 :]], 1)
    logs = logits.log_softmax(1)
    nll = functional.cross_entropy(logits, targets, reduction="none", label_smoothing=smoothing)
    return nll, -(logs.exp() * logs).sum(1), logits.argmax(1)


def assert_close(found, wanted, tolerance: float = 1e-10) -> None:
    for one, other in zip(found, wanted, strict=True):
        assert torch.allclose(one.double(), other.double(), atol=tolerance, rtol=tolerance)


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
@pytest.mark.parametrize("exclude", [None, EXCLUDED])
@pytest.mark.parametrize("chunk", [1, 7, 50, 0])
def test_both_forms_equal_cross_entropy_in_value_and_gradient(smoothing, exclude, chunk):
    features, weight, targets, weights = inputs()
    nll, entropy, best = plain(features, weight, targets, exclude, smoothing)
    total = (weights[0] * nll + weights[1] * entropy).sum()
    wanted = [total.detach(), *torch.autograd.grad(total, (features, weight))]
    scores = linear_cross_entropy(features, weight, targets, exclude, smoothing, chunk)
    given = (weights[0] * scores.nll + weights[1] * scores.entropy).sum()
    assert_close([given.detach(), *torch.autograd.grad(given, (features, weight))], wanted)
    fused, scores = weighted_cross_entropy(features, weight, targets, weights, HeadOptions(exclude, smoothing, chunk))
    assert_close([fused.detach(), *torch.autograd.grad(fused, (features, weight))], wanted)
    assert_close([scores.nll, scores.entropy, scores.best], [nll.detach(), entropy.detach(), best])
    assert torch.equal(scores.correct, best == targets)


def _forgetful(add):
    return lambda self, gradient, features, weight, rows: add(
        self, gradient * (rows.start < 40), features, weight, rows
    )


@pytest.mark.parametrize("fault", ["target", "weight", "chunk", "sign"])
def test_the_comparison_fails_on_a_planted_error(fault, monkeypatch):
    features, weight, targets, weights = inputs()
    nll, _, _ = plain(features, weight, targets, None, 0.0)
    total = (weights[0] * nll).sum()
    wanted = torch.autograd.grad(total, (features, weight))
    first, asked = weights[0].clone(), targets.clone()
    if fault == "target":
        asked[3] = (asked[3] + 1) % EXCLUDED
    if fault == "weight":
        first[3] = 0.0
    if fault == "chunk":
        monkeypatch.setattr(HeadSums, "add", _forgetful(HeadSums.add))
    if fault == "sign":
        right = module._logit_gradient
        monkeypatch.setattr(module, "_logit_gradient", lambda *a: -right(*a))
    fused, _ = weighted_cross_entropy(features, weight, asked, first, HeadOptions(chunk=20))
    with pytest.raises(AssertionError):
        assert_close(torch.autograd.grad(fused, (features, weight)), wanted)


def test_a_frozen_head_gets_no_gradient_and_the_features_keep_theirs():
    features, weight, targets, weights = inputs()
    total, _ = weighted_cross_entropy(features, weight.detach(), targets, weights[0])
    nll, _, _ = plain(features, weight, targets, None, 0.0)
    assert_close(torch.autograd.grad(total, features), torch.autograd.grad((weights[0] * nll).sum(), features))


def test_the_gradient_of_one_forward_serves_one_backward():
    features, weight, targets, weights = inputs()
    total, _ = weighted_cross_entropy(features, weight, targets, weights[0])
    total.backward(retain_graph=True)
    with pytest.raises(ValueError, match="one backward"):
        total.backward()


def test_nothing_selected_gives_zero_and_finite_gradients():
    features, weight, _, _ = inputs(count=50)
    empty, none = features[:0], torch.zeros(0, dtype=torch.long)
    total, scores = weighted_cross_entropy(empty, weight, none, torch.zeros(0))
    total.backward()
    assert float(total.detach()) == 0 and scores.nll.shape == (0,)
    assert bool((weight.grad == 0).all()) and bool((features.grad == 0).all())


def assert_mask_logit_has_no_effect() -> None:
    """1e3 on the logit of [MASK]: same scores of text, same bound, whatever computes them; and no gradient to it."""
    features, weight, targets, weights = inputs()
    raised = torch.cat([features, torch.ones(50, 1, dtype=torch.float64)], 1)
    found = []
    for height in (0.0, 1e3):
        push = torch.zeros(30, 1, dtype=torch.float64)
        push[EXCLUDED] = height
        head = torch.cat([weight.detach(), push], 1).requires_grad_()
        total, scores = weighted_cross_entropy(raised, head, targets, weights, HeadOptions(EXCLUDED, 0.1))
        total.backward(retain_graph=True)
        assert bool((head.grad[EXCLUDED] == 0).all()) and bool((head.grad != 0).any())
        model = Raised(height)
        found.append([total.detach(), scores.nll, scores.entropy, scores.best, scores.probability, *model.numbers()])
    assert all(torch.equal(one, other) for one, other in zip(*found, strict=True))


class Raised(LayerModel):
    """A LayerModel whose logit of [MASK] is higher by `height`."""

    def __init__(self, height: float) -> None:
        super().__init__()
        self.height = height

    def head(self) -> Tensor:
        push = torch.zeros(12, 1, dtype=torch.float64)
        push[self.mask_id] = self.height
        return torch.cat([super().head(), push], 1)

    def body(self, tokens: Tensor, positions: Tensor, mask: Tensor) -> Tensor:
        hidden = super().body(tokens, positions, mask)
        return torch.cat([hidden, torch.ones(*hidden.shape[:2], 1, dtype=hidden.dtype)], 2)

    def numbers(self) -> list[Tensor]:
        batch = batch_of(torch.randint(0, 11, (2, 8), generator=torch.Generator().manual_seed(4)))
        noisy = batch.tokens.masked_fill(torch.arange(8) > 4, self.mask_id)
        bounds = [block_elbo(self, batch, 4, torch.Generator().manual_seed(0), samples).nats for samples in (0, 3)]
        with torch.no_grad():
            nll = token_nll(self, noisy, batch, 4, batch.learn).nll
        return [nll, torch.tensor([*bounds, autoregressive_nll(self, batch).nats])]


def test_the_logit_of_mask_has_no_effect_on_any_likelihood():
    assert_mask_logit_has_no_effect()


@pytest.mark.parametrize("wrong", [lambda token: None, lambda token: token - 1])
def test_a_head_that_excludes_nothing_or_another_token_is_seen(wrong, monkeypatch):
    right = module._forward
    monkeypatch.setattr(module, "_forward", lambda *a: right(*a[:3], replace(a[3], exclude=wrong(a[3].exclude))))
    with pytest.raises(AssertionError):
        assert_mask_logit_has_no_effect()


def assert_sums_are_precise(nll_of) -> None:
    """nll_of(features, head, targets) [n] of a bfloat16 model against float64 from the same bfloat16 logits."""
    generator = torch.Generator().manual_seed(3)
    features = torch.randn(400, 32, generator=generator).bfloat16()
    head = torch.randn(500, 32, generator=generator).bfloat16()
    targets = torch.randint(0, 500, (400,), generator=generator)
    exact = functional.cross_entropy((features @ head.T).double(), targets, reduction="none")
    found = nll_of(features, head, targets)
    assert float((found.double() / exact - 1).abs().max()) <= 1e-3
    assert abs(float(found.double().mean() / exact.mean()) - 1) <= 1e-6


def test_the_sums_of_a_bfloat16_model_are_those_of_float64():
    assert_sums_are_precise(lambda features, head, targets: linear_cross_entropy(features, head, targets).nll)
    assert_sums_are_precise(
        lambda features, head, targets: weighted_cross_entropy(features, head, targets, torch.ones(400))[1].nll
    )


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_sums_in_half_precision_fail(dtype):
    with pytest.raises(AssertionError):
        assert_sums_are_precise(
            lambda features, head, targets: functional.cross_entropy(
                (features @ head.T).to(dtype), targets, reduction="none"
            )
        )


def test_under_autocast_the_head_is_multiplied_in_bfloat16_and_the_gradients_come_back_in_float32():
    features, weight, targets, weights = inputs(torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        total, scores = weighted_cross_entropy(features, weight, targets, weights[0].float())
    total.backward()
    nll, _, _ = plain(features, weight, targets, None, 0.0)
    assert scores.nll.dtype == weight.grad.dtype == features.grad.dtype == torch.float32
    assert float((scores.nll - nll.detach()).abs().max()) < 0.1


def test_chunks_keep_the_buffer_small_for_a_large_vocabulary():
    assert chunk_rows(151_936) * 151_936 * 4 <= 64 * 2**20
    assert chunk_rows(400) > 10_000
    assert chunk_rows(400, 3) == 3


@pytest.mark.parametrize("top_k", [0, 1, 5])
@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize(("chunk", "heat"), [(0, 1.0), (7, 1.0), (7, 2.5), (0, 0.5)])
def test_kl_equals_the_plain_formula_in_value_and_gradient(top_k, reverse, chunk, heat):
    features, weight, _, weights = inputs()
    rng = torch.Generator().manual_seed(9)
    hers, head = torch.randn(50, 6, generator=rng).double(), torch.randn(30, 6, generator=rng).double()
    teacher = Teacher(hers, head, top_k, EXCLUDED, chunk, reverse, heat)
    given = linear_kl(features, weight, teacher)
    wanted, logits = (hers @ head.T)[:, :EXCLUDED] / heat, (features @ weight.T)[:, :EXCLUDED] / heat
    ids = wanted.topk(top_k or EXCLUDED, dim=1).indices
    target, ours = wanted.gather(1, ids).softmax(1), logits.gather(1, ids).softmax(1)
    over, other = (ours, target) if reverse else (target, ours)
    plainly = heat**2 * (over * (over.log() - other.log())).sum(1)
    assert_close([given.detach()], [plainly.detach()])
    gradients = torch.autograd.grad((weights[0] * plainly).sum(), (features, weight))
    assert_close(torch.autograd.grad((weights[0] * given).sum(), (features, weight)), gradients)
    total, divergence = weighted_kl(features, weight, teacher, weights[0])
    assert_close([total.detach(), divergence], [(weights[0] * plainly).sum().detach(), plainly.detach()])
    assert_close(torch.autograd.grad(3 * total, (features, weight)), [3 * one for one in gradients])
    same = linear_kl(features, weight, replace(teacher, features=features, weight=weight))
    assert float(same.detach().abs().max()) < 1e-12
    if top_k != 1:
        for wrong in ({"features": hers.flip(1)}, {"reverse": not reverse}, {"temperature": 1.5}, {"exclude": None}):
            with pytest.raises(AssertionError):
                assert_close([linear_kl(features, weight, replace(teacher, **wrong)).detach()], [plainly.detach()])


def test_kl_gives_a_frozen_head_no_gradient_and_its_own_only_once():
    features, weight, _, weights = inputs()
    teacher, frozen = Teacher(features.detach().flip(1), weight.detach()), weight.detach()
    total, divergence = weighted_kl(features, frozen, teacher, weights[0])
    assert not divergence.requires_grad and total.requires_grad
    total.backward(retain_graph=True)
    with pytest.raises(ValueError, match="used already"):
        total.backward()
    nothing, empty = weighted_kl(features[:0], weight, replace(teacher, features=teacher.features[:0]), weights[0, :0])
    nothing.backward()
    assert float(nothing.detach()) == 0 and empty.shape == (0,)


def test_kl_under_autocast_has_float32_gradients_and_sums():
    features, weight, _, weights = inputs(torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        total, divergence = weighted_kl(
            features, weight, Teacher(features.detach().flip(1), weight.detach()), weights[0].float()
        )
    total.backward()
    exact = linear_kl(features, weight, Teacher(features.detach().flip(1), weight.detach())).detach()
    assert divergence.dtype == weight.grad.dtype == features.grad.dtype == torch.float32
    assert float((divergence - exact).abs().max()) < 0.2


def test_token_nll_is_the_models_own_log_softmax():
    model, rng = LayerModel(), torch.Generator().manual_seed(5)
    tokens = torch.randint(0, 11, (3, 12), generator=rng)
    batch, select = batch_of(tokens), torch.rand(3, 12, generator=rng) < 0.5
    noisy = tokens.masked_fill(select, model.mask_id)
    logits = model.noisy_features(noisy, batch, 4, select) @ model.head()[: model.mask_id].T
    wanted = -logits.log_softmax(1).gather(1, tokens[select][:, None])[:, 0]
    assert_close([token_nll(model, noisy, batch, 4, select).nll.detach()], [wanted.detach()])


def test_autoregressive_nll_leaves_out_what_nothing_predicts():
    docs = torch.tensor([[0, 0, 0, 1, 1, 1, 2, 2]])
    learn = torch.tensor([[True] * 6 + [False] * 2])
    batch = batch_of(torch.randint(0, 8, (1, 8)), learn, docs)
    found = autoregressive_nll(UniformModel(9), batch)
    assert found.tokens == 4 and abs(found.nats_per_token - math.log(8)) < 1e-6
    assert replace(found, tokens=0).nats_per_token is not None and math.isnan(replace(found, tokens=0).nats_per_token)
