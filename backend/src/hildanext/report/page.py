# The demo's report as one HTML file: no network, no package, light and dark.
# Entry points: page, Section.
# A report is a list of sections with prose, a table, charts and perhaps a recorded canvas; report.html is the frame.
"""HTML report."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from html import escape
from pathlib import Path
from string import Template
from typing import Any

FRAME = Path(__file__).with_name("report.html")
PLAYER = """<script>
for (const box of document.querySelectorAll(".replay")) {
  const frames = JSON.parse(box.querySelector("script").textContent), shown = box.querySelector(".canvas");
  const range = box.querySelector("input"), label = box.querySelector(".step"), button = box.querySelector("button");
  range.max = frames.length - 1;
  let timer = null;
  const draw = () => {
    const frame = frames[range.value];
    shown.replaceChildren(...frame.tokens.map(([text, state]) => {
      const piece = document.createElement("i");
      piece.className = state; piece.textContent = state === "mask" ? "\\u00a0\\u00a0\\u00a0" : text;
      return piece;
    }));
    label.textContent = `forward ${frame.step} of ${frames.length}`;
  };
  const stop = () => { clearInterval(timer); timer = null; button.textContent = "Play"; };
  button.onclick = () => {
    if (timer) { stop(); return; }
    if (+range.value === frames.length - 1) range.value = 0;
    button.textContent = "Pause";
    timer = setInterval(() => {
      range.value = +range.value + 1; draw();
      if (+range.value >= frames.length - 1) stop();
    }, 260);
  };
  range.oninput = () => { stop(); draw(); };
  range.value = Math.floor(frames.length / 2); draw();
}
</script>"""


@dataclass(frozen=True)
class Section:
    """One part of the report. rows under header; charts are SVG; frames: the canvas after every forward; skipped: why
    the part did not run, shown in place of results; texts: named passages; wide: the table below the charts; even:
    below them, columns of one width, stacked on a narrow screen."""

    title: str
    prose: str
    header: Sequence[str] = ()
    rows: Sequence[Sequence[str]] = ()
    charts: Sequence[str] = ()
    frames: Sequence[Mapping[str, Any]] = ()
    texts: Mapping[str, str] = field(default_factory=dict)
    skipped: str = ""
    wide: bool = False
    even: bool = False

    def as_dict(self) -> dict[str, Any]:
        """Plain values for report.json; charts are drawn from the numbers and left out."""
        return {
            name: value
            for name, value in asdict(self).items()
            if name not in ("charts", "frames", "wide", "even") and value
        }


def page(title: str, lead: str, facts: Sequence[tuple[str, str]], sections: Sequence[Section], footer: str) -> str:
    """The whole file. facts: (number, what it is) shown large at the top."""
    boxes = "".join(
        f'<div class="fact"><b>{escape(number)}</b><span>{escape(what)}</span></div>' for number, what in facts
    )
    return Template(FRAME.read_text(encoding="utf-8")).substitute(
        title=escape(title), lead=escape(lead), facts=f'<div class="facts">{boxes}</div>' if boxes else "",
        sections="".join(map(_section, sections)), footer=escape(footer), script=PLAYER,
    )  # fmt: skip


def _section(one: Section) -> str:
    if one.skipped:
        return f'<section class="skipped"><h2>{escape(one.title)}</h2><p>Not run: {escape(one.skipped)}</p></section>'
    parts = [f"<h2>{escape(one.title)}</h2><p>{escape(one.prose)}</p>"]
    if one.frames:
        parts.append(_replay(one.frames))
    beside = [f"<div>{chart}</div>" for chart in one.charts]
    table = [_table(one.header, one.rows, one.even)] if one.rows else []
    parts.append(f'<div class="row">{"".join(beside if one.wide or one.even else beside + table)}</div>')
    parts += table if one.wide or one.even else []
    parts += [f"<p><b>{escape(name)}</b></p><pre>{escape(text)}</pre>" for name, text in one.texts.items()]
    return f"<section>{''.join(parts)}</section>"


def _table(header: Sequence[str], rows: Sequence[Sequence[str]], even: bool) -> str:
    head = "".join(f"<th>{escape(cell)}</th>" for cell in header)
    named = [
        "".join(f'<td data-of="{escape(of)}">{escape(str(cell))}</td>' for of, cell in zip(header, row, strict=False))
        for row in rows
    ]
    body, kind = "".join(f"<tr>{row}</tr>" for row in named), ' class="even"' if even else ""
    return f'<div class="wide"><table{kind}><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def _replay(frames: Sequence[Mapping[str, Any]]) -> str:
    data = json.dumps(list(frames), separators=(",", ":")).replace("<", "\\u003c")
    keys = (("new", "just filled"), ("edited", "just rewritten"), ("mask", "still masked"))
    key = "".join(f'<span><i class="{state}">&nbsp;&nbsp;</i>{what}</span>' for state, what in keys)
    return (
        '<div class="replay"><div class="player"><button type="button">Play</button>'
        '<input type="range" min="0" value="0" aria-label="forward"><span class="step"></span></div>'
        '<div class="canvas"></div>'
        f'<div class="key canvas" style="min-height:0">{key}</div><script type="application/json">{data}</script></div>'
    )
