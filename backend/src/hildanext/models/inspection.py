# What a model folder holds, how it differs from another, and whether the adapter reproduces its AR logits.
# Entry points: inspect, effective, compare, parity, parity_lengths, conversion_report, require_parity.
# inspect and compare read one tensor at a time; parity needs the loaded model, a Hugging Face network.
"""Looking at models."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from hildanext.config.model import ModelConfig
from hildanext.core.masks import block_diffusion_mask
from hildanext.core.types import Batch, Denoiser
from hildanext.data.tokenizers import load_tokenizer
from hildanext.errors import ModelError, first_line
from hildanext.models import attention
from hildanext.models.backend import Backend, plan_causal
from hildanext.models.denoiser import HFDenoiser, hugging_face
from hildanext.models.files import skeleton
from hildanext.models.load import Loaded, kind_at, model_folder
from hildanext.models.mask_token import mask_id_of, shift_of
from hildanext.models.meta import HildaMeta
from hildanext.models.runs import Runs
from hildanext.models.tensors import Tensors

ATTENTION = ("self_attn", "attn", "attention", "self_attention", "linear_attn", "conv")
SHORT, LONGEST = (16, 64), 256
TOLERANCE = {torch.float64: 1e-6, torch.float32: 1e-4, torch.bfloat16: 5e-2, torch.float16: 1e-2}


def inspect(folder: str, against: str | None = None) -> dict[str, Any]:
    """What its kind reports of a model folder (or a bundled name), and its metadata; with `against`, the tensors that
    differ. Counts are elements, sizes bytes. ModelError for a folder that is none."""
    path = model_folder(folder)
    found = {"folder": folder, **kind_at(folder).facts(path), "meta": HildaMeta.read(path).model_dump()}
    return found if against is None else found | {"against": compare(folder, against)}


def effective(model: ModelConfig, report: dict[str, Any]) -> dict[str, Any]:
    """mask_id and shift that a command with these settings would use on the inspected folder. ModelError where the
    settings contradict what is recorded, or the id stands for text."""
    meta = HildaMeta.model_validate(report["meta"])
    recorded = report.get("vocabulary", report["meta"])["mask_id"]
    found = {"mask_id": recorded if model.mask_id is None else model.mask_id, "shift": shift_of(model, meta)}
    if model.mask_id is not None and report["architecture"]["supported"]:
        path = kind_at(model.path).home(model_folder(model.path))
        found["mask_id"] = mask_id_of(model, meta, skeleton(path, model.trust_remote_code), load_tokenizer(path))
    return found


def compare(folder: str, against: str) -> dict[str, Any]:
    """Tensors of `folder` against those of `against`: equal (count), changed and reshaped (Frobenius norm of the
    difference over shared rows, and relative to `against`), missing (only there), added (only here)."""
    ours, theirs = Tensors(model_folder(folder)), Tensors(model_folder(against, "inspect.against"))
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


def parity_lengths(denoiser: Denoiser, window: int = 0) -> tuple[int, ...]:
    """The lengths parity() tries: short, longer, and the training window (0: LONGEST), within the model's own."""
    most = denoiser.window or window or LONGEST
    return tuple(sorted({min(length, most) for length in (*SHORT, window or LONGEST)}))


def parity(denoiser: Denoiser, window: int = 0) -> dict[str, Any]:
    """Whether block size 1 on the clean stream is the AR model: largest difference of logits and of attention outputs
    against transformers' own forward of the same weights, on random tokens at parity_lengths, per way of computing it.
    window: of the training rows, tokens; 0 where none is known."""
    lengths = parity_lengths(denoiser, window)
    found = [_parity(hugging_face(denoiser), length) for length in lengths]
    facts = max(found, key=lambda one: float("inf") if one["worst"] != one["worst"] else one["worst"])
    return facts | {"lengths": list(lengths)}


