# A folder of low-rank matrices in peft's files, made for the weights of another folder, its base.
# Entry points: write_adapters, read_adapters, base_of, require_base, add_in, start_from.
# hildanext.json names the base and a digest of its adapted matrices: over other weights the same matrices are another
# model. Nothing of peft is needed to read one.
"""Adapter folders."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from hildanext.core.types import Denoiser
from hildanext.disk import replacing, write_atomic
from hildanext.errors import ModelError
from hildanext.models.files import ADAPTER
from hildanext.models.licence import carry
from hildanext.models.load import BUNDLED, name_of, place
from hildanext.models.lora import adapter_facts, adapter_state, fused_targets, load_adapter
from hildanext.models.meta import META_FILE, Base, HildaMeta
from hildanext.models.tensors import Tensors

MATRICES, MODELS = "adapter_model.safetensors", Path("models")
PREFIX, DOWN, UP = "base_model.model.", ".lora_A.weight", ".lora_B.weight"
PLAIN = {"peft_type": "LORA", "bias": "none", "use_dora": False, "use_rslora": False, "fan_in_fan_out": False}
Matrices = Mapping[str, tuple[Tensor, Tensor]]


def write_adapters(denoiser: Denoiser, folder: Path, meta: HildaMeta, base: Path) -> Path:
    """Write the LoRA layers a denoiser carries as a folder of this kind, in bfloat16; returns it. `base` is the folder
    its own weights came from. HildaError where something else lies at `folder`."""
    facts, state = adapter_facts(denoiser), adapter_state(denoiser)
    if fused := fused_targets(denoiser):
        raise ModelError(
            f"{folder}: adapters on {', '.join(fused)}, fused matrices of experts, are not written as a folder of"
            " adapters; merge them into the model, or adapt linear layers alone"
        )
    tensors = {
        PREFIX + name.replace(".default", ""): value.detach().to("cpu", torch.bfloat16).contiguous()
        for name, value in state.items()
    }
    names = [name.removeprefix(PREFIX).removesuffix(DOWN) for name in tensors if name.endswith(DOWN)]
    settings = PLAIN | {
        "base_model_name_or_path": name_of(base), "task_type": "CAUSAL_LM", "r": int(facts["rank"]),
        "lora_alpha": float(facts["alpha"]), "target_modules": facts["targets"].split(", "),
    }  # fmt: skip
    about = {
        "kind": "adapters", "base": Base(name=name_of(base), sha256=_digest(base, names)),
        "mask_id": denoiser.mask_id, "shift": denoiser.shift, "block_grid": denoiser.block_grid,
    }  # fmt: skip
    with replacing(folder) as fresh:
        fresh.mkdir(parents=True, exist_ok=True)
        save_file(tensors, fresh / MATRICES, {"format": "pt"})
        carry(base, fresh)
        write_atomic(fresh / ADAPTER, json.dumps(settings, indent=2, sort_keys=True) + "\n")
        write_atomic(fresh / META_FILE, meta.model_copy(update=about).text())
    return folder


def require_base(folder: Path, layers: Iterable[str], base: Path | None = None) -> Path:
    """The base of an adapter folder (None: the one that is found). ModelError where its matrices are not those the
    adapters were trained on."""
    known = HildaMeta.read(folder).base
    base, wanted = base_of(folder) if base is None or known is None else (base, known.sha256)
    found = _digest(base, layers)
    if found != wanted:
        raise ModelError(
            f"{base}: not the weights that the adapters of {folder} were trained on (sha256 {found[:12]}, recorded"
            f" {wanted[:12]}); fetch the base again, or another release of the adapters"
        )
    return base


def _digest(base: Path, layers: Iterable[str]) -> str:
    tensors, total = Tensors(base), hashlib.sha256()
    known = set(tensors.names)
    for layer in sorted(layers):
        if f"{layer}.weight" not in known:
            raise ModelError(f"{base}: holds no {layer}.weight, which the adapters add to; they are for another model")
        total.update(layer.encode())
        total.update(tensors[f"{layer}.weight"].float().contiguous().numpy().tobytes())
    return total.hexdigest()


def base_of(folder: Path) -> tuple[Path, str]:
    """(folder, digest) of the model that adapters are added to: beside them, in ./models, or bundled. ModelError where
    it is in none of these places."""
    recorded = HildaMeta.read(folder).base
    if recorded is None:
        raise ModelError(f"{folder / META_FILE}: kind adapters, but no base is recorded; restore the file")
    above = folder.absolute().parents
    beside, near = above[0] / recorded.name, [above[min(1, len(above) - 1)] / recorded.name, MODELS / recorded.name]
    near += [Path(recorded.name)] if recorded.name in BUNDLED else []
    found = next((one for path in (beside, *near) if ((one := place(str(path))) / "config.json").is_file()), None)
    if found is None:
        raise ModelError(
            f"{folder}: adapters over {recorded.name}, which is not beside them; run `hildanext fetch"
            f" {recorded.name}`, or put that model's folder at {beside}"
        )
    return found, recorded.sha256


def read_adapters(folder: Path) -> tuple[float, Matrices]:
    """(alpha / rank, layer -> (A [r, in], B [out, r])). ModelError for a folder whose files are damaged or hold more
    than plain LoRA matrices."""
    try:
        settings = json.loads((folder / ADAPTER).read_text(encoding="utf-8"))
        tensors = load_file(folder / MATRICES)
        scale = float(settings["lora_alpha"]) / int(settings["r"])
    except (OSError, ValueError, KeyError, TypeError, ZeroDivisionError, SafetensorError) as error:
        raise ModelError(f"{folder}: the adapters cannot be read ({error!r:.160}); restore the files") from error
    odd = sorted(f"{name}={settings[name]}" for name, value in PLAIN.items() if settings.get(name, value) != value)
    names = {name.removeprefix(PREFIX).removesuffix(DOWN).removesuffix(UP) for name in tensors}
    pairs = {name: (f"{PREFIX}{name}{DOWN}", f"{PREFIX}{name}{UP}") for name in names}
    if not odd and {part for pair in pairs.values() for part in pair} != set(tensors):
        odd = ["tensors that are no pair of lora_A and lora_B"]
    if odd or not pairs:
        raise ModelError(f"{folder / ADAPTER}: {', '.join(odd) or 'no matrices'}; only plain LoRA matrices are read")
    return scale, {name: (tensors[down], tensors[up]) for name, (down, up) in pairs.items()}


@torch.no_grad()
def add_in(model: Any, matrices: Matrices, scale: float) -> None:
    """W + scale * B A in place of every W, summed in float32. Source: LoRA arXiv:2106.09685 eq. 3."""
    for name, (down, up) in matrices.items():
        weight = model.get_submodule(name).weight
        sum_ = weight.float() + scale * (up.float() @ down.float()).to(weight.device)
        weight.copy_(sum_.to(weight.dtype))


def start_from(denoiser: Denoiser, folder: Path, base: Path | None) -> None:
    """Put the matrices of an adapter folder into the LoRA layers of a denoiser that was loaded from `base`: training
    goes on from there. ModelError where rank, scale or layers differ, or the adapters are for other weights."""
    scale, matrices = read_adapters(folder)
    require_base(folder, matrices, base)
    pairs = (
        (f"{name}.lora_{side}.default.weight", value)
        for name, pair in matrices.items()
        for side, value in zip("AB", pair, strict=True)
    )
    rank = next(iter(matrices.values()))[0].shape[0]
    facts = {"rank": str(rank), "alpha": str(scale * rank)}
    load_adapter(denoiser, {name: value.float() for name, value in pairs}, facts, f"model.adapter.start: {folder}")
