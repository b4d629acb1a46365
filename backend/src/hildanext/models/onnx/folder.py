# The folder of an ONNX export: graph, facts, tokenizer, metadata, card; checked against PyTorch before it is kept.
# Entry points: Form (what is written), write_onnx, largest_difference, missing_packages.
# The check is also what finds a family whose parts have Llama's names and compute something else. Quantising is
# onnxruntime's own.
"""Writing ONNX exports."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

import torch

from hildanext.disk import replacing, write_atomic
from hildanext.errors import ModelError
from hildanext.models.denoiser import network
from hildanext.models.licence import carry
from hildanext.models.load import Loaded
from hildanext.models.meta import META_FILE
from hildanext.models.onnx.denoiser import OnnxDenoiser
from hildanext.models.onnx.facts import FACTS, MODEL, Facts
from hildanext.models.onnx.graph import LOGITS, OPSET, STATISTICS, graph_of
from hildanext.models.onnx.step import Step

Weights = Literal["float32", "int8", "int4"]
BITS = {"int8": 8, "int4": 4}
GROUPS = {"int8": 64, "int4": 32}
INT8_PRODUCTS = 4
LENGTH, BLOCK = 12, 4
CLOSE, ROUNDED = 1e-3, 0.1
CARD = """# {name}

One step of a block-diffusion language model ({parent}) as an ONNX graph, written by hildanext: `model.onnx`, opset
{opset}, weights {weights}, outputs {outputs}. [MASK] is token {mask_id}, the block size {block}, the logit shift
{shift}. Before quantising its logits differed from PyTorch's by at most {difference:.1g}.

`hildanext generate --model <this folder> --prompt ...` decodes with it through onnxruntime; docs/onnx.md of hildanext
says what other programs have to feed.
"""


@dataclass(frozen=True)
class Form:
    """weights of the matrix products: float32, or integers in groups of `group` (None: see GROUPS) that share a scale;
    outputs: logits, or the statistics of the distribution without [MASK]."""

    weights: Weights = "float32"
    group: int | None = None
    outputs: Literal["logits", "statistics"] = "logits"


def missing_packages() -> list[str]:
    """Of what exporting needs, the packages that are not installed; onnxruntime's quantisers want onnx_ir unsaid."""
    return [name for name in ("onnx", "onnx_ir", "onnxruntime") if find_spec(name) is None]


def write_onnx(loaded: Loaded, folder: Path, form: Form) -> list[str]:
    """Write the folder, replacing it; returns the names of its files. ModelError for a network that does not export,
    without the packages of the extra `onnx`, or where the graph is not what PyTorch computes."""
    if missing := missing_packages():
        raise ModelError(f"export onnx: {' and '.join(missing)} not installed; pip install -e 'backend[onnx]'")
    denoiser, meta = loaded.denoiser, loaded.meta.model_copy(update={"kind": "onnx", "base": None, "recommended": None})
    step = Step.of(network(denoiser), denoiser.head())
    facts = Facts(
        opset=OPSET, weights=form.weights, outputs=form.outputs, vocabulary=denoiser.vocab_size,
        layers=len(step.layers), kv_heads=step.kv_heads, head_dim=step.head_dim, window=denoiser.window,
        end_ids=sorted(denoiser.end_ids),
    )  # fmt: skip
    with replacing(folder) as fresh:
        difference = _graph(loaded, step, fresh, form)
        write_atomic(fresh / FACTS, facts.model_dump_json(indent=2) + "\n")
        loaded.tokenizer.save_pretrained(fresh)
        carry(loaded.path, fresh)
        write_atomic(fresh / META_FILE, meta.text())
        card = CARD.format(
            name=folder.name, parent=meta.parent or "an unnamed checkpoint", opset=OPSET, weights=form.weights,
            outputs=form.outputs, mask_id=denoiser.mask_id, block=meta.block or "not recorded", shift=denoiser.shift,
            difference=difference,
        )  # fmt: skip
        write_atomic(fresh / "README.md", card)
    return sorted(path.name for path in folder.iterdir())


def _graph(loaded: Loaded, step: Step, folder: Path, form: Form) -> float:
    tied, mask_id = form.weights == "float32", loaded.denoiser.mask_id
    made = graph_of(step, LOGITS, mask_id, tied)
    _save(made, folder / MODEL)
    difference = largest_difference(loaded.denoiser, step, folder)
    if form.outputs == "statistics":
        made = graph_of(step, STATISTICS, mask_id, tied)
        _save(made, folder / MODEL)
    if not tied:
        work = _quantisers().MatMulNBitsQuantizer(
            made, bits=BITS[form.weights], block_size=form.group or GROUPS[form.weights], is_symmetric=True,
            accuracy_level=INT8_PRODUCTS,
        )  # fmt: skip
        work.process()
        _save(work.model.model, folder / MODEL)
    return difference


def _quantisers() -> Any:
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    found = import_module("onnxruntime.quantization.matmul_nbits_quantizer")  # it turns every logger on
    root.handlers[:] = handlers
    root.setLevel(level)
    logging.getLogger(found.__name__).setLevel(logging.WARNING)
    return found


def _save(made: Any, path: Path) -> None:
    import onnx

    beside, whole = path.with_name(path.name + ".data"), type(made)()
    beside.unlink(missing_ok=True)  # onnx appends to one that is there
    whole.CopyFrom(made)  # saving moves the weights out of the object
    onnx.save_model(whole, str(path), save_as_external_data=True, location=beside.name, size_threshold=1024)
    if beside.exists():
        beside.chmod(path.stat().st_mode)


@torch.no_grad()
def largest_difference(denoiser: Any, step: Step, folder: Path) -> float:
    """Largest difference of the logits of two rows of 12 tokens in blocks of 4: the folder's float32 graph against the
    network. ModelError where it exceeds a thousandth of the largest logit (a tenth, where the weights are rounded)."""
    facts = Facts(
        opset=OPSET, weights="float32", outputs="logits", vocabulary=denoiser.vocab_size, layers=len(step.layers),
        kv_heads=step.kv_heads, head_dim=step.head_dim, window=0, end_ids=[],
    )  # fmt: skip
    exported = OnnxDenoiser.over(folder / MODEL, facts, denoiser.mask_id, denoiser.shift)
    tokens = (torch.arange(2 * LENGTH) * 7919 % denoiser.vocab_size).view(2, LENGTH)
    positions, block = torch.arange(LENGTH).expand(2, -1), torch.arange(LENGTH) // BLOCK
    mask = (block <= block[:, None])[None, None]
    moved = [tensor.to(denoiser.device) for tensor in (tokens, positions, mask)]
    wanted = denoiser(*moved).float().cpu()
    difference = float((exported(tokens, positions, mask) - wanted).abs().max())
    allowed = CLOSE if denoiser.dtype == torch.float32 else ROUNDED
    if not difference <= allowed * max(1.0, float(wanted.abs().max())):
        raise ModelError(
            f"export onnx: {step.network.config.model_type} does not export (its graph's logits differ from PyTorch's"
            f" by {difference:.2g}: its layers compute something else); Llama- and Qwen-shaped networks do"
        )
    return difference
