# What a model folder holds, how it differs from another, and whether the adapter reproduces its AR logits.
# Entry points: inspect, compare, parity, conversion_report, require_parity.
# inspect and compare read one tensor at a time; parity needs the loaded model.
"""The conversion report."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hildanext.core.masks import block_diffusion_mask
from hildanext.core.types import Batch
from hildanext.errors import ModelError
from hildanext.models import attention
from hildanext.models.backend import Backend, plan_causal
from hildanext.models.load import Loaded, check_supported, load_tokenizer, model_folder, read_config
from hildanext.models.mask_token import MASK_TEXT
from hildanext.models.meta import HildaMeta

TOLERANCE = {torch.float64: 1e-6, torch.float32: 1e-4, torch.bfloat16: 5e-2, torch.float16: 1e-2}


class _Tensors:
    def __init__(self, folder: Path) -> None:
        from safetensors import SafetensorError, safe_open

        files = sorted(folder.glob("*.safetensors"))
        if not files:
            raise ModelError(f"{folder}: no *.safetensors files; expected a Hugging Face model folder")
        try:
            handles: list[Any] = [safe_open(file, framework="pt") for file in files]
        except SafetensorError as error:
            raise ModelError(f"{folder}: the weights are damaged ({error}); restore the files") from error
        self._owner = {name: handle for handle in handles for name in handle.keys()}  # noqa: SIM118
        self.names = sorted(self._owner)

    def __getitem__(self, name: str) -> Tensor:
        tensor: Tensor = self._owner[name].get_tensor(name)
        return tensor


def inspect(folder: str, against: str | None = None) -> dict[str, Any]:
    """Architecture, parameters, ties, vocabulary, free rows and mask token of a model folder (or a bundled name); with
    `against`, the tensors that differ. Counts are elements, sizes bytes. ModelError for a folder that is none."""
    path = model_folder(folder)
    config, tensors = read_config(path), _Tensors(path)
    each = (tensors[name] for name in tensors.names)
    rows = [(tensor.numel(), tensor.element_size(), str(tensor.dtype)) for tensor in each]
    found = {
        "folder": folder,
        "architecture": _architecture(config, path),
        "parameters": sum(count for count, _, _ in rows),
        "bytes": sum(count * size for count, size, _ in rows),
        "dtypes": sorted({dtype.removeprefix("torch.") for _, _, dtype in rows}),
        "ties": {"config": bool(config.tie_word_embeddings), "output_matrix_stored": "lm_head.weight" in tensors.names},
        "vocabulary": _vocabulary(path, tensors),
        "meta": HildaMeta.read(path).model_dump(),
    }
    return found if against is None else found | {"against": compare(folder, against)}


def _architecture(config: Any, path: Path) -> dict[str, Any]:
    names = ("model_type", "num_hidden_layers", "hidden_size", "intermediate_size", "num_attention_heads",
             "num_key_value_heads", "head_dim", "max_position_embeddings", "rms_norm_eps", "vocab_size")  # fmt: skip
    rope = getattr(config, "rope_parameters", None) or {}
    facts = {name: getattr(config, name, None) for name in names} | {"rope_theta": rope.get("rope_theta")}
    try:
        check_supported(config, str(path))
    except ModelError as error:
        return facts | {"supported": False, "reason": str(error)}
    return facts | {"supported": True, "reason": "softmax attention over a mask in every layer"}


def _vocabulary(path: Path, tensors: _Tensors) -> dict[str, Any]:
    matrix = next((tensors[name] for name in tensors.names if name.endswith("embed_tokens.weight")), None)
    known = load_tokenizer(str(path)).get_vocab()
    meta, used = HildaMeta.read(path), max(known.values()) + 1
    rows = 0 if matrix is None else int(matrix.shape[0])
    mask_id, source = meta.mask_id, "hildanext.json"
    if mask_id is None:
        mask_id = known.get(MASK_TEXT, used)
        source = "tokenizer" if MASK_TEXT in known else "first free row" if used < rows else "a new row (resize)"
    facts = {"rows": rows, "tokenizer": used, "free_rows": max(0, rows - used), "mask_id": mask_id, "mask_from": source}
    return facts if matrix is None else facts | _norms(matrix, mask_id)


def _norms(matrix: Tensor, mask_id: int) -> dict[str, Any]:
    norms = torch.cat([part.float().norm(dim=1) for part in torch.split(matrix, 4096)])
    own = float(norms[mask_id]) if mask_id < len(norms) else None
    return {"median_row_norm": float(norms.median()), "mask_row_norm": own}


def compare(folder: str, against: str) -> dict[str, Any]:
    """Tensors of `folder` against those of `against`: equal (count), changed and reshaped (Frobenius norm of the
    difference over shared rows, and relative to `against`), missing (only there), added (only here)."""
    ours, theirs = _Tensors(model_folder(folder)), _Tensors(model_folder(against))
    shared = [name for name in ours.names if name in set(theirs.names)]
    rows = [_difference(name, ours[name], theirs[name]) for name in shared]
    changed = [row for row in rows if row["norm"] or row["shape"] != row["shape_there"]]
    return {
        "folder": against,
        "equal": len(rows) - len(changed),
        "changed": [row for row in changed if row["shape"] == row["shape_there"]],
        "reshaped": [row for row in changed if row["shape"] != row["shape_there"]],
        "missing": sorted(set(theirs.names) - set(shared)),
        "added": sorted(set(ours.names) - set(shared)),
    }


def _difference(name: str, own: Tensor, other: Tensor) -> dict[str, Any]:
    facts = {"name": name, "shape": list(own.shape), "shape_there": list(other.shape)}
    if own.shape[1:] != other.shape[1:]:
        return facts | {"norm": None, "relative": None}
    rows = min(len(own), len(other))
    norm = float((own[:rows].double() - other[:rows].double()).norm())
    return facts | {"norm": norm, "relative": norm / max(float(other[:rows].double().norm()), 1e-30)}


@torch.no_grad()
def parity(loaded: Loaded, length: int = 16) -> dict[str, Any]:
    """Whether block size 1 on the clean stream is the AR model: largest difference of logits and of attention outputs
    against transformers' own forward of the same weights, on `length` random tokens, per way of computing it."""
    model = loaded.denoiser.model.eval()
    rng = torch.Generator().manual_seed(0)
    tokens = torch.randint(0, loaded.denoiser.vocab_size, (1, length), generator=rng).to(loaded.denoiser.device)
    batch = Batch(tokens, torch.ones_like(tokens, dtype=torch.bool), torch.zeros_like(tokens))
    with _own_attention(model), _recorded(model) as expected:
        reference = model(input_ids=tokens, use_cache=False).logits
    ways = {"clean half, dense": _clean_half(loaded, batch)}
    for name in ("dense", "sliced"):
        mask, layout = plan_causal(Backend(name, "parity"), batch.docs)
        ways[f"causal, {name}"] = _run(loaded, tokens, batch.positions(), mask, layout)
    scale = max(1.0, float(reference.float().abs().max()))
    logits = {name: float((found - reference).abs().max()) / scale for name, (found, _) in ways.items()}
    layers = {name: _largest(record, expected, length) for name, (_, record) in ways.items()}
    tolerance = TOLERANCE[loaded.dtype]
    worst = max(*logits.values(), *layers.values())
    facts = {"ok": worst <= tolerance, "worst": worst, "tolerance": tolerance, "dtype": str(loaded.dtype)}
    return facts | {"tokens": length, "logits": logits, "attention": layers}


