# The canvas in a terminal while it is filled: committed text plain, drafts coloured by what just happened to them.
# Entry points: watch. On a pipe it prints committed text only, as it comes.
# The live part is drawn on stderr and removed at the end; stdout receives the final text and nothing else.
"""Live view of a generation."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from typing import Any

from hildanext.decoding.events import Commit, Done, Draft, Event
from hildanext.decoding.request import Result

STYLES = {"mask": "dim", "new": "bold green", "edited": "bold yellow", "kept": "cyan", "given": ""}
MASK_SIGN = "░"


def watch(events: Iterable[Event]) -> Result:
    """Show a stream of events to its end and return the result; ValueError when the stream ends without one."""
    return _watch_live(events) if sys.stderr.isatty() else _watch_plain(events)


def _watch_plain(events: Iterable[Event]) -> Result:
    for event in events:
        if isinstance(event, Commit):
            print(event.text, end="", flush=True)
        elif isinstance(event, Done):
            print(flush=True)
            return event.result
    raise ValueError("watch: the stream ended without a result")


def _watch_live(events: Iterable[Event]) -> Result:
    from rich.console import Console
    from rich.live import Live

    committed = ""
    with Live(console=Console(stderr=True), transient=True, refresh_per_second=15) as live:
        for event in events:
            if isinstance(event, Commit):
                committed += event.text
                live.update(picture(committed, None))
            elif isinstance(event, Draft):
                live.update(picture(committed, event))
            else:
                result = event.result
                break
        else:
            raise ValueError("watch: the stream ended without a result")
    print(result.text, flush=True)
    return result


def picture(committed: str, draft: Draft | None) -> Any:
    """The rich text of one moment: committed text, then the draft block with a style per token state."""
    from rich.text import Text

    text = Text(committed)
    for token in draft.tokens if draft else ():
        shown = MASK_SIGN if token.state == "mask" else token.text
        text.append("" if token.state == "given" else shown, style=STYLES[token.state])
    return text
