# A Hugging Face causal LM as dInfer's decoding loop calls it: its cache object in, flat keys and values out.
# Entry points: Shim, dinfer_modules.
# dInfer has no Qwen3 class of its own. The [MASK] logit is minus infinity, without which its loop may never end.
"""dInfer's model protocol over a Hugging Face model."""

from __future__ import annotations

import importlib.util
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

PLACE = "HILDANEXT_DINFER"
NAMES = ("utils", "parallel_strategy", "generate_uniform")


@dataclass
class Splice:
    """A transformers cache over dInfer's: new keys and values take `position` (start, end) of the old ones."""

    old: Any
    position: tuple[int, int] | None
    flat: list[Tensor] = field(default_factory=list)

    def get_seq_length(self, layer: int = 0) -> int:
        """0: positions are always given."""
        return 0

    def update(self, keys: Tensor, values: Tensor, layer: int, *extra: Any) -> tuple[Tensor, Tensor]:
        """Every key and value the layer attends to."""
        if self.old is not None:
            keys, values = self.old.update(keys, values, layer, self.position)
        self.flat += [keys, values]
        return keys, values


@dataclass
class Shim:
    """model(ids, use_cache, attention_mask [b, Q, K] bool, position_ids, past_key_values, replace_position)."""

    model: Any
    mask_id: int
    device: torch.device = torch.device("cpu")

    def __call__(
        self, ids: Tensor, use_cache: bool = False, attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None, past_key_values: Any = None,
        replace_position: tuple[int, int] | None = None,
    ) -> SimpleNamespace:  # fmt: skip
        """logits [b, Q, V] and past_key_values [k0, v0, k1, v1, ...]; without a mask everything cached is visible."""
        cache = Splice(past_key_values, replace_position)
        keys = ids.shape[1] if past_key_values is None else past_key_values.get_keys(0).shape[2]
        visible = torch.ones(ids.shape[0], ids.shape[1], keys, dtype=torch.bool)
        mask = torch.where(visible if attention_mask is None else attention_mask, 0.0, -torch.inf)[:, None]
        found = self.model(
            input_ids=ids, attention_mask=mask, position_ids=position_ids, past_key_values=cache, use_cache=True
        )
        found.logits[..., self.mask_id] = -torch.inf
        return SimpleNamespace(logits=found.logits, past_key_values=cache.flat)


def source(project: Path) -> Path | None:
    """The folder of dInfer's package: $HILDANEXT_DINFER, vendor/dInfer, or where it is installed."""
    spec = importlib.util.find_spec("dinfer")
    installed = list(spec.submodule_search_locations or ()) if spec else []
    places = [*filter(None, [os.environ.get(PLACE)]), project / "vendor" / "dInfer" / "python" / "dinfer", *installed]
    return next((Path(p) for p in places if (Path(p) / "decoding" / "generate_uniform.py").is_file()), None)


def dinfer_modules(project: Path, monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """dInfer's loop without its package's own imports, which need vllm; skips where there is no source tree."""
    folder = source(project)
    if folder is None:
        pytest.skip(f"dInfer's source is not here: python vendor/fetch.py dInfer, or set {PLACE} to its package folder")
    for name, path in (("dinfer", folder), ("dinfer.decoding", folder / "decoding")):
        module = ModuleType(name)
        module.__path__ = [str(path)]
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.setattr(torch, "compile", uncompiled)
    try:
        return SimpleNamespace(**{name: import_module(f"dinfer.decoding.{name}") for name in NAMES})
    except ImportError as error:
        pytest.skip(f"dInfer's decoding loop cannot be imported here: {error}")
    finally:
        for name in NAMES:
            sys.modules.pop(f"dinfer.decoding.{name}", None)


def uncompiled(function: Any = None, **options: Any) -> Any:
    """torch.compile without compiling, called or used as a decorator."""
    return _same if function is None else function


def _same(function: Callable[..., Any]) -> Callable[..., Any]:
    return function
