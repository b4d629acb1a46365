# hildanext chat: a conversation in the terminal, streamed; also from a pipe, a line a turn.
# Entry points: add_arguments, run.
# Answers go to stdout, all else to stderr. Ctrl-C ends an answer and keeps what was said; twice at the prompt it quits.
"""Subcommand `chat`."""

from __future__ import annotations

import argparse
import signal
import sys
from collections.abc import Iterator
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from hildanext.commands import Context, add_model, add_request, asked, left_to_right
from hildanext.errors import DecodeError, HildaError
from hildanext.run_dir import StopRequest

if TYPE_CHECKING:
    from hildanext.decoding.events import Event
    from hildanext.decoding.request import Result
    from hildanext.engines.conversation import Conversation

HELP = "talk to a model in the terminal, answers as they are filled in"
KNOWN = "/reset begins anew, /quit or Ctrl-D leaves, Ctrl-C ends an answer; a line that ends in \\ goes on in the next"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The model, a first instruction, and a flag per field of a request."""
    add_model(parser)
    parser.add_argument("--system", default="", metavar="TEXT", help="the system turn every conversation begins with")
    add_request(parser)
    parser.add_argument("--ar", action="store_true", help="read the model left to right, as its AR parent was trained")


def run(context: Context) -> dict[str, Any]:
    """The turns of the last conversation."""
    from hildanext.config.decode import FRESH
    from hildanext.engines.conversation import Conversation
    from hildanext.engines.opening import open_engine

    args, console = context.args, context.console
    fields = {"seed": FRESH, **asked(args)}
    if args.ar:
        fields |= {"block": 1, "policy": {"type": "static_quota"}, "window_blocks": 1}
    engine = open_engine(left_to_right(context.config) if args.ar else context.config, console)
    for reason in engine.session.capability.reasons:
        console.warn(reason)
    conversation = Conversation(engine, fields, args.system)
    here = sys.stdin.isatty()
    if here:
        console.say(KNOWN)
    for line in _lines(here):
        word = line.strip()
        if word == "/quit":
            break
        if word == "/reset":
            conversation.reset()
            console.say("a new conversation")
        elif word.startswith("/") and " " not in word:
            console.say(KNOWN)
        elif word:
            _turn(context, conversation, line, here)
    return {"turns": conversation.turns, "forgotten": conversation.forgotten}


def _lines(here: bool) -> Iterator[str]:
    interrupted, held = False, ""
    while True:
        try:
            line = _typed("... " if held else "> ") if here else sys.stdin.readline()
        except EOFError:
            return
        except UnicodeDecodeError as error:
            raise DecodeError(f"stdin is not UTF-8 (byte {error.start}); convert it, as with iconv") from None
        except KeyboardInterrupt:
            if interrupted or not here:
                raise
            interrupted, held = True, ""
            print("\n(once more to leave)", file=sys.stderr)
            continue
        if not here and not line:
            return
        interrupted, held = False, held + line.rstrip("\n")
        if held.endswith("\\"):
            held = held[:-1] + "\n"
            continue
        yield held
        held = ""


def _typed(prompt: str) -> str:
    with suppress(ImportError):
        import readline  # noqa: F401
    if sys.stdout.isatty():
        return input(prompt)
    print(prompt, end="", file=sys.stderr, flush=True)
    return input()


def _turn(context: Context, conversation: Conversation, line: str, here: bool) -> None:
    before, console = conversation.forgotten, context.console
    with StopRequest() as stop:
        try:
            result = _shown(context, conversation.ask(line, lambda: stop.received is not None))
        except HildaError as error:
            if not here:
                raise
            console.warn(str(error))
            return
    if stop.received == signal.SIGTERM or (stop.received is not None and not here):
        raise KeyboardInterrupt
    if conversation.forgotten > before:
        console.warn(f"the window is full: {conversation.forgotten} turns are forgotten so far; /reset begins anew")
    figures = result.metrics
    console.say(
        f"[{result.finish_reason}, {figures.tokens} tokens, {figures.tokens_per_forward:.2f} per forward,"
        f" {figures.tokens_per_second:.1f}/s]"
    )


def _shown(context: Context, events: Iterator[Event]) -> Result:
    from hildanext.decoding.events import Done
    from hildanext.report.terminal import watch

    if not context.args.json:
        return watch(events)
    return next(event.result for event in events if isinstance(event, Done))
