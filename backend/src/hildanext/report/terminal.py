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


def watch(events: Iterable[Event], given: bool = False) -> Result:
    """Show a stream of events to its end and return the result; given: fixed tokens are part of the text, as they are
    when gaps are filled. ValueError when the stream ends without a result."""
    return _watch_live(events, given) if sys.stderr.isatty() else _watch_plain(events)


def _watch_plain(events: Iterable[Event]) -> Result:
    for event in events:
        if isinstance(event, Commit):
            print(event.text, end="", flush=True)
        elif isinstance(event, Done):
            print(flush=True)
            return event.result
    raise ValueError("watch: the stream ended without a result")


def _watch_live(events: Iterable[Event], given: bool) -> Result:
    from rich.console import Console
    from rich.live import Live

    committed, console = "", Console(stderr=True)
    with Live(console=console, transient=True, refresh_per_second=15) as live:
        for event in events:
            if isinstance(event, Commit):
                committed += event.text
                live.update(last_lines(picture(committed, None), console))
            elif isinstance(event, Draft):
                live.update(last_lines(picture(committed, event, given), console))
            else:
                result = event.result
                break
        else:
            raise ValueError("watch: the stream ended without a result")
    print(result.text, flush=True)
    return result


def picture(committed: str, draft: Draft | None, given: bool = False) -> Any:
    """The rich text of one moment: committed text, then the draft block with a style per token state; its given tokens
    only where they are part of the text."""
    from rich.text import Text

    text = Text(committed)
    for token in draft.tokens if draft else ():
        shown = MASK_SIGN if token.state == "mask" else token.text
        text.append("" if token.state == "given" and not given else shown, style=STYLES[token.state])
    return text


def last_lines(text: Any, console: Any) -> Any:
    """The end of a rich text that fits the terminal, so that the block at work stays in view."""
    from rich.console import Group

    return Group(*text.wrap(console, console.width)[-max(1, console.height - 1) :])
