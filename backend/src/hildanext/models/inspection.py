# What a model folder holds, how it differs from another, and whether the adapter reproduces its AR logits.
# Entry points: inspect, compare, parity, conversion_report, require_parity.
# inspect and compare read one tensor at a time; parity needs the loaded model, a Hugging Face network.
"""Looking at models."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from hildanext.core.masks import block_diffusion_mask
from hildanext.core.types import Batch, Denoiser
from hildanext.errors import ModelError
from hildanext.models import attention
from hildanext.models.backend import Backend, plan_causal
from hildanext.models.denoiser import HFDenoiser, hugging_face
from hildanext.models.load import Loaded, kind_at, model_folder
from hildanext.models.meta import HildaMeta
from hildanext.models.tensors import Tensors

TOLERANCE = {torch.float64: 1e-6, torch.float32: 1e-4, torch.bfloat16: 5e-2, torch.float16: 1e-2}


def inspect(folder: str, against: str | None = None) -> dict[str, Any]:
    """What its kind reports of a model folder (or a bundled name), and its metadata; with `against`, the tensors that
    differ. Counts are elements, sizes bytes. ModelError for a folder that is none."""
    path = model_folder(folder)
    found = {"folder": folder, **kind_at(folder).facts(path), "meta": HildaMeta.read(path).model_dump()}
    return found if against is None else found | {"against": compare(folder, against)}


def compare(folder: str, against: str) -> dict[str, Any]:
    """Tensors of `folder` against those of `against`: equal (count), changed and reshaped (Frobenius norm of the
    difference over shared rows, and relative to `against`), missing (only there), added (only here)."""
    ours, theirs = Tensors(model_folder(folder)), Tensors(model_folder(against))
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
def parity(denoiser: Denoiser, length: int = 16) -> dict[str, Any]:
    """Whether block size 1 on the clean stream is the AR model: largest difference of logits and of attention outputs
    against transformers' own forward of the same weights, on `length` random tokens, per way of computing it."""
    held = hugging_face(denoiser)
    model = held.model.eval()
    rng = torch.Generator().manual_seed(0)
    tokens = torch.randint(0, denoiser.vocab_size, (1, length), generator=rng).to(denoiser.device)
    batch = Batch(tokens, torch.ones_like(tokens, dtype=torch.bool), torch.zeros_like(tokens))
    with _own_attention(model), _recorded(model) as expected:
        reference = model(input_ids=tokens, use_cache=False).logits
    ways = {"clean half, dense": _clean_half(held, batch)}
    for name in ("dense", "sliced"):
        mask, layout = plan_causal(Backend(name, "parity"), batch.docs)
        ways[f"causal, {name}"] = _run(held, tokens, batch.positions(), mask, layout)
    scale = max(1.0, float(reference.float().abs().max()))
    logits = {name: float((found - reference).abs().max()) / scale for name, (found, _) in ways.items()}
    layers = {name: _largest(record, expected, length) for name, (_, record) in ways.items()}
    tolerance = TOLERANCE[denoiser.dtype]
    worst = max(*logits.values(), *layers.values())
    facts = {"ok": worst <= tolerance, "worst": worst, "tolerance": tolerance, "dtype": str(denoiser.dtype)}
    return facts | {"tokens": length, "logits": logits, "attention": layers}


def _clean_half(denoiser: HFDenoiser, batch: Batch) -> tuple[Tensor, list[Tensor]]:
    length = batch.tokens.shape[1]
    noisy = torch.full_like(batch.tokens, denoiser.mask_id)
    mask = block_diffusion_mask(length, 1, batch.docs)
    positions = batch.positions().repeat(1, 2)
    found, record = _run(denoiser, torch.cat([noisy, batch.tokens], 1), positions, mask, None)
    return found[:, length:], record


def _run(
    denoiser: HFDenoiser, tokens: Tensor, positions: Tensor, mask: Tensor, layout: Any
) -> tuple[Tensor, list[Tensor]]:  # fmt: skip
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
    """ModelError where parity() found the denoiser and the AR model apart."""
    if not result["ok"]:
        raise ModelError(
            f"{where}: logit parity failed: block size 1 differs from the AR model by {result['worst']:.2e} of the"
            f" largest value, expected at most {result['tolerance']:.0e} in {result['dtype']}; the architecture is not"
            " expressed by its mask alone; use another model"
        )


def conversion_report(loaded: Loaded, against: str | None = None) -> dict[str, Any]:
    """inspect() of the loaded folder (nothing where the model is new) with its kind's parity; what convert-wsd writes
    first."""
    facts = {} if loaded.path is None else inspect(str(loaded.path), against)
    return facts | {"parity": loaded.kind.parity(loaded.denoiser)}
