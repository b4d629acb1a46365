# Which ranks share what: the layouts that run, by torch's and transformers' own means, and those refused by name.
# Entry points: Layout, shard, require_tensor_parallel, tensor_parallel.
# Data parallel layouts (ddp, fsdp, replicate x fsdp) give every rank rows of its own. Under tp all ranks have the same
# rows: transformers' plan of the architecture shards the matrices of its layers; embedding, head and norms are whole.
"""Layouts of ranks."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from typing import Any, cast

import torch.distributed as dist
from torch import Tensor, nn

from hildanext.config.train import LayoutConfig
from hildanext.errors import ConfigError, ModelError

SUMMED = "replicated_with_grad_allreduce"
"""Of a norm over a rank's own heads. transformers' hook (5.23) sums what has accumulated, each micro-batch anew; ours
sums the gradient of one."""
SEEN = {"colwise", "rowwise", SUMMED}
"""Ways of sharing that the oracle holds. Of packed ones, as experts have, torch's checkpoint refuses the shares."""
UNDONE = {
    "ep": "experts shared by ranks were not tried with this objective; use fsdp, which shards them too",
    "sp": "rows shared by ranks are not implemented; use shorter rows, or gradient checkpointing",
}


@dataclass(frozen=True)
class Layout:
    """kind: none | ddp | fsdp2 | tp; replicate: copies of an fsdp2 layout."""

    kind: str = "none"
    replicate: int = 1

    @classmethod
    def of(cls, parallel: str | LayoutConfig, ranks: int) -> Layout:
        """The layout that train.parallel means for so many ranks. ConfigError for one that does not run, by name, and
        where its product is not the number of ranks."""
        if not isinstance(parallel, LayoutConfig):
            return cls(parallel)
        sizes = {name: size for name, size in parallel.model_dump().items() if size > 1}
        for name in sizes.keys() & UNDONE.keys():
            raise ConfigError(f"train.parallel.{name}: {UNDONE[name]}")
        if "tp" in sizes and len(sizes) > 1:
            others = " and ".join(name for name in sizes if name != "tp")
            raise ConfigError(
                f"train.parallel.tp: not together with {others} yet; use tp alone, or fsdp with replicate"
            )
        product = parallel.tp * parallel.fsdp * parallel.replicate
        if product != ranks:
            shown = " x ".join(f"{name} {size}" for name, size in sizes.items()) or "1"
            raise ConfigError(
                f"train.parallel: {shown} makes {product} ranks, torchrun started {ranks}; let them agree"
            )
        if "tp" in sizes:
            return cls("tp")
        return cls("fsdp2", parallel.replicate) if "fsdp" in sizes else cls("ddp" if "replicate" in sizes else "none")


def shard(denoiser: Any, replicate: int) -> nn.Module:
    """FSDP2 over every layer and the rest, replicate copies of it (HSDP) where that is above 1."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    size = dist.get_world_size()
    if replicate > 1:
        mesh = init_device_mesh(
            denoiser.device.type, (replicate, size // replicate), mesh_dim_names=("replicate", "shard")
        )
    else:
        mesh = init_device_mesh(denoiser.device.type, (size,))
    for layer in denoiser.model.base_model.layers:
        fully_shard(layer, mesh=mesh)
    fully_shard(denoiser, mesh=mesh)
    return cast(nn.Module, denoiser)


def require_tensor_parallel(denoiser: Any, ranks: int, adapted: bool, optimizer: str) -> None:
    """ModelError or ConfigError, before anything is sharded, for what tp does not do."""
    network, config = denoiser.model, denoiser.model.config
    if adapted:
        raise ConfigError("train.parallel.tp: not with model.adapter; use ddp")
    if optimizer != "adamw":
        raise ConfigError(f"train.parallel.tp: not with optimizer.name={optimizer}; use adamw")
    if denoiser.mixers:
        raise ModelError(f"train.parallel.tp: not for the recurrent layers of {config.model_type}; use fsdp2")
    if find_spec("transformers.distributed.tensor_parallel") is None:
        raise ModelError("train.parallel.tp: needs a newer transformers (5.23 was tried); use fsdp2")
    if not network.tp_plan:
        raise ModelError(f"train.parallel.tp: transformers has no plan for {config.model_type}; use fsdp2")
    styles = {style for name, style in _expanded(network).items() if ".layers." in name}
    if odd := sorted(styles - SEEN):
        raise ModelError(
            f"train.parallel.tp: the plan of {config.model_type} shares tensors as {', '.join(odd)}, which was not seen"
            " to be exact, or cannot be saved; use fsdp2"
        )
    for name in ("num_attention_heads", "num_key_value_heads", "intermediate_size"):
        count = getattr(config, name)
        if count % ranks:
            raise ModelError(f"train.parallel.tp: {ranks} ranks do not divide {name} {count}; use fewer, or fsdp2")


def tensor_parallel(denoiser: Any) -> nn.Module:
    """The matrices of every layer shared by all ranks, by the architecture's own plan in transformers."""
    from torch.distributed.device_mesh import init_device_mesh
    from transformers.distributed.tensor_parallel import apply_tensor_parallelism

    mesh = init_device_mesh(denoiser.device.type, (dist.get_world_size(),), mesh_dim_names=("tp",))
    network: Any = denoiser.model
    plan = {name: style for name, style in _expanded(network).items() if ".layers." in name}
    apply_tensor_parallelism(network, mesh, {name: style for name, style in plan.items() if style != SUMMED})
    for name, parameter in network.named_parameters():
        if plan.get(name) == SUMMED:
            parameter.register_hook(partial(_summed, mesh.get_group()))
    return cast(nn.Module, denoiser)


def _summed(group: Any, gradient: Tensor) -> Tensor:
    total = gradient.clone()
    dist.all_reduce(total, group=group)
    return total


def _expanded(network: Any) -> dict[str, str]:
    from transformers.distributed.parallel_utils import replace_layer_number_by_wildcard as pattern

    plan, rules = dict[str, str](), network.tp_plan
    for name, part in network.named_modules():
        style = rules.get(pattern(name))
        for inner, _ in part.named_parameters(recurse=False):
            if found := rules.get(pattern(f"{name}.{inner}"), style):
                plan[f"{name}.{inner}"] = found
        if style:
            plan[name] = style
    return plan
