# The records that flow between the parts, and the protocols the parts meet at.
# Entry points: Batch, LossReport, Stats, Canvas, Update, Denoiser, About, Kept, Pass, Objective, Policy.
# Shape letters: B rows, L positions of a row, Q queries, K keys, V vocabulary, D hidden width, n selected positions.
"""Core records and protocols; torch only."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor


@dataclass(frozen=True)
class Batch:
    """Packed rows. tokens [B, L] int64; learn [B, L] bool: where loss counts and noise may fall; docs [B, L] int64:
    document id within the row, constant over each document, padding has an id of its own and learn False; groups [B, L]
    int64: the block id at which each position's group of blocks begins (core/groups.py); None: every block alone;
    opened [L, L] bool: what each position sees of its own half, where the mask allows it (core/annealing.py)."""

    tokens: Tensor
    learn: Tensor
    docs: Tensor
    ids: tuple[int, ...] = ()
    groups: Tensor | None = None
    opened: Tensor | None = None

    def positions(self) -> Tensor:
        """[B, L] int64, restarting at 0 with every document. Under RoPE only their differences matter.
        Source: LLaDA2.0 arXiv:2512.15745 sec. 4.2."""
        length = self.tokens.shape[1]
        index = torch.arange(length, device=self.tokens.device).expand_as(self.docs)
        starts = torch.ones_like(self.docs, dtype=torch.bool)
        starts[:, 1:] = self.docs[:, 1:] != self.docs[:, :-1]
        first = torch.where(starts, index, torch.zeros_like(index)).cummax(dim=1).values
        return index - first

    def to(self, device: torch.device | str) -> Batch:
        """The same batch on another device."""
        groups, opened = (None if one is None else one.to(device) for one in (self.groups, self.opened))
        return Batch(self.tokens.to(device), self.learn.to(device), self.docs.to(device), self.ids, groups, opened)


@dataclass(frozen=True)
class LossReport:
    """Sums, never means. total: differentiable numerator, scalar float32; normaliser: its denominator, so the loss of
    many micro-batches and ranks is sum(total) / sum(normaliser); parts and counts: detached sums by name."""

    total: Tensor
    normaliser: Tensor
    parts: Mapping[str, Tensor] = field(default_factory=dict)
    counts: Mapping[str, Tensor] = field(default_factory=dict)

    def __float__(self) -> float:
        """The loss, total / normaliser; NaN where nothing is supervised."""
        return float(self.total.detach() / self.normaliser)


@dataclass(frozen=True)
class Stats:
    """What a policy may look at, per position of one active block. best [Q] int64: argmax token with [MASK] excluded
    (or the sampled token); probability [Q] float32 of it; entropy [Q] nats; second [Q]: the runner-up's probability;
    ranked [Q, 4] int64: the likeliest tokens, and their probabilities ranks [Q, 4]."""

    best: Tensor
    probability: Tensor
    entropy: Tensor | None = None
    second: Tensor | None = None
    ranked: Tensor | None = None
    ranks: Tensor | None = None


@dataclass(frozen=True)
class Canvas:
    """One active block. tokens [Q] int64; editable [Q] bool: False for prompt and given tokens; step: forwards the
    block has had before in which it was ready; masks: its [MASK] count at step 0; uniform [Q] in [0, 1); history:
    (best, probability) [Q] of the forwards before; ready: whether masks may be filled on a guess; controls: ids of the
    model's edit actions (core/levenshtein.py); memory: what the policy kept in its last update of the block."""

    tokens: Tensor
    editable: Tensor
    mask_id: int
    step: int = 0
    masks: int = 0
    uniform: Tensor | None = None
    history: tuple[tuple[Tensor, Tensor], ...] = ()
    ready: bool = True
    controls: Any = None
    memory: Any = None


@dataclass(frozen=True)
class Update:
    """A policy's decision. tokens [Q] int64 after it; unmasked [Q] bool; edited [Q] bool; remasked [Q] bool or None.
    Where tokens moved, moved [Q] int64 is the position each came from (-1: none), unmasked and edited are of their
    places after it, and edits counts the actions; memory: for the block's next canvas."""

    tokens: Tensor
    unmasked: Tensor
    edited: Tensor
    remasked: Tensor | None = None
    moved: Tensor | None = None
    edits: int | None = None
    memory: Any = None


