# Prompts of our own for a parent to answer: templates whose gaps are filled by a seeded draw, each text once.
# Entry points: write_prompts, Written.
# A text belongs to the part that trains or to the part kept for evaluation by its own hash, so that two sets written
# with any seeds share nothing across that line.
"""The prompt writer."""

from __future__ import annotations

import hashlib
import random
import re
from dataclasses import dataclass

from hildanext.data.prompt_words import TEMPLATES, WEIGHTS, WORDS
from hildanext.errors import DataError

GAP = re.compile(r"\{(a )?([a-z]+)(\d?)\}")
HELD_OUT = 20
TRIES = 200
VOWEL_SOUND = re.compile(r"[aeio]|u(?!ni|se)")


@dataclass(frozen=True)
class Written:
    """One prompt: its kind (a key of TEMPLATES) and its text."""

    kind: str
    text: str


def write_prompts(count: int, seed: int = 0, held_out: bool = False) -> list[Written]:
    """`count` different prompts, kinds mixed by weight, a function of the arguments; held_out: of the twentieth that is
    kept for evaluation and never written otherwise. DataError where the templates hold fewer."""
    rng, found = random.Random(f"prompts:{seed}:{held_out}"), dict[str, Written]()
    open_kinds = dict(WEIGHTS)
    while len(found) < count and open_kinds:
        order = [kind for kind, weight in open_kinds.items() for _ in range(weight)]
        rng.shuffle(order)
        for kind in order:
            text = _fresh(kind, rng, found, held_out)
            if text is None:
                open_kinds.pop(kind, None)
            elif len(found) < count:
                found[text] = Written(kind, text)
    if len(found) < count:
        raise DataError(f"prompts: {count:,} were asked for and the templates hold about {len(found):,}; ask for fewer")
    return list(found.values())


def _fresh(kind: str, rng: random.Random, known: dict[str, Written], held_out: bool) -> str | None:
    for _ in range(TRIES):
        text = _filled(rng.choice(TEMPLATES[kind]), rng)
        if text not in known and kept_for_evaluation(text) == held_out:
            return text
    return None


def kept_for_evaluation(text: str) -> bool:
    """Whether a prompt's text belongs to the part that no training set has, one of twenty by its hash."""
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big") % HELD_OUT == 0


def _filled(template: str, rng: random.Random) -> str:
    chosen: dict[str, str] = {}

    def word(match: re.Match[str]) -> str:
        article, name, number = match.groups()
        if name + number not in chosen:
            used = {text for key, text in chosen.items() if key.rstrip("0123456789") == name}
            chosen[name + number] = rng.choice([text for text in WORDS[name] if text not in used])
        text = chosen[name + number]
        return text if article is None else f"{'an' if VOWEL_SOUND.match(text) else 'a'} {text}"

    filled = GAP.sub(word, template)
    return filled[0].upper() + filled[1:]
