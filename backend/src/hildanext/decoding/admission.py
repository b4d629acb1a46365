# What a request must not ask of a model: carries without embeddings, actions without rows, keys that cannot be chosen.
# Entry points: require.
# Messages name the field and say what to do instead.
"""Refusals of impossible combinations."""

from __future__ import annotations

from hildanext.core.mixture import Mixes
from hildanext.core.types import Denoiser
from hildanext.decoding.compression import KVCompressor
from hildanext.decoding.modes import ResolvedMode
from hildanext.decoding.search import Search
from hildanext.decoding.state import RequestCanvas
from hildanext.errors import DecodeError
from hildanext.models.denoiser import HFDenoiser


def require(plan: ResolvedMode, denoiser: Denoiser, canvas: RequestCanvas, cached: bool) -> None:
    """DecodeError where the plan of a request cannot be carried out on this model and canvas; cached: decode.cache."""
    if plan.kv is not None and (reason := _no_keys(plan.kv, plan, denoiser) or _no_room(plan.kv, canvas, cached)):
        raise DecodeError(f"kv: {reason}")
    if plan.carry is not None and not isinstance(denoiser, Mixes):
        raise DecodeError("carry: this model takes tokens only, no mixtures of embeddings; use a model of kind hf")
    if plan.carry is not None and isinstance(plan.policy, Search):
        raise DecodeError("carry: a search compares candidates by their tokens; leave one of them out")
    if not plan.policy.acts:
        return
    if canvas.controls is None:
        raise DecodeError("policy: it edits by actions and this model has none; train one with edit_actions")
    free = canvas.editable.long()
    if bool((free[1:] < free[:-1]).any()):
        raise DecodeError("policy: it moves tokens, and behind a gap given ones stand still; use threshold_edit")


def _no_keys(rule: KVCompressor, plan: ResolvedMode, denoiser: Denoiser) -> str:
    if isinstance(denoiser, HFDenoiser) and denoiser.mixers:
        return "recurrent layers keep a state that is no keys, which nothing can be dropped of; leave it out"
    if not denoiser.takes_layout:
        return (
            "this model is told by a mask what it sees (an ONNX graph, captured forwards, or layers that change their"
            " keys); use a model of kind hf, engine transformers, without capture"
        )
    if rule.scored and not (isinstance(denoiser, HFDenoiser) and denoiser.key_scores is not None):
        return "this model has no trained key scores; write them with `hildanext key-scores`, or use window or knorm"
    if isinstance(plan.policy, Search):
        return "a search reads the keys of the store for all its candidates; leave one of them out"
    if rule.one_block and plan.policy.window_blocks > 1:
        return "it chooses for one block at a time; give window_blocks=1"
    return ""


def _no_room(rule: KVCompressor, canvas: RequestCanvas, cached: bool) -> str:
    block = canvas.blocks.block
    if not cached:
        return "nothing is kept with decode.cache=false; turn one of them off"
    if rule.inner and block % rule.inner:
        return f"parts of {rule.inner} positions do not divide blocks of {block}; give a divisor"
    return ""
