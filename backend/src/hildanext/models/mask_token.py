# Which id is [MASK], and the noise on its embedding during the first steps of a conversion.
# Entry points: mask_id_of, edit_ids_of, shift_of (settings against what is recorded), choose_mask_token, free_rows,
# EmbeddingNoise.
# A row the tokenizer does not use is taken before the matrix is resized: a resize changes the shape of a shared format.
"""The mask token."""

from __future__ import annotations

from types import TracebackType
from typing import Any

import torch
from torch import Tensor

from hildanext.config.model import ModelConfig
from hildanext.core.types import Denoiser
from hildanext.errors import ModelError
from hildanext.models.denoiser import network
from hildanext.models.meta import META_FILE, HildaMeta

MASK_TEXT = "<|mask|>"
OVERRIDE = "say model.override_recorded=true to change it all the same"


def mask_id_of(model: ModelConfig, meta: HildaMeta, network: Any, tokenizer: Any) -> int:
    """The id of [MASK]: of the settings, else the recorded one, else one is chosen, which may add a row. ModelError for
    an id that is no row, stands for text, ends or begins one, or is not the recorded one and nothing says it may."""
    asked, recorded = model.mask_id, meta.mask_id
    if None not in (asked, recorded) and asked != recorded and not model.override_recorded:
        raise ModelError(
            f"model.mask_id {asked}: {META_FILE} records {recorded}, with which the model was trained; leave it out, or"
            f" {OVERRIDE}"
        )
    wanted = recorded if asked is None else asked
    found = choose_mask_token(network, tokenizer) if wanted is None else wanted
    rows = int(network.get_input_embeddings().weight.shape[0])
    where = META_FILE if asked is None and recorded is not None else "model.mask_id"
    if not 0 <= found < rows:
        raise ModelError(f"{where} {found}: the embedding has rows 0 to {rows - 1}; choose one of them or null")
    if use := _use_in_text(found, network, tokenizer):
        free = free_rows(network, tokenizer)
        cure = f"one of the free rows {free.start} to {free.stop - 1}" if free else "null, which adds a row"
        raise ModelError(f"{where}: mask_id {found} {use}; choose {cure}")
    return found


def shift_of(model: ModelConfig, meta: HildaMeta) -> str:
    """none or clean, of the settings or as recorded. ModelError where a converted model's is changed unsaid."""
    if model.shift == "auto":
        return meta.shift
    converted = meta.block is not None or meta.shift != "none"
    if converted and model.shift != meta.shift and not model.override_recorded:
        raise ModelError(
            f"model.shift {model.shift}: {META_FILE} records {meta.shift}, with which the model was trained; leave it"
            f" auto, or {OVERRIDE}"
        )
    return model.shift


def _use_in_text(found: int, network: Any, tokenizer: Any) -> str:
    ends: set[int] = set()
    for source in (tokenizer, network.config, getattr(network, "generation_config", None)):
        value = getattr(source, "eos_token_id", None)
        ends |= set(value) if isinstance(value, list | tuple) else set() if value is None else {int(value)}
    if found in ends:
        return "ends a text (eos)"
    if found in (tokenizer.bos_token_id, tokenizer.unk_token_id):
        return "begins a text (bos)" if found == tokenizer.bos_token_id else "stands for unknown text (unk)"
    text = {index: entry for entry, index in tokenizer.get_vocab().items()}.get(found)
    if text is None or found == tokenizer.mask_token_id:
        return ""
    if text in str(tokenizer.chat_template or ""):
        return f"is {text!r} of the chat template"
    added = tokenizer.added_tokens_decoder.get(found)
    return "" if added is not None and added.special else f"is the text {text!r} of the tokenizer"


def free_rows(model: Any, tokenizer: Any) -> range:
    """Rows of the embedding above every id of the tokenizer."""
    return range(max(tokenizer.get_vocab().values()) + 1, int(model.get_input_embeddings().weight.shape[0]))


