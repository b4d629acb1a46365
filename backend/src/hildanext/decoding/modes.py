# The named modes and how their values meet a model folder's calibration and a request's overrides.
# Entry points: MODES, resolve_mode(request, config, calibrated) -> ResolvedMode, checked(calibrated).
# S is speedy, Q is quality. Precedence: mode < model folder < configuration < request.
"""Presets of the decoding policies."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from pydantic import ValidationError

from hildanext.config.decode import DecodeConfig
from hildanext.config.nearest import describe, nearest
from hildanext.decoding.policy import BlockPolicy
from hildanext.decoding.request import Request
from hildanext.decoding.statistics import Sampling
from hildanext.errors import ConfigError, DecodeError
from hildanext.registry import build

DEFAULT_POLICY = "threshold_edit"
MODES: Mapping[str, Mapping[str, Any]] = {
    "S_MODE": {"tau_mask": 0.5, "tau_edit": 0.0, "max_post_steps": 16},
    "Q_MODE": {"tau_mask": 0.7, "tau_edit": 0.5, "max_post_steps": 16},
    "CONSERVATIVE": {"tau_mask": 0.95, "tau_edit": 0.9, "max_post_steps": 16},
}


@dataclass(frozen=True)
class ResolvedMode:
    """How one request is decoded: the policy, how tokens are drawn, and what the result says about both."""

    policy: BlockPolicy
    sampling: Sampling
    preset: Mapping[str, Any]
    name: str


def resolve_mode(request: Request, config: DecodeConfig, calibrated: Mapping[str, Mapping[str, Any]]) -> ResolvedMode:
    """The plan of a request. calibrated: mode -> values of the model folder. DecodeError for an unknown mode, field."""
    mode = request.mode or config.mode
    if mode not in MODES:
        raise DecodeError(f"mode: no mode {mode!r}, {nearest(mode, MODES, listed=True)}")
    if isinstance(request.policy, BlockPolicy):
        return _object(request.policy, request, config)
    own = calibrated.get(mode, {})
    section = _section(request, config, {**MODES[mode], **own})
    try:
        policy = _built(json.dumps(section, sort_keys=True))
    except ConfigError as error:
        raise DecodeError(str(error)) from error
    sampling = _sampling(request, config)
    source = "policy section" if section["type"] != DEFAULT_POLICY else "model folder" if own else "table"
    preset = {"mode": mode, "source": source, **section, **_shown(sampling)}
    return ResolvedMode(policy, sampling, preset, str(section["type"]))


def _object(policy: BlockPolicy, request: Request, config: DecodeConfig) -> ResolvedMode:
    changes, plugin, sampling = {**_taus(request), **request.overrides}, type(policy), _sampling(request, config)
    try:
        made = plugin.model_validate({**dict(policy), **changes}) if changes else policy
    except ValidationError as error:
        raise DecodeError("policy: " + "; ".join(describe(error, plugin, ""))) from error
    said = {"mode": None, "source": "policy object", "type": plugin.__name__, **made.model_dump()}
    return ResolvedMode(made, sampling, {**said, **_shown(sampling)}, plugin.__name__)


def checked(calibrated: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """The values of each mode, after a request in that mode was resolved with them; DecodeError where one cannot be."""
    for mode in calibrated:
        resolve_mode(Request(prompt="", mode=mode), DecodeConfig(), calibrated)
    return {mode: dict(values) for mode, values in calibrated.items()}


@lru_cache(maxsize=256)
def _built(section: str) -> BlockPolicy:
    policy: BlockPolicy = build("policies", json.loads(section), "policy")
    return policy


def _section(request: Request, config: DecodeConfig, mode: Mapping[str, Any]) -> dict[str, Any]:
    asked = request.policy or config.policy
    fields = asked.model_dump() if asked else {"type": DEFAULT_POLICY}
    default = fields["type"] == DEFAULT_POLICY
    base = {**mode, **_taus(config)} if default else {}
    return {**base, **fields, **_taus(request), **request.overrides}


def _taus(asked: Request | DecodeConfig) -> dict[str, Any]:
    names = ("tau_mask", "tau_edit", "max_post_steps")
    return {name: value for name in names if (value := getattr(asked, name, "preset")) != "preset"}


def _sampling(request: Request, config: DecodeConfig) -> Sampling:
    chosen = {
        name: getattr(config, name) if getattr(request, name) is None else getattr(request, name)
        for name in ("temperature", "top_k", "top_p", "cfg_scale")
    }
    return Sampling(**chosen, confidence=config.confidence)


def _shown(sampling: Sampling) -> dict[str, Any]:
    return {name: getattr(sampling, name) for name in ("temperature", "top_k", "top_p", "cfg_scale", "confidence")}
