# Mixer `gated_deltanet`: a matrix per head that forgets and corrects what it holds, behind a short convolution.
# Entry points: GatedDeltaNet.
# All chunks are worked through at once, only the states at their ends one after the other; in float32 at least.
# Letters: M chunks, w positions of one, H value heads, K and V widths of a head's keys and values.
"""Mixer plugin gated_deltanet."""

from __future__ import annotations

from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import silu, softplus

from hildanext.models.mixer import Mixer, convolved
from hildanext.models.runs import Runs


class Inputs(NamedTuple):
    """What a layer makes of each position [B, T, ...]: mixed, the convolution's input of queries, keys and values end
    to end; write and forget [.., H]: before sigmoid, and before softplus; gate [.., H V] of the output."""

    mixed: Tensor
    write: Tensor
    forget: Tensor
    gate: Tensor


class GatedDeltaNet(Mixer):
    """S <- a S + b k (v - a S^T k)^T and o = S^T q, per head. Source: arXiv:2412.06464 eq. 10."""

    layer_types: ClassVar[tuple[str, ...]] = ("linear_attention",)
    families: ClassVar[tuple[str, ...]] = (
        "qwen3_next", "qwen3_5", "qwen3_5_text", "qwen3_5_moe", "qwen3_5_moe_text", "olmo_hybrid",
    )  # fmt: skip
    modules: ClassVar[tuple[str, ...]] = (
        "Qwen3NextGatedDeltaNet", "Qwen3_5GatedDeltaNet", "Qwen3_5MoeGatedDeltaNet", "OlmoHybridGatedDeltaNet",
    )  # fmt: skip

    def shapes(self, module: Any) -> tuple[tuple[int, ...], ...]:
        """(tail, state): positions before the next one, channels; heads, width of keys, width of values."""
        conv = module.conv1d
        state = (int(module.num_v_heads), int(module.head_k_dim), int(module.head_v_dim))
        return (int(conv.kernel_size[0]) - 1, int(conv.in_channels)), state

    def mix(
        self, module: Any, hidden: Tensor, runs: Runs, kept: tuple[Tensor, ...]
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        """See Mixer.mix."""
        given = _inputs(module, hidden)
        windows = runs.windows(given.mixed, kept[0])
        wide = torch.promote_types(hidden.dtype, torch.float32)
        write = given.write.to(wide).sigmoid() * (2 if getattr(module, "allow_neg_eigval", False) else 1)
        forget = -module.A_log.to(wide).exp() * softplus(given.forget.to(wide) + module.dt_bias.to(wide))
        parts = _heads(module, silu(convolved(module.conv1d, windows)), wide)
        with torch.autocast(hidden.device.type, enabled=False):
            mixed, ends = _rule(parts, runs.chunked(write), runs.chunked(forget), runs, kept[1].to(wide))
        tails = runs.tails(windows, kept[0].shape[1]) if runs.places else kept[0][:0]
        read = runs.flat(mixed.transpose(1, 2)).to(hidden.dtype)
        return _output(module, read, given.gate), (tails, ends)


def _inputs(module: Any, hidden: Tensor) -> Inputs:
    if hasattr(module, "in_proj_qkvz"):
        both = module.in_proj_qkvz(hidden), module.in_proj_ba(hidden)
        query, key, value, gate, write, forget = module.fix_query_key_value_ordering(*both)
        mixed = torch.cat([part.flatten(2) for part in (query, key, value)], dim=-1)
        return Inputs(mixed, write, forget, gate.flatten(2))
    if hasattr(module, "in_proj_qkv"):
        write, forget = module.in_proj_b(hidden), module.in_proj_a(hidden)
        return Inputs(module.in_proj_qkv(hidden), write, forget, module.in_proj_z(hidden))
    mixed = torch.cat([part(hidden) for part in (module.q_proj, module.k_proj, module.v_proj)], dim=-1)
    return Inputs(mixed, module.b_proj(hidden), module.a_proj(hidden), module.g_proj(hidden))


def _output(module: Any, read: Tensor, gate: Tensor) -> Tensor:
    norm, out = (module.norm, module.out_proj) if hasattr(module, "norm") else (module.o_norm, module.o_proj)
    width = module.head_v_dim
    normed = norm(read.reshape(-1, width), gate.reshape(-1, width))
    found: Tensor = out(normed.reshape(*read.shape[:2], -1))
    return found


def _heads(module: Any, mixed: Tensor, wide: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    query, key, value = torch.split(mixed, [module.key_dim, module.key_dim, module.value_dim], dim=-1)
    heads, times = int(module.num_k_heads), int(module.num_v_heads) // int(module.num_k_heads)
    query, key = (_unit(_by_head(part, heads, wide)).repeat_interleave(times, dim=1) for part in (query, key))
    return query * module.head_k_dim**-0.5, key, _by_head(value, int(module.num_v_heads), wide)


def _by_head(part: Tensor, heads: int, wide: torch.dtype) -> Tensor:
    return part.reshape(*part.shape[:2], heads, -1).to(wide).transpose(1, 2)


def _unit(part: Tensor) -> Tensor:
    return part * torch.rsqrt((part * part).sum(-1, keepdim=True) + 1e-6)


def _rule(
    parts: tuple[Tensor, Tensor, Tensor], write: Tensor, forget: Tensor, runs: Runs, kept: Tensor
) -> tuple[Tensor, Tensor]:
    """queries, keys [M, H, w, K], values [M, H, w, V], write and log forget [M, w, H] -> [M, H, w, V] and states.
    Within a chunk the corrections solve a triangular system. Source: arXiv:2412.06464 sec. 3.3."""
    query, key, value = parts
    write, total = write.transpose(1, 2)[..., None], forget.transpose(1, 2).cumsum(-1)
    lower = torch.ones(runs.width, runs.width, dtype=torch.bool, device=query.device).tril()
    decay = (total[..., :, None] - total[..., None, :]).masked_fill(~lower, float("-inf")).exp()
    system = write * (key @ key.transpose(-1, -2)) * decay
    grown = total.exp()[..., None]
    right = torch.cat([write * value, write * grown * key], dim=-1)
    solved = torch.linalg.solve_triangular(system, right, upper=False, unitriangular=True)
    new, old = solved[..., : value.shape[-1]], solved[..., value.shape[-1] :]
    kept_keys = (key * (total[..., -1:] - total).exp()[..., None]).transpose(-1, -2)
    whole = grown[..., -1:, :]

    def step(chunks: slice, state: Tensor) -> Tensor:
        behind: Tensor = whole[chunks] * state + kept_keys[chunks] @ (new[chunks] - old[chunks] @ state)
        return behind

    begin, ends = runs.scan(kept, step)
    near = ((query @ key.transpose(-1, -2)) * decay) @ (new - old @ begin)
    return (grown * query) @ begin + near, ends
