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
    """A Denoiser whose linear layers, output matrix included, run in int8; float32 activations. Inference only."""

    body: Any
    output: nn.Module
    mask_id: int
    config: Any
    model: Any
    device: torch.device = torch.device("cpu")
    dtype: torch.dtype = torch.float32

    def __call__(
        self, tokens: Tensor, positions: Tensor, mask: Tensor, cache: Any = None, select: Tensor | None = None
    ) -> Tensor:
        """Logits [n, V] float32 at `select` [B, Q] bool, or [B, Q, V] without it."""
        hidden = self.body(
            input_ids=tokens, attention_mask=mask, position_ids=positions, past_key_values=cache,
            use_cache=cache is not None,
        ).last_hidden_state  # fmt: skip
        logits: Tensor = self.output(hidden if select is None else hidden[select])
        return logits


def int8(loaded: Any) -> Any:
    """A copy of `loaded` (see models.load.Loaded) with an Int8Denoiser; the original is unchanged. ModelError off the
    CPU, with a shifted model, or where torch has no int8 engine."""
    model, denoiser = loaded.denoiser.model, loaded.denoiser
    if denoiser.device.type != "cpu" or getattr(denoiser, "shift", "none") != "none":
        raise ModelError(
            f"decode.int8: needs an unshifted model on the CPU, not on {denoiser.device}; set decode.int8=false"
        )
    if torch.backends.quantized.engine == "none":
        raise ModelError("decode.int8: this torch has no int8 kernels; set decode.int8=false")
    head = model.get_output_embeddings()
    output = nn.Linear(head.in_features, head.out_features, bias=False)
    output.weight = nn.Parameter(head.weight.detach().float(), requires_grad=False)
    quantised = Int8Denoiser(
        _quantised(model.base_model.float()), _quantised(nn.Sequential(output)), denoiser.mask_id, model.config, model
    )
    changed = copy.copy(loaded)
    object.__setattr__(changed, "denoiser", quantised)
    return changed


def _quantised(module: nn.Module) -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        quantize: Any = torch.ao.quantization.quantize_dynamic
        done: nn.Module = quantize(module, {nn.Linear}, dtype=torch.qint8)
    return done
