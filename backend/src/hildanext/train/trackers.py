# Where metrics go: metrics.jsonl always, TensorBoard, wandb or trackio on request.
# Entry points: Tracker (protocol), open_trackers, JsonLines.
# Lines are buffered and written once a second, so that a step of a tiny model does not wait for the disk.
"""Trackers."""

from __future__ import annotations

import importlib
import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from hildanext.disk import write_atomic
from hildanext.errors import ConfigError, RunError

FLUSH_SECONDS = 1.0


class Tracker(Protocol):
    """Takes records; each has `step` (done so far) and numbers, words or small objects by name."""

    def write(self, record: Mapping[str, Any]) -> None:
        """Take one record."""

    def picture(self, name: str, path: Path, step: int) -> None:
        """Take a PNG file of a step."""

    def flush(self) -> None:
        """Write what is still held back."""

    def close(self) -> None:
        """The run is over."""


class JsonLines:
    """metrics.jsonl: one JSON object per record. Opening it at a step drops the lines of later steps."""

    def __init__(self, path: Path, step: int) -> None:
        self.path, self.lines, self.written = path, list[str](), time.monotonic()
        kept = [line for line in _lines(path) if _step(line) <= step] if step else []
        write_atomic(path, "".join(line + "\n" for line in kept))

    def write(self, record: Mapping[str, Any]) -> None:
        """Append a record, at the latest a second from now."""
        self.lines.append(json.dumps(dict(record)))
        if time.monotonic() - self.written > FLUSH_SECONDS:
            self.flush()

    def picture(self, name: str, path: Path, step: int) -> None:
        """The file is where it is."""

    def flush(self) -> None:
        """Write the lines held back."""
        with self.path.open("a", encoding="utf-8") as file:
            file.write("".join(line + "\n" for line in self.lines))
        self.lines, self.written = [], time.monotonic()

    def close(self) -> None:
        """Write the lines held back."""
        self.flush()


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    except UnicodeDecodeError as error:
        raise RunError(
            f"{path}: not text ({error.reason} at byte {error.start}), so its earlier lines cannot be kept; restore the"
            " file, or move it away to go on without them"
        ) from error


def _step(line: str) -> float:
    try:
        return float(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError):
        return float("inf")


class TensorBoard:
    """Event files in <run>/tensorboard; needs the `plots` extra."""

    def __init__(self, run: Path) -> None:
        self.writer: Any = _library("torch.utils.tensorboard", "tensorboard").SummaryWriter(str(run / "tensorboard"))

    def write(self, record: Mapping[str, Any]) -> None:
        """Numbers become scalars under their names."""
        for name, value in flat(record).items():
            self.writer.add_scalar(name, value, int(record["step"]))

    def picture(self, name: str, path: Path, step: int) -> None:
        """An image of that name."""
        import numpy as np
        from PIL import Image

        with Image.open(path) as image:
            self.writer.add_image(name, np.asarray(image.convert("RGB")), step, dataformats="HWC")

    def flush(self) -> None:
        """Write the events held back."""
        self.writer.flush()

    def close(self) -> None:
        """Close the event file."""
        self.writer.close()


class Hosted:
    """wandb, or trackio, which has the same calls; the library must be installed and configured by the user."""

    def __init__(self, name: str, run: Path) -> None:
        self.library = _library(name, name)
        self.library.init(project="hildanext", name=run.name)

    def write(self, record: Mapping[str, Any]) -> None:
        """Log the numbers of a record."""
        self.library.log(flat(record), step=int(record["step"]))

    def picture(self, name: str, path: Path, step: int) -> None:
        """An image of that name."""
        self.library.log({name: self.library.Image(str(path))}, step=step)

    def flush(self) -> None:
        """Nothing is held back here."""

    def close(self) -> None:
        """Finish the run."""
        self.library.finish()


def flat(record: Mapping[str, Any], prefix: str = "") -> dict[str, float]:
    """The numbers of a record, nested names joined by `/`."""
    found: dict[str, float] = {}
    for name, value in record.items():
        if isinstance(value, Mapping):
            found |= flat(value, f"{prefix}{name}/")
        elif isinstance(value, int | float):
            found[prefix + name] = float(value)
    return found


def _library(module: str, name: str) -> Any:
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise ConfigError(f"train.trackers: {name} is not installed ({error}); install it or remove it") from error


def open_trackers(names: Sequence[str], run: Path, step: int) -> list[Tracker]:
    """metrics.jsonl of a run continued at `step`, and the trackers asked for."""
    others: list[Tracker] = [TensorBoard(run) if name == "tensorboard" else Hosted(name, run) for name in names]
    return [JsonLines(run / "metrics.jsonl", step), *others]
