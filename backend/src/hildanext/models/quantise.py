# int8 dynamic quantisation of a loaded model's linear layers, for CPUs.
# Entry points: int8(loaded).
# torch.ao's quantize_dynamic is deprecated but still the fastest on CPU; it is used nowhere else.
"""Int8 dynamic quantisation."""

from __future__ import annotations

import copy
import warnings
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from hildanext.errors import ModelError


@dataclass
class Int8Denoiser:
    """A Denoiser whose linear layers, output matrix included, run in int8. Not exact: activations are scaled by the
    largest value of the whole forward, so what shares a forward changes the last digits."""

    model: Any
    mask_id: int
    config: Any
    device: torch.device = torch.device("cpu")
    dtype: torch.dtype = torch.float32
    exact: bool = False
    takes_layout: bool = True

    def __call__(
        self,
        tokens: Tensor,
        positions: Tensor,
        mask: Tensor,
        cache: Any = None,
        select: Tensor | None = None,
        layout: Any = None,
    ) -> Tensor:
        """Logits [n, V] float32 at `select` [B, Q] bool, or [B, Q, V] without it."""
        extra = {} if layout is None else {"layout": layout}
        hidden = self.model.base_model(
            input_ids=tokens, attention_mask=mask, position_ids=positions, past_key_values=cache,
            use_cache=cache is not None, **extra,
        ).last_hidden_state  # fmt: skip
        logits: Tensor = self.model.get_output_embeddings()(hidden if select is None else hidden[select])
        return logits


def int8(loaded: Any) -> Any:
    """A copy of `loaded` (see models.load.Loaded) with an Int8Denoiser; the original is unchanged. ModelError off the
    CPU, with a shifted model, or where torch has no int8 engine."""
    denoiser = loaded.denoiser
    if denoiser.device.type != "cpu" or getattr(denoiser, "shift", "none") != "none":
        raise ModelError(f"decode.int8: needs an unshifted model on the CPU, not on {denoiser.device}; set it to false")
    if torch.backends.quantized.engine == "none":
        raise ModelError("decode.int8: this torch has no int8 kernels; set decode.int8=false")
    changed = copy.copy(loaded)
    model = _quantised(denoiser.model)
    object.__setattr__(changed, "denoiser", Int8Denoiser(model, denoiser.mask_id, denoiser.config))
    return changed


def _quantised(model: Any) -> Any:
    source = model if model.dtype == torch.float32 else copy.deepcopy(model).float()
    quantize: Any = torch.ao.quantization.quantize_dynamic
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return quantize(source, {nn.Linear}, dtype=torch.qint8)
