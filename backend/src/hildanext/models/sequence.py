# Positions of a row shared by ranks of a group: layers work on a piece of it, attention on whole rows of some heads.
# Entry points: share, Pieces.
# Registered with transformers' AttentionInterface as an attention function of its own; two hooks around the layers cut
# the tokens and join the features, so that whoever calls the denoiser sees whole rows. Letters: P positions of a piece,
# R ranks of the group, H heads, T positions of a forward. Forwards over a decoder's store are not shared.
"""Ulysses' sequence parallelism."""

from __future__ import annotations

from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any, cast

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn.functional import pad

from hildanext.errors import ModelError
from hildanext.models.attention import attention
from hildanext.models.denoiser import HFDenoiser

NAME = "hildanext_ulysses"


@dataclass(frozen=True)
class Pieces:
    """The positions of one forward, in R equal pieces, the last ones filled up with zeros. length: T. Source: DeepSpeed
    Ulysses arXiv:2309.14509 sec. 3."""

    group: Any
    length: int

    @property
    def ranks(self) -> int:
        """R."""
        return dist.get_world_size(self.group)

    @property
    def size(self) -> int:
        """P."""
        return -(-self.length // self.ranks)

    def own(self, values: Tensor) -> Tensor:
        """values [B, T] -> this rank's [B, P]."""
        filled = pad(values, (0, self.size * self.ranks - self.length))
        return filled[:, self.size * dist.get_rank(self.group) :][:, : self.size]

    def joined(self, hidden: Tensor) -> Tensor:
        """hidden [B, P, D] of every rank -> [B, T, D] on each. Backward: every rank makes the same loss of it, so the
        gradient of its own piece, R times, of which the mean over ranks is taken."""
        return cast(Tensor, _Joined.apply(hidden, self.group))[:, : self.length]  # type: ignore[no-untyped-call]

    def of_heads(self, given: Tensor) -> Tensor:
        """given [B, H, P, D] of all heads -> [B, H / R, T, D], this rank's heads at all positions."""
        rows, heads, size, width = given.shape
        parts = given.view(rows, self.ranks, heads // self.ranks, size, width).transpose(0, 1)
        return self._exchanged(parts).permute(1, 2, 0, 3, 4).flatten(2, 3)[:, :, : self.length]

    def of_positions(self, given: Tensor) -> Tensor:
        """given [B, T, H / R, D] -> [B, P, H, D], this rank's positions of all heads."""
        filled = pad(given, (0, 0, 0, 0, 0, self.size * self.ranks - self.length))
        parts = filled.reshape(len(given), self.ranks, self.size, *given.shape[2:]).transpose(0, 1)
        return self._exchanged(parts).permute(1, 2, 0, 3, 4).flatten(2, 3)

    def _exchanged(self, parts: Tensor) -> Tensor:
        return cast(Tensor, _Exchanged.apply(parts.contiguous(), self.group))  # type: ignore[no-untyped-call]


class _Exchanged(torch.autograd.Function):
    """given [R, ...]: part n goes to rank n, and what comes is in the order of the ranks; its own adjoint."""

    @staticmethod
    def forward(context: Any, given: Tensor, group: Any) -> Tensor:
        context.group, taken = group, torch.empty_like(given)
        dist.all_to_all_single(taken, given, group=group)
        return taken

    @staticmethod
    def backward(context: Any, gradient: Tensor) -> tuple[Tensor, None]:  # type: ignore[override]
        return _Exchanged.apply(gradient.contiguous(), context.group), None  # type: ignore[no-untyped-call]


class _Joined(torch.autograd.Function):
    @staticmethod
    def forward(context: Any, piece: Tensor, group: Any) -> Tensor:
        context.group, ranks = group, dist.get_world_size(group)
        pieces = [torch.empty_like(piece) for _ in range(ranks)]
        dist.all_gather(pieces, piece.contiguous(), group=group)
        return torch.cat(pieces, 1)

    @staticmethod
    def backward(context: Any, gradient: Tensor) -> tuple[Tensor, None]:  # type: ignore[override]
        ranks, own = dist.get_world_size(context.group), dist.get_rank(context.group)
        return gradient.chunk(ranks, 1)[own] * ranks, None


def ulysses(
    module: Any, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **keywords: Any
) -> tuple[Tensor, None]:
    """The function transformers calls in every layer: `attention` over whole rows and some of the heads where `pieces`
    are given, else `attention`. attention_mask and layout are those of whole rows; key heads that the ranks do not
    divide are repeated for their query heads."""
    from transformers.integrations.sdpa_attention import repeat_kv

    pieces: Pieces | None = keywords.pop("pieces", None)
    if pieces is None:
        return attention(module, query, key, value, attention_mask, **keywords)
    groups = query.shape[1] // key.shape[1]
    if key.shape[1] % pieces.ranks:
        key, value, groups = repeat_kv(key, groups), repeat_kv(value, groups), 1
    query, key, value = (pieces.of_heads(part) for part in (query, key, value))
    like = SimpleNamespace(num_key_value_groups=groups, is_causal=False)
    output, _ = attention(like, query, key, value, attention_mask, **keywords)
    return pieces.of_positions(output), None


def share(denoiser: HFDenoiser, group: Any) -> None:
    """Let the ranks of a process group share the positions of every forward without a store; all give the same rows and
    get whole features. ModelError for networks that do not attend at every layer, and where R does not divide H."""
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import sdpa_mask

    ranks, config = dist.get_world_size(group), denoiser.config
    if denoiser.mixers:
        raise ModelError(f"train.parallel.sp: not for the recurrent layers of {config.model_type}; use fsdp")
    if not denoiser.takes_layout:
        raise ModelError(f"train.parallel.sp: layers of {config.model_type} change keys or mask themselves; use fsdp")
    if config.num_attention_heads % ranks:
        heads = config.num_attention_heads
        raise ModelError(f"train.parallel.sp: {ranks} ranks do not divide {heads} attention heads; use fewer, or fsdp")
    AttentionInterface.register(NAME, ulysses)
    AttentionMaskInterface.register(NAME, sdpa_mask)
    denoiser.model.set_attn_implementation(NAME)
    around, body = _Around(denoiser, group), denoiser.model.base_model
    body.register_forward_pre_hook(around.cut, with_kwargs=True)
    body.register_forward_hook(around.join, with_kwargs=True)


class _Around:
    """Hooks of the layers of a denoiser."""

    def __init__(self, denoiser: HFDenoiser, group: Any) -> None:
        self.denoiser, self.group = denoiser, group
        self.pieces: Pieces | None = None

    def cut(self, _: Any, args: Any, given: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        if given["past_key_values"] is not None:
            return args, given
        if self.denoiser.looked_into:
            raise ModelError(
                "train.parallel.sp: this objective looks at or changes positions inside the network (align, balance,"
                " carry), of which a rank has a piece; use fsdp"
            )
        pieces = self.pieces = Pieces(self.group, given["input_ids"].shape[1])
        own = {name: pieces.own(given[name]) for name in ("input_ids", "position_ids")}
        return args, {**given, **own, "pieces": pieces}

    def join(self, _: Any, args: Any, given: dict[str, Any], output: Any) -> Any:
        pieces, self.pieces = self.pieces, None
        if pieces is not None:
            output.last_hidden_state = pieces.joined(output.last_hidden_state)
        return output
