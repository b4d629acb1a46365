# Which architectures become block diffusion by masks and positions alone, and why the others are refused.
# Entry points: check_supported (a configuration), mixer_of, recurrent_layers, attention_layers, layer_kinds, recompute,
# check_head, scale_of, fold_scale, text_config.
# Every rule reads the configuration of the text model, also where it is nested in one of several modalities.
"""Supported architectures."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from typing import Any

import torch

from hildanext.errors import ModelError
from hildanext.registry import build, names

LENGTH_DEPENDENT = ("dynamic", "longrope")
FULL, BOTH, INERT = "full_attention", "hybrid", ("mlp", "moe")
BROKEN = {
    "bamba": "its code forgets the recurrent state whenever more than one token follows it",
    "jamba": "its code forgets the recurrent state whenever more than one token follows it",
    "kimi_linear": "its code does not continue from its own cache",
}
FOLDED = {"logits_scaling": True, "lm_head_multiplier": False}
LAST_NORMS = ("norm", "final_layernorm")
SCALES = ("logits_scaling", "logit_scale", "final_logit_softcapping", "lm_head_multiplier")


def text_config(config: Any) -> Any:
    """The configuration of the language model inside a Hugging Face configuration, itself where nothing is nested."""
    if getattr(config, "is_encoder_decoder", False):
        return config
    return config.get_text_config(decoder=True)


def check_supported(config: Any, where: str) -> None:
    """ModelError, saying why, for an architecture that a 4-D mask does not turn into block diffusion."""
    held = text_config(config)
    _check_recurrent(config, held, where)
    kinds = {kind for kind in set(layer_kinds(config)) - {FULL} if mixer_of(config, kind) is None}
    kinds -= set(INERT) if recurrent_layers(config) else set()
    window = getattr(held, "sliding_window", None)
    if kinds & {"sliding_attention", "chunked_attention"} or (not kinds and window and _uses_window(held)):
        raise ModelError(
            f"{where}: {config.model_type} has sliding-window layers (window {window}), which cannot see a whole clean"
            " prefix; use a model with full attention in every layer"
        )
    if kinds or getattr(config, "is_encoder_decoder", False):
        raise ModelError(
            f"{where}: {config.model_type} has {', '.join(sorted(kinds)) or 'encoder-decoder'} layers, which are not a"
            " softmax over a mask, so no block size can be put into them; use a softmax-attention decoder"
        )
    if not _takes_attention(config) or getattr(held, "attn_logit_softcapping", None):
        raise ModelError(
            f"{where}: {config.model_type} does not take its attention from transformers' AttentionInterface, so its"
            " layers are not a softmax over a mask that can be given; use Qwen3, Qwen2, Llama, Mistral or a like model"
        )
    if found := _length_dependent(held):
        raise ModelError(
            f"{where}: {config.model_type} attends differently at different lengths ({found}): a block decoded alone"
            " would not be the block that was trained; use a model whose attention is the same at every length"
        )


def _check_recurrent(config: Any, held: Any, where: str) -> None:
    family = next((one.model_type for one in (config, held) if one.model_type in BROKEN), "")
    if family in BROKEN:
        raise ModelError(
            f"{where}: {family} has recurrent layers, which are not a softmax over a mask, and {BROKEN[family]}, so a"
            " block cannot be decoded after a committed one; use a model of lfm2, qwen3_5 or granitemoehybrid"
        )


def mixer_of(config: Any, kind: str) -> Any:
    """The plugin of kind `mixers` that is exact for this family's layers of type `kind`, or None."""
    return next((one for one in _mixers() if kind in one.layer_types and _is_of(config, one.families)), None)


@cache
def _mixers() -> tuple[Any, ...]:
    return tuple(build("mixers", {"type": name}) for name in names("mixers"))


def _is_of(config: Any, families: tuple[str, ...]) -> bool:
    return config.model_type in families or text_config(config).model_type in families


def mixers_by_name(config: Any) -> dict[str, int]:
    """The recurrent layers of a configuration: how many of each mixer; empty: attention in all of them."""
    found = [mixer_of(config, kind) for kind in layer_kinds(config) if kind != FULL]
    named = [type(one).__module__.rpartition(".")[2] for one in found if one is not None]
    return {name: named.count(name) for name in sorted(set(named))}


def layer_kinds(config: Any) -> list[str]:
    """What each layer of a configuration is, by transformers' names; empty: attention in every layer."""
    return list(getattr(text_config(config), "layer_types", None) or ())


