# Low-rank adapters through peft: on full weights (LoRA) or on 4-bit or 8-bit ones (QLoRA), and merging them back.
# Entry points: quantisation, quiet_bitsandbytes, keep_differentiable, add_adapter, adapter_note, adapter_facts,
# fused_targets, load_adapter, has_adapter, merge_adapter, adapter_state.
# The denoiser keeps its network: adapted layers replace linear layers in place, so masks and caches are unchanged.
"""Parameter-efficient tuning."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor, nn

from hildanext.config.model import AdapterConfig
from hildanext.core.types import Denoiser
from hildanext.errors import ModelError
from hildanext.models.backend import capability
from hildanext.models.denoiser import network

QUANTISED = ("quantization_config", "_pre_quantization_dtype")


def _need(package: str, wanted: str) -> None:
    quiet_bitsandbytes()
    if find_spec(package) is None:
        raise ModelError(
            f"model.adapter.kind {wanted}: package {package} is not installed; pip install hildanext[quant]"
        )


def quiet_bitsandbytes() -> None:
    """Keep bitsandbytes from warning, as it is imported, of packed CPU products that keep_differentiable turns off."""
    logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)


def quantisation(adapter: AdapterConfig, device: torch.device) -> Any:
    """The transformers quantisation of the frozen weights, None for none and lora. NF4 computes in bfloat16 where the
    hardware has it, else float32. ModelError where bitsandbytes is missing or 8-bit products have no kernel."""
    if adapter.kind not in ("qlora", "lora8bit"):
        return None
    _need("bitsandbytes", adapter.kind)
    from transformers import BitsAndBytesConfig

    level = capability(device)
    if adapter.kind == "lora8bit":
        if level is not None and level < (7, 5):
            raise ModelError(
                f"model.adapter.kind lora8bit: compute capability {level[0]}.{level[1]} has no int8 kernels, 7.5 is the"
                " least; use qlora"
            )
        return BitsAndBytesConfig(load_in_8bit=True)
    compute = torch.bfloat16 if level is not None and level >= (8, 0) else torch.float32
    return BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True, bnb_4bit_compute_dtype=compute
    )


def keep_differentiable(model: Any) -> None:
    """Turn off bitsandbytes' packed 4-bit products on the CPU: they have no gradient, and a layer that was packed in an
    evaluation stays packed in training."""
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False


def add_adapter(denoiser: Denoiser, adapter: AdapterConfig, seed: int = 0) -> list[nn.Parameter]:
    """Freeze the model, put adapters, drawn from `seed`, into its linear layers, or into the targets, and return the
    trainable parameters (float32). A target may be a fused matrix of experts, [E, out, in]: each expert gets an update
    of its own. ModelError where one names neither, or the embedding or output matrix."""
    _need("peft", adapter.kind)
    from peft import LoraConfig, inject_adapter_in_model

    model = network(denoiser)
    fused = _fused(model, adapter)
    targets = _checked(model, [one for one in adapter.targets if one not in fused])
    targets = targets if adapter.targets else _linear_names(model)
    if not targets and not fused:
        raise ModelError(f"model.adapter: {model.config.model_type} has no linear layers to adapt; use kind none")
    settings = LoraConfig(
        r=adapter.rank, lora_alpha=adapter.alpha, lora_dropout=adapter.dropout, target_modules=targets, bias="none",
        target_parameters=[name for names in fused.values() for name in names],
    )  # fmt: skip
    model.requires_grad_(False)
    with torch.random.fork_rng(devices=[denoiser.device] if denoiser.device.type == "cuda" else []):
        torch.manual_seed(seed)
        inject_adapter_in_model(settings, model)
    found = [parameter for parameter in model.parameters() if parameter.requires_grad]
    for parameter in found:
        parameter.data = parameter.data.float()
    return found


def _fused(model: Any, adapter: AdapterConfig) -> dict[str, list[str]]:
    found = {
        target: [name for name, one in model.named_parameters() if name.endswith(f".{target}") and one.dim() == 3]
        for target in adapter.targets
    }
    found = {target: names for target, names in found.items() if names}
    if found and adapter.dropout:
        raise ModelError(
            f"model.adapter.dropout: {', '.join(found)} hold all experts in one matrix, whose update cannot be dropped"
            " per position; set it to 0"
        )
    return found


def _checked(model: Any, targets: Sequence[str]) -> list[str]:
    ends = {id(model.get_input_embeddings()): "the embedding", id(model.get_output_embeddings()): "the output matrix"}
    problems = []
    for target in targets:
        found = [m for name, m in model.named_modules() if name == target or name.endswith(f".{target}")]
        fused = [n for n, _ in model.named_parameters() if f".{target}." in f".{n}." and not found]
        if kind := next((ends[id(m)] for m in found if id(m) in ends), ""):
            problems.append(f"{target} is {kind}, which adapters leave as it is")
        elif fused:
            problems.append(f"{target} is a parameter of its own, not a linear layer")
        elif not found or not all(isinstance(m, nn.Linear) for m in found):
            kinds = ", ".join(sorted({type(m).__name__ for m in found}))
            problems.append(f"{target} is {kinds}, not a linear layer" if found else f"{target} names no layer")
    if problems:
        names = ", ".join(_linear_names(model)) or "none"
        raise ModelError(f"model.adapter.targets: {'; '.join(problems)}; name linear layers of this model: {names}")
    return list(targets)


def _linear_names(model: Any) -> list[str]:
    output = model.get_output_embeddings()
    linear = [name for name, m in model.named_modules() if isinstance(m, nn.Linear) and m is not output]
    return sorted({name.rsplit(".", 1)[-1] for name in linear})


def adapter_note(denoiser: Denoiser) -> str:
    """What carries an adapter and which matrices do not, in one line: experts and routers of a mixture are often fused
    parameters, not linear layers."""
    model = network(denoiser)
    adapted, left = Counter(_target(*one) for one in _adapted(model).items()), Counter[str]()
    ends = {id(module.weight) for module in (model.get_input_embeddings(), model.get_output_embeddings())}
    for name, parameter in model.named_parameters():
        layer = name.removesuffix(".weight").removesuffix(".base_layer").rsplit(".", 1)[-1]
        if parameter.dim() > 1 and ".base_layer." not in name and "lora_" not in name and id(parameter) not in ends:
            left[layer] += parameter.numel()
    words = ", ".join(f"{name} x{count}" for name, count in sorted(adapted.items()))
    rest = ", ".join(f"{name} ({count:,} parameters)" for name, count in sorted(left.items()))
    return f"adapters on {words}" + (f"; without one, frozen: {rest}" if rest else "")


def adapter_facts(denoiser: Denoiser) -> dict[str, str]:
    """Kind of base layer, rank, alpha and adapted layers, as a checkpoint of adapters records them."""
    layers = _adapted(network(denoiser))
    first: Any = next(iter(layers.values()))
    return {
        "base": type(first.get_base_layer()).__name__, "rank": str(first.r["default"]),
        "alpha": str(float(first.lora_alpha["default"])),
        "targets": ", ".join(sorted({_target(*one) for one in layers.items()})),
    }  # fmt: skip


def fused_targets(denoiser: Denoiser) -> list[str]:
    """Names of the fused matrices of experts that carry adapters."""
    found = _adapted(network(denoiser)).values()
    return sorted({str(module.parameter_name) for module in found if hasattr(module, "parameter_name")})


def load_adapter(denoiser: Denoiser, state: Mapping[str, Tensor], facts: Mapping[str, str], where: str) -> None:
    """Put a checkpoint's adapters into those of the model. ModelError where kind, rank, alpha or layers differ."""
    own = adapter_facts(denoiser)
    wrong = [f"{name} {facts[name]}, here {value}" for name, value in own.items() if facts.get(name, value) != value]
    mine = adapter_state(denoiser)
    if not wrong and {name: one.shape for name, one in mine.items()} != {n: one.shape for n, one in state.items()}:
        wrong = [f"{len(state)} tensors, here {len(mine)} of other names or shapes"]
    if wrong:
        raise ModelError(f"{where}: the adapter there has {'; '.join(wrong)}; use the model.adapter of its config.json")
    network(denoiser).load_state_dict(dict(state), strict=False)


