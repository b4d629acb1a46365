# Scores of keys: a linear map per layer from what enters it to how much attention its keys will ever get.
# Entry points: KeyScores (read, write, scoring), entering (what they read), NAME; train/key_scores.py fits them.
# They are no weights of the model: nothing trains or saves them with it, and they fit the model they were fitted on.
# Letters: n layers, H key heads, D hidden width, B rows, Q positions.
"""Trained key scores."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor, einsum, nn

from hildanext.disk import write_atomic
from hildanext.errors import ModelError
from hildanext.models.layers import layer_list

NAME = "key_scores.st"


@dataclass(frozen=True)
class KeyScores:
    """weight [n, H, D] and bias [n, H] float32; facts: what they were fitted on, as text."""

    weight: Tensor
    bias: Tensor
    facts: Mapping[str, str]

    @classmethod
    def read(cls, path: Path, network: Any) -> KeyScores:
        """Of a file, on the network's device. ModelError where it is none or of another model."""
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(path, framework="pt", device=str(network.device)) as file:
                made = cls(file.get_tensor("weight"), file.get_tensor("bias"), file.metadata() or {})
        except (OSError, SafetensorError) as error:
            raise ModelError(f"model.key_scores {path}: no file of key scores ({error})") from error
        wanted = (len(layer_list(network)), network.get_input_embeddings().weight.shape[1])
        if (made.weight.shape[0], made.weight.shape[2]) != wanted:
            raise ModelError(
                f"model.key_scores {path}: of {made.weight.shape[0]} layers and width {made.weight.shape[2]}, the model"
                f" has {wanted[0]} and {wanted[1]}; write them anew with `hildanext key-scores`"
            )
        return made

    @classmethod
    def found(cls, folder: Path | None, file: str, network: Any) -> KeyScores | None:
        """Of the file that is named, else of the model folder, where it has some."""
        if file:
            return cls.read(Path(file).expanduser(), network)
        own = None if folder is None else folder / NAME
        return cls.read(own, network) if own is not None and own.is_file() else None

    def write(self, path: Path) -> None:
        """To a file that appears whole."""
        from safetensors.torch import save

        write_atomic(path, save({"weight": self.weight.contiguous(), "bias": self.bias.contiguous()}, dict(self.facts)))

    @contextmanager
    def scoring(self, network: Any) -> Iterator[Mapping[int, Tensor]]:
        """Inside, {layer: scores [B, Q, H]} of the latest forward, each before its layer attends."""
        found = dict[int, Tensor]()

        def score(layer: int, own: Tensor) -> None:
            found[layer] = einsum("bqd,hd->bqh", own, self.weight[layer]) + self.bias[layer]

        with entering(network, score):
            yield found


@contextmanager
def entering(network: Any, tell: Callable[[int, Tensor], None]) -> Iterator[None]:
    """Inside, tell(layer, input [B, Q, D]) before every layer of a forward computes; layers from 0, the input float32
    and divided by its root mean square."""
    layers = layer_list(network)
    handles = [
        layer.register_forward_pre_hook(partial(_tell, tell, index), with_kwargs=True)
        for index, layer in enumerate(layers)
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _tell(
    tell: Callable[[int, Tensor], None], index: int, layer: nn.Module, given: tuple[Any, ...], named: dict[str, Any]
) -> None:
    own = (given[0] if given else named["hidden_states"]).float()
    tell(index, own * own.square().mean(dim=-1, keepdim=True).add(1e-6).rsqrt())
