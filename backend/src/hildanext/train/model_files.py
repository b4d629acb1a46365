# The model and optimiser in training, as files of a checkpoint and as the folder a run ends with.
# Entry points: ModelFiles (write, start, write_model, restore), save_optimizer, restore_optimizer, folded.
# A checkpoint of a whole model is a Hugging Face folder; of an adapter run, the adapters and what hildanext.json says
# beside the base's name. Under FSDP2 every rank writes its part of the optimiser and the first rank the gathered model.
"""Model files of a training run."""

from __future__ import annotations

from concurrent.futures import Future, ThreadPoolExecutor
from copy import deepcopy
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file

from hildanext.config.model import ModelConfig
from hildanext.disk import write_atomic
from hildanext.errors import HildaError, ModelError, first_line
from hildanext.models.adapter_folder import write_adapters
from hildanext.models.denoiser import HFDenoiser, hugging_face, module
from hildanext.models.load import NEW, Loaded, load_model, place
from hildanext.models.lora import adapter_facts, adapter_state, add_adapter, fused_targets, load_adapter, merge_adapter
from hildanext.models.meta import META_FILE, HildaMeta
from hildanext.models.save import save_model, write_model
from hildanext.models.tensors import stored_dtype
from hildanext.progress import Console
from hildanext.train.checkpoint import ADVICE, OPTIMIZER, UNREADABLE
from hildanext.train.distributed import Ranks
from hildanext.train.optim import MuonWithAdamW

ADAPTER = Path("trainer") / "adapter.safetensors"
SHARDS = Path("trainer") / "shards"


@dataclass(frozen=True)
class ModelFiles:
    """The model and optimiser in training, as files. adapted: adapters train, and the weights are not written."""

    loaded: Loaded
    optimizer: torch.optim.Optimizer
    ranks: Ranks
    adapted: bool
    meta: HildaMeta

    def write(self, folder: Path) -> None:
        """Weights and optimiser of a checkpoint; every rank calls it, the folder's parent exists."""
        sharded = self.ranks.sharded
        whole = _gathered(self.loaded, self.ranks) if sharded else self.loaded.denoiser
        if self.ranks.first and self.adapted:
            (folder / ADAPTER).parent.mkdir(parents=True)
            tensors = {name: value.contiguous() for name, value in adapter_state(whole).items()}
            save_file(tensors, folder / ADAPTER, adapter_facts(whole))
            write_atomic(folder / META_FILE, self.meta.text())
        elif self.ranks.first:
            write_model(whole, self.loaded.tokenizer, folder, self.meta, self.loaded.path)
        self.ranks.wait()
        if sharded:
            _write_shards(self.loaded, self.optimizer, folder)
        elif self.ranks.first:
            save_optimizer(self.optimizer, folder)

    def start(self, group: Any, folder: Path) -> list[Future[Any]]:
        """As write, of ranks that share weights, in threads of their own over a copy of what there is now, which talk
        in a process group of their own; every rank calls it."""
        whole, found = _gathered(self.loaded, self.ranks, apart=True), list[Future[Any]]()
        if self.ranks.first:
            threads = ThreadPoolExecutor(1)
            given = (whole, self.loaded.tokenizer, folder, self.meta, self.loaded.path)
            found.append(threads.submit(write_model, *given))
            threads.shutdown(wait=False)
        self.ranks.wait()
        return [*found, _start_shards(self.loaded, self.optimizer, folder, group)]

    def write_model(self, folder: Path, dtype: torch.dtype | None = None) -> Path:
        """The final model as one plain Hugging Face folder; adapters are merged into the weights, which are then turned
        into `dtype` (None: left as they are), and also stand alone in `adapters` beside it where all are on linear
        layers."""
        whole = _gathered(self.loaded, self.ranks) if self.ranks.sharded else self.loaded.denoiser
        if self.ranks.first:
            base = self.loaded.path
            alone = self.adapted and not fused_targets(whole)
            if alone and base is not None and HildaMeta.read(base).kind == "hf":
                write_adapters(whole, folder.with_name("adapters"), self.meta, base)
            merge_adapter(whole)
            if dtype is not None:
                module(whole).to(dtype)
            save_model(whole, self.loaded.tokenizer, folder, self.meta, self.loaded.path)
        self.ranks.wait()
        return folder

    def restore(self, folder: Path, optimizer: bool = True) -> None:
        """Put a checkpoint's adapter and optimiser state into this run, whose rates and factors stay its own. Shards of
        FSDP2 fit any number of ranks. optimizer: False leaves it as it is, fresh. HildaError where the checkpoint holds
        no adapter, or an optimiser that does not fit."""
        if self.adapted and not (folder / ADAPTER).is_file():
            raise HildaError(f"train.resume: {folder} holds no adapter; resume with the model.adapter of its config")
        if self.adapted:
            _load_adapter(self.loaded, folder, f"train.resume: {folder}")
        if not optimizer:
            return
        own = [{name: value for name, value in group.items() if name != "params"} for group in self._groups()]
        self._restore_optimizer(folder)
        for group, values in zip(self._groups(), own, strict=True):
            group.update(values)

    def _groups(self) -> list[dict[str, Any]]:
        return self.optimizer.param_groups

    def _restore_optimizer(self, folder: Path) -> None:
        if (folder / SHARDS).is_dir():
            _restore_shards(self.loaded, self.optimizer, folder)
        elif self.ranks.sharded:
            raise HildaError(
                f"train.resume: {folder} has an optimiser state that is not in shares, and none can be made here;"
                " resume with train.parallel=ddp or none"
            )
        else:
            restore_optimizer(self.optimizer, folder)