def choose_mask_token(model: Any, tokenizer: Any) -> int:
    """The id of [MASK]: the tokenizer's own mask token, else the first free row, else one new row (ties kept, mean of
    the rows). The tokenizer is given the token `<|mask|>` at that id, so that it decodes visibly."""
    known = tokenizer.get_vocab()
    for text in (tokenizer.mask_token, MASK_TEXT):
        if text in known:
            tokenizer.mask_token = text
            _grow(model, max(known.values()) + 1)
            return int(known[text])
    free = free_rows(model, tokenizer)
    wanted = free.start
    if not free:
        _grow(model, wanted + 1)
    tokenizer.add_special_tokens({"mask_token": MASK_TEXT})
    found = tokenizer.convert_tokens_to_ids(MASK_TEXT)
    if found != wanted:
        raise ModelError(
            f"mask token: the tokenizer put {MASK_TEXT} at id {found}, the first free row is {wanted}; its ids have"
            " holes; add a mask token to the tokenizer by hand and set model.mask_id"
        )
    return int(found)


def edit_ids_of(model: ModelConfig, meta: HildaMeta, network: Any, tokenizer: Any) -> tuple[int, int] | None:
    """Ids of DELETE and INSERT: the recorded ones, else with model.edit_actions the first two free rows, which may add
    some; None without. The tokenizer does not know them: they are predicted, never written. ModelError for recorded
    ids that are no rows."""
    rows = int(network.get_input_embeddings().weight.shape[0])
    if meta.edit_ids is not None:
        if not all(0 <= one < rows for one in meta.edit_ids) or len({*meta.edit_ids, meta.mask_id}) < 3:
            raise ModelError(f"{META_FILE}: edit_ids {list(meta.edit_ids)} are no two rows of {rows}; restore the file")
        return meta.edit_ids
    if not model.edit_actions:
        return None
    first = free_rows(network, tokenizer).start
    _grow(network, first + 2)
    return first, first + 1


@torch.no_grad()
def _grow(model: Any, rows: int) -> None:
    old = int(model.get_input_embeddings().weight.shape[0])
    if old >= rows:
        return
    model.resize_token_embeddings(rows, mean_resizing=False)
    matrices = {id(m.weight): m.weight for m in (model.get_input_embeddings(), model.get_output_embeddings())}
    for weight in matrices.values():
        weight[old:] = weight[:old].float().mean(0).to(weight.dtype)


class EmbeddingNoise:
    """Adds sigma * scale * N(0, I) to the embedding layer's output at every [MASK], in training mode only; no weight
    is touched. sigma None: median norm of the rows / sqrt(D); scale falls linearly from 1 to 0 over `steps`.
    Used as a context manager. Source: LLaDA2.0 arXiv:2512.15745 sec. 7.1; sigma and steps are ours."""

    def __init__(self, denoiser: Denoiser, steps: int, sigma: float | None = None, seed: int = 0) -> None:
        self.embedding = network(denoiser).get_input_embeddings()
        self.mask_id, self.steps, self.scale = denoiser.mask_id, steps, 1.0 if steps else 0.0
        self.sigma = self._default_sigma() if sigma is None else sigma
        self.rng = torch.Generator(device=self.embedding.weight.device).manual_seed(seed)
        self._hook: Any = None

    def _default_sigma(self) -> float:
        weight = self.embedding.weight.detach()
        norms = torch.cat([part.float().norm(dim=1) for part in weight.split(4096)])
        return float(norms.median() / weight.shape[1] ** 0.5)

    def set_scale(self, step: int) -> None:
        """The scale at optimiser step `step` (counted from 0)."""
        self.scale = max(0.0, 1.0 - step / self.steps) if self.steps else 0.0

    def __enter__(self) -> EmbeddingNoise:
        self._hook = self.embedding.register_forward_hook(self._add)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self._hook.remove()

    def _add(self, module: Any, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        if not module.training or not self.scale:
            return output
        masked = (inputs[0] == self.mask_id)[..., None]
        noise = torch.randn(output.shape, generator=self.rng, device=output.device, dtype=torch.float32)
        return torch.where(masked, output + (self.sigma * self.scale * noise).to(output.dtype), output)
