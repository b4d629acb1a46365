# How a request is drawn by a latent model: what it may ask, its steps, sampler and guidance, its generator.
# Entry points: draw_of (request -> Draw), refuse_others, generator_of, preset_of.
# What has no meaning here is refused by name; nothing asked for is silently dropped.
"""Requests of latent models."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from hildanext.config import Config
from hildanext.config.decode import WINDOW
from hildanext.config.nearest import nearest
from hildanext.core.latent import Draw, LatentModel, LatentType
from hildanext.decoding.request import Request
from hildanext.errors import DecodeError

QUOTA = "static_quota"
OWN = ("steps", "sampler")


def refuse_others(request: Request, name: str) -> None:
    """DecodeError naming what a sampler of latents cannot do: gaps, editing, thresholds, policies, grammars, records of
    tokens. Steps by the policy static_quota have a meaning."""
    policy = request.policy
    other = policy is not None and getattr(policy, "type", None) != QUOTA
    asked = {
        "infill": request.infill, "suffix": bool(request.suffix),
        "tau_mask": request.tau_mask != "preset", "tau_edit": request.tau_edit != "preset",
        **{field: getattr(request, field) != "preset" for field in WINDOW}, "mode": request.mode is not None,
        "policy": other, "carry": request.carry is not None, "kv": request.kv is not None,
        "block": request.block is not None, "temperature": bool(request.temperature), "top_k": bool(request.top_k),
        "top_p": request.top_p not in (None, 1.0), "grammar": request.grammar is not None, "trace": request.trace,
        "logprobs": request.logprobs is not None, "tools": bool(request.called),
    }  # fmt: skip
    found = [field for field, given in asked.items() if given]
    if found:
        raise DecodeError(
            f"{', '.join(found)}: a latent model ({name}) draws whole texts or blocks from noise and cannot do this;"
            " leave it out, or use a discrete model"
        )
    wrong = [field for field in request.overrides if field not in OWN]
    if wrong:
        raise DecodeError(f"overrides: {wrong[0]!r} is no setting of a sampler, {nearest(wrong[0], OWN, listed=True)}")


def draw_of(request: Request, config: Config, kind: LatentType, model: LatentModel) -> Draw:
    """Steps, sampler and guidance of a request: its own (overrides, policy static_quota, cfg_scale), else those of the
    configuration, else the model's. DecodeError for an unknown sampler and for steps that are no count."""
    _refuse_configured(config)
    said: dict[str, Any] = {**_steps(config.decode.policy), **_configured(config), **_steps(request.policy)}
    said |= request.overrides
    steps, sampler = said.get("steps", kind.steps), said.get("sampler", kind.sampler)
    if not isinstance(steps, int) or isinstance(steps, bool) or steps < 1:
        raise DecodeError(f"steps: {steps!r}, expected a count of 1 or more")
    if sampler not in model.samplers:
        raise DecodeError(f"sampler: no sampler {sampler!r}, {nearest(str(sampler), model.samplers, listed=True)}")
    scale = request.cfg_scale if request.cfg_scale is not None else config.decode.cfg_scale or None
    return Draw(steps, str(sampler), kind.guidance if scale is None else 1.0 + scale)


def _refuse_configured(config: Config) -> None:
    decode = config.decode
    set_ = [name for name in ("tau_mask", "tau_edit") if getattr(decode, name) != "preset"]
    set_ += [name for name in ("carry", "kv") if getattr(decode, name) is not None]
    set_ += ["policy"] if decode.policy is not None and decode.policy.type != QUOTA else []
    if set_:
        raise DecodeError(f"decode.{set_[0]}: a latent model has no such thing; leave it out, or use a discrete model")


def _configured(config: Config) -> dict[str, Any]:
    own = config.latent
    return ({"steps": own.steps} if own.steps else {}) | ({"sampler": own.sampler} if own.sampler else {})


def _steps(policy: Any) -> dict[str, Any]:
    values = {} if policy is None else policy.model_dump()
    return {"steps": values["steps"]} if values.get("type") == QUOTA and values.get("steps") else {}


def preset_of(draw: Draw) -> Mapping[str, Any]:
    """What a result says about how it was drawn."""
    values = {"sampler": draw.sampler, "steps": draw.steps, "guidance": draw.guidance}
    return {"mode": None, "source": "latent model", "type": draw.sampler, **values}


def generator_of(seed: int, sample: int) -> torch.Generator:
    """A text's own generator; sample tells repeats of one prompt apart."""
    mixed = (seed * 0x9E3779B97F4A7C15 + sample * 0xBF58476D1CE4E5B9 + 0x94D049BB133111EB) & (2**64 - 1)
    return torch.Generator().manual_seed((mixed ^ (mixed >> 31)) % 2**63)
