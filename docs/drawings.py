# Draws the pictures of how-it-works.md: what may see what, the ladder of block sizes, a block filled and edited.
# Entry points: `python docs/drawings.py [folder]`; draw() -> {file name: SVG}.
# The masks are the package's own functions evaluated, not drawings of what they should be.
"""Drawings of the documentation."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

import torch

from hildanext.core.block_ladder import Ladder
from hildanext.core.masks import block_causal_mask, block_diffusion_mask

LENGTH, BLOCK, CELL = 8, 4, 17
STYLE = """<style>
text { font: 13px system-ui, "Segoe UI", Roboto, sans-serif; fill: #1c1f24; } .soft { fill: #5d6570; }
.off { fill: #eceef2; } .on { fill: #2a63d4; } .own { fill: #15806b; } .edge { stroke: #9aa3af; fill: none; }
.bar { fill: #2a63d4; } .wide { fill: #8a3fbf; } .mask { fill: #d9dde4; } .new { fill: #bfe5da; }
.edited { fill: #f3c9a8; }
.kept { fill: none; stroke: #d0d5dd; }
@media (prefers-color-scheme: dark) { text { fill: #e8eaee; } .soft { fill: #9aa3af; } .off { fill: #2a2f37; }
  .on { fill: #7aa5ff; } .own { fill: #4fc7ab; } .bar { fill: #7aa5ff; } .wide { fill: #c58cf0; }
  .mask { fill: #39404b; }
  .new { fill: #1e4f43; } .edited { fill: #6b3d1c; } .kept { stroke: #454d59; } }
</style>"""
Cell = tuple[str, str]
STEPS: tuple[tuple[Cell, ...], ...] = (
    (("", "mask"), ("", "mask"), ("", "mask"), ("", "mask"), ("", "mask"), ("", "mask")),
    (("the", "new"), ("", "mask"), ("cat", "new"), ("", "mask"), ("", "mask"), (".", "new")),
    (("the", "kept"), ("small", "new"), ("cat", "kept"), ("ran", "new"), ("away", "new"), (".", "kept")),
    (("the", "kept"), ("small", "kept"), ("fox", "edited"), ("ran", "kept"), ("away", "kept"), (".", "kept")),
)


def draw() -> dict[str, str]:
    """Every picture by file name."""
    return {"masks.svg": masks(), "ladder.svg": ladder(), "editing.svg": editing()}


def _svg(width: int, height: int, parts: Sequence[str], label: str) -> str:
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" role="img"'
    return f'{head} aria-label="{label}">{STYLE}\n' + "\n".join(parts) + "\n</svg>\n"


def _text(x: float, y: float, text: str, extra: str = "") -> str:
    return f'<text x="{x:g}" y="{y:g}" {extra}>{text}</text>'


def masks() -> str:
    """Three masks side by side: the AR model's, decoding's, training's over [noisy | clean]."""
    docs = torch.zeros(1, LENGTH, dtype=torch.long)
    causal = torch.ones(LENGTH, LENGTH).tril().bool()
    pictures: list[tuple[str, str, torch.Tensor]] = [
        ("autoregressive", "each token sees what is before it", causal),
        ("decoding", "own block both ways, all earlier blocks", _square(block_causal_mask(LENGTH, BLOCK, docs))),
        (
            "training, over [noisy | clean]",
            "noisy blocks see themselves and earlier clean blocks",
            _square(block_diffusion_mask(LENGTH, BLOCK, docs)),
        ),
    ]
    parts, left = [], 10
    for title, what, mask in pictures:
        parts += [_text(left, 20, title, 'font-weight="600"'), _text(left, 38, what, 'class="soft"')]
        parts += _grid(mask, left, 52)
        left += max(mask.shape[0] * CELL + 40, 290)
    return _svg(left + 30, 52 + 2 * LENGTH * CELL + 14, parts, "attention masks")


def _square(mask: torch.Tensor) -> torch.Tensor:
    return mask.reshape(mask.shape[-2:])


def _grid(mask: torch.Tensor, left: int, top: int) -> list[str]:
    size, parts = mask.shape[0], []
    for row in range(size):
        for column in range(size):
            own = row // BLOCK == column // BLOCK
            kind = "off" if not mask[row, column] else "own" if own else "on"
            x, y = left + column * CELL, top + row * CELL
            parts.append(f'<rect class="{kind}" x="{x}" y="{y}" width="{CELL - 2}" height="{CELL - 2}" rx="2"/>')
    return parts


def ladder() -> str:
    """Block size over a conversion of 1,000 steps at window 512, with the default shares."""
    from hildanext.config.train import LadderConfig

    stages = Ladder.of(LadderConfig(), 512, 1000).stages
    parts, left, base = [], 50, 210
    for stage in stages:
        width, height = stage.steps * 0.66, 18 * (stage.block.bit_length())
        kind = "wide" if stage.block >= 512 else "bar"
        parts.append(
            f'<rect class="{kind}" x="{left:.1f}" y="{base - height}" width="{max(1.0, width - 2):.1f}"'
            f' height="{height}" rx="2"/>'
        )
        name = "L" if stage.block >= 512 else str(stage.block)
        parts.append(_text(left + width / 2, base - height - 6, name, 'text-anchor="middle"'))
        left += width
    for name, share in (("warm-up", 0.15), ("stable", 0.5), ("decay", 0.85)):
        parts.append(_text(50 + 660 * share, base + 20, name, 'class="soft" text-anchor="middle"'))
    parts.append(_text(16, 120, "block size", 'class="soft" transform="rotate(-90 16 120)" text-anchor="middle"'))
    return _svg(730, 240, parts, "block size over a conversion")


def editing() -> str:
    """One block over four forwards: masks filled together, then a word rewritten."""
    notes = (
        "all masked",
        "probability above tau_mask: filled",
        "the rest is filled",
        "another word above tau_edit: rewritten",
    )
    parts = []
    for row, (cells, note) in enumerate(zip(STEPS, notes, strict=True)):
        y = 14 + 46 * row
        parts.append(_text(10, y + 21, f"forward {row}" if row else "start", 'class="soft"'))
        for column, (text, state) in enumerate(cells):
            x = 88 + 72 * column
            parts.append(f'<rect class="{state}" x="{x}" y="{y}" width="66" height="32" rx="6"/>')
            parts.append(_text(x + 33, y + 21, text, 'text-anchor="middle"'))
        parts.append(_text(532, y + 21, note, 'class="soft"'))
    return _svg(800, 200, parts, "a block being filled and edited")


def main(folder: Path) -> None:
    """Write every picture."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in draw().items():
        (folder / name).write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent / "images")
