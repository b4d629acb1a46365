# A recorded generation as an animated GIF of a terminal, for places that show no SVG or HTML.
# Entry points: draw, missing. Pillow draws it, with the fixed-width font that comes with matplotlib (extra `plots`).
# One palette for all frames: the colours of animation.py, each blended with the background, so that edges are smooth.
"""Animated GIF."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from io import BytesIO
from pathlib import Path
from typing import Any

from hildanext.errors import DecodeError
from hildanext.report.animation import ADVANCE, COLOURS, COLUMNS, LINE, PAUSE, Placed, layout, seconds_of

GROUND, DOTS, BAR = "#14161a", ("#ff5f57", "#febc2e", "#28c840"), "#3a404b"
SHADES, MOST = 12, 20_000
FONT_SIZE = ADVANCE / 0.602
LEFT, TOP, FOOT = 24, 76, 34


def missing() -> str:
    """Why no GIF can be drawn here, '' where one can."""
    lacks = [name for name, module in (("Pillow", "PIL"), ("matplotlib", "matplotlib")) if find_spec(module) is None]
    return f"a GIF needs {' and '.join(lacks)}; pip install 'hildanext[plots]', or save .svg or .html" if lacks else ""


def draw(frames: Sequence[Mapping[str, Any]], title: str) -> bytes:
    """The GIF's bytes: frames as frames_of gives them, shown for ever, the last one for three seconds. DecodeError
    where they would take half a gigabyte to draw."""
    from PIL import Image, ImageDraw, ImageFont

    placed = [layout(frame["tokens"]) for frame in frames]
    lines = 1 + max((piece[0] for pieces in placed for piece in pieces), default=0)
    if len(frames) * lines > MOST:
        raise DecodeError(f"a GIF of {len(frames)} frames with {lines} lines is too large; save .html or .svg")
    size = (round(COLUMNS * ADVANCE) + 2 * LEFT, TOP + LINE * lines + FOOT)
    font, palette, images = ImageFont.truetype(_font(), FONT_SIZE), _palette(Image), []
    for index, pieces in enumerate(placed):
        picture = Image.new("RGB", size, GROUND)
        pen = ImageDraw.Draw(picture)
        _window(pen, font, size, title)
        _text(pen, font, pieces)
        _foot(pen, font, size, (frames[index]["step"], frames[-1]["step"], (index + 1) / len(placed)))
        images.append(picture.quantize(palette=palette, dither=Image.Dither.NONE))
    pause = round(1000 * seconds_of(len(frames)))
    times = [pause] * (len(images) - 1) + [round(1000 * PAUSE)]
    out = BytesIO()
    images[0].save(
        out, format="GIF", save_all=True, append_images=images[1:], duration=times, loop=0, disposal=1, optimize=False
    )
    return out.getvalue()


def _font() -> str:
    import matplotlib

    return str(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSansMono.ttf")


def _palette(images: Any) -> Any:
    ground = _rgb(GROUND)
    values = list(ground)
    for colour in {*COLOURS.values(), *DOTS, BAR}:
        ink = _rgb(colour)
        for shade in range(1, SHADES + 1):
            values += [round(b + (i - b) * shade / SHADES) for b, i in zip(ground, ink, strict=True)]
    made = images.new("P", (1, 1))
    made.putpalette(values + list(ground) * (256 - len(values) // 3))
    return made


def _rgb(colour: str) -> tuple[int, int, int]:
    red, green, blue = (int(colour[place : place + 2], 16) for place in (1, 3, 5))
    return red, green, blue


def _window(pen: Any, font: Any, size: tuple[int, int], title: str) -> None:
    for number, colour in enumerate(DOTS):
        pen.ellipse((18 + 20 * number, 16, 30 + 20 * number, 28), fill=colour)
    room = COLUMNS - 3
    shown = title if len(title) <= room else f"{title[: room - 1]}\u2026"
    pen.text((LEFT, 44), f"$ {shown}", font=font, fill=COLOURS["done"])


def _text(pen: Any, font: Any, pieces: Sequence[Placed]) -> None:
    for line, column, text, state in pieces:
        # a piece that is drawn as one string stays on its columns: the font's advance is ADVANCE
        pen.text((LEFT + column * ADVANCE, TOP + line * LINE), text, font=font, fill=COLOURS[state])


def _foot(pen: Any, font: Any, size: tuple[int, int], at: tuple[int, int, float]) -> None:
    width, height = size
    step, steps, share = at
    words = f"step {step} of {steps}"
    right = width - LEFT - (len(words) + 2) * ADVANCE
    pen.rectangle((LEFT, height - 19, right, height - 15), fill=BAR)
    pen.rectangle((LEFT, height - 19, LEFT + max(1.0, (right - LEFT) * share), height - 15), fill=COLOURS["kept"])
    pen.text((width - LEFT - len(words) * ADVANCE, height - 28), words, font=font, fill=COLOURS["given"])
