# The flow between latents and noise against closed forms: a Gaussian's own field, straight paths, times, guidance.
# Entry points: pytest.
# The exact field of a Gaussian is known for every time, and so is the latent that a noise must come to.
"""Tests of core/latents/flow.py."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from hildanext.core.latents import flow
from hildanext.core.latents.flow import evaluations, guided, interpolated, logit_normal, velocity, walked

MEAN, DEVIATION = torch.tensor([2.0, -1.0]), torch.tensor([0.5, 3.0])


def gaussian(latent: Tensor, time: float) -> Tensor:
    """E[noise - z_0 | z_t] where z_0 ~ N(MEAN, DEVIATION^2): both are jointly normal with z_t."""
    variance = (1 - time) ** 2 * DEVIATION**2 + time**2
    centred = latent - (1 - time) * MEAN
    return time * centred / variance - (MEAN + (1 - time) * DEVIATION**2 * centred / variance)


def noise(count: int = 5) -> Tensor:
    return torch.randn(count, 2, generator=torch.Generator().manual_seed(0)).double()


def test_a_path_is_straight_and_its_velocity_is_what_moves_along_it() -> None:
    clean, end = noise(), noise().flip(0)
    early, late = (interpolated(clean, end, torch.tensor(time)) for time in (0.25, 0.75))
    assert torch.equal(interpolated(clean, end, torch.tensor(0.0)), clean)
    torch.testing.assert_close(late - early, 0.5 * velocity(clean, end))


@pytest.mark.parametrize("sampler", flow.SAMPLERS)
@pytest.mark.parametrize("steps", [1, 3, 64])
def test_the_exact_velocity_of_a_pair_recovers_its_latent_from_any_number_of_steps(sampler: str, steps: int) -> None:
    clean, end = noise(), noise().flip(0)
    found = walked(lambda latent, time: velocity(clean, end), end, steps, sampler)
    torch.testing.assert_close(found, clean)


def test_the_planted_velocity_of_the_other_direction_recovers_nothing() -> None:
    clean, end = noise(), noise().flip(0)
    found = walked(lambda latent, time: -velocity(clean, end), end, 8)
    assert float((found - clean).abs().max()) > 1


@pytest.mark.parametrize(("sampler", "order"), [("euler", 1), ("heun", 2)])
def test_the_field_of_a_gaussian_carries_noise_to_its_own_quantile(sampler: str, order: int) -> None:
    start = noise()
    wanted = MEAN + DEVIATION * start  # in one dimension the flow keeps the order of points
    errors = [float((walked(gaussian, start, steps, sampler) - wanted).abs().max()) for steps in (64, 128)]
    assert errors[1] < 0.1 and errors[0] / errors[1] > 2**order * 0.8


def test_times_are_the_sigmoid_of_a_normal_variable() -> None:
    times = logit_normal((20000,), 1.0, 1.0, torch.Generator().manual_seed(0)).double()
    logits = torch.logit(times)
    assert abs(float(logits.mean()) - 1.0) < 0.03 and abs(float(logits.std()) - 1.0) < 0.03
    grid = torch.linspace(-2, 4, 13)
    normal = torch.tensor([0.5 * (1 + math.erf((x - 1.0) / math.sqrt(2))) for x in grid.tolist()])
    shares = torch.tensor([float((logits < x).double().mean()) for x in grid])
    assert float((shares - normal).abs().max()) < 0.015


def test_guidance_one_is_none_and_zero_is_the_field_without_the_prompt() -> None:
    with_prompt, without = noise(), noise().flip(0)
    torch.testing.assert_close(guided(with_prompt, without, 1.0), with_prompt)
    assert torch.equal(guided(with_prompt, without, 0.0), without)
    torch.testing.assert_close(guided(with_prompt, without, 3.0) - without, 3 * (with_prompt - without))


@pytest.mark.parametrize("sampler", flow.SAMPLERS)
def test_evaluations_are_counted(sampler: str) -> None:
    seen: list[float] = []
    walked(lambda latent, time: seen.append(time) or latent, noise(), 5, sampler)  # type: ignore[func-returns-value]
    assert len(seen) == evaluations(5, sampler) and seen[0] == 1.0 and min(seen) > 0
    with pytest.raises(ValueError, match="at least 1"):
        walked(lambda latent, time: latent, noise(), 0, sampler)