def recurrent_layers(config: Any) -> int:
    """How many layers of a configuration are recurrent, or have a recurrent part."""
    return sum(mixers_by_name(config).values())


def attention_layers(config: Any) -> int:
    """How many layers of a configuration keep keys and values."""
    if recurrent_layers(config):
        return sum(kind in (FULL, BOTH) for kind in layer_kinds(config))
    return int(text_config(config).num_hidden_layers)


def scale_of(config: Any) -> tuple[str, float]:
    """(name, factor on the logits) of a configuration whose factor can be taken into the last norm; ("", 1.0): none."""
    held = text_config(config)
    for name, turned in FOLDED.items():
        value = getattr(held, name, None)
        if value not in (None, 0, 1, 1.0):
            return name, 1 / float(value) if turned else float(value)
    return "", 1.0


@torch.no_grad()
def fold_scale(network: Any) -> None:
    """Take a factor on the logits into the weight of the last norm, so that logits are features @ head again; nothing
    where there is none, or the norm is not proportional to its weight."""
    name, factor = scale_of(network.config)
    norm = next((one for key in LAST_NORMS if (one := getattr(network.base_model, key, None)) is not None), None)
    if not name or norm is None or not _proportional(norm):
        return
    norm.weight.mul_(factor)
    for holder in (text_config(network.config), network.config, network.base_model, network):
        if getattr(holder, name, None) is not None:
            setattr(holder, name, 1.0)


def _proportional(norm: Any) -> bool:
    if [key for key, _ in norm.named_parameters()] != ["weight"] or "RMSNorm" not in type(norm).__name__:
        return False
    if norm.weight.is_meta:
        return True
    given, old = torch.linspace(-1, 2, len(norm.weight)).to(norm.weight), norm.weight.clone()
    once = norm(given[None]).float()
    norm.weight.mul_(2)
    twice = norm(given[None]).float()
    norm.weight.copy_(old)
    return bool(once.any()) and torch.allclose(twice, 2 * once)


def check_head(network: Any, where: str) -> None:
    """ModelError where logits are not the features times the output matrix: a bias, a scale or a cap on them."""
    held = text_config(network.config)
    scales = [name for name in SCALES if getattr(held, name, None) not in (None, 0, 1, 1.0)]
    output = network.get_output_embeddings()
    bias = getattr(output, "bias", None) is not None
    if output is None or scales or bias:
        cause = "no output matrix" if output is None else "an output bias" if bias else scales[0]
        raise ModelError(
            f"{where}: {network.config.model_type} has {cause}: its logits are not"
            " the features times the output matrix, which training and likelihood rely on; use another model"
        )


def _takes_attention(config: Any) -> bool:
    from transformers import MODEL_FOR_CAUSAL_LM_MAPPING

    # hybrids declare nothing, and every family of a mixer has been tried
    if type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING or recurrent_layers(config):
        return True
    network = MODEL_FOR_CAUSAL_LM_MAPPING[type(config)]
    return bool(network._supports_attention_backend) and bool(getattr(network, "_supports_sdpa", True))


def _uses_window(config: Any) -> bool:
    return bool(getattr(config, "use_sliding_window", True)) and not getattr(config, "layer_types", None)


def _length_dependent(config: Any) -> str:
    for kind in _rotary_types(config):
        if any(word in kind for word in LENGTH_DEPENDENT):
            return f"rotary type {kind}: its factors follow the longest position of a forward"
    kept, window = getattr(config, "keep_window_size", None), getattr(config, "max_position_embeddings", None) or 0
    if kept is not None and kept < window:
        return f"keep_window_size {kept} of {window} positions"
    return ""


def _rotary_types(config: Any) -> Iterator[str]:
    pending = [getattr(config, name, None) for name in ("rope_parameters", "rope_scaling")]
    while pending:
        found = pending.pop()
        if not isinstance(found, dict):
            continue
        pending += found.values()
        kind = found.get("rope_type", found.get("type"))
        if isinstance(kind, str):
            yield kind


def recompute(network: Any) -> None:
    """Recompute every layer in the backward pass instead of keeping its activations; the method's old name is for
    older releases of transformers."""
    if hasattr(network, "activation_checkpointing_enable"):
        network.activation_checkpointing_enable({"use_reentrant": False})
    else:
        network.gradient_checkpointing_enable({"use_reentrant": False})
