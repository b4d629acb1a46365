# The optimiser and its parameter groups; one group per (part of the network, decayed or not).
# Entry points: build_optimizer, freeze, set_rate, OptimizerChoice.
# The 8-bit optimisers come from bitsandbytes; where it cannot run, AdamW stands in and the choice says why.
"""Optimisers."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from hildanext.config.train import OptimizerConfig
from hildanext.errors import ConfigError

PARTS = {"embedding": ("embed_tokens", "lm_head"), "attention": ("self_attn", "attention"), "mlp": ("mlp",)}


@dataclass(frozen=True)
class OptimizerChoice:
    """The optimiser, the name of what really runs, and why it is not what was asked for (empty: it is)."""

    optimizer: torch.optim.Optimizer
    name: str
    reason: str


def part_of(name: str) -> str:
    """embedding, attention, mlp or other, from a parameter's name."""
    pieces = name.split(".")
    found = [part for part, words in PARTS.items() if any(word in pieces for word in words)]
    return found[0] if found else "other"


def freeze(module: nn.Module, config: OptimizerConfig) -> int:
    """Stop training the embedding and the output matrix where the configuration says so; returns parameters frozen."""
    names = [pair for pair in module.named_parameters() if config.freeze_embeddings and part_of(pair[0]) == "embedding"]
    for _, parameter in names:
        parameter.requires_grad_(False)
    return sum(parameter.numel() for _, parameter in names)


def parameter_groups(module: nn.Module, config: OptimizerConfig) -> list[dict[str, Any]]:
    """Groups with `factor` on the learning rate and their weight decay; vectors are not decayed. A factor of 0 trains
    nothing of that part. ConfigError where no parameter is left."""
    factors = {"attention": config.attention, "mlp": config.mlp, "embedding": config.embedding, "other": 1.0}
    groups: dict[tuple[str, bool], list[nn.Parameter]] = {}
    for name, parameter in module.named_parameters():
        part = part_of(name)
        if parameter.requires_grad and factors[part] > 0:
            groups.setdefault((part, parameter.dim() > 1), []).append(parameter)
    if not groups:
        raise ConfigError("optimizer: every parameter is frozen; train at least one part")
    return [
        {
            "params": members, "factor": factors[part], "weight_decay": config.weight_decay if matrix else 0.0,
            "part": part, "matrix": matrix,
        }
        for (part, matrix), members in groups.items()
    ]  # fmt: skip


def build_optimizer(module: nn.Module, config: OptimizerConfig) -> OptimizerChoice:
    """The optimiser over the parameters that train, or AdamW with the reason where an 8-bit one cannot run here."""
    groups = parameter_groups(module, config)
    if config.name == "adamw":
        return OptimizerChoice(_adamw(groups, config), "adamw", "")
    if config.name == "muon":
        return OptimizerChoice(_muon(groups, config), "muon", "")
    try:
        return OptimizerChoice(_eight_bit(groups, config), config.name, "")
    except (ImportError, RuntimeError, OSError, AttributeError) as error:
        reason = f"{config.name} cannot run here ({type(error).__name__}: {error}); AdamW instead"
        return OptimizerChoice(_adamw(groups, config), "adamw", reason)


def _adamw(groups: Iterable[dict[str, Any]], config: OptimizerConfig) -> torch.optim.Optimizer:
    groups = [dict(group) for group in groups]
    fused = all(parameter.is_floating_point() for group in groups for parameter in group["params"])
    return torch.optim.AdamW(groups, lr=config.lr, betas=config.betas, eps=config.eps, fused=fused)


def _muon(groups: list[dict[str, Any]], config: OptimizerConfig) -> torch.optim.Optimizer:
    from hildanext.train.muon import MuonWithAdamW

    if not hasattr(torch.optim, "Muon"):
        raise ConfigError(f"optimizer.name: muon needs torch >= 2.9, this is {torch.__version__}; use adamw")
    hidden = [group for group in groups if group["part"] in ("attention", "mlp") and group["matrix"]]
    if not hidden:
        raise ConfigError("optimizer.name: muon trains hidden matrices, and none of them trains here; use adamw")
    others = [group for group in groups if group["part"] not in ("attention", "mlp") or not group["matrix"]]
    faster = [{**group, "factor": group["factor"] * config.muon, "lr": config.lr} for group in hidden]
    return MuonWithAdamW(faster, [{**group, "lr": config.lr} for group in others], config.betas, config.eps)


def _eight_bit(groups: list[dict[str, Any]], config: OptimizerConfig) -> torch.optim.Optimizer:
    import bitsandbytes

    device = groups[0]["params"][0].device
    kind = {"adamw8bit": bitsandbytes.optim.AdamW8bit, "lion8bit": bitsandbytes.optim.Lion8bit}[config.name]
    extra = {"eps": config.eps} if config.name == "adamw8bit" else {}
    probe = nn.Parameter(torch.zeros(4096, device=device))
    probe.grad = torch.ones_like(probe)
    kind([probe], lr=1e-3).step()
    made: torch.optim.Optimizer = kind(
        [dict(group) for group in groups], lr=config.lr, betas=config.betas, weight_decay=config.weight_decay, **extra
    )
    return made


def set_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Give every group its learning rate: the schedule's rate times the group's factor."""
    for group in optimizer.param_groups:
        group["lr"] = rate * group["factor"]
