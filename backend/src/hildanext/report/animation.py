# A recorded generation as one animated SVG of a terminal: no script, no font, no GIF.
# Entry points: animate, ended, layout, seconds_of; `python -m hildanext.report.animation TRACE.jsonl OUT.svg [...]`.
# TRACE.jsonl comes from `hildanext generate --trace`; each line is the active block after one forward. Longer
# generations are shown faster, so that none takes more than half a minute.
"""Terminal animation from a trace."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from hildanext.report.frames import frames_of

COLUMNS, ADVANCE, LINE = 78, 9.2, 24
SECONDS, PAUSE, WHOLE, SHORTEST = 0.35, 3.0, 28.0, 0.04
COLOURS = {
    "mask": "#5b6472",
    "new": "#4fc78b",
    "edited": "#f0b455",
    "kept": "#9cc3ff",
    "given": "#8b94a3",
    "done": "#e8eaee",
}
END, MARK = re.compile(r"<\|\w+\|>|</s>"), " \u25a0"
CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f\ufffe\uffff]")
MASK = "\u2591\u2591\u2591"
Placed = tuple[int, int, str, str]


def seconds_of(count: int) -> float:
    """How long each of `count` frames is shown, seconds."""
    return max(SHORTEST, min(SECONDS, WHOLE / max(1, count)))


def layout(tokens: Sequence[Sequence[str]]) -> list[Placed]:
    """(line, column, text, state) of runs of tokens in one state, wrapped at 78 columns; a mask takes a space and three
    columns."""
    line, column = 0, 0
    found: list[Placed] = []
    for text, state in tokens:
        shown = f" {MASK}" if state == "mask" else CONTROL.sub("", re.sub(r"[\n\t]", " ", text))
        for word in shown.replace(" ", "\0 ").split("\0"):
            if column + len(word) > COLUMNS and word.strip():
                line, column = line + 1, 0
                word = word.lstrip(" ")
            if word and found and found[-1][0] == line and found[-1][3] == state:
                found[-1] = (line, found[-1][1], found[-1][2] + word, state)
            elif word:
                found.append((line, column, word, state))
            column += len(word)
    return found


def animate(frames: Sequence[Mapping[str, Any]], title: str) -> str:
    """The SVG: frames shown one after another, the last one for three seconds, for ever. ValueError without frames."""
    if not frames:
        raise ValueError("animate: no frames")
    placed = [layout(frame["tokens"]) for frame in frames]
    height = 84 + LINE * (1 + max(piece[0] for pieces in placed for piece in pieces))
    total = seconds_of(len(frames)) * len(frames) + PAUSE
    parts = [_frame(pieces, index, len(frames), total) for index, pieces in enumerate(placed)]
    width = round(COLUMNS * ADVANCE) + 48
    space = 'xmlns="http://www.w3.org/2000/svg"'
    head = f'<svg {space} viewBox="0 0 {width} {height}" role="img" aria-label="{escape(CONTROL.sub("", title))}">'
    style = "<style>text{font:15px ui-monospace,Menlo,Consolas,monospace;white-space:pre}</style>"
    window = f'<rect width="{width}" height="{height}" rx="12" fill="#14161a"/>'
    dots = "".join(
        f'<circle cx="{24 + 20 * i}" cy="22" r="6" fill="{c}"/>'
        for i, c in enumerate(("#ff5f57", "#febc2e", "#28c840"))
    )
    command = f'<text x="24" y="58" fill="#e8eaee">$ {escape(CONTROL.sub("", title))}</text>'
    return f"{head}{style}{window}{dots}{command}\n" + "\n".join(parts) + "\n</svg>\n"


def _frame(pieces: Sequence[Placed], index: int, count: int, total: float) -> str:
    each = seconds_of(count)
    start, end = each * index / total, 1.0 if index == count - 1 else each * (index + 1) / total
    if index == 0:
        times, values = f"0;{end:.4f}", "inline;none"
    elif index == count - 1:
        times, values = f"0;{start:.4f}", "none;inline"
    else:
        times, values = f"0;{start:.4f};{end:.4f}", "none;inline;none"
    if count == 1:
        times, values = "0", "inline"
    first = "inline" if index == count - 1 else "none"
    move = (
        f'<animate attributeName="display" calcMode="discrete" dur="{total:.2f}s" repeatCount="indefinite"'
        f' keyTimes="{times}" values="{values}"/>'
    )
    return f'<g display="{first}">{move}{"".join(map(_piece, pieces))}</g>'


def _piece(piece: Placed) -> str:
    line, column, text, state = piece
    x, y, length = 24 + column * ADVANCE, 90 + line * LINE, len(text) * ADVANCE
    return (
        f'<text x="{x:.1f}" y="{y}" fill="{COLOURS[state]}" textLength="{length:.1f}" xml:space="preserve">'
        f"{escape(text)}</text>"
    )


def ended(frames: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The frames with an end token (<|...|> or </s>) as a mark and those behind it left out, and one more at the end:
    the text alone, all of it done."""
    found = []
    for frame in frames:
        tokens = [[text, state] for text, state in frame["tokens"]]
        ends = [at for at, (text, _) in enumerate(tokens) if END.fullmatch(text)]
        kept = [one for at, one in enumerate(tokens) if not ends or at <= ends[0] or one[1] == "mask"]
        found.append(
            {**frame, "tokens": [[MARK, state] if END.fullmatch(text) else [text, state] for text, state in kept]}
        )
    last = [[text, "given" if state == "given" else "done"] for text, state in found[-1]["tokens"] if text != MARK]
    return [*found, {**found[-1], "tokens": last}]


def main(trace: Path, out: Path, prompt: str, title: str) -> None:
    """Write the animation of a trace file."""
    entries = [json.loads(line) for line in trace.read_text(encoding="utf-8").splitlines() if line.strip()]
    out.write_text(animate(ended(frames_of(prompt, entries)), title), encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), *(sys.argv[3:5] if len(sys.argv) > 4 else ("", "hildanext generate")))
