# Mixer `mamba2`: state space layers (Mamba-2): a matrix per head that decays and takes up an outer product a position.
# Entry points: Mamba2.
# All chunks are worked through at once, only the states at their ends one after the other; in float32 at least.
# Letters: M chunks, w positions of one, H heads, G groups with one B and C, P and N widths of a head and of its state.
"""Mixer plugin mamba2."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn.functional import silu, softplus

from hildanext.models.mixer import Mixer, convolved
from hildanext.models.runs import Runs


class Mamba2(Mixer):
    """S <- exp(A dt) S + dt x B^T and y = S C + D x, per head. Source: arXiv:2405.21060 sec. 6."""

    layer_types: ClassVar[tuple[str, ...]] = ("linear_attention", "hybrid")
    families: ClassVar[tuple[str, ...]] = ("granitemoehybrid", "nemotron_h", "falcon_h1", "zamba2")
    modules: ClassVar[tuple[str, ...]] = (
        "GraniteMoeHybridMambaLayer", "NemotronHMamba2Mixer", "FalconH1Mixer", "Zamba2MambaMixer",
    )  # fmt: skip

    def shapes(self, module: Any) -> tuple[tuple[int, ...], ...]:
        """(tail, state): positions before the next one, channels; heads, width of a head, width of its state."""
        state = (int(module.num_heads), int(module.head_dim), int(module.ssm_state_size))
        return (int(module.conv1d.kernel_size[0]) - 1, int(module.conv1d.in_channels)), state

    def mix(
        self, module: Any, hidden: Tensor, runs: Runs, kept: tuple[Tensor, ...]
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        """See Mixer.mix."""
        widths = [int(module.intermediate_size), int(module.conv_dim), int(module.num_heads)]
        gate, mixed, step = torch.split(_projected(module, hidden), widths, dim=-1)
        windows = runs.windows(mixed, kept[0])
        wide = torch.promote_types(hidden.dtype, torch.float32)
        # softplus before chunking: behind a chunk's end steps are 0, which leaves the state as it is
        step = softplus(step.to(wide) + module.dt_bias.to(wide)).clamp(*module.time_step_limit)
        parts = module.act(convolved(module.conv1d, windows)).to(wide)
        with torch.autocast(hidden.device.type, enabled=False):
            read, ends = _rule(module, parts, runs.chunked(step), runs, kept[1].to(wide))
        tails = runs.tails(windows, kept[0].shape[1]) if runs.places else kept[0][:0]
        return _output(module, runs.flat(read), gate).to(hidden.dtype), (tails, ends)


def _projected(module: Any, hidden: Tensor) -> Tensor:
    if not hasattr(module, "mup_vector"):
        found: Tensor = module.in_proj(hidden)
        return found
    scaled: Tensor = module.in_proj(hidden * module.ssm_in_multiplier) * module.mup_vector
    return scaled


def _output(module: Any, read: Tensor, gate: Tensor) -> Tensor:
    normed = module.norm(read, gate) if getattr(module, "mamba_rms_norm", True) else read * silu(gate)
    found: Tensor = module.out_proj(normed.to(gate.dtype))
    return found


def _rule(module: Any, mixed: Tensor, step: Tensor, runs: Runs, kept: Tensor) -> tuple[Tensor, Tensor]:
    """mixed [M, w, H P + 2 G N], step [M, w, H] -> [M, w, H P] and the states [E, H, P, N] behind chunks asked for. A
    chunk is attention with decay, and what it leaves one product. Source: arXiv:2405.21060 sec. 6."""
    heads, groups = int(module.num_heads), int(module.n_groups)
    around = groups * int(module.ssm_state_size)
    value, key, query = torch.split(mixed, [int(module.intermediate_size), around, around], dim=-1)
    value = value.reshape(*value.shape[:2], heads, -1).transpose(1, 2)
    key, query = (part.reshape(*part.shape[:2], groups, -1).transpose(1, 2) for part in (key, query))
    key, query = (part.repeat_interleave(heads // groups, dim=1) for part in (key, query))
    total = (-module.A_log.to(mixed.dtype).exp() * step).transpose(1, 2).cumsum(-1)
    written = value * step.transpose(1, 2)[..., None]
    lower = torch.ones(runs.width, runs.width, dtype=torch.bool, device=mixed.device).tril()
    decay = (total[..., :, None] - total[..., None, :]).masked_fill(~lower, float("-inf")).exp()
    left = (written * (total[..., -1:] - total).exp()[..., None]).transpose(-1, -2) @ key
    whole = total[..., -1:, None].exp()

    def after(chunks: slice, state: Tensor) -> Tensor:
        behind: Tensor = whole[chunks] * state + left[chunks]
        return behind

    begin, ends = runs.scan(kept, after)
    near = ((query @ key.transpose(-1, -2)) * decay) @ written
    far = (total.exp()[..., None] * query) @ begin.transpose(-1, -2)
    read = near + far + module.D.to(mixed.dtype)[:, None, None] * value
    return read.transpose(1, 2).flatten(2), ends
