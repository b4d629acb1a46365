# Latent diffusion models as an engine: requests of one kind are drawn together, piece by piece; ends are found here.
# Entry points: Latent (plugin), LatentSession, session_over (the session a loaded latent model needs).
# A type that proposes to a discrete model is decoded by our own block decoder, with all that it can do.
"""Engine `latent`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import count
from typing import Any

import torch

from hildanext.config import Config
from hildanext.core.latent import Draw, Piece
from hildanext.decoding.events import Done, Event
from hildanext.decoding.prompt import Bounds
from hildanext.decoding.randomness import chosen
from hildanext.decoding.request import Request, Result
from hildanext.engines.protocol import Capability, EnginePlugin, Facts, Failed, Opening, Session, refused
from hildanext.engines.relay import Relay
from hildanext.engines.task import Task
from hildanext.engines.transformers import NativeSession
from hildanext.errors import DecodeError, HildaError
from hildanext.latents.drawing import draw_of, generator_of, preset_of, refuse_others
from hildanext.models.latent import draws_texts, kind_in, latent_of
from hildanext.models.load import NEW, kind_at, load_model, name_of
from hildanext.progress import Console

OWN = "latent"
NOTE = (
    "a latent model ({name}): texts are drawn from noise and decoded, without probabilities of tokens; they are not"
    " exact (a text may depend on which others are drawn beside it)"
)


@dataclass
class Asked:
    """A request with what was drawn of it. seed: the one used; ids: every token so far."""

    relay: Relay
    draw: Draw
    seed: int
    ids: list[int] = field(default_factory=list)
    forwards: int = 0


@dataclass
class LatentSession:
    """Requests that are drawn alike (steps, sampler, guidance) together, decode.requests of them at most."""

    name: str
    loaded: Any
    config: Config
    waiting: dict[int, Asked] = field(default_factory=dict)
    drawn: dict[int, Asked] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.model = latent_of(self.loaded.denoiser)
        self.kind = kind_in(self.model.section, "latent")
        self._pieces: Iterator[Piece] = iter(())
        self._numbers = count()

    @property
    def note(self) -> str:
        """What is to be known of every text."""
        return NOTE.format(name=self.model.section["type"])

    @property
    def capability(self) -> Capability:
        """Batched; streams blocks where the model has some."""
        unit: Any = "block" if self.kind.block else "end"
        return Capability(
            True, (self.note,), True, self.config.decode.requests, False, unit, False, (str(self.loaded.device),)
        )

    @property
    def facts(self) -> Facts:
        """The loaded folder, where it is and in which dtype."""
        loaded, meta = self.loaded, self.loaded.meta
        name = self.config.serve.name or (name_of(loaded.path) if loaded.path else NEW)
        about = {
            "kind": meta.kind, "latent": self.model.section,
            "parameters": sum(one.numel() for one in self.model.parameters()), "mask_id": self.model.mask_id,
            "converted": True, "parent": meta.parent, "run": meta.run, "history": meta.history, "exact": False,
        }  # fmt: skip
        dtype = str(loaded.dtype).removeprefix("torch.")
        return Facts(name, str(loaded.device), dtype, loaded.dtype_reason, self.model.window, self.kind.block, about)

    @property
    def pending(self) -> int:
        """Requests waiting or being drawn."""
        return len(self.waiting) + sum(not one.relay.over for one in self.drawn.values())

    def submit(self, request: Request, drafts: bool = False) -> int:
        """Queue a request. DecodeError for what a latent model cannot do, by name."""
        name = str(self.model.section["type"])
        if isinstance(request, Task):
            raise DecodeError(f"score: a latent model ({name}) has no likelihood; use a discrete model")
        refuse_others(request, name)
        draw, config = draw_of(request, self.config, self.kind, self.model.latent), self.config.decode
        new = config.max_new_tokens if request.max_new_tokens is None else request.max_new_tokens
        own, window = self.model.window, config.window
        bounds = Bounds(
            self.kind.block or 1, min(own, window) if own and window else own or window, new, self.model.mask_id,
            self.model.vocab_size, self.loaded.meta.document_start, config.thinking,
        )  # fmt: skip
        number = next(self._numbers)
        relay = Relay(number, request, self.loaded.tokenizer, bounds, draw.sampler, preset_of(draw))
        self.waiting[number] = Asked(relay, draw, chosen(config.seed if request.seed is None else request.seed))
        return number

    def _begin(self) -> None:
        first = next(iter(self.waiting.values()))
        alike = [number for number, one in self.waiting.items() if one.draw == first.draw]
        self.drawn = {number: self.waiting.pop(number) for number in alike[: max(1, self.config.decode.requests)]}
        asked = list(self.drawn.values())
        prompts = [one.relay.prompt for one in asked]
        new = max(one.relay.bounds.new for one in asked)
        rngs = [generator_of(one.seed, one.relay.request.sample) for one in asked]
        self._pieces = self.model.latent.sample(prompts, new, first.draw, rngs)

    @torch.no_grad()
    def step(self) -> list[Event | Failed]:
        """The next piece of the texts that are drawn together."""
        if not self.drawn and self.waiting:
            self._begin()
        if not self.drawn:
            return []
        asked = dict(self.drawn)
        try:
            piece = next(self._pieces, None)
        except HildaError as error:
            self.drawn = {}
            return [Failed(number, error) for number in asked if not asked[number].relay.over]
        events = list[Event | Failed]()
        for index, one in enumerate(asked.values()):
            if not one.relay.over:
                events += self._moved(one, piece.tokens[index] if piece else (), piece)
        if all(one.relay.over for one in asked.values()):
            self.drawn = {}
        return events

    def _moved(self, one: Asked, tokens: Sequence[int], piece: Piece | None) -> list[Event]:
        one.ids += tokens
        one.relay.forwards += piece.forwards if piece else 0
        events = one.relay.push(one.ids, piece is None)
        return [self._signed(event, one) if isinstance(event, Done) else event for event in events]

    def _signed(self, event: Done, one: Asked) -> Done:
        return replace(event, result=self._result(one))

    def _result(self, one: Asked) -> Result:
        return replace(one.relay.result(), exact=False, notes=(self.note,), seed=one.seed)

    def cancel(self, number: int) -> Result | None:
        """End a request; what is drawn beside it goes on."""
        one = self.waiting.pop(number, None) or self.drawn.get(number)
        if one is None or one.relay.over:
            return None
        one.relay.over = True
        if self.drawn and all(each.relay.over for each in self.drawn.values()):
            self.drawn = {}
        return self._result(one)

    def reset(self) -> None:
        """Forget every request."""
        self.waiting, self.drawn, self._pieces = {}, {}, iter(())

    def close(self) -> None:
        """Forget every request."""
        self.reset()


def session_over(loaded: Any, config: Config) -> Session:
    """The session of a loaded latent model: our block decoder where it proposes to a discrete one, else its sampler."""
    if draws_texts(loaded.denoiser):
        return LatentSession(OWN, loaded, config)
    return NativeSession(OWN, loaded, config)


class Latent(EnginePlugin):
    """The latent model of model.path."""

    def open(self, config: Config, console: Console) -> Opening:
        """Load it; a folder of another kind is left to the other engines."""
        try:
            if config.model.path == NEW or kind_at(config.model.path).engine != OWN:
                return refused(f"{config.model.path} is no latent model; `hildanext latent` trains one")
            if config.decode.int8:
                return refused("decode.int8 rounds matrices of Hugging Face networks; leave it out")
            loaded = load_model(config.model, console)
        except HildaError as error:
            return refused(str(error))
        session = session_over(loaded, config)
        return Opening(session.capability, session)
