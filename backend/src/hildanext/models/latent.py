# A latent model as the rest of the package sees it, and its files: latent.json, latent.safetensors, parent/ at need.
# Entry points: LatentDenoiser (of), ground_of (what a loaded parent is), write_latent, read_latent, LATENT.
# A type whose texts the block decoder writes is a full Denoiser; another one has no logits, and says so by name to all
# that asks for some: likelihoods, editing, infilling, guided decoding.
"""Latent models behind the Denoiser protocol."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from hildanext.core.latent import Ground, LatentModel, LatentType
from hildanext.core.types import Batch, Denoiser
from hildanext.disk import write_atomic
from hildanext.errors import ConfigError, ModelError, first_line
from hildanext.models.denoiser import HFDenoiser, hugging_face, network
from hildanext.models.kind import kind_of
from hildanext.models.layers import layer_list, watching
from hildanext.models.load import Loaded
from hildanext.models.meta import META_FILE, HildaMeta
from hildanext.registry import build

LATENT, WEIGHTS, PARENT = "latent.json", "latent.safetensors", "parent"


class LatentDenoiser(nn.Module):
    """A latent model. section: {"type": name, ...fields} it was built from; parent, kind: the loaded model it is built
    on and the metadata of that, None where it is not needed; its parameters are the latent model's alone."""

    def __init__(self, latent: LatentModel, section: Mapping[str, Any], parent: HildaMeta | None = None) -> None:
        super().__init__()
        self.latent, self.section, self.parent_meta = latent, dict(section), parent
        self._reader = (latent.proposing(),)  # in a tuple, so that torch does not count its parameters

    @property
    def reader(self) -> Denoiser | None:
        """What the block decoder reads, None where texts are drawn."""
        return self._reader[0]

    def attach(self, ground: Ground, parent: HildaMeta) -> None:
        """Give it its frozen parent, as training needs it."""
        self.latent.ground, self.parent_meta = ground, parent
        self._reader = (self.latent.proposing(),)

    def _refused(self, what: str) -> ModelError:
        name = self.section["type"]
        return ModelError(
            f"model: {what} needs the token probabilities of a masked canvas, and a latent model ({name}) draws texts"
            " without any; use a discrete model"
        )

    @property
    def mask_id(self) -> int:
        """That of the parent; no text holds it."""
        return self.latent.ground.mask_id

    @property
    def vocab_size(self) -> int:
        """V of the parent."""
        return self.latent.ground.vocabulary

    @property
    def window(self) -> int:
        """Longest text, tokens; 0: no bound."""
        return self.latent.window

    @property
    def block_grid(self) -> str:
        """That of the parent where its decoder writes the texts, else blocks count from a row's beginning."""
        return self.reader.block_grid if self.reader else "global"

    @property
    def shift(self) -> str:
        """none: what stands at a position is drawn there."""
        return self.reader.shift if self.reader else "none"

    @property
    def dtype(self) -> torch.dtype:
        """Dtype of the weights."""
        return next(self.latent.parameters()).dtype

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(self.latent.parameters()).device

    @property
    def exact(self) -> bool:
        """Whether texts do not depend on their batch mates."""
        return self.reader.exact if self.reader else self.latent.exact

    @property
    def takes_layout(self) -> bool:
        """As of the parent where its decoder writes the texts."""
        return self.reader is not None and self.reader.takes_layout

    @property
    def end_ids(self) -> frozenset[int]:
        """The parent's."""
        return frozenset(self.latent.ground.ends)

    def state_bytes(self, positions: int) -> int:
        """The parent's where its decoder writes the texts; else 0: the sampler keeps its own state."""
        return self.reader.state_bytes(positions) if self.reader else 0

    def forward(
        self, tokens: Tensor, positions: Tensor, mask: Tensor, cache: Any = None, select: Tensor | None = None,
        layout: Any = None,
    ) -> Tensor:  # fmt: skip
        """The proposing parent's logits. ModelError where texts are drawn."""
        if self.reader is None:
            raise self._refused("decoding by logits (editing, infilling, left to right)")
        return self.reader(tokens, positions, mask, cache, select, layout)

    def noisy_features(self, noisy: Tensor, batch: Batch, block: int, select: Tensor) -> Tensor:
        """The parent's. ModelError where texts are drawn."""
        if self.reader is None:
            raise self._refused("a likelihood (block bound)")
        return self.reader.noisy_features(noisy, batch, block, select)

    def causal_features(self, batch: Batch, select: Tensor) -> Tensor:
        """The parent's. ModelError where texts are drawn."""
        if self.reader is None:
            raise self._refused("a likelihood (left to right)")
        return self.reader.causal_features(batch, select)

    def head(self) -> Tensor:
        """The parent's. ModelError where texts are drawn."""
        if self.reader is None:
            raise self._refused("an output matrix")
        return self.reader.head()


