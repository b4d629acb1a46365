# The errors a user can cause, each with the exit code of the command line and the status of the HTTP server.
# Entry points: HildaError and its subclasses; problems() joins several into one, first_line() quotes another library,
# cure() tells a full disk from other failed writes.
# Our own caller's mistakes are ValueError, not these.
"""Error tree: one line each, saying where, what is wrong, what was expected and what to do."""

import errno
import os
import re
import shutil
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

FULL = (errno.ENOSPC, errno.EDQUOT)
SPARE = 1 << 20


class HildaError(Exception):
    """The user's mistake. The message is one line: where, what is wrong (actual value), expected, next action."""

    exit_code = 2
    http_status = 400
    code: str | None = None
    """What programs read in an HTTP error beside the message."""


class ConfigError(HildaError):
    """One or more problems in a configuration, all of them in one message, a line each."""


class DataError(HildaError):
    """Input data that cannot be used: missing, malformed beyond the limit, or of another tokenizer."""


class ModelError(HildaError):
    """A model folder that cannot be used: missing, unsupported architecture, pickle weights, failed parity."""


class DecodeError(HildaError):
    """A generation request that cannot be served: unknown argument, out of range, longer than the window."""


class WindowError(DecodeError):
    """A prompt with its new tokens is longer than the model's context."""

    code = "context_length_exceeded"


class EngineError(HildaError):
    """No engine could be opened; the message holds every engine's reasons."""

    http_status = 503


class RunError(HildaError):
    """Work that was started rightly and failed: a loss that is not finite, a full disk, a lost process."""

    exit_code = 1
    http_status = 500


class Interrupted(HildaError):
    """Work stopped by a signal with its state saved; the message names where."""

    exit_code = 130
    http_status = 503


def problems(where: str, found: Sequence[str]) -> ConfigError:
    """All problems of one place in one error: a heading line, then a line each."""
    lines = "\n".join(f"  {line}" for line in found)
    return ConfigError(f"{where}: {len(found)} problem{'s' if len(found) != 1 else ''}\n{lines}")


def first_line(error: BaseException) -> str:
    """The first line of another library's error, at most 200 characters, or its type where it says nothing."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]


def cure(error: BaseException, otherwise: str, folder: Path | None = None) -> str:
    """What to do about a failed write: to free the disk where it is full, else `otherwise`. Writers in Rust and C++
    give the system's words or nothing at all; `folder`, where they wrote, then tells by the room left."""
    said = re.search(r"os error (\d+)", str(error))
    number = int(said[1]) if said else getattr(error, "errno", None)
    full = number in FULL or any(os.strerror(code) in str(error) for code in FULL)
    if not full and number is None and folder is not None:
        with suppress(OSError):
            full = shutil.disk_usage(folder).free < SPARE
    return "free the disk" if full else otherwise
