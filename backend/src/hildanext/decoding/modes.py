# The modes, and how their values meet a model folder's calibration and a request's own.
# Entry points: resolve_mode(request, config, calibrated) -> ResolvedMode, mode_values, known_mode, checked(calibrated).
# Modes are configuration (decode.modes). Precedence: mode < model folder < configuration < request.
"""Resolution of a request's mode and policy."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any, TypeVar

from pydantic import ValidationError

from hildanext.config.decode import WINDOW, DecodeConfig, ModeSection
from hildanext.config.nearest import describe, nearest
from hildanext.core.carry import Carry
from hildanext.decoding.compression import KVCompressor
from hildanext.decoding.policy import BlockPolicy
from hildanext.decoding.request import Request
from hildanext.decoding.statistics import Sampling
from hildanext.errors import ConfigError, DecodeError
from hildanext.registry import Plugin, build

DEFAULT_POLICY = str(ModeSection.model_fields["type"].default)
TAUS = ("tau_mask", "tau_edit", "max_post_steps")
Calibrated = Mapping[str, Mapping[str, Any]]
Found = TypeVar("Found", bound=Plugin)


@dataclass(frozen=True)
class ResolvedMode:
    """How one request is decoded: the policy, how tokens are drawn, what the result says about both, what positions
    carry between forwards, and which keys a block sees."""

    policy: BlockPolicy
    sampling: Sampling
    preset: Mapping[str, Any]
    name: str
    carry: Carry | None = None
    kv: KVCompressor | None = None


def known_mode(name: str, modes: Mapping[str, Any]) -> str:
    """The mode of that name, upper or lower case. DecodeError with the nearest where there is none."""
    found = name if name in modes else next((mode for mode in modes if mode.lower() == name.lower()), None)
    if found is None:
        raise DecodeError(f"mode: no mode {name!r}, {nearest(name, modes, listed=True)}")
    return found


def mode_values(mode: str, config: DecodeConfig, calibrated: Calibrated) -> dict[str, Any]:
    """The values of a mode, the model folder's own over the configured ones. DecodeError for an unknown mode."""
    mode = known_mode(mode, config.modes)
    return {**config.modes[mode].values(), **calibrated.get(mode, {})}


def resolve_mode(request: Request, config: DecodeConfig, calibrated: Calibrated) -> ResolvedMode:
    """The plan of a request. calibrated: mode -> values of the model folder. DecodeError for an unknown mode, field.
    The preset names the mode only if something of it is left; else its source says what replaced every value."""
    carry = _extra("carry", request.carry or config.carry, "carries", Carry)
    kv = _extra("kv", request.kv or config.kv, "compressors", KVCompressor)
    plan = _resolved(request, config, calibrated)
    shown = {name: _section(one) for name, one in (("carry", carry), ("kv", kv)) if one is not None}
    return replace(plan, carry=carry, kv=kv, preset={**plan.preset, **shown}) if shown else plan


def _extra(field: str, asked: Any, kind: str, base: type[Found]) -> Found | None:
    try:
        found = asked if asked is None or isinstance(asked, Plugin) else build(kind, asked, field)
    except ConfigError as error:
        raise DecodeError(str(error)) from error
    if found is not None and not isinstance(found, base):
        raise DecodeError(f"{field}: {type(found).__name__} is none; derive it from {base.__module__}.{base.__name__}")
    return found


def _section(plugin: Plugin) -> dict[str, Any]:
    return {"type": type(plugin).__module__.rpartition(".")[2], **plugin.model_dump()}


def _resolved(request: Request, config: DecodeConfig, calibrated: Calibrated) -> ResolvedMode:
    mode = known_mode(request.mode or config.mode, config.modes)
    offered = mode_values(mode, config, calibrated)
    sampling = _sampling(request, config)
    if isinstance(request.policy, Plugin):
        policy = _changed(request.policy, request)
        name = type(policy).__name__
        fields = {"source": "policy object", "type": name, **policy.model_dump()}
        return ResolvedMode(policy, sampling, {"mode": None, **fields, **_shown(sampling)}, name)

    asked = request.policy or config.policy
    usual = str(offered.get("type", DEFAULT_POLICY))
    kind = asked.type if asked else usual
    given = offered if kind == usual else {}
    said = {**_asked(config, (*WINDOW, *(TAUS if kind == DEFAULT_POLICY else ()))), "type": kind}
    said |= {**(asked.model_dump() if asked else {}), **_asked(request), **request.overrides}
    section = {**given, **said}
    try:
        policy = _built(json.dumps(section, sort_keys=True))
    except ConfigError as error:
        raise DecodeError(str(error)) from error
    if given.keys() - said.keys() or (asked is None and "type" in offered):
        origin: dict[str, str | None] = {"mode": mode, "source": "model folder" if calibrated.get(mode) else "table"}
    else:
        origin = {"mode": None, "source": "policy section" if asked else "explicit values"}
    return ResolvedMode(policy, sampling, {**origin, **section, **_shown(sampling)}, str(section["type"]))


def checked(calibrated: Calibrated) -> dict[str, dict[str, Any]]:
    """The values of each mode, after a request in that mode was resolved with them; DecodeError where one cannot be."""
    for mode in calibrated:
        resolve_mode(Request(prompt="", mode=mode), DecodeConfig(), calibrated)
    return {mode: dict(values) for mode, values in calibrated.items()}


def _changed(policy: Plugin, request: Request) -> BlockPolicy:
    changes, plugin = {**_asked(request), **request.overrides}, type(policy)
    if not isinstance(policy, BlockPolicy) or not issubclass(plugin, BlockPolicy):
        raise DecodeError(f"policy: {plugin.__name__} is no decoding policy; derive it from BlockPolicy")
    try:
        return plugin.model_validate({**dict(policy), **changes}) if changes else policy
    except ValidationError as error:
        raise DecodeError("policy: " + "; ".join(describe(error, plugin, ""))) from error


@lru_cache(maxsize=256)
def _built(section: str) -> BlockPolicy:
    policy: BlockPolicy = build("policies", json.loads(section), "policy")
    return policy


def _asked(asked: Request | DecodeConfig, names: tuple[str, ...] = (*TAUS, *WINDOW)) -> dict[str, Any]:
    return {name: value for name in names if (value := getattr(asked, name, "preset")) != "preset"}


def _sampling(request: Request, config: DecodeConfig) -> Sampling:
    chosen = {
        name: getattr(config, name) if getattr(request, name) is None else getattr(request, name)
        for name in ("temperature", "top_k", "top_p", "cfg_scale")
    }
    return Sampling(**chosen, confidence=config.confidence)


def _shown(sampling: Sampling) -> dict[str, Any]:
    return {name: getattr(sampling, name) for name in ("temperature", "top_k", "top_p", "cfg_scale", "confidence")}
