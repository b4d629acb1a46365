# A local Hugging Face folder, or the bundled pair, as a denoiser with its tokenizer.
# Entry points: load_model, load_tokenizer, model_folder, choose_dtype, choose_device, check_supported.
# Only safetensors are read; nothing is fetched from anywhere. dtype and device come with the reason for them.
"""Loading models."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from hildanext.config.model import ModelConfig
from hildanext.errors import ModelError
from hildanext.models.backend import capability
from hildanext.models.denoiser import HFDenoiser
from hildanext.models.lora import keep_differentiable, quantisation
from hildanext.models.mask_token import choose_mask_token
from hildanext.models.meta import HildaMeta
from hildanext.models.new import new_model
from hildanext.progress import Console

BUNDLED = {"tiny": "child", "tiny-parent": "parent"}
NEW = "new"


@dataclass(frozen=True)
class Loaded:
    """A model ready for use. path: its folder, None for a new one; dtype_reason says why this dtype was taken."""

    denoiser: HFDenoiser
    tokenizer: Any
    meta: HildaMeta
    path: Path | None
    dtype: torch.dtype
    dtype_reason: str
    device: torch.device


def model_folder(path: str) -> Path:
    """The folder a `model.path` names. ModelError where it is missing or holds no config.json."""
    folder = Path(__file__).parent.parent / "tiny" / BUNDLED[path] if path in BUNDLED else Path(path)
    if (folder / "config.json").is_file():
        return folder
    if path in BUNDLED:
        raise ModelError(
            f"model.path {path!r}: the bundled model is missing from this installation; reinstall hildanext"
        )
    raise ModelError(
        f"model.path {path!r}: no Hugging Face model folder there (no config.json); give a local folder, or one of"
        f" {', '.join(BUNDLED)}, {NEW}"
    )


def load_tokenizer(path: str) -> Any:
    """The tokenizer of a folder (`tiny`, `tiny-parent` too). ModelError where there is none."""
    from transformers import AutoTokenizer

    folder = Path(__file__).parent.parent / "tiny" / BUNDLED[path] if path in BUNDLED else Path(path)
    if not any((folder / name).is_file() for name in ("tokenizer.json", "tokenizer_config.json", "tokenizer.model")):
        raise ModelError(f"{path or 'tokenizer'}: no tokenizer files there; give a folder that holds tokenizer.json")
    try:
        return AutoTokenizer.from_pretrained(folder, local_files_only=True)
    except (ValueError, OSError, KeyError, TypeError) as error:
        raise ModelError(f"{folder}: the tokenizer cannot be read ({_first_line(error)}); restore its files") from error


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]


def choose_device(name: str) -> torch.device:
    """`auto`: the first CUDA device, else the CPU. ModelError where the device asked for is not there."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ModelError(f"model.device {name!r}: not a device, expected auto, cpu or cuda[:n]") from error
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ModelError(
            f"model.device {name!r}: {torch.cuda.device_count()} CUDA devices are visible; use auto or cpu"
        )
    return device


def choose_dtype(name: str, device: torch.device) -> tuple[torch.dtype, str]:
    """(dtype, reason). auto: bfloat16 where the hardware multiplies it (compute capability 8.0 and up), else float32.
    Source: training_infra D.2: Pascal has no bf16 and 1/64-rate fp16."""
    if name != "auto":
        return getattr(torch, name), "asked for"
    level = capability(device)
    if level is None:
        return torch.float32, f"{device.type}: the same result on every processor; bfloat16 on request"
    if level >= (8, 0):
        return torch.bfloat16, f"compute capability {level[0]}.{level[1]} multiplies bfloat16"
    return torch.float32, f"compute capability {level[0]}.{level[1]} has no bfloat16 units"


def check_supported(config: Any, where: str) -> None:
    """ModelError, saying why, for an architecture that a 4-D mask does not turn into block diffusion."""
    kinds = set(getattr(config, "layer_types", None) or ()) - {"full_attention"}
    window = getattr(config, "sliding_window", None)
    if kinds & {"sliding_attention", "chunked_attention"} or (not kinds and window and _uses_window(config)):
        raise ModelError(
            f"{where}: {config.model_type} has sliding-window layers (window {window}), which cannot see a whole clean"
            " prefix; use a model with full attention in every layer"
        )
    if kinds or getattr(config, "is_encoder_decoder", False):
        raise ModelError(
            f"{where}: {config.model_type} has {', '.join(sorted(kinds)) or 'encoder-decoder'} layers, which are not a"
            " softmax over a mask, so no block size can be put into them; use a softmax-attention decoder"
        )
    if not _takes_attention(config) or getattr(config, "attn_logit_softcapping", None):
        raise ModelError(
            f"{where}: {config.model_type} does not take its attention from transformers' AttentionInterface, so its"
            " layers are not a softmax over a mask that can be given; use Qwen3, Qwen2, Llama, Mistral or a like model"
        )


def check_head(network: Any, where: str) -> None:
    """ModelError where logits are not the features times the output matrix: a bias, a scale or a cap on them."""
    names = ("logits_scaling", "logit_scale", "final_logit_softcapping", "lm_head_multiplier")
    scales = [name for name in names if getattr(network.config, name, None) not in (None, 0, 1, 1.0)]
    bias = getattr(network.get_output_embeddings(), "bias", None) is not None
    if scales or bias:
        raise ModelError(
            f"{where}: {network.config.model_type} has {'an output bias' if bias else scales[0]}: its logits are not"
            " the features times the output matrix, which training and likelihood rely on; use another model"
        )