def latent_of(denoiser: Denoiser) -> LatentDenoiser:
    """The denoiser as a latent one. ModelError for another."""
    if isinstance(denoiser, LatentDenoiser):
        return denoiser
    raise ModelError(f"model: {type(denoiser).__name__} is no latent model; train one with `hildanext latent`")


def draws_texts(denoiser: Denoiser) -> bool:
    """Whether it is a latent model with a sampler of its own: no logits, hence no likelihood and no block decoder."""
    return isinstance(denoiser, LatentDenoiser) and denoiser.reader is None


def ground_of(loaded: Loaded) -> Ground:
    """What a latent model may know of a loaded Hugging Face model, whose weights are frozen. ModelError for another."""
    parent = hugging_face(loaded.denoiser)
    parent.requires_grad_(False)
    embedding = network(parent).get_input_embeddings().weight
    ends = parent.end_ids | {int(loaded.tokenizer.eos_token_id)}
    return Ground(
        parent.vocab_size, int(embedding.shape[1]), len(layer_list(network(parent))), parent.mask_id, parent.window,
        tuple(sorted(ends)), parent, partial(_states, parent),
    )  # fmt: skip


@torch.no_grad()
def _states(parent: HFDenoiser, batch: Batch, layer: int) -> Tensor:
    select = torch.zeros_like(batch.learn)
    with parent.whole(), watching(parent.model, (layer,)) as found:
        parent.causal_features(batch, select)
    return found[layer]


def new_latent(loaded: Loaded, section: Mapping[str, Any], seed: int) -> LatentDenoiser:
    """A new latent model on a loaded parent, its weights drawn from `seed`. ConfigError where settings do not fit."""
    kind: LatentType = build("latents", section, "latent.model")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        made = kind.build(ground_of(loaded))
    return LatentDenoiser(made.to(loaded.device, loaded.dtype), _whole(section, kind), loaded.meta)


def _whole(section: Mapping[str, Any], kind: LatentType) -> dict[str, Any]:
    return {"type": section["type"], **kind.model_dump(mode="json")}


def kind_in(section: Mapping[str, Any], where: str) -> LatentType:
    """The type a section describes. ModelError where there is none of that name, or it has no such fields."""
    try:
        kind: LatentType = build("latents", section, where)
    except ConfigError as error:
        raise ModelError(str(error)) from error
    return kind


def write_latent(model: LatentDenoiser, folder: Path) -> None:
    """Its files into an empty folder; with the parent's where the type always needs it."""
    facts = {"format": 1, "model": model.section, "ground": model.latent.ground.facts()}
    write_atomic(folder / LATENT, json.dumps(facts, indent=2) + "\n")
    save_file(
        {name: value.detach().contiguous() for name, value in model.latent.state_dict().items()}, folder / WEIGHTS
    )
    parent = model.latent.ground.parent
    if kind_in(model.section, LATENT).parent == "always" and parent is not None and model.parent_meta is not None:
        inner = folder / PARENT
        inner.mkdir()
        kind_of(model.parent_meta).save(parent, inner)
        write_atomic(inner / META_FILE, model.parent_meta.text())


def read_facts(folder: Path) -> dict[str, Any]:
    """latent.json. ModelError where it is missing or damaged."""
    path = folder / LATENT
    try:
        facts: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        ground = facts["ground"]
        Ground(**{**ground, "ends": tuple(ground["ends"])})
        str(facts["model"]["type"])
    except OSError as error:
        raise ModelError(f"{path}: cannot be read ({error.strerror}); a latent model's folder has one") from error
    except (ValueError, TypeError, KeyError) as error:
        raise ModelError(f"{path}: damaged ({first_line(error)}); restore the file") from error
    return facts


def read_latent(
    folder: Path, parent: tuple[Ground, HildaMeta] | None, device: torch.device, dtype: torch.dtype
) -> LatentDenoiser:
    """The model of a folder; parent: the ground of its copy of the parent, where it has one. ModelError for a folder
    that is damaged or of a type that is not there."""
    facts = read_facts(folder)
    kind = kind_in(facts["model"], str(folder / LATENT))
    if kind.parent == "always" and parent is None:
        raise ModelError(f"{folder}: a {facts['model']['type']} model needs its {PARENT} folder; restore it")
    ground = Ground(**{**facts["ground"], "ends": tuple(facts["ground"]["ends"])}) if parent is None else parent[0]
    with torch.random.fork_rng(devices=[]):
        model = kind.build(ground)
    try:
        model.load_state_dict(load_file(folder / WEIGHTS))
    except (OSError, SafetensorError, RuntimeError) as error:
        raise ModelError(
            f"{folder / WEIGHTS}: cannot be loaded ({first_line(error)}); it is damaged or not of {LATENT}"
        ) from error
    made = LatentDenoiser(model.to(device, dtype), facts["model"], None if parent is None else parent[1])
    return made.eval()


def detached(ground: Ground) -> Ground:
    """The ground without the parent."""
    return replace(ground, parent=None, states=None)