def written_dtype(model: ModelConfig, held: torch.dtype, console: Console) -> torch.dtype | None:
    """What a run's weights, which it holds in `held`, are turned into when they become a model: bfloat16, and said so,
    where its parent's are and nobody asked for another dtype; None: nothing."""
    if model.dtype != "auto" or model.path == NEW or not place(model.path).is_dir():
        return None
    if held != torch.float32 or stored_dtype(place(model.path)) != torch.bfloat16:
        return None  # float16 is not gone back to: trained weights may leave its range
    console.say("weights are written as bfloat16, as the parent's are; model.dtype=float32 keeps them whole")
    return torch.bfloat16


def save_optimizer(optimizer: torch.optim.Optimizer, folder: Path) -> None:
    """The optimiser's whole state, of one process or of any DDP rank."""
    (folder / OPTIMIZER).parent.mkdir(parents=True, exist_ok=True)
    torch.save(optimizer.state_dict(), folder / OPTIMIZER)


def restore_optimizer(optimizer: torch.optim.Optimizer, folder: Path) -> None:
    """Put a checkpoint's state into an optimiser with the same groups. HildaError where they differ."""
    try:
        optimizer.load_state_dict(torch.load(folder / OPTIMIZER, map_location="cpu", weights_only=True))
    except UNREADABLE as error:
        raise HildaError(
            f"{folder / OPTIMIZER}: damaged, or not of this run's optimizer settings ({first_line(error)}); {ADVICE}"
        ) from error


def folded(model: ModelConfig, folder: Path, seed: int) -> Loaded:
    """The base model of an adapter run with a checkpoint's adapters added into its weights: plain again, and with the
    metadata the run gave it. ModelError where the adapters are not those of `model.adapter`, or cannot be read."""
    if model.adapter.kind == "none":
        raise ModelError(f"{folder}: holds adapters; give the configuration of their run, with its model.adapter")
    loaded = load_model(model)
    add_adapter(loaded.denoiser, model.adapter, seed)
    _load_adapter(loaded, folder, str(folder))
    merge_adapter(loaded.denoiser)
    known = HildaMeta.read(folder) if (folder / META_FILE).is_file() else loaded.meta
    return replace(loaded, meta=known)


def _load_adapter(loaded: Loaded, folder: Path, where: str) -> None:
    try:
        with safe_open(folder / ADAPTER, framework="pt") as file:
            facts = file.metadata() or {}
        state = load_file(folder / ADAPTER)
    except (OSError, SafetensorError) as error:
        raise ModelError(f"{folder / ADAPTER}: damaged, it cannot be read ({first_line(error)}); {ADVICE}") from error
    load_adapter(loaded.denoiser, state, facts, where)


def _gathered(loaded: Loaded, ranks: Ranks, apart: bool = False) -> HFDenoiser:
    from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict

    denoiser = hugging_face(loaded.denoiser)
    options = StateDictOptions(full_state_dict=True, cpu_offload=True)
    state = cast("dict[str, Any]", get_model_state_dict(denoiser, options=options))
    with torch.device("meta"):
        model = type(denoiser.model)(deepcopy(denoiser.config))  # it says how the layers attend
    if ranks.first:
        copied = apart and denoiser.device.type == "cpu"  # what was whole before is else the very weight that trains
        own = {name.removeprefix("model."): value.clone() if copied else value for name, value in state.items()}
        model.load_state_dict(own, assign=True)
        model.tie_weights()
    made = HFDenoiser(model, denoiser.mask_id, shift=denoiser.shift, block_grid=denoiser.block_grid)
    made.edit_ids = denoiser.edit_ids
    return made


def _write_shards(loaded: Loaded, optimizer: torch.optim.Optimizer, folder: Path) -> None:
    from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict
    from torch.distributed.checkpoint.state_dict_saver import save

    state = get_optimizer_state_dict(module(loaded.denoiser), _parts(optimizer))
    save({"optimizer": state}, checkpoint_id=str(folder / SHARDS))


def _start_shards(loaded: Loaded, optimizer: torch.optim.Optimizer, folder: Path, group: Any) -> Future[Any]:
    from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict
    from torch.distributed.checkpoint.state_dict_saver import async_save

    state = get_optimizer_state_dict(module(loaded.denoiser), _parts(optimizer))
    begun = async_save({"optimizer": state}, checkpoint_id=str(folder / SHARDS), process_group=group)
    return cast("Future[Any]", begun)


def _restore_shards(loaded: Loaded, optimizer: torch.optim.Optimizer, folder: Path) -> None:
    from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict, set_optimizer_state_dict
    from torch.distributed.checkpoint.state_dict_loader import load

    parts = _parts(optimizer)
    state = {"optimizer": get_optimizer_state_dict(module(loaded.denoiser), parts)}
    load(state, checkpoint_id=str(folder / SHARDS))
    set_optimizer_state_dict(module(loaded.denoiser), parts, state["optimizer"])
    if isinstance(optimizer, MuonWithAdamW):
        optimizer.joined()


def _parts(optimizer: torch.optim.Optimizer) -> tuple[torch.optim.Optimizer, ...]:
    # torch gathers a state by parameter: one that is made of two states has to be given as two optimisers
    return optimizer.parts if isinstance(optimizer, MuonWithAdamW) else (optimizer,)
