# A time limit on chat templates: they are programs out of a model folder, and an endless one would hold its thread.
# Entry points: within.
# jinja2 compiles a template to Python, so its lines can be traced in this thread alone. Costs half a millisecond.
"""Time limit of a chat template."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

from hildanext.errors import DataError

TEMPLATE_SECONDS = 2.0
NAME = "<template>"
"""File name that jinja2 gives to what it compiles from a string."""


@contextmanager
def within() -> Iterator[None]:
    """Templates rendered inside may take TEMPLATE_SECONDS of this thread's CPU time together. DataError in the
    template's own next line where they take more."""
    seconds, before = TEMPLATE_SECONDS, sys.gettrace()
    limit = time.thread_time() + seconds

    def each_line(frame: FrameType, event: str, value: Any) -> Any:
        if time.thread_time() > limit:
            raise DataError(
                f"chat: the template was not done after {seconds:g} seconds of computing; correct the chat_template of"
                " the model folder"
            )
        return each_line

    def each_call(frame: FrameType, event: str, value: Any) -> Any:
        return each_line if frame.f_code.co_filename == NAME else None

    sys.settrace(each_call)
    try:
        yield
    finally:
        sys.settrace(before)
