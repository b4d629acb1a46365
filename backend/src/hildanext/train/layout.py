# Which ranks share what: the layouts that run, by torch's and transformers' own means, and those refused by name.
# Entry points: Layout, shard, require_experts, require_tensor_parallel, tensor_parallel.
# Data parallel layouts (ddp, fsdp, replicate x fsdp, ep) give every rank rows of its own. Under tp all ranks have the
# same rows: transformers' plan of the architecture shards the matrices of its layers; embedding, head and norms are
# whole. Under sp neighbouring ranks have the same rows and a piece of their positions (models/sequence.py).
"""Layouts of ranks."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from math import prod
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
DISPATCH = "ep_dispatch_experts"
SEEN_OF_EXPERTS = {"grouped_gemm", DISPATCH}
TOGETHER = ({"fsdp", "replicate"}, {"ep", "fsdp"}, {"sp", "fsdp"}, {"sp", "replicate"})
"""What was seen to be exact together; everything is so alone."""


@dataclass(frozen=True)
class Layout:
    """kind: none | ddp | fsdp2 | tp; replicate: copies of an fsdp2 layout; ep: ranks that share the experts of an fsdp2
    layout; sp: ranks that share the positions of the same rows, of a ddp or fsdp2 layout."""

    kind: str = "none"
    replicate: int = 1
    ep: int = 1
    sp: int = 1

    @classmethod
    def of(cls, parallel: str | LayoutConfig, ranks: int) -> Layout:
        """The layout that train.parallel means for so many ranks. ConfigError for one that does not run, by name, and
        where its product is not the number of ranks."""
        if not isinstance(parallel, LayoutConfig):
            return cls(parallel)
        sizes = {name: size for name, size in parallel.model_dump().items() if size > 1}
        if len(sizes) > 1 and set(sizes) not in TOGETHER:
            known = ", ".join(" with ".join(sorted(names)) for names in TOGETHER)
            raise ConfigError(
                f"train.parallel: {' and '.join(sizes)} together were not tried; use one of them, or {known}"
            )
        product = prod(sizes.values())
        if product != ranks:
            shown = " x ".join(f"{name} {size}" for name, size in sizes.items()) or "1"
            raise ConfigError(
                f"train.parallel: {shown} makes {product} ranks, torchrun started {ranks}; let them agree"
            )
        if "tp" in sizes:
            return cls("tp")
        if parallel.ep > 1:
            return cls("fsdp2", ep=parallel.ep)
        if parallel.fsdp > 1:
            return cls("fsdp2", parallel.replicate, sp=parallel.sp)
        return cls("ddp" if sizes else "none", sp=parallel.sp)


def shard(denoiser: Any, layout: Layout) -> nn.Module:
    """FSDP2 over every layer and the rest, `replicate` copies of it (HSDP) where that is above 1; experts, where they
    are shared, over the ranks that have the same ones."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    size, device = dist.get_world_size(), denoiser.device.type
    if layout.ep > 1:
        _share_experts(denoiser.model, layout.ep, device)
    if layout.replicate > 1:
        mesh = init_device_mesh(
            device, (layout.replicate, size // layout.replicate), mesh_dim_names=("replicate", "shard")
        )
    else:
        mesh = init_device_mesh(device, (size,))
    for layer in denoiser.model.base_model.layers:
        fully_shard(layer, mesh=mesh)
    fully_shard(denoiser, mesh=mesh)
    return cast(nn.Module, denoiser)


def sequence_group(sp: int) -> Any:
    """The process group of the `sp` neighbouring ranks that share the positions of a row. Every rank calls it."""
    size, own = dist.get_world_size(), dist.get_rank()
    groups = [dist.new_group(range(first, first + sp)) for first in range(0, size, sp)]
    return groups[own // sp]


def _share_experts(network: Any, ep: int, device: str) -> None:
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard
    from transformers.distributed.expert_parallel import apply_expert_parallelism

    size = dist.get_world_size()
    mesh = init_device_mesh(device, (size // ep, ep, 1), mesh_dim_names=("fsdp", "ep", "tp"))
    plan = _expanded(network, network.ep_plan)
    apply_expert_parallelism(network, mesh["ep"], mesh["tp"], plan, "all_to_all")
    for name, style in plan.items():
        if style == DISPATCH:
            experts: Any = network.get_submodule(name)
            fully_shard(experts, mesh=mesh["fsdp"])
            experts.set_gradient_divide_factor(float(size))  # what an expert is told comes from the rows of all ranks
            experts.set_force_sum_reduction_for_comms(size > ep)  # gloo knows no scaled sum


def require_experts(denoiser: Any, ep: int, optimizer: str) -> None:
    """ModelError or ConfigError, before anything is sharded, for what ep does not do."""
    network, config = denoiser.model, denoiser.model.config
    if optimizer != "adamw":
        raise ConfigError(f"train.parallel.ep: not with optimizer.name={optimizer}; use adamw")
    if find_spec("transformers.distributed.expert_parallel") is None:
        raise ModelError("train.parallel.ep: needs a newer transformers (5.23 was tried); use fsdp")
    plan = _expanded(network, network.ep_plan or {})
    if not plan:
        raise ModelError(f"train.parallel.ep: transformers has no plan of experts for {config.model_type}; use fsdp")
    if odd := sorted({*plan.values()} - SEEN_OF_EXPERTS):
        raise ModelError(
            f"train.parallel.ep: the plan of {config.model_type} has {', '.join(odd)}, which was not tried; use fsdp"
        )
    counts = {network.get_submodule(name).num_experts for name, style in plan.items() if style == DISPATCH}
    if any(count % ep for count in counts):
        raise ModelError(f"train.parallel.ep: {ep} ranks do not divide {max(counts)} experts; use fewer, or fsdp")


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
    styles = {style for name, style in _expanded(network, network.tp_plan).items() if ".layers." in name}
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
    plan = {name: style for name, style in _expanded(network, network.tp_plan).items() if ".layers." in name}
    apply_tensor_parallelism(network, mesh, {name: style for name, style in plan.items() if style != SUMMED})
    for name, parameter in network.named_parameters():
        if plan.get(name) == SUMMED:
            parameter.register_hook(partial(_summed, mesh.get_group()))
    return cast(nn.Module, denoiser)


def _summed(group: Any, gradient: Tensor) -> Tensor:
    total = gradient.clone()
    dist.all_reduce(total, group=group)
    return total


def _expanded(network: Any, rules: Mapping[str, str]) -> dict[str, str]:
    from transformers.distributed.parallel_utils import replace_layer_number_by_wildcard as pattern

    plan = dict[str, str]()
    for name, part in network.named_modules():
        style = rules.get(pattern(name))
        for inner, _ in part.named_parameters(recurse=False):
            if found := rules.get(pattern(f"{name}.{inner}"), style):
                plan[f"{name}.{inner}"] = found
        if style:
            plan[name] = style
    return plan
