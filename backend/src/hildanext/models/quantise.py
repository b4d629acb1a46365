# int8 dynamic quantisation of a loaded model's linear layers, for CPUs.
# Entry points: int8(loaded), Int8Denoiser.
# torch.ao's quantize_dynamic is deprecated but still the fastest on CPU; it is used nowhere else.
"""Int8 dynamic quantisation."""

from __future__ import annotations

import copy
import warnings
from typing import Any

import torch
from torch import Tensor, nn

from hildanext.errors import ModelError
from hildanext.models.attention import Cache, Layout
from hildanext.models.denoiser import HFDenoiser, network


class Int8Denoiser(HFDenoiser):
    """A Denoiser whose linear layers, output matrix included, run in int8. Not exact: activations are scaled by the
    largest value of the whole forward, so what shares a forward changes the last digits."""

    @property
    def exact(self) -> bool:
        """False: see the class."""
        return False

    @property
    def device(self) -> torch.device:
        """The CPU."""
        return torch.device("cpu")

    @property
    def dtype(self) -> torch.dtype:
        """float32, what goes into and comes out of the int8 products."""
        return torch.float32

    @property
    def vocab_size(self) -> int:
        """V: rows of the output matrix."""
        return int(self.model.get_output_embeddings().out_features)

    def head(self) -> Tensor:
        """The output matrix [V, D], expanded from int8; features @ head().T are the logits but for the rounding of the
        features that an int8 product makes."""
        weight: Tensor = self.model.get_output_embeddings().weight().dequantize()
        return weight

    def _logits(
        self,
        tokens: Tensor,
        positions: Tensor,
        mask: Tensor,
        cache: Cache | None = None,
        select: Tensor | None = None,
        layout: Layout | None = None,
    ) -> Tensor:
        hidden = self.body(tokens, positions, mask, cache, layout)
        logits: Tensor = self.model.get_output_embeddings()(hidden if select is None else hidden[select])
        return logits


def int8(loaded: Any) -> Any:
    """A copy of `loaded` (see models.load.Loaded) with an Int8Denoiser; the original is unchanged. ModelError off the
    CPU, with a shifted model, or where torch has no int8 engine."""
    denoiser = loaded.denoiser
    if denoiser.device.type != "cpu" or denoiser.shift != "none":
        raise ModelError(f"decode.int8: needs an unshifted model on the CPU, not on {denoiser.device}; set it to false")
    if torch.backends.quantized.engine == "none":
        raise ModelError("decode.int8: this torch has no int8 kernels; set decode.int8=false")
    changed = copy.copy(loaded)
    quantised = Int8Denoiser(_quantised(network(denoiser)), denoiser.mask_id, block_grid=denoiser.block_grid)
    object.__setattr__(changed, "denoiser", quantised.eval())
    return changed


def _quantised(model: Any) -> Any:
    source = model if model.dtype == torch.float32 else copy.deepcopy(model).float()
    quantize: Any = torch.ao.quantization.quantize_dynamic
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return quantize(source, {nn.Linear}, dtype=torch.qint8)
