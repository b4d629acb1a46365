# A recorded generation and the files it can be kept as: a player, an animated GIF or SVG, the events themselves.
# Entry points: Recording (of_trace, frames, html, gif, svg, jsonl, save), suffix_of, player;
# `python -m hildanext.report.recording EVENTS.jsonl OUT.html|.gif|.svg [TITLE]`.
# A recording is a list of events in the format of docs/events.md, `begin` first; whoever writes it can be drawn.
# The page's "Save" and the player use the same canvas.js; SVG and GIF are drawn from frames.
"""Pictures of decoding."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

from hildanext.decoding.wire import Entry, begun, broken, entries_of, text_of
from hildanext.errors import DataError, DecodeError, HildaError
from hildanext.report.animation import animate, ended
from hildanext.report.frames import frames_of
from hildanext.report.gif import draw, missing

PLAYER = Path(__file__).with_name("player")
SUFFIXES = (".html", ".gif", ".svg", ".jsonl")


def suffix_of(path: Path) -> str:
    """The suffix that says what is written. DecodeError for another one, and for a GIF where its library is missing."""
    suffix = path.suffix.lower()
    if suffix not in SUFFIXES:
        raise DecodeError(f"save: {path.name!r} ends in {suffix or 'nothing'}, expected one of {', '.join(SUFFIXES)}")
    if suffix == ".gif" and (reason := missing()):
        raise DecodeError(f"save: {reason}")
    return suffix


def player(title: str, entries: Iterable[Entry]) -> str:
    """One HTML file that plays the events with a scrubber; it loads nothing."""
    files = {name: (PLAYER / name).read_text(encoding="utf-8") for name in ("player.html", "canvas.css", "player.css")}
    script = "\n".join((PLAYER / name).read_text(encoding="utf-8") for name in ("canvas.js", "player.js"))
    # "<" never stands in the data, so nothing in a text can end the script or begin a tag
    data = json.dumps(list(entries), ensure_ascii=True, separators=(",", ":")).replace("<", "\\u003c")
    values = {
        "{{title}}": escape(title), "{{css}}": files["canvas.css"] + files["player.css"], "{{script}}": script,
        "{{events}}": data,
    }  # fmt: skip
    page = files["player.html"]
    head, _, tail = page.partition("{{events}}")
    for name in ("{{title}}", "{{css}}", "{{script}}"):
        head, tail = head.replace(name, values[name]), tail.replace(name, values[name])
    return head + data + tail


@dataclass(frozen=True)
class Recording:
    """A generation as it came. title: what stands above the picture."""

    entries: tuple[Entry, ...]
    title: str = "hildanext generate"

    @classmethod
    def of_trace(
        cls, prompt: str, trace: Sequence[Entry], result: Entry, title: str = "hildanext generate"
    ) -> Recording:
        """From the trace of a result and its plain values. A block is committed where the next draft leaves it; text
        that later tokens may still change comes with the last commit."""
        if not trace:
            raise DecodeError("animation: the result has no trace; ask with trace=True")
        events: list[Entry] = []
        latest: dict[int, Entry] = {}
        text, rest = str(result["text"]), list(result["token_ids"])
        for one in trace:
            behind = [latest.pop(place) for place in sorted(latest) if place < one["tokens"][0]["pos"]]
            latest |= {token["pos"]: token for token in one["tokens"] if token["state"] != "given"}
            ids, piece = [token["id"] for token in behind], "".join(token["text"] for token in behind)
            if ids and rest[: len(ids)] == ids:
                said = piece if text.startswith(piece) else ""
                events.append({"kind": "commit", "request": 0, "text": said, "token_ids": ids})
                text, rest = text[len(said) :], rest[len(ids) :]
            events.append({"kind": "draft", "request": 0, "step": one["step"], "tokens": one["tokens"]})
        events.append({"kind": "commit", "request": 0, "text": text, "token_ids": rest})
        done = {"kind": "done", "request": 0, **result, "token_ids": list(result["token_ids"])}
        return cls((begun(prompt, title=title), *events, done), title)

    @property
    def begin(self) -> Entry:
        """The facts of the first line, {} where there is none."""
        first: Entry = self.entries[0] if self.entries and self.entries[0].get("kind") == "begin" else {}
        return first

    def frames(self) -> list[dict[str, Any]]:
        """The whole canvas after every step, as frames_of gives it, and the finished text as a last one. DecodeError
        where nothing was drafted and nothing committed."""
        whole, prompt = bool(self.begin.get("infill")), str(self.begin.get("prompt", ""))
        drafts = [one for one in self.entries if one.get("kind") == "draft" and one["tokens"]]
        text = "".join(str(one["text"]) for one in self.entries if one.get("kind") == "commit")
        frames = ended(frames_of("" if whole else prompt, drafts, whole)) if drafts else []
        if not frames and not text:
            raise DecodeError("animation: no draft and no commit among the events, so there is nothing to draw")
        last = [["", "given"], [text, "done"]] if whole else [[prompt, "given"], [text, "done"]]
        return [*frames[:-1], {"step": len(drafts), "tokens": last}]

    def html(self) -> str:
        """A page with a scrubber, drafts, edits and the step map; it loads nothing."""
        begin = self.begin or begun(title=self.title)
        return player(self.title, (begin, *(one for one in self.entries if one is not begin)))

    def svg(self) -> str:
        """An animated SVG without a script."""
        return animate(self.frames(), self.title)

    def gif(self) -> bytes:
        """An animated GIF, a frame per step and one of the finished text. DecodeError where Pillow is missing."""
        if reason := missing():
            raise DecodeError(f"animation: {reason}")
        return draw(self.frames(), self.title)

    def jsonl(self) -> str:
        """The events, a JSON object a line (docs/events.md)."""
        return text_of(self.entries)

    def as_file(self, suffix: str) -> bytes:
        """The bytes of a file with this suffix."""
        made: Mapping[str, Callable[[], str | bytes]] = {
            ".html": self.html, ".gif": self.gif, ".svg": self.svg, ".jsonl": self.jsonl
        }  # fmt: skip
        content = made[suffix]()
        return content if isinstance(content, bytes) else content.encode("utf-8")

    def save(self, path: str | Path) -> Path:
        """Write it as .html, .gif, .svg or .jsonl, by the name's suffix. DecodeError for another suffix, a missing
        library or a path that cannot be written."""
        target = Path(path)
        content = self.as_file(suffix_of(target))
        try:
            target.write_bytes(content)
        except OSError as error:
            raise DecodeError(
                f"save: cannot write {target} ({error.strerror}); name a file in an existing folder"
            ) from error
        return target

    def _repr_html_(self) -> str:
        return f'<iframe srcdoc="{escape(self.html())}" width="100%" height="520" style="border:0"></iframe>'


def main(source: Path, target: Path, title: str = "") -> None:
    """Draw a file of events. DataError where it breaks the format."""
    entries = entries_of(source.read_text(encoding="utf-8"))
    if wrong := broken(entries):
        raise DataError(f"{source}: {wrong[0]}{f' and {len(wrong) - 1} more' if wrong[1:] else ''}; see docs/events.md")
    said = str(entries[0].get("title", "")) if entries else ""
    print(Recording(tuple(entries), title or said or "hildanext generate").save(target))


if __name__ == "__main__":
    try:
        main(Path(sys.argv[1]), Path(sys.argv[2]), *sys.argv[3:4])
    except HildaError as error:
        sys.exit(str(error))