class Denoiser(Protocol):
    """A language model used as a block-diffusion denoiser: logit i predicts token i (any shift is resolved inside).
    Everything that objectives, likelihoods, the decoder and the engines read of a model is declared here."""

    @property
    def mask_id(self) -> int:
        """Token id of [MASK]."""
        ...

    @property
    def vocab_size(self) -> int:
        """V, rows of the output matrix."""
        ...

    @property
    def window(self) -> int:
        """Longest sequence the model takes, tokens; 0: no bound is known."""
        ...

    @property
    def block_grid(self) -> str:
        """Where blocks start in a packed row: `global` or `per_document` (core/masks.py)."""
        ...

    @property
    def shift(self) -> str:
        """`none`: logit i is read at position i; `clean`: at position i - 1, so decoding re-reads one token."""
        ...

    @property
    def dtype(self) -> torch.dtype:
        """Dtype of the features."""
        ...

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        ...

    @property
    def exact(self) -> bool:
        """Whether a row's numbers do not depend on what shares its forward."""
        ...

    @property
    def takes_layout(self) -> bool:
        """Whether __call__ takes `layout`, an attention layout in place of a mask."""
        ...

    @property
    def end_ids(self) -> frozenset[int]:
        """Token ids that end a text by the model's own configuration."""
        ...

    def state_bytes(self, positions: int) -> int:
        """Bytes that what is kept of `positions` committed tokens of one sequence takes in all layers."""
        ...

    def __call__(
        self,
        tokens: Tensor,
        positions: Tensor,
        mask: Tensor,
        cache: Any = None,
        select: Tensor | None = None,
        layout: Any = None,
    ) -> Tensor:
        """tokens, positions [B, Q] int64; mask [B or 1, 1, Q, K] bool (True = visible) or additive float; cache: a
        view of the decoder's store; select [B, Q] bool: rows needing logits; layout: see takes_layout. Returns logits
        [n, V] in row-major order of select, or [B, Q, V] without select."""
        ...

    def noisy_features(self, noisy: Tensor, batch: Batch, block: int, select: Tensor) -> Tensor:
        """Hidden states [n, D] that predict the tokens at `select` [B, L] bool from the noisy half of one forward over
        [x_t ; x_0] (or of x_t alone when block >= L). Differentiable. noisy, select [k B, L]: k views of each row, view
        after view; a row's x_0 need not be read more than once. Source: LLaDA2.0 arXiv:2512.15745 eq. 3."""
        ...

    def causal_features(self, batch: Batch, select: Tensor) -> Tensor:
        """Hidden states [n, D] of the unmodified AR model (causal within documents) that predict the tokens at `select`
        [B, L] bool: the state of the position before. Positions that begin a document must not be selected."""
        ...

    def head(self) -> Tensor:
        """The output matrix [V, D]; logits are features @ head().T."""
        ...


class Kept(Protocol):
    """Arrays that were written beforehand, one for each row of tokens, by the hash of the row."""

    @property
    def facts(self) -> Mapping[str, Any]:
        """What was written with them."""
        ...

    def rows(self, batch: Batch, part: Sequence[int] = ()) -> Tensor:
        """[B, L, ...] of the batch's rows on its device, 0 behind a row's last learned position; part: entries of the
        first axis of what a position has, empty: all. DataError for a row that was not written."""
        ...

    def known(self, batch: Batch) -> Tensor:
        """[B] bool: whether a row was written."""
        ...


@dataclass(frozen=True)
class About:
    """What an objective may know of the run it is prepared for. vocabulary: ids the tokenizer makes, a count; special:
    ids that are no text; load(path): a second model of this tokenizer, frozen, in evaluation mode; parent: a context in
    which the model in training computes as what it began from (adapters off), None where its weights themselves train;
    origin: the path it began from where that is an AR model, empty where it is none; layers: of the network, a count;
    watch(model, numbers): inside, outputs of layers counted from 1; kept(kind, folder, model or ""): rows on disk;
    routing(model): inside, {layer: (logits [N, E], chosen experts [N, k])}, None where there are no experts."""

    vocabulary: int
    special: tuple[int, ...]
    device: torch.device
    load: Callable[[str], Denoiser]
    parent: Callable[[], AbstractContextManager[None]] | None = None
    origin: str = ""
    layers: int = 0
    watch: Callable[[Denoiser, Collection[int]], AbstractContextManager[Mapping[int, Tensor]]] | None = None
    kept: Callable[[str, str, str], Kept] | None = None
    routing: Callable[[Denoiser], AbstractContextManager[Mapping[int, tuple[Tensor, Tensor]]]] | None = None


@dataclass(frozen=True)
class Pass:
    """A forward of an objective and the backward right after it, as plan and preflight count them. scored: share of the
    learnable positions that reach the head; views: rows of the forward for a row of the batch; causal: over the clean
    text alone, not over [x_t ; x_0]; reads: times the head is read again without a gradient, a count; drafts: forwards
    of the network without a gradient before it, a count; beside: whether the views share one clean half."""

    scored: float = 1.0
    views: int = 1
    causal: bool = False
    reads: int = 0
    drafts: int = 0
    beside: bool = False

    @property
    def rows(self) -> float:
        """Rows of [x_t ; x_0] that cost as much, where views can stand beside one clean half."""
        return (self.views + 1) / 2 if self.beside else float(self.views)


class Objective(Protocol):
    """A training signal: what is corrupted, what is predicted, how it is weighted. core/objective.py has the base class
    with the defaults of everything but `loss`."""

    @property
    def companions(self) -> tuple[str, ...]:
        """Paths of the further models `prepare` loads; the memory preflight counts them."""
        ...

    @property
    def compares_with_origin(self) -> bool:
        """Whether it reads the model that the training began from: for nothing under adapters, else one more copy that
        the memory preflight counts."""
        ...

    @property
    def passes(self) -> tuple[Pass, ...]:
        """What a micro-batch costs: one Pass for each report of `losses`, as many on every rank."""
        ...

    def prepare(self, about: About) -> Objective:
        """The objective that is trained with, called once before the first step."""
        ...

    def at(self, done: float) -> Objective:
        """The objective of a step; done: share of the run that lies behind it, in [0, 1)."""
        ...

    def loss(self, model: Denoiser, batch: Batch, block: int, rng: torch.Generator) -> LossReport:
        """The report of one micro-batch at one block size; block <= 0 or >= L means the whole row (MDLM)."""
        ...

    def losses(self, model: Denoiser, batch: Batch, block: int, rng: torch.Generator) -> Iterator[LossReport]:
        """`loss` in parts whose sum it is: the backward of each runs before the next is asked for, so that the graph of
        only one is held."""
        ...


class Policy(Protocol):
    """Which tokens of an active block change after a forward. Pure: same arguments, same result."""

    def step(self, stats: Stats, canvas: Canvas) -> Update:
        """The update of one block."""
        ...
