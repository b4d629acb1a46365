# What a request must not ask of a model: carries without embeddings, actions without rows for them, two things at once.
# Entry points: require.
# Messages name the field and say what to do instead.
"""Refusals of impossible combinations."""

from __future__ import annotations

from hildanext.core.mixture import Mixes
from hildanext.core.types import Denoiser
from hildanext.decoding.modes import ResolvedMode
from hildanext.decoding.search import Search
from hildanext.decoding.state import RequestCanvas
from hildanext.errors import DecodeError


def require(plan: ResolvedMode, denoiser: Denoiser, canvas: RequestCanvas) -> None:
    """DecodeError where the plan of a request cannot be carried out on this model and canvas."""
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
