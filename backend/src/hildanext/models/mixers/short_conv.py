# Mixer `short_conv`: gated short convolutions (LFM2, LFM3): two gates around a causal convolution over a few positions.
# Entry points: ShortConv.
# Its memory of the past are the last inputs of the convolution; there is no other state.
"""Mixer plugin short_conv."""

from __future__ import annotations

from typing import Any, ClassVar

from torch import Tensor

from hildanext.models.mixer import Mixer, convolved
from hildanext.models.runs import Runs


class ShortConv(Mixer):
    """out(C * conv(B * x)) with (B, C, x) = in(hidden). Source: docs/hybrids.md."""

    layer_types: ClassVar[tuple[str, ...]] = ("conv",)
    families: ClassVar[tuple[str, ...]] = ("lfm2", "lfm2_moe", "lfm3")
    modules: ClassVar[tuple[str, ...]] = ("Lfm2ShortConv", "Lfm2MoeShortConv", "Lfm3ShortConv")

    def shapes(self, module: Any) -> tuple[tuple[int, ...], ...]:
        """(tail,): positions before the next one, channels."""
        return ((int(module.conv.kernel_size[0]) - 1, int(module.conv.in_channels)),)

    def mix(
        self, module: Any, hidden: Tensor, runs: Runs, kept: tuple[Tensor, ...]
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        """See Mixer.mix."""
        before, gate, value = module.in_proj(hidden).chunk(3, dim=-1)
        windows = runs.windows(before * value, kept[0])
        mixed = runs.flat(convolved(module.conv, windows))
        tails = runs.tails(windows, kept[0].shape[1]) if runs.places else kept[0][:0]
        return module.out_proj(gate * mixed), (tails,)