@torch.no_grad()
def _parity(denoiser: HFDenoiser, length: int) -> dict[str, Any]:
    model = denoiser.model.eval()
    rng = torch.Generator().manual_seed(0)
    tokens = torch.randint(0, denoiser.vocab_size, (1, length), generator=rng).to(denoiser.device)
    batch = Batch(tokens, torch.ones_like(tokens, dtype=torch.bool), torch.zeros_like(tokens))
    try:
        with _own_attention(model), _recorded(model) as expected:
            reference = _reference(denoiser, tokens)
        ways = {"clean half, dense": _clean_half(denoiser, batch)}
        for name in ("dense", "sliced") if denoiser.takes_layout else ("dense",):
            mask, layout = plan_causal(Backend(name, "parity"), batch.docs)
            ways[f"causal, {name}"] = _run(denoiser, tokens, batch.positions(), mask, layout)
    except (RuntimeError, ValueError, TypeError, IndexError, AttributeError) as error:
        raise ModelError(
            f"model: {denoiser.config.model_type}: its forward fails under given masks and positions at {length} tokens"
            f" ({type(error).__name__}: {first_line(error)}); use another model"
        ) from error
    scale = max(1.0, float(reference.float().abs().max()))
    logits = {name: float((found - reference).abs().max()) / scale for name, (found, _) in ways.items()}
    layers = {name: _largest(record, expected, length) for name, (_, record) in ways.items()}
    tolerance = TOLERANCE[denoiser.dtype]
    worst = max(*logits.values(), *layers.values())
    facts = {"ok": worst <= tolerance, "worst": worst, "tolerance": tolerance, "dtype": str(denoiser.dtype)}
    return facts | {"tokens": length, "logits": logits, "attention": layers}


def _reference(denoiser: HFDenoiser, tokens: Tensor) -> Tensor:
    if tokens.shape[1] <= SHORT[0]:
        logits: Tensor = denoiser.model(input_ids=tokens, use_cache=False).logits
        return logits
    hidden = denoiser.model.base_model(input_ids=tokens, use_cache=False).last_hidden_state
    return _logits(denoiser, hidden)


def _logits(denoiser: HFDenoiser, hidden: Tensor) -> Tensor:
    return hidden[:, -SHORT[0] :] @ denoiser.head().T


def _clean_half(denoiser: HFDenoiser, batch: Batch) -> tuple[Tensor, list[Tensor]]:
    noisy = torch.full_like(batch.tokens, denoiser.mask_id)
    mask = block_diffusion_mask(batch.tokens.shape[1], 1, batch.docs)
    positions = batch.positions().repeat(1, 2)
    found, record = _run(denoiser, torch.cat([noisy, batch.tokens], 1), positions, mask, None)
    return found, record


def _run(
    denoiser: HFDenoiser, tokens: Tensor, positions: Tensor, mask: Tensor, layout: Any
) -> tuple[Tensor, list[Tensor]]:  # fmt: skip
    runs = Runs.causal((positions == 0).long().cumsum(1)) if denoiser.mixers else None
    with _recorded(denoiser.model) as record:
        hidden = denoiser.body(tokens, positions, mask, layout=layout, runs=runs)
    return _logits(denoiser, hidden), record


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
    layers = [module for name, module in model.named_modules() if name.rpartition(".")[2] in ATTENTION]
    hooks = [module.register_forward_hook(lambda _, __, output: record.append(_first(output))) for module in layers]
    try:
        yield record
    finally:
        for hook in hooks:
            hook.remove()


def _first(output: Any) -> Tensor:
    first: Tensor = output if isinstance(output, Tensor) else output[0]
    return first


def require_parity(result: dict[str, Any], where: str) -> None:
    """ModelError where parity() found the denoiser and the AR model apart."""
    if not result["ok"]:
        raise ModelError(
            f"{where}: logit parity failed: block size 1 differs from the AR model by {result['worst']:.2e} of the"
            f" largest value at {result['tokens']} tokens, expected at most {result['tolerance']:.0e} in"
            f" {result['dtype']}; the architecture is not expressed by its mask alone; use another model"
        )


def conversion_report(loaded: Loaded, against: str | None = None, window: int = 0) -> dict[str, Any]:
    """inspect() of the loaded folder (nothing where the model is new) with its kind's parity up to the training window;
    what convert-wsd writes first."""
    facts = {} if loaded.path is None else inspect(str(loaded.path), against)
    return facts | {"parity": loaded.kind.parity(loaded.denoiser, window)}
