# A gap between prompt and suffix: of one length, or of the shortest good one of several, decoded together and scored.
# Entry points: gap (a generation of either kind), lengths_of, Lengths, Chosen.
# A gap of masks has no end token, so who does not know its length pays for trying several.
"""Gaps for clients."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Annotated

from pydantic import Field

from hildanext.api.fleet import Slot
from hildanext.api.replies import ApiError
from hildanext.api.state import PING_SECONDS, Answering, Generation, Server
from hildanext.config.decode import Tokens
from hildanext.decoding.events import Commit, Done, Event
from hildanext.decoding.request import Request, Result
from hildanext.engines.task import Task, TaskResult
from hildanext.errors import HildaError
from hildanext.measure.filling import Choice, ladder, shortest_good
from hildanext.measure.scores import Scoring, scores

MOST = 24
"""Tokens of a gap at most where nobody says."""
Lengths = Annotated[list[Tokens], Field(min_length=1, max_length=32)]


def lengths_of(lengths: Sequence[int] | None, most: int | None) -> tuple[int, ...]:
    """The lengths to try, tokens, rising: those asked for, else twelve up to `most`."""
    return tuple(sorted(set(lengths))) if lengths else ladder(most or MOST)


def gap(server: Server, slot: Slot, request: Request, lengths: Sequence[int], sample: int = 0) -> Answering:
    """What stands between the request's prompt and suffix, of one of these lengths, at work. ApiError 429 where the
    queue cannot take them all, and then none of them stays in it."""
    tried: list[Generation] = []
    try:
        for length in lengths:
            tried += server.admit(request.model_copy(update={"max_new_tokens": length}), slot, first=sample)
    except (ApiError, HildaError):
        for one in tried:
            one.cancel()
        raise
    return tried[0] if len(tried) == 1 else Chosen(server, slot, request, tuple(lengths), tried)


@dataclass
class Chosen:
    """Several lengths at work, one of which will be the answer; it is not streamed, since it is known last."""

    server: Server
    slot: Slot
    request: Request
    lengths: tuple[int, ...]
    tried: list[Generation]
    choice: Choice = Choice()

    async def admitted(self) -> None:
        """Wait until the engine accepts all lengths; raises what refuses one."""
        for one in self.tried:
            await one.admitted()

    def cancel(self) -> None:
        """Stop all of them."""
        for one in self.tried:
            one.cancel()

    async def events(self) -> AsyncIterator[Event | None]:
        """The whole answer at once, then its end; None every ten quiet seconds."""
        work = asyncio.ensure_future(self.result())
        try:
            while not work.done():
                await asyncio.wait([work], timeout=PING_SECONDS)
                if not work.done():
                    yield None
            result = work.result()
            yield Commit(0, result.text, result.token_ids, result.record)
            yield Done(0, result)
        finally:
            work.cancel()
            await asyncio.gather(work, return_exceptions=True)

    async def result(self) -> Result:
        """The shortest text that is about as likely as the best of all. forwards and positions are those of all."""
        try:
            found = await asyncio.gather(*(one.result() for one in self.tried))
            nats = await self._nats([one.text for one in found])
        finally:
            self.cancel()
        best = found[shortest_good(self.lengths, nats, self.choice.slack)]
        forwards = sum(one.metrics.forwards for one in found)
        positions = [one.metrics.positions for one in found if one.metrics.positions is not None]
        metrics = replace(
            best.metrics, forwards=forwards, tokens_per_forward=best.metrics.tokens / max(1, forwards),
            positions=sum(positions) if len(positions) == len(found) else None,
        )  # fmt: skip
        said = f"gap: {best.metrics.tokens} tokens, the shortest within {self.choice.slack:g} nat of the best of "
        said += f"{len(found)} lengths, {self.lengths[0]} to {self.lengths[-1]}"
        return replace(best, metrics=metrics, notes=(*best.notes, said))

    async def _nats(self, middles: Sequence[str]) -> list[float]:
        before = self.request.prompt if self.request.prompt is not None else self.request.prompt_ids or ()
        pairs = [(before, middle + (self.request.suffix or "")) for middle in middles]
        how = Scoring(self.choice.kind, self.choice.samples, self.choice.block)
        task = Task(prompt="", pieces=partial(scores, pairs=pairs, how=how))
        (scored,) = self.server.admit(task, self.slot)
        result = await scored.result()
        if not isinstance(result, TaskResult):
            raise ApiError(
                400, f"suffix: the engine {result.engine} scores no texts, which choosing a length takes; give one in"
                " lengths", "lengths",
            )  # fmt: skip
        return [one.nats for one in result.found]
