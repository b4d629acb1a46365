# The optimiser, its parameter groups (one per part of the network, decayed or not) and its rate at every step.
# Entry points: build_optimizer, freeze, matches, learning_rate, set_rate, OptimizerChoice.
# The 8-bit optimisers come from bitsandbytes; where it cannot run, AdamW stands in and the choice says why. Optimisers
# are built with rate 0: the rate is a pure function of the step, set before each.
"""Optimisers and learning rates."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import nn

from hildanext.config.train import OptimizerConfig
from hildanext.errors import ConfigError
from hildanext.models.hardware import multiplies
from hildanext.models.lora import quiet_bitsandbytes

LAYER = re.compile(r"(?:^|[.])(?:layers|h|blocks)[.]([0-9]+)[.]")
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


def matches(name: str, pattern: str) -> bool:
    """Whether a parameter's name fits a pattern of optimizer.rates and optimizer.freeze: a part of the network, `layers
    A-B` counted from 1, or the name itself with * and ?. ConfigError for layers that are no numbers."""
    if pattern.startswith("layers "):
        first, _, last = pattern.removeprefix("layers ").partition("-")
        if not (first.isdigit() and (last or first).isdigit()):
            raise ConfigError(f"optimizer: {pattern!r} names no layers; write 'layers 1-8', counted from 1")
        found = LAYER.search(name)
        return found is not None and int(first) <= int(found[1]) + 1 <= int(last or first)
    part = {"embeddings": "embedding"}.get(pattern, pattern)
    return part_of(name) == part if part in (*PARTS, "other") else fnmatchcase(name, pattern)


def freeze(module: nn.Module, config: OptimizerConfig) -> int:
    """Stop training what the configuration says, by part or pattern; returns parameters frozen. ConfigError for a
    pattern that nothing fits."""
    patterns = [*config.freeze, *(["embeddings"] if config.freeze_embeddings else [])]
    names = [name for name, _ in module.named_parameters()]
    for pattern in (*patterns, *config.rates):
        if not any(matches(name, pattern) for name in names):
            raise ConfigError(f"optimizer: no parameter fits {pattern!r}; parts are {', '.join(PARTS)} and other")
    frozen = 0
    for name, parameter in module.named_parameters():
        if any(matches(name, pattern) for pattern in patterns):
            parameter.requires_grad_(False)
            frozen += parameter.numel()
    return frozen


def parameter_groups(module: nn.Module, config: OptimizerConfig) -> list[dict[str, Any]]:
    """Groups with `factor` on the learning rate and their weight decay; vectors are not decayed. A factor of 0 trains
    nothing of that part. ConfigError where no parameter is left."""
    factors = {"attention": config.attention, "mlp": config.mlp, "embedding": config.embedding, "other": 1.0}
    groups: dict[tuple[str, float, bool, Any], list[nn.Parameter]] = {}
    for name, parameter in module.named_parameters():
        part = part_of(name)
        factor = factors[part] * math.prod(rate for pattern, rate in config.rates.items() if matches(name, pattern))
        if parameter.requires_grad and factor > 0:
            mesh = getattr(parameter, "device_mesh", None)  # torch steps no group of several kinds
            groups.setdefault((part, factor, parameter.dim() > 1, mesh), []).append(parameter)
    if not groups:
        raise ConfigError("optimizer: every parameter is frozen; train at least one part")
    return [
        {
            "params": members, "factor": factor, "weight_decay": config.weight_decay if matrix else 0.0, "part": part,
            "matrix": matrix,
        }
        for (part, factor, matrix, _), members in groups.items()
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
    return torch.optim.AdamW(groups, lr=0.0, betas=config.betas, eps=config.eps, fused=fused)


def _muon(groups: list[dict[str, Any]], config: OptimizerConfig) -> torch.optim.Optimizer:
    if not hasattr(torch.optim, "Muon"):
        raise ConfigError(f"optimizer.name: muon needs torch >= 2.9, this is {torch.__version__}; use adamw")
    hidden = [group for group in groups if group["part"] in ("attention", "mlp") and group["matrix"]]
    if not hidden:
        raise ConfigError("optimizer.name: muon trains hidden matrices, and none of them trains here; use adamw")
    others = [group for group in groups if group["part"] not in ("attention", "mlp") or not group["matrix"]]
    faster = [{**group, "factor": group["factor"] * config.muon, "lr": 0.0} for group in hidden]
    made = MuonWithAdamW(faster, [{**group, "lr": 0.0} for group in others], config.betas, config.eps)
    dtype = muon_dtype(config, hidden[0]["params"][0].device)
    return made if dtype == torch.bfloat16 else made.multiplying_in(dtype)


def muon_dtype(config: OptimizerConfig, device: torch.device) -> torch.dtype:
    """What Muon's orthogonalisation multiplies in. auto: bfloat16, as torch does, where the device has units for it,
    else float32, which is the faster one there."""
    if config.orthogonal != "auto":
        return torch.bfloat16 if config.orthogonal == "bfloat16" else torch.float32
    return torch.bfloat16 if multiplies(torch.bfloat16, device) else torch.float32


def _eight_bit(groups: list[dict[str, Any]], config: OptimizerConfig) -> torch.optim.Optimizer:
    quiet_bitsandbytes()
    import bitsandbytes

    device = groups[0]["params"][0].device
    kind = {"adamw8bit": bitsandbytes.optim.AdamW8bit, "lion8bit": bitsandbytes.optim.Lion8bit}[config.name]
    extra = {"eps": config.eps} if config.name == "adamw8bit" else {}
    probe = nn.Parameter(torch.zeros(4096, device=device))
    probe.grad = torch.ones_like(probe)
    kind([probe], lr=1e-3).step()
    made: torch.optim.Optimizer = kind(
        [dict(group) for group in groups], lr=0.0, betas=config.betas, weight_decay=config.weight_decay, **extra
    )
    return made


class MuonWithAdamW(torch.optim.Optimizer):
    """`matrices`: groups for Muon (2-D parameters); `others`: groups for AdamW. Each group carries its own lr and
    weight_decay. Source: Muon is Scalable arXiv:2502.16982 sec. 2; both parts as torch.optim has them."""

    def __init__(
        self,
        matrices: Sequence[dict[str, Any]],
        others: Sequence[dict[str, Any]],
        betas: tuple[float, float],
        eps: float,
    ) -> None:
        super().__init__([dict(group) for group in (*matrices, *others)], {})
        self.muon = torch.optim.Muon([dict(group) for group in matrices])
        self.adamw = torch.optim.AdamW([dict(group) for group in others], betas=betas, eps=eps, fused=True)
        self._link()

    def multiplying_in(self, dtype: torch.dtype) -> MuonWithAdamW:
        """Itself, with the orthogonalisation in another dtype than bfloat16; before the first step."""
        from hildanext.train.muon import TypedMuon

        self.muon = TypedMuon(self.muon.param_groups, dtype)
        return self.joined()

    def _link(self) -> None:
        self.param_groups = [*self.muon.param_groups, *self.adamw.param_groups]

    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """One update of both parts."""
        if closure is not None:
            raise ValueError("muon: closures are not supported")
        self.muon.step()  # type: ignore[no-untyped-call]
        self.adamw.step()

    @property
    def parts(self) -> tuple[torch.optim.Optimizer, torch.optim.Optimizer]:
        """The two optimisers that do the work; after one of them has loaded a state, `joined` is due."""
        return self.muon, self.adamw

    def joined(self) -> MuonWithAdamW:
        """Itself, with the groups of its parts as they are now."""
        self._link()
        return self

    def state_dict(self) -> dict[str, Any]:
        """Both states, by name."""
        return {"muon": self.muon.state_dict(), "adamw": self.adamw.state_dict()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Both states, as state_dict gave them. ValueError or KeyError where they do not fit."""
        self.muon.load_state_dict(state_dict["muon"])
        self.adamw.load_state_dict(state_dict["adamw"])
        self._link()


def learning_rate(config: OptimizerConfig, step: int, steps: int) -> float:
    """The rate at `step` (counted from 0) of `steps`: a linear warm-up to the peak, then the schedule; linear, cosine
    and wsd end at `final` times the peak."""
    warm, left = round(config.warmup * steps), max(1, steps - round(config.warmup * steps))
    if step < warm:
        share = (step + 1) / (warm + 1)
    else:
        share = _after(config, (step - warm) / left, min(1.0, config.decay * steps / left))
    return config.lr * share


def _after(config: OptimizerConfig, done: float, tail: float) -> float:
    fall = 1.0 - config.final
    if config.schedule == "constant":
        return 1.0
    if config.schedule == "linear":
        return 1.0 - fall * done
    if config.schedule == "cosine":
        return 1.0 - fall * (1.0 - math.cos(math.pi * done)) / 2.0
    return 1.0 - fall * max(0.0, (done - (1.0 - tail)) / tail)


def set_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Give every group its learning rate: the schedule's rate times the group's factor."""
    for group in optimizer.param_groups:
        group["lr"] = rate * group["factor"]
