# The parts of the latent diffusion language model against their formulas, and planted errors that each test must see.
# Entry points: pytest.
# Tiny shapes; the toy of the reconstruction is a table of states, no parent.
"""LDLM's schedule, times, gates, samplers and networks."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from hildanext.core.latents.ldlm import gates, network, perceiver, samplers
from hildanext.core.latents.ldlm.gates import ramp
from hildanext.core.latents.ldlm.network import Draws, LatentNetwork, Shape, Terms, terms
from hildanext.core.latents.ldlm.perceiver import normalised
from hildanext.core.latents.ldlm.samplers import denoised
from hildanext.core.latents.ldlm.schedule import Tangent
from hildanext.core.latents.ldlm.times import AdaptiveTimes, stratified

SHAPE = Shape(16, 11, length=12, latents=4, size=8, encoder=1, dit=2, decoder=1, tokens=1, width=16, head=8)


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def made(shape: Shape = SHAPE, seed: int = 0) -> LatentNetwork:
    torch.manual_seed(seed)
    found = LatentNetwork(shape, Tangent())
    for layer in found.dit.layers:  # gates of 0 would hide everything behind them
        torch.nn.init.normal_(layer.modulation.weight, std=0.2)
    torch.nn.init.normal_(found.dit.out.weight, std=0.2)
    return found


def material(shape: Shape = SHAPE, count: int = 3) -> tuple[Tensor, Tensor, Tensor]:
    states = normalised(torch.randn(count, shape.length, shape.states, generator=rng(1)))
    tokens = torch.randint(0, shape.vocabulary, (count, shape.length), generator=rng(2))
    lengths = torch.tensor([shape.length, 5, 7, 9][:count])
    return states, tokens, torch.arange(shape.length) < lengths[:, None]


def draws(shape: Shape, text: Tensor, prompted: float = 0.0, told: float = 0.0, seed: int = 3) -> Draws:
    return Draws.of(rng(seed), shape, text.sum(1), prompted, told)


def schedule_error(schedule: Any, d: float) -> float:
    times = torch.linspace(0.01, 0.99, 23, dtype=torch.float64)
    worst = 0.0
    for index, time in enumerate(times.tolist()):
        tangent = d * math.tan(math.pi * time / 2)
        alpha = 1 / math.sqrt(1 + tangent**2)
        wanted = (
            alpha,
            math.sqrt(1 - alpha**2),
            math.pi / 2 * d / math.cos(math.pi * time / 2) ** 2 / (1 + tangent**2),
        )
        given = (schedule.alpha(times)[index], schedule.sigma(times)[index], schedule.turn(times)[index])
        worst = max(worst, *(abs(float(one) - other) for one, other in zip(given, wanted, strict=True)))
    return worst


class Cosine(Tangent):
    def sigma(self, time: Tensor) -> Tensor:
        return torch.sin(math.pi / 2 * time)


@pytest.mark.parametrize("d", [1.0, 3.0, 7.0])
def test_the_schedule_is_the_tangent_formula_element_by_element(d: float) -> None:
    assert schedule_error(Tangent(d), d) < 1e-12
    ends = torch.tensor([0.0, 1.0])
    assert Tangent(d).alpha(ends).tolist() == pytest.approx([1, 0], abs=1e-6)
    assert Tangent(d).sigma(ends).tolist() == pytest.approx([0, 1], abs=1e-6)


def test_another_schedule_or_another_d_is_seen() -> None:
    assert schedule_error(Cosine(3.0), 3.0) > 0.1
    assert schedule_error(Tangent(2.9), 3.0) > 1e-3


def velocity_error(schedule: Tangent) -> float:
    latents, noise = (torch.randn(1, 2, 3, generator=rng(i), dtype=torch.float64) for i in (0, 1))
    worst, step = 0.0, 1e-6
    for time in (0.05, 0.3, 0.6, 0.95):
        at = [torch.tensor([time + move], dtype=torch.float64) for move in (-step, 0.0, step)]
        early, here, late = (schedule.noised(latents, noise, one) for one in at)
        worst = max(worst, float((schedule.velocity(here, latents, at[1]) - (late - early) / (2 * step)).abs().max()))
    return worst


def test_the_velocity_is_the_derivative_of_the_path() -> None:
    assert velocity_error(Tangent()) < 1e-7


def test_a_velocity_of_half_the_turn_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = Tangent.turn
    monkeypatch.setattr(Tangent, "turn", lambda self, time: whole(self, time) / 2)
    assert velocity_error(Tangent()) > 0.1


def recovered(sampler: Any, steps: int) -> float:
    latents, noise = (torch.randn(2, 3, 4, generator=rng(i)) for i in (0, 1))
    return float((denoised(lambda *_: latents, noise, steps, Tangent(), sampler) - latents).abs().max())


@pytest.mark.parametrize("sampler", ["ddim", "euler"])
def test_an_exact_prediction_gives_the_latent_back_in_any_number_of_steps(sampler: str) -> None:
    assert all(recovered(sampler, steps) == 0 for steps in (1, 2, 3, 7, 64))
    with pytest.raises(ValueError, match="steps 0"):
        recovered(sampler, 0)


def along(sampler: Any, steps: int, schedule: Tangent | None = None) -> float:
    schedule, spread = schedule or Tangent(), 0.5
    noise = torch.randn(1, 4, 8, generator=rng(5), dtype=torch.float64)

    def posterior(noised: Tensor, time: Tensor, before: Tensor) -> Tensor:
        alpha, sigma = schedule.alpha(time)[0], schedule.sigma(time)[0]
        return alpha * spread**2 / (alpha**2 * spread**2 + sigma**2) * noised

    return float((denoised(posterior, noise, steps, schedule, sampler) - spread * noise).abs().max())


def orders(sampler: Any) -> float:
    return along(sampler, 200) / along(sampler, 400)


@pytest.mark.parametrize("sampler", ["ddim", "euler"])
def test_both_samplers_follow_the_flow_of_a_gaussian_to_first_order(sampler: str) -> None:
    assert along(sampler, 400) < 0.04
    assert orders(sampler) == pytest.approx(2, abs=0.2)


def test_a_step_with_the_wrong_noise_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    ddim = samplers.SAMPLERS["ddim"]
    monkeypatch.setitem(samplers.SAMPLERS, "ddim", lambda s, z, x, t, u: ddim(s, z, x, t, u) * 1.001)
    assert along("ddim", 400) > 0.04
    monkeypatch.setitem(samplers.SAMPLERS, "euler", lambda s, z, x, t, u: z + (u - t)[:, None, None] * (z - x))
    assert along("euler", 400) > 0.04


def told(shape: Shape, steps: int) -> list[Tensor]:
    seen: list[Tensor] = []

    def predict(noised: Tensor, time: Tensor, before: Tensor) -> Tensor:
        seen.append(before)
        return noised + len(seen)

    denoised(predict, torch.zeros(1, shape.latents, shape.size), steps, Tangent())
    return seen


def test_the_sampler_tells_the_prediction_before_and_zeros_at_first() -> None:
    seen = told(SHAPE, 3)
    assert [float(one.flatten()[0]) for one in seen[:2]] == [0.0, 1.0] and len(seen) == 3


def flatness(times: AdaptiveTimes, loss: Callable[[Tensor], Tensor]) -> float:
    """Largest distance between the loss that accumulates along the draws and a straight line, as a share."""
    drawn = times.draw(torch.linspace(0, 1, 4001)[:-1]).double()
    widths = torch.cat([drawn[1:], torch.ones(1, dtype=torch.float64)]) - drawn
    mass = (loss(drawn) * widths).cumsum(0)
    return float((mass / mass[-1] - torch.linspace(0, 1, len(mass), dtype=torch.float64)).abs().max())


def learned(times: AdaptiveTimes, loss: Callable[[Tensor], Tensor], steps: int = 400) -> AdaptiveTimes:
    source = rng(7)
    for _ in range(steps):
        drawn = times.draw(stratified(64, torch.rand((), generator=source)))
        times.update(drawn, loss(drawn))
    return times


def steep(times: Tensor) -> Tensor:
    return 0.02 + times**4


def test_times_drawn_by_the_loss_let_it_accumulate_linearly() -> None:
    assert flatness(AdaptiveTimes(floor=0.0), steep) > 0.4
    assert flatness(learned(AdaptiveTimes(floor=0.0), steep), steep) < 0.03
    assert flatness(learned(AdaptiveTimes(floor=0.05), steep), steep) < 0.06


def test_the_histogram_of_times_is_the_density() -> None:
    times = learned(AdaptiveTimes(bins=8), steep)
    counts = torch.histc(times.draw(torch.linspace(0, 1, 8001)[:-1]), bins=8, min=0, max=1) / 8000
    assert torch.allclose(counts, times.density(), atol=2e-3)
    assert float(times.density().sum()) == pytest.approx(1)


def test_means_taken_into_the_wrong_bin_are_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    update = AdaptiveTimes.update
    monkeypatch.setattr(AdaptiveTimes, "update", lambda self, times, losses: update(self, 1 - times, losses))
    assert flatness(learned(AdaptiveTimes(floor=0.0), steep), steep) > 0.2


def test_the_gate_keeps_the_value_and_scales_the_gradient() -> None:
    values = torch.randn(3, generator=rng(), requires_grad=True)
    for gamma in (0.0, 0.25, 1.0):
        found = gates.gated(values, gamma)
        assert torch.allclose(found, values)
        slope = torch.autograd.grad(found.square().sum(), values)[0] if gamma else torch.zeros(3)
        assert torch.allclose(slope, 2 * gamma * values)
    assert not gates.gated(values, 0.0).requires_grad


def test_the_ramp_is_late() -> None:
    assert ramp(0.0) < 1e-3 and ramp(0.8) == pytest.approx(0.5) and ramp(1.0) == pytest.approx(1 / (1 + math.exp(-2)))


def slopes(net: LatentNetwork, loss: Callable[[Terms], Tensor], gamma: float) -> dict[str, float]:
    """Norm of the gradient of one loss in each part."""
    states, tokens, text = material()
    net.zero_grad(set_to_none=True)
    loss(terms(net.eval(), states, tokens, text, draws(SHAPE, text), (gamma, 1.0))).backward()
    return {
        name: sum(float(p.grad.norm()) for p in part.parameters() if p.grad is not None)
        for name, part in net.named_children()
    }


def gamma_is_kept(net: LatentNetwork) -> bool:
    none, half, whole = (slopes(net, lambda t: t.diffusion.sum(), gamma)["encoder"] for gamma in (0.0, 0.5, 1.0))
    return none == 0 and whole > 1e-6 and abs(half / whole - 0.5) < 1e-4


def test_gamma_is_the_share_of_the_diffusion_gradient_in_the_encoder() -> None:
    net = made()
    assert gamma_is_kept(net)
    assert slopes(net, lambda t: t.diffusion.sum(), 0.0)["dit"] > 1e-6


def test_an_open_gate_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(network, "gated", lambda values, gamma: values)
    assert not gamma_is_kept(made())


def stopped(net: LatentNetwork) -> bool:
    tokens, states = slopes(net, lambda t: t.nll.sum(), 1.0), slopes(net, lambda t: t.states.sum(), 1.0)
    only = tokens["tokens"] > 1e-6 and not any(tokens[name] for name in ("encoder", "decoder", "dit"))
    return only and states["decoder"] > 1e-6 and states["encoder"] > 1e-6 and not states["tokens"]


def test_the_tokens_loss_trains_the_token_decoder_alone() -> None:
    assert stopped(made())


def test_a_token_decoder_without_stopped_gradient_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Tensor, "detach", lambda self: self)
    assert not stopped(made())


def test_self_conditioning_is_told_the_prediction_without_its_gradient(monkeypatch: pytest.MonkeyPatch) -> None:
    net, (states, tokens, text) = made(), material()
    given: list[tuple[Tensor, Tensor, bool]] = []

    def dit(noised: Tensor, time: Tensor, before: Tensor, prompt: Tensor, known: Tensor) -> Tensor:
        given.append((before, whole(noised, time, before, prompt, known), torch.is_grad_enabled()))
        return given[-1][1]

    whole = net.dit.forward
    monkeypatch.setattr(net.dit, "forward", dit)
    off = terms(net, states, tokens, text, draws(SHAPE, text, told=0.0), (1.0, 1.0))
    assert len(given) == 1 and not given[0][0].any()
    on = terms(net, states, tokens, text, draws(SHAPE, text, told=1.0), (1.0, 1.0))
    assert [one[2] for one in given] == [True, False, True] and given[2][0].shape == given[0][0].shape
    assert torch.equal(given[2][0], given[1][1]) and not given[2][0].requires_grad
    assert off.diffusion.shape == on.diffusion.shape == (3,) and not torch.allclose(off.diffusion, on.diffusion)


def test_half_of_the_steps_are_told() -> None:
    _, _, text = material()
    own = [draws(SHAPE, text, told=0.5, seed=seed).own for seed in range(400)]
    assert 0.42 < sum(own) / len(own) < 0.58


def padding_matters(net: LatentNetwork) -> float:
    """Largest change of the losses of a text when what stands behind its end is another."""
    states, tokens, text = material()
    other = torch.where(text[..., None], states, torch.randn(states.shape, generator=rng(9)))
    mixed = torch.where(text, tokens, (tokens + 1) % SHAPE.vocabulary)
    drawn = draws(SHAPE, text, prompted=1.0)
    both = [terms(net.eval(), *given, text, drawn, (1.0, 1.0)) for given in ((states, tokens), (other, mixed))]
    return max(
        float((vars(both[0])[name] - vars(both[1])[name]).detach().abs().max())
        for name in ("diffusion", "states", "nll")
    )


def test_what_stands_behind_the_end_of_a_text_changes_nothing() -> None:
    assert padding_matters(made()) == 0
    net, (states, _, text) = made().eval(), material()
    short = slice(None), slice(0, 7)
    latents = net.encoder(states, text & (torch.arange(12) < 7))
    assert torch.allclose(net.encoder(states[short], text[short]), latents, atol=1e-6)
    decoded = net.decoder(latents, 12), net.decoder(latents, 7)
    assert torch.allclose(decoded[0][:, :7], decoded[1], atol=1e-6)
    assert torch.allclose(net.tokens(decoded[0])[:, :7], net.tokens(decoded[1]), atol=1e-5)


def test_padding_that_is_read_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    net = made()
    encode = net.encoder.forward
    monkeypatch.setattr(net.encoder, "forward", lambda states, text: encode(states, torch.ones_like(text)))
    assert padding_matters(net) > 1e-4


def test_a_prompt_of_none_is_read_as_none_and_another_prompt_is_another_prediction() -> None:
    net, (states, _, _) = made(), material()
    noised, time = torch.randn(3, 4, 8, generator=rng(4)), torch.full((3,), 0.5)
    before = torch.zeros_like(noised)

    def dit(prompt: Tensor, length: int) -> Tensor:
        given = torch.arange(prompt.shape[1]) < torch.full((3, 1), length)
        return net.dit(noised, time, before, prompt, given)

    assert torch.allclose(dit(states[:, :1], 0), dit(-states[:, :6], 0), atol=1e-6)
    assert not torch.allclose(dit(states[:, :3], 3), dit(states[:, :3], 2), atol=1e-3)
    assert torch.allclose(dit(states[:, :3], 3), dit(states[:, :6], 3), atol=1e-6)


def shrunk(scale: float, **given: float) -> float:
    """Largest change of standardised latents when all that the encoder says is said `scale` times as loud."""
    values, standard = torch.randn(9, 4, 8, generator=rng(6)), perceiver.Standardised(4, 8, **given)
    return float((standard(values * scale) - standard(values)).abs().max())


def test_latents_said_less_loudly_are_the_same_latents() -> None:
    assert shrunk(1e-2) < 1e-4 and shrunk(1e-4) < 1e-2


def test_a_variance_that_can_be_shrunk_away_is_seen() -> None:
    assert shrunk(1e-4, least=1e-5) > 1


def accuracy(shape: Shape, steps: int = 150, sigma: float = 0.5) -> tuple[float, float]:
    """(clean latents, with the noise of training): right tokens of a trained toy, whose states name their token."""
    torch.manual_seed(0)
    table, net = normalised(torch.randn(shape.vocabulary, shape.states)), LatentNetwork(shape, Tangent())
    optimizer = torch.optim.AdamW(net.parameters(), lr=4e-3)
    source = rng(11)

    def texts(count: int) -> tuple[Tensor, Tensor, Tensor]:
        tokens = torch.randint(0, shape.vocabulary, (count, shape.length), generator=source)
        return table[tokens], tokens, torch.ones_like(tokens, dtype=torch.bool)

    for step in range(steps):
        given = texts(64)
        found = terms(net, *given, Draws.of(source, shape, given[2].sum(1), 0.0, 0.5), (0.0, sigma))
        optimizer.zero_grad()
        (found.diffusion.mean() + found.states.mean() + found.nll.mean()).backward()
        for group in optimizer.param_groups:
            group["lr"] = 4e-3 * min(1, 2 * (1 - step / steps))
        optimizer.step()
    states, tokens, text = texts(64)
    latents = net.eval().encoder(states, text)
    heard = latents + sigma * torch.randn(latents.shape, generator=source)
    right = [
        (net.tokens(net.decoder(one, shape.length)).argmax(-1) == tokens).float().mean() for one in (latents, heard)
    ]
    return float(right[0]), float(right[1])


TOY = Shape(32, 5, length=5, latents=5, size=16, encoder=1, dit=1, decoder=1, tokens=1, width=16, head=8)


def test_a_toy_is_reconstructed_with_and_without_noise() -> None:
    clean, heard = accuracy(TOY)
    assert clean > 0.95 and heard > 0.8


def test_without_positions_nothing_is_reconstructed(monkeypatch: pytest.MonkeyPatch) -> None:
    def same(count: int, width: int, length: int) -> torch.nn.Parameter:
        return torch.nn.Parameter(torch.zeros(count, width), requires_grad=False)

    monkeypatch.setattr(perceiver, "waves", same)
    clean, _ = accuracy(TOY, steps=60)
    assert clean < 0.5


LONG = Shape(32, 5, length=64, latents=8, size=8, encoder=1, dit=1, decoder=1, tokens=1, width=16, head=8)


def distances() -> tuple[float, float]:
    """(encoder, decoder): how far from its own place a new network's first layer reads in its context on average, as a
    share of what reading everywhere alike would give."""
    net = made(LONG)
    states = normalised(torch.randn(4, LONG.length, LONG.states, generator=rng(1)))
    latents = torch.randn(4, LONG.latents, LONG.size, generator=rng(2))
    at = {64: torch.arange(64.0), 8: torch.arange(8) * 8 + 3.5}
    found = []
    for part, given in ((net.encoder, states), (net.decoder, latents)):
        layer, context = part.layers[0], part.read(given) + part.places
        query = layer.attention.query(layer.before(part.queries)).unflatten(-1, (-1, LONG.head))
        key = layer.attention.pair(layer.context(context))[..., : LONG.states].unflatten(-1, (-1, LONG.head))
        weights = (torch.einsum("qhd,bkhd->bhqk", query, key) / LONG.head**0.5).softmax(-1)
        far = (at[len(part.queries)][:, None] - at[context.shape[1]]).abs()
        found.append(float(((weights * far).sum(-1).mean() / far.mean()).detach()))
    return found[0], found[1]


def test_a_new_perceiver_reads_near_its_own_place() -> None:
    assert max(distances()) < 0.75


def test_places_of_no_order_or_queries_of_their_own_are_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(perceiver, "waves", lambda count, width, length: perceiver.places(count, width))
        assert min(distances()) > 0.9
    monkeypatch.setattr(perceiver.ReadingLayer, "begin_alike", lambda self: self)
    assert min(distances()) > 0.9


def test_waves_are_of_the_place_and_not_of_its_number() -> None:
    many, few = perceiver.waves(64, 32, 64).detach(), perceiver.waves(32, 32, 64).detach()
    assert torch.allclose((many[0::2] * few).sum(1), (many[1::2] * few).sum(1), atol=1e-4)
    near, far = (float((many[10] * many[other]).sum()) for other in (11, 40))
    assert near > 0.9 * float(many[10].square().sum()) and far < 0.6 * near and perceiver.waves(3, 5, 9).shape == (3, 5)
