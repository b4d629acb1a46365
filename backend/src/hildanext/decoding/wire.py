# The events of a generation as JSON lines, the format of docs/events.md: writing them, and what breaks its rules.
# Entry points: begun, entry, entries_of, text_of, broken; `python -m hildanext.decoding.wire FILE` checks a file.
# Nothing here needs our decoder: another engine's stream can be checked, and drawn, as well.
"""Events as JSON lines."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hildanext.decoding.events import Done, Draft, Event
from hildanext.errors import DataError

FORMAT, VERSION = "block-diffusion-events", 1
STATES = ("mask", "new", "edited", "kept", "given")
FIELDS: Mapping[str, Mapping[str, type | tuple[type, ...]]] = {
    "begin": {"format": str, "version": int},
    "draft": {"step": int, "tokens": list},
    "commit": {"text": str, "token_ids": list},
    "done": {"text": str, "token_ids": list, "finish_reason": str},
    "error": {"error": dict},
}
TOKEN: Mapping[str, type | tuple[type, ...]] = {"pos": int, "id": int, "text": str, "state": str}
Entry = Mapping[str, Any]


def begun(prompt: str = "", **facts: Any) -> dict[str, Any]:
    """The first line of a file: format, version, the text that was given, and facts such as title or model."""
    return {"kind": "begin", "format": FORMAT, "version": VERSION, "prompt": prompt, **facts}


def entry(event: Event) -> dict[str, Any]:
    """One event as a JSON object."""
    if isinstance(event, Draft):
        return {**vars(event), "tokens": [vars(token) for token in event.tokens]}
    if isinstance(event, Done):
        result = event.result.as_dict()
        return {"kind": "done", "request": event.request, **result, "token_ids": list(result["token_ids"])}
    return {**vars(event), "token_ids": list(event.token_ids)}


def entries_of(text: str) -> list[dict[str, Any]]:
    """The objects of JSON lines. DataError for a line that is none."""
    found = []
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip():
            continue
        try:
            value = json.loads(line)
        except ValueError as error:
            raise DataError(f"events: line {number} is not JSON ({error}); see docs/events.md") from None
        if not isinstance(value, dict):
            raise DataError(f"events: line {number} is no object; see docs/events.md")
        found.append(value)
    return found


def text_of(entries: Iterable[Entry]) -> str:
    """JSON lines."""
    return "".join(json.dumps(one, ensure_ascii=False) + "\n" for one in entries)


@dataclass
class _Seen:
    """One request so far. whole: given tokens are part of the text; last: of every drafted position, its id and state;
    front: the first position of the newest draft; masked: ids that stood for [MASK]."""

    whole: bool = False
    step: int = 0
    front: int = -1
    last: dict[int, tuple[int, str]] = field(default_factory=dict)
    masked: set[int] = field(default_factory=set)
    text: str = ""
    ids: list[int] = field(default_factory=list)
    over: bool = False


def broken(entries: Sequence[Entry]) -> list[str]:
    """What breaks the rules of docs/events.md, one line each with the number of the event; [] where nothing does."""
    found: list[str] = []
    requests: dict[int, _Seen] = {}
    for number, one in enumerate(entries, 1):
        kind = one.get("kind")
        if not isinstance(kind, str) or kind not in FIELDS:
            # a kind of a later version is passed over
            found += [] if isinstance(kind, str) else [f"event {number}: no kind"]
            continue
        wrong = list(_shape(one, {"request": int, **FIELDS[kind]} if "request" in one else FIELDS[kind]))
        if not wrong and kind == "begin":
            wrong = list(_begin(one, number))
        elif not wrong:
            seen = requests.setdefault(one.get("request", 0), _Seen(bool(entries[0].get("infill"))))
            wrong = list(_follow(seen, one))
        found += [f"event {number} ({kind}): {what}" for what in wrong]
    return found + [f"request {number}: no done or error" for number, seen in requests.items() if not seen.over]


def _shape(one: Entry, fields: Mapping[str, Any]) -> Iterator[str]:
    for name, kind in fields.items():
        if not isinstance(one.get(name), kind) or isinstance(one.get(name), bool):
            yield f"{name}: {one.get(name)!r:.40}, expected {kind.__name__}"


def _begin(one: Entry, number: int) -> Iterator[str]:
    if number != 1:
        yield "not the first line"
    if (one["format"], one["version"]) != (FORMAT, VERSION):
        yield f"{one['format']} version {one['version']}, expected {FORMAT} version {VERSION}"


def _follow(seen: _Seen, one: Entry) -> Iterator[str]:
    if seen.over:
        yield "the request has ended"
    elif one["kind"] == "draft":
        yield from _draft(seen, one)
    elif one["kind"] == "commit":
        seen.text += one["text"]
        seen.ids += one["token_ids"]
        yield from _committed(seen)
    else:
        seen.over = True
        if one["kind"] == "done" and (one["text"], list(one["token_ids"])) != (seen.text, seen.ids):
            yield "its text or token_ids are not those of the commits"


def _draft(seen: _Seen, one: Entry) -> Iterator[str]:
    tokens = one["tokens"]
    wrong = [what for token in tokens for what in _shape(token if isinstance(token, dict) else {}, TOKEN)]
    if wrong or not tokens:
        yield from wrong or ["no tokens"]
        return
    if one["step"] <= seen.step:
        yield f"step {one['step']} after step {seen.step}"
    places = [token["pos"] for token in tokens]
    if places != list(range(places[0], places[0] + len(places))):
        yield "positions are not one after another"
    if places[0] < seen.front:
        yield f"position {places[0]} is drafted again, behind {seen.front}"
    for token in tokens:
        yield from _token(seen, token)
    seen.step, seen.front = one["step"], places[0]
    seen.last |= {token["pos"]: (token["id"], token["state"]) for token in tokens}


def _token(seen: _Seen, token: Entry) -> Iterator[str]:
    state, place = token["state"], token["pos"]
    before, was = seen.last.get(place, (None, "mask"))
    if state not in STATES:
        yield f"position {place}: state {state!r}"
    if state == "mask":
        seen.masked.add(token["id"])
        if token["text"] or len(seen.masked) > 1:
            yield f"position {place}: a mask with a text or with an id of its own"
    if state == "new" and was != "mask":
        yield f"position {place}: new, but a token was there"
    if state == "edited" and (was == "mask" or before == token["id"]):
        yield f"position {place}: edited, but nothing else was there"
    if state == "kept" and before != token["id"]:
        yield f"position {place}: kept, but it was {before}"
    if (state == "given") != (was == "given") and place in seen.last:
        yield f"position {place}: {state} after {was}"


def _committed(seen: _Seen) -> Iterator[str]:
    own = [place for place, (_, state) in seen.last.items() if state != "given"]
    if not own:
        return
    first = 0 if seen.whole else min(own)
    known = [(token, seen.last[place]) for place, token in enumerate(seen.ids, first) if place in seen.last]
    if any(token != drafted for token, (drafted, _) in known):
        yield "its tokens are not those last drafted"
    if any(state == "mask" for _, (_, state) in known):
        yield "a mask is committed"


if __name__ == "__main__":
    problems = broken(entries_of(Path(sys.argv[1]).read_text(encoding="utf-8")))
    print("\n".join(problems) or "follows the format")
    sys.exit(1 if problems else 0)
