# The files of a Hugging Face folder: checked before anything is loaded, then read as a network, whole or not at all.
# Entry points: read_network, read_config, skeleton (the network without storage), check_files, check_plain.
# Only safetensors are read and nothing is fetched. "Damaged" is said of damage alone: adapters, quantised weights,
# tensors that the configuration does not know and files that may not be read have their own line.
"""Reading Hugging Face folders."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import torch

from hildanext.config.model import ModelConfig
from hildanext.errors import ModelError, first_line
from hildanext.models.lora import keep_differentiable, quantisation
from hildanext.models.support import check_head, check_supported, fold_scale
from hildanext.models.tensors import weight_files

BUFFERS = re.compile(r"(inv_freq|masked_bias|position_ids|(attn|attention)\.bias)$")
ADAPTER = "adapter_config.json"


def read_network(folder: Path, model: ModelConfig, dtype: torch.dtype, device: torch.device) -> Any:
    """The network of a folder with its weights. ModelError where it is damaged, refused or not as config.json says."""
    from transformers.utils import logging

    check_files(folder)
    config = read_config(folder, model.trust_remote_code)
    check_supported(config, str(folder))
    check_plain(config, folder)
    logging.disable_progress_bar()
    stored = quantisation(model.adapter, device)
    extra = {} if stored is None else {"quantization_config": stored, "device_map": {"": device}}
    asked = {"config": config, "dtype": dtype, "trust_remote_code": model.trust_remote_code, **extra}
    network = _weights(folder, asked)
    fold_scale(network)
    check_head(network, str(folder))
    keep_differentiable(network)
    return network


def skeleton(folder: Path, trust: bool = False) -> Any:
    """The network of a folder's configuration, without storage. ModelError where it is refused."""
    from transformers import AutoModelForCausalLM

    config = read_config(folder, trust)
    check_supported(config, str(folder))
    try:
        with torch.device("meta"):
            network = AutoModelForCausalLM.from_config(config, trust_remote_code=trust)
    except Exception as error:  # as above: a width as text fails deep inside
        raise ModelError(
            f"{folder}: no network can be made of config.json ({type(error).__name__}: {first_line(error)}); correct it"
        ) from error
    fold_scale(network)
    check_head(network, str(folder))
    return network


def read_config(folder: Path, trust: bool = False) -> Any:
    """The Hugging Face configuration of a folder. ModelError where this transformers cannot read it, or the folder
    brings code and is not trusted."""
    from transformers import AutoConfig

    path = folder / "config.json"
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ModelError(f"{path}: cannot be read ({error.strerror}); check the file and its permissions") from error
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ModelError(f"{path}: not valid JSON ({error}); restore the file") from error
    if not isinstance(values, dict):
        raise ModelError(f"{path}: not a JSON object; restore the file")
    if "auto_map" in values and not trust:
        raise ModelError(f"{folder}: the model brings its own code; set model.trust_remote_code=true to run it")
    try:
        return AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=trust)
    except Exception as error:  # transformers has no errors of its own: whatever it raises over the file is about it
        raise ModelError(f"{path}: {_said(error)}; expected a supported causal LM") from error


def _said(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return " ".join(lines[:2])[:200] or type(error).__name__


def check_files(folder: Path) -> None:
    """ModelError for a folder without readable, complete safetensors, or with an adapter beside them."""
    pickles = sorted(path.name for pattern in ("*.bin", "*.pt", "*.pth") for path in folder.glob(pattern))
    if not list(folder.glob("*.safetensors")):
        found = f"only {pickles[0]}, a pickle, which can run code" if pickles else "none"
        raise ModelError(f"{folder}: weights: {found}; expected *.safetensors; convert them first")
    weight_files(folder)
    if (folder / ADAPTER).is_file():
        raise ModelError(
            f"{folder}: {ADAPTER} lies beside the weights, and nothing says whether they include the adapter; merge"
            " it (peft's merge_and_unload) into a folder of its own, or remove the file"
        )


def check_plain(config: Any, folder: Path) -> None:
    """ModelError for quantised weights: they cannot be trained, and no row can be added to them."""
    stored = getattr(config, "quantization_config", None)
    if stored:
        kind = stored.get("quant_method") if isinstance(stored, dict) else getattr(stored, "quant_method", None)
        raise ModelError(
            f"{folder}: the weights are quantised ({getattr(kind, 'value', kind) or 'quantization_config'}); use the"
            " unquantised model, with model.adapter.kind=qlora or lora8bit where memory is short"
        )


def _weights(folder: Path, asked: dict[str, Any]) -> Any:
    from safetensors import SafetensorError
    from transformers import AutoModelForCausalLM

    try:
        network, found = AutoModelForCausalLM.from_pretrained(
            folder, use_safetensors=True, local_files_only=True, attn_implementation="sdpa", output_loading_info=True,
            **asked,
        )  # fmt: skip
    except SafetensorError as error:
        raise ModelError(
            f"{folder}: the weights cannot be loaded ({first_line(error)}); they are damaged, restore the files"
        ) from error
    except (OSError, RuntimeError, ValueError, KeyError, TypeError, ArithmeticError) as error:
        raise ModelError(
            f"{folder}: the weights cannot be loaded ({first_line(error)}); they do not fit config.json, or this"
            " installation cannot read them"
        ) from error
    if found["missing_keys"]:
        absent = sorted(found["missing_keys"])
        raise ModelError(
            f"{folder}: {len(absent)} tensors of config.json are not in the weights, the first {absent[0]};"
            " restore the weights or correct config.json"
        )
    unknown = sorted(name for name in found["unexpected_keys"] if not BUFFERS.search(name))
    if unknown:
        raise ModelError(
            f"{folder}: {len(unknown)} tensors of the weights are unknown to config.json and would be dropped, the"
            f" first {unknown[0]}; correct config.json (architecture, number of layers) or remove the tensors"
        )
    return network
