# A text that must match a grammar, while it is decoded: what may come next, what must, and how it ends in time.
# Entry points: Guide (masked, update, counts, notes), guided (the plan of such a request).
# The canvas of such a request is filled from the left: of every forward the leftmost [MASK] takes a token that the
# grammar allows, and all that the grammar then leaves no choice of are written with it.
# A way to the end is known after every token and never longer than the room that is left, so no text is cut.
"""Decoding under a grammar."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from hildanext.core.head import EXCLUDED
from hildanext.core.types import Canvas, Stats, Update
from hildanext.decoding.grammar import Vocabulary, compiled, refused
from hildanext.decoding.modes import ResolvedMode
from hildanext.decoding.policy import masked
from hildanext.decoding.request import Grammar, Request
from hildanext.errors import DecodeError
from hildanext.registry import build

LONGEST, AGAIN = 4096, 4.0
HURRIED = "grammar: the text was brought to an end early, so that it matches within max_new_tokens; ask for more"
FROM_THE_LEFT = {"type": "left_to_right"}
NO_ENDING = (
    "grammar: no short ending of this grammar was found, so a text that max_new_tokens cuts may not match it;"
    " finish_reason says 'length' then"
)


@dataclass
class Guide:
    """ends: ids that end a text; room: tokens that may still be written, the end included; ending: tokens that complete
    the text from here, None where no way to an end is known; done: an end was written; broken: one that the grammar
    does not allow. Counts: tokens, of them forced (there was no choice), and forwards."""

    vocabulary: Vocabulary
    matcher: Any
    ends: frozenset[int]
    room: int
    ending: list[int] | None = None
    done: bool = False
    broken: bool = False
    hurried: bool = False
    tokens: int = 0
    forced: int = 0
    forwards: int = 0
    _next: list[int] = field(default_factory=list)
    _known: bool = False

    @classmethod
    def of(cls, grammar: Grammar, tokenizer: Any, size: int, ends: frozenset[int], room: int) -> Guide:
        """At the beginning of an answer of `room` tokens at most by a model of `size` ids. DecodeError for a grammar
        that is none or has parts that cannot be served, for no room."""
        made = compiled(grammar)
        from llguidance import LLMatcher

        if tokenizer is None or not ends:
            raise DecodeError("grammar: needs a tokenizer with an end token, and ignore_eos off")
        vocabulary = Vocabulary.of(tokenizer, size)
        guide = cls(vocabulary, LLMatcher(vocabulary.reader, made, log_level=0), ends, room)
        if guide.matcher.is_error():
            raise refused(grammar, guide.matcher.get_error())
        guide.ending = guide._closing(guide.matcher.deep_copy(), max(room, LONGEST))
        json = grammar.type in ("json_schema", "json_object")
        if guide.ending is None and json or guide.ending is not None and len(guide.ending) >= room:
            least = "more than that" if guide.ending is None else f"{len(guide.ending) + 1} with their end"
            raise DecodeError(
                f"max_new_tokens: {room} leave no room for a text of this grammar, of which the shortest that was found"
                f" has {least}; ask for more"
            )
        return guide

    @property
    def counts(self) -> dict[str, float]:
        """For the metrics of a result."""
        own = {"tokens": self.tokens, "forced": self.forced, "forwards": self.forwards}
        return own | {"tokens_per_forward": self.tokens / max(1, self.forwards)}

    @property
    def notes(self) -> tuple[str, ...]:
        """What a reader of the result must know."""
        return (NO_ENDING,) if self.ending is None else (HURRIED,) if self.hurried else ()

    def masked(self, scores: Tensor, looked: Tensor, seen: Canvas) -> Tensor:
        """The logits [n, V] of the positions looked at [Q] bool, of which the leftmost masked one keeps only the tokens
        that may come next, unless what comes next is forced."""
        hidden = masked(seen)
        if self.done or self._must() or not bool(hidden.any()):
            return scores
        allowed = self.vocabulary.allowed(self.matcher.compute_bitmask())
        if self.matcher.is_error():
            self._known = False
            return scores
        if bool(allowed[self.vocabulary.end]):
            allowed[list(self.ends)] = True
        row = int(looked[: int(hidden.long().argmax())].sum())
        scores[row] = scores[row].masked_fill(~allowed.to(scores.device), EXCLUDED)
        return scores

    def update(self, stats: Stats, seen: Canvas) -> Update:
        """The leftmost masks of a block filled: with what is forced, else with the predicted token and what is forced
        behind it. Behind an end everything is filled."""
        tokens, hidden = seen.tokens.clone(), masked(seen)
        places = hidden.nonzero()[:, 0].tolist()
        self.forwards += bool(places)
        written = self._write(tokens, places)
        if not written and places:
            tokens[places[0]] = self._chosen(int(stats.best[places[0]]))
            written = 1 + self._write(tokens, places[1:])
        unmasked = torch.zeros_like(hidden)
        unmasked[places[:written]] = True
        return Update(tokens, unmasked, torch.zeros_like(hidden))

    def _write(self, tokens: Tensor, places: list[int]) -> int:
        for count, place in enumerate(places):
            if self.done:
                tokens[places[count:]] = min(self.ends)
                return len(places)
            if not (must := self._must()) or not self._take(must[0]):
                return count
            self.forced += 1
            tokens[place] = must[0]
        return len(places)

    def _must(self) -> list[int]:
        """The tokens that must come next, an end among them; none where there is a choice."""
        if not self._known:
            self._next, self._known = self._ahead(), True
        return self._next

    def _ahead(self) -> list[int]:
        if self.matcher.is_error():
            # a limit of the library's was met: the known way to the end is all that is left
            self.broken = self.ending is None
            return (self.ending or [])[:1] or [self._end()]
        return [self._end()] if self.matcher.is_stopped() else list(self.matcher.compute_ff_tokens())

    def _end(self) -> int:
        return self.vocabulary.end if self.vocabulary.end in self.ends else min(self.ends)

    def _chosen(self, token: int) -> int:
        """`token` where it may come next and leaves room for an end, else the next token on the known way to one."""
        if self._take(token):
            return token
        token = self.ending[0] if self.ending else self._end()
        self.broken, self.hurried = self.ending is None, True
        self._take(token, sure=True)
        return token

    def _take(self, token: int, sure: bool = False) -> bool:
        failed = self.matcher.is_error()
        if token in self.ends:
            if not (sure or failed or self.matcher.is_accepting()):
                return False
            self.done = True
        elif failed:
            if not self.ending or token != self.ending[0]:
                return False
            self.ending = self.ending[1:]
        else:
            after = self.matcher.deep_copy()
            if not after.consume_token(token):
                return False
            ending = self._ending_after(token, after)
            if self.ending is not None and ending is None:
                return False
            self.matcher, self.ending = after, ending
        self.tokens, self.room, self._known = self.tokens + 1, self.room - 1, False
        return True

    def _ending_after(self, token: int, after: Any) -> list[int] | None:
        """A way to the end behind `token`: what is left of the known one, the known one as it is, or another."""
        room, known = self.room - 2, self.ending
        if known is None or room < 0:
            return None
        if known[:1] == [token]:
            return known[1:]
        if after.is_accepting():
            return []
        if known and len(known) <= room and after.validate_tokens(known) == len(known):
            tried = after.deep_copy()
            if tried.consume_tokens(known) and tried.is_accepting():
                return known
        return self._closing(after.deep_copy(), room)

    def _closing(self, matcher: Any, most: int) -> list[int] | None:
        found, rank = list[int](), self.vocabulary.rank.clone()
        while not matcher.is_accepting():
            if matcher.is_error():
                return None
            forced = matcher.compute_ff_tokens()
            if not forced:
                allowed = self.vocabulary.allowed(matcher.compute_bitmask())
                allowed[list(self.ends)] = False
                forced = [int(rank.masked_fill(~allowed, torch.inf).argmin())]
                rank[forced[0]] += AGAIN
            found += forced
            if len(found) > most or not matcher.consume_tokens(forced):
                return None
        return found


def guided(plan: ResolvedMode, request: Request) -> ResolvedMode:
    """The plan of a request under a grammar: from the left, without edits; as it is without one. DecodeError for fields
    that would take from the text or add to it."""
    if request.grammar is None:
        return plan
    wrong = [name for name in ("infill", "suffix", "ignore_eos", "stop") if getattr(request, name)]
    if wrong:
        raise DecodeError(f"{wrong[0]}: under a grammar the text is what the grammar says; leave {wrong[0]} out")
    shown = {name: plan.preset[name] for name in ("temperature", "top_k", "top_p", "cfg_scale", "confidence")}
    preset = {"mode": None, "source": "grammar", "type": "left_to_right", **shown}
    return ResolvedMode(build("policies", FROM_THE_LEFT), plan.sampling, preset, FROM_THE_LEFT["type"])