def _clean_half(loaded: Loaded, batch: Batch) -> tuple[Tensor, list[Tensor]]:
    length = batch.tokens.shape[1]
    noisy = torch.full_like(batch.tokens, loaded.denoiser.mask_id)
    mask = block_diffusion_mask(length, 1, batch.docs)
    positions = batch.positions().repeat(1, 2)
    found, record = _run(loaded, torch.cat([noisy, batch.tokens], 1), positions, mask, None)
    return found[:, length:], record


def _run(
    loaded: Loaded, tokens: Tensor, positions: Tensor, mask: Tensor, layout: Any
) -> tuple[Tensor, list[Tensor]]:  # fmt: skip
    denoiser = loaded.denoiser
    with _recorded(denoiser.model) as record:
        hidden = denoiser.body(tokens, positions, mask, layout=layout)
    return hidden @ denoiser.head().T, record


def _largest(record: list[Tensor], expected: list[Tensor], length: int) -> float:
    scale = max([1.0, *(float(layer.float().abs().max()) for layer in expected)])
    pairs = zip(record, expected, strict=True)
    return max([0.0, *(float((own[:, -length:] - other).abs().max()) for own, other in pairs)]) / scale


@contextmanager
def _own_attention(model: Any) -> Iterator[None]:
    model.set_attn_implementation("sdpa")
    try:
        yield
    finally:
        model.set_attn_implementation(attention.NAME)


@contextmanager
def _recorded(model: Any) -> Iterator[list[Tensor]]:
    record: list[Tensor] = []
    layers = [module for name, module in model.named_modules() if name.endswith("self_attn")]
    hooks = [module.register_forward_hook(lambda _, __, output: record.append(output[0])) for module in layers]
    try:
        yield record
    finally:
        for hook in hooks:
            hook.remove()


def require_parity(result: dict[str, Any], where: str) -> None:
    """ModelError where parity() found the adapter and the AR model apart."""
    if not result["ok"]:
        raise ModelError(
            f"{where}: logit parity failed: block size 1 differs from the AR model by {result['worst']:.2e} of the"
            f" largest value, expected at most {result['tolerance']:.0e} in {result['dtype']}; the architecture is not"
            " expressed by its mask alone; use another model"
        )


def conversion_report(loaded: Loaded, against: str | None = None) -> dict[str, Any]:
    """inspect() of the loaded folder (nothing where the model is new) with parity(); what convert-wsd writes first."""
    facts = {} if loaded.path is None else inspect(str(loaded.path), against)
    return facts | {"parity": parity(loaded)}
