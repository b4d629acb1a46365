# The widths of a decoder under the names that families give them: heads, key heads, feed-forward, layers, window.
# Entry points: Shape.
# Llama's names come first; where a family has others or none, the fall-back is what its network really builds.
"""Shape of a Hugging Face configuration."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from hildanext.models.support import text_config


@dataclass(frozen=True)
class Shape:
    """hidden width, layers, query heads and key heads with their width, feed-forward width, rows of the vocabulary,
    longest sequence (0: none named); counts and widths."""

    hidden: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    feed: int
    vocabulary: int
    window: int

    @classmethod
    def of(cls, config: Any) -> Shape:
        """The shape of the language model of a configuration."""
        held = text_config(config)
        hidden, heads = int(held.hidden_size), int(held.num_attention_heads)
        return cls(
            hidden, int(held.num_hidden_layers), heads, _kv_heads(held, heads), _head_dim(held, hidden // heads),
            _feed(held, hidden), int(held.vocab_size), int(getattr(held, "max_position_embeddings", 0) or 0),
        )  # fmt: skip


def _kv_heads(config: Any, heads: int) -> int:
    known = getattr(config, "num_key_value_heads", None)
    return int(known or (1 if getattr(config, "multi_query", False) else heads))


def _head_dim(config: Any, fallback: int) -> int:
    parts = [getattr(config, name, None) for name in ("qk_nope_head_dim", "qk_rope_head_dim")]
    if all(parts):
        return max(sum(int(part) for part in parts if part), int(getattr(config, "v_head_dim", 0) or 0))
    return int(getattr(config, "head_dim", None) or fallback)


def _feed(config: Any, hidden: int) -> int:
    routed = getattr(config, "moe_intermediate_size", None) or 0
    active = getattr(config, "num_experts_per_tok", None) or 0
    found = [getattr(config, name, None) for name in ("intermediate_size", "ffn_dim", "n_inner")]
    width = next((value for value in found if value), 4 * hidden)
    dense = max(width) if isinstance(width, list | tuple) else width
    return int(routed * active or dense)
