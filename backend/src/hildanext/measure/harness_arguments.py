# What `lm_eval --model hildanext` is given, as our own settings: every argument is understood or refused by name.
# Entry points: settings(model_args) -> Settings, asked(generation kwargs) -> fields of a Request.
# Names of lm_eval's own models are taken where they mean something here: device, dtype, trust_remote_code, max_length.
"""Arguments of the lm-evaluation-harness model."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from pydantic import ValidationError

from hildanext.config.base import Section
from hildanext.config.decode import DecodeConfig
from hildanext.config.model import ModelConfig
from hildanext.config.nearest import describe, nearest
from hildanext.errors import ConfigError

LOG = logging.getLogger("lm_eval.hildanext")
DTYPES = {"float": "float32", "fp32": "float32", "half": "float16", "fp16": "float16", "bf16": "bfloat16"}
LENGTHS = ("max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens")
OWN = ("pretrained", "device", "dtype", "trust_remote_code", "batch_size", "max_batch_size", "max_length", "samples")
DRAWS = ("top_p", "top_k")
S = TypeVar("S", bound=Section)


@dataclass(frozen=True)
class Settings:
    """model, decode: sections of the configuration; generator: auto | diffusion | autoregressive; samples: draws of a
    likelihood bound, 0 exact; new_tokens: of a text whose task names no length."""

    model: ModelConfig
    decode: DecodeConfig
    generator: str
    samples: int
    new_tokens: int


def settings(given: Mapping[str, Any]) -> Settings:
    """The settings of model_args, of which pretrained is a folder. ConfigError on one line names every argument that is
    unknown or has an impossible value."""
    rest = {name: value for name, value in given.items() if value is not None or name == "tau_edit"}
    wrong: list[str] = []
    if str(rest.pop("greedy", True)).lower() in ("false", "0"):
        wrong.append("greedy=False: acc of log-likelihood tasks would read 0.0; leave it out")
    if str(rest.pop("enable_thinking", False)).lower() not in ("false", "0"):
        wrong.append("enable_thinking: chats are rendered as in training, with an empty think block; leave it out")
    if rest.pop("temperature", None) is not None:
        wrong.append("temperature: the tasks say how they draw; pass --gen_kwargs do_sample=True,temperature=...")
    own = {name: rest.pop(name) for name in OWN if name in rest}
    lengths = [rest.pop(name) for name in LENGTHS if name in rest]
    generator, samples = str(rest.pop("generator", "auto")), _count(own.get("samples", 16), "samples", wrong)
    known = [*OWN, *LENGTHS[:2], "generator", *DecodeConfig.model_fields]
    wrong += [
        f"{name}: not understood, {nearest(name, known)}" for name in rest if name not in DecodeConfig.model_fields
    ]
    decode = {name: value for name, value in rest.items() if name in DecodeConfig.model_fields}
    model = _checked(ModelConfig, _model(own), wrong)
    decoding = _checked(DecodeConfig, decode | _limits(own, lengths), wrong)
    if wrong or model is None or decoding is None:
        raise ConfigError(f"model_args: {'; '.join(wrong)}")
    return Settings(model, decoding, generator, samples, decoding.max_new_tokens if lengths else 0)


def _count(value: Any, name: str, wrong: list[str]) -> int:
    if isinstance(value, bool) or not str(value).isdigit():
        wrong.append(f"{name}: a count is expected, not {value!r}")
        return 0
    return int(value)


def _model(own: Mapping[str, Any]) -> dict[str, Any]:
    dtype = str(own.get("dtype", "auto")).removeprefix("torch.")
    found = {
        "path": own.get("pretrained", "tiny"),
        "device": _device(str(own.get("device", "auto"))),
        "dtype": DTYPES.get(dtype, dtype),
    }
    return found | {name: own[name] for name in ("trust_remote_code",) if name in own}


def _device(name: str) -> str:
    kind, _, index = name.partition(":")
    if kind != "cuda" or (index or "0").isdigit() and int(index or 0) < torch.cuda.device_count():
        return name
    LOG.warning("device %s is not there (CUDA devices: %d); another is taken", name, torch.cuda.device_count())
    return "auto"


def _limits(own: Mapping[str, Any], lengths: list[Any]) -> dict[str, Any]:
    found: dict[str, Any] = {"max_new_tokens": lengths[0]} if lengths else {}
    if "max_length" in own:
        found["window"] = own["max_length"]
    size = str(own.get("batch_size", ""))
    if size.isdigit() and int(size) > 1:
        found["requests"] = int(size)
    return found


def _checked(section: type[S], values: Mapping[str, Any], wrong: list[str]) -> S | None:
    try:
        return section.model_validate(dict(values))
    except ValidationError as error:
        wrong += describe(error, section, "")
        return None


def asked(arguments: Mapping[str, Any], new_tokens: int) -> dict[str, Any]:
    """Fields of a request from a task's generation arguments; `new_tokens` where they name no length. As lm_eval reads
    them: do_sample false is greedy, a temperature alone draws. ConfigError for an argument that would be ignored."""
    known = {"until", "do_sample", "temperature", *DRAWS, *LENGTHS}
    unknown = sorted(set(arguments) - known)
    if unknown:
        raise ConfigError(f"generation_kwargs: {unknown} would be ignored; known are {sorted(known)}")
    until = arguments.get("until") or []
    length = next((arguments[name] for name in LENGTHS if arguments.get(name) is not None), new_tokens)
    warmth = arguments.get("temperature")
    sampled = bool(warmth) if arguments.get("do_sample") is None else bool(arguments["do_sample"])
    temperature = float(1.0 if warmth is None else warmth) if sampled else 0.0
    if warmth and not sampled:
        LOG.warning("do_sample is false: temperature %s is not used, decoding is greedy", warmth)
    drawing = {name: arguments[name] for name in DRAWS if sampled and arguments.get(name) is not None}
    stop = tuple(text for text in ([until] if isinstance(until, str) else until) if text)
    return {"stop": stop, "temperature": temperature, "max_new_tokens": int(length), **drawing}