def _takes_attention(config: Any) -> bool:
    from transformers import MODEL_FOR_CAUSAL_LM_MAPPING

    known = type(config) in MODEL_FOR_CAUSAL_LM_MAPPING
    return not known or bool(MODEL_FOR_CAUSAL_LM_MAPPING[type(config)]._supports_attention_backend)


def _uses_window(config: Any) -> bool:
    return bool(getattr(config, "use_sliding_window", True)) and not getattr(config, "layer_types", None)


def load_model(model: ModelConfig, console: Console | None = None) -> Loaded:
    """The model of a configuration on its device, in evaluation mode. ModelError for a folder that cannot be used."""
    device = choose_device(model.device)
    dtype, reason = choose_dtype(model.dtype, device)
    folder = None if model.path == NEW else model_folder(model.path)
    tokenizer = load_tokenizer(model.new.tokenizer if folder is None else model.path)
    meta = HildaMeta() if folder is None else HildaMeta.read(folder)
    network = _fresh(model, tokenizer) if folder is None else _read(folder, model, dtype, device)
    mask_id = _mask_id(model, meta, network, tokenizer)
    shift = meta.shift if model.shift == "auto" else model.shift
    grid = meta.block_grid if model.block_grid == "auto" else model.block_grid
    denoiser = HFDenoiser(network, mask_id, attention=model.attention, shift=shift, block_grid=grid)
    if not getattr(network, "is_quantized", False):
        denoiser = denoiser.to(device, dtype)
    if console is not None:
        console.say(f"model {model.path}: {network.config.model_type}, {device}, {dtype} ({reason}), mask id {mask_id}")
    meta = meta.model_copy(update={"mask_id": mask_id, "shift": shift})
    return Loaded(denoiser.eval(), tokenizer, meta, folder, dtype, reason, device)


def _fresh(model: ModelConfig, tokenizer: Any) -> Any:
    turn = tokenizer.get_vocab().get("<|im_end|>")
    eos = tokenizer.eos_token_id if turn is None else [tokenizer.eos_token_id, turn]
    return new_model(model.new, max(tokenizer.get_vocab().values()) + 1, model.new.seed, eos_token_id=eos)


def _mask_id(model: ModelConfig, meta: HildaMeta, network: Any, tokenizer: Any) -> int:
    wanted = meta.mask_id if model.mask_id is None else model.mask_id
    if wanted is None:
        return choose_mask_token(network, tokenizer)
    rows = int(network.get_input_embeddings().weight.shape[0])
    if not 0 <= wanted < rows:
        raise ModelError(f"model.mask_id {wanted}: the embedding has rows 0 to {rows - 1}; choose one of them or null")
    return wanted


def _read(folder: Path, model: ModelConfig, dtype: torch.dtype, device: torch.device) -> Any:
    from transformers.utils import logging

    _check_files(folder, model.trust_remote_code)
    config = read_config(folder, model.trust_remote_code)
    check_supported(config, str(folder))
    logging.disable_progress_bar()
    stored = quantisation(model.adapter, device)
    extra = {} if stored is None else {"quantization_config": stored, "device_map": {"": device}}
    asked = {"config": config, "dtype": dtype, "trust_remote_code": model.trust_remote_code, **extra}
    network = _weights(folder, asked)
    check_head(network, str(folder))
    keep_differentiable(network)
    return network


def read_config(folder: Path, trust: bool = False) -> Any:
    """The Hugging Face configuration of a folder. ModelError where this transformers cannot read it."""
    from transformers import AutoConfig

    try:
        return AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=trust)
    except (ValueError, OSError, KeyError, TypeError) as error:
        raise ModelError(f"{folder}/config.json: {_first_line(error)}; expected a supported causal LM") from error


def _weights(folder: Path, asked: dict[str, Any]) -> Any:
    from safetensors import SafetensorError
    from transformers import AutoModelForCausalLM

    try:
        network, found = AutoModelForCausalLM.from_pretrained(
            folder, use_safetensors=True, local_files_only=True, attn_implementation="sdpa", output_loading_info=True,
            **asked,
        )  # fmt: skip
    except (SafetensorError, OSError, RuntimeError, ValueError) as error:
        raise ModelError(
            f"{folder}: the weights cannot be loaded ({_first_line(error)}); they are damaged or do not fit config.json"
        ) from error
    if found["missing_keys"]:
        absent = sorted(found["missing_keys"])
        raise ModelError(
            f"{folder}: {len(absent)} tensors of config.json are not in the weights, the first {absent[0]};"
            " restore the weights or correct config.json"
        )
    return network


def _check_files(folder: Path, trust: bool) -> None:
    pickles = sorted(path.name for pattern in ("*.bin", "*.pt", "*.pth") for path in folder.glob(pattern))
    if not list(folder.glob("*.safetensors")):
        found = f"only {pickles[0]}, a pickle, which can run code" if pickles else "none"
        raise ModelError(f"{folder}: weights: {found}; expected *.safetensors; convert them first")
    try:
        values = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ModelError(f"{folder}/config.json: not valid JSON ({error}); restore the file") from error
    if "auto_map" in values and not trust:
        raise ModelError(f"{folder}: the model brings its own code; set model.trust_remote_code=true to run it")
