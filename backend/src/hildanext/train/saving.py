# Writing and reading the weights and optimiser of a run: whole models, adapters, shards of FSDP2.
# Entry points: write_model, write_files, restore.
# A checkpoint of a whole model is a Hugging Face folder; of an adapter run, the adapter beside the base's name. Under
# FSDP2 every rank writes its part of the optimiser and the first rank the gathered model.
"""Weights on disk."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from hildanext.errors import HildaError
from hildanext.models.denoiser import HFDenoiser, hugging_face, module, network
from hildanext.models.lora import adapter_state, merge_adapter
from hildanext.models.save import save_model
from hildanext.train.checkpoint import SHARDS, restore_optimizer, save_optimizer
from hildanext.train.training import Training, meta_of

ADAPTER = Path("trainer") / "adapter.safetensors"


def write_files(training: Training, optimizer: torch.optim.Optimizer, folder: Path) -> None:
    """Weights and optimiser of a checkpoint; every rank calls it, the folder's parent exists."""
    sharded = training.ranks.kind == "fsdp2"
    whole = gathered(training) if sharded else training.loaded.denoiser
    if training.ranks.first:
        _write_weights(training, whole, folder)
    training.ranks.wait()
    if sharded:
        _write_shards(training, optimizer, folder)
    elif training.ranks.first:
        save_optimizer(optimizer, folder)


def _write_weights(training: Training, denoiser: Any, folder: Path) -> None:
    if not training.adapted:
        save_model(denoiser, training.loaded.tokenizer, folder, meta_of(training))
        return
    (folder / ADAPTER).parent.mkdir(parents=True)
    save_file({name: value.contiguous() for name, value in adapter_state(denoiser).items()}, folder / ADAPTER)


def write_model(training: Training, folder: Path) -> Path:
    """The final model as one plain Hugging Face folder; adapters are merged into the weights."""
    whole = gathered(training) if training.ranks.kind == "fsdp2" else training.loaded.denoiser
    if training.ranks.first:
        merge_adapter(whole)
        save_model(whole, training.loaded.tokenizer, folder, meta_of(training))
    training.ranks.wait()
    return folder


def gathered(training: Training) -> HFDenoiser:
    """A plain copy of a sharded denoiser, its weights in the memory of the first rank's CPU (empty on the others)."""
    from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict

    denoiser = hugging_face(training.loaded.denoiser)
    state = get_model_state_dict(denoiser, options=StateDictOptions(full_state_dict=True, cpu_offload=True))
    with torch.device("meta"):
        model = type(denoiser.model)(denoiser.config)
    if training.ranks.first:
        own = {name.removeprefix("model."): value for name, value in state.items()}
        model.load_state_dict(own, assign=True)
        model.tie_weights()
    return HFDenoiser(model, denoiser.mask_id, shift=denoiser.shift, block_grid=denoiser.block_grid)


def _write_shards(training: Training, optimizer: torch.optim.Optimizer, folder: Path) -> None:
    from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict
    from torch.distributed.checkpoint.state_dict_saver import save

    state = {"optimizer": get_optimizer_state_dict(module(training.loaded.denoiser), optimizer)}
    save(state, checkpoint_id=str(folder / SHARDS))


def restore(training: Training, optimizer: torch.optim.Optimizer) -> None:
    """Put a checkpoint's adapter and optimiser state into this run. Shards of FSDP2 fit any number of ranks."""
    folder = training.resumed
    if folder is None:
        return
    if training.adapted:
        _restore_adapter(training, folder)
    if (folder / SHARDS).is_dir():
        _restore_shards(training, optimizer, folder)
    elif training.ranks.kind == "fsdp2":
        raise HildaError(
            f"train.resume: {folder} was written without fsdp2, whose optimiser state cannot be sharded here; resume"
            " with train.parallel=ddp or none"
        )
    else:
        restore_optimizer(optimizer, folder)


def _restore_adapter(training: Training, folder: Path) -> None:
    if not (folder / ADAPTER).is_file():
        raise HildaError(f"train.resume: {folder} holds no adapter; resume with the model.adapter of its config")
    network(training.loaded.denoiser).load_state_dict(load_file(folder / ADAPTER), strict=False)


def _restore_shards(training: Training, optimizer: torch.optim.Optimizer, folder: Path) -> None:
    from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict, set_optimizer_state_dict
    from torch.distributed.checkpoint.state_dict_loader import load

    denoiser = module(training.loaded.denoiser)
    state = {"optimizer": get_optimizer_state_dict(denoiser, optimizer)}
    load(state, checkpoint_id=str(folder / SHARDS))
    set_optimizer_state_dict(denoiser, optimizer, state["optimizer"])