def adapter_state(denoiser: Denoiser) -> dict[str, Tensor]:
    """The adapters' tensors by name, for a checkpoint; load them with load_state_dict(strict=False)."""
    return {name: tensor for name, tensor in network(denoiser).state_dict().items() if "lora_" in name}


def merge_adapter(denoiser: Denoiser) -> None:
    """Add every adapter into its layer and remove it: the model is plain again, W + alpha / rank * B A. A quantised
    layer is expanded to the model's dtype first. Nothing to do where there are no adapters."""
    if not isinstance(denoiser, nn.Module) or not has_adapter(denoiser):
        return
    model = network(denoiser)
    for name, module in _adapted(model).items():
        parent, _, last = name.rpartition(".")
        if last == "base_layer":
            continue
        whole = _whole_experts(module) if hasattr(module, "parameter_name") else _merged(module, denoiser.dtype)
        setattr(model.get_submodule(parent), last, whole)
    _forget(model)
    model.requires_grad_(True)


def _forget(model: Any) -> None:
    for owner, names in ((model, ("peft_config", "hf_quantizer", "is_quantized")), (model.config, QUANTISED)):
        for name in names:
            if name in vars(owner):
                delattr(owner, name)


def has_adapter(model: nn.Module) -> bool:
    """Whether any layer carries an adapter."""
    return any("lora_" in name for name, _ in model.named_parameters())


def _adapted(model: Any) -> dict[str, Any]:
    from peft.tuners.lora import LoraLayer

    return {name: module for name, module in model.named_modules() if isinstance(module, LoraLayer)}


def _target(name: str, module: Any) -> str:
    return getattr(module, "parameter_name", "") or name.rpartition(".")[2]


@torch.no_grad()
def _whole_experts(module: Any) -> nn.Module:
    # wrappers of one module's matrices lie within each other
    while hasattr(module, "parameter_name"):
        matrix = module.get_param()
        for name in module.active_adapters:
            matrix += module.get_delta_weight(name).to(matrix)
        module = module.base_layer
    inner: nn.Module = module
    return inner


@torch.no_grad()
def _merged(module: Any, dtype: torch.dtype) -> nn.Linear:
    base = module.get_base_layer()
    weight = _dense_weight(base)
    for name in module.active_adapters:
        weight = weight + module.get_delta_weight(name).to(weight.device, torch.float32)
    plain = nn.Linear(weight.shape[1], weight.shape[0], bias=base.bias is not None, device=weight.device, dtype=dtype)
    plain.weight.copy_(weight)
    if base.bias is not None:
        plain.bias.copy_(base.bias)
    return plain.train(module.training)


def _dense_weight(base: Any) -> Tensor:
    if type(base) is nn.Linear:
        return base.weight.detach().float()
    identity = torch.eye(base.in_features, device=base.weight.device).requires_grad_()
    output: Tensor = base(identity).float()
    return (output if base.bias is None else output - base.bias.float()).T
