# hildanext generate: continue a prompt, answer a chat turn, or fill gaps; text on stdout.
# Entry points: add_arguments, run.
# --stream on a terminal shows the canvas live on stderr; the text itself always goes to stdout.
"""Subcommand `generate`."""

from __future__ import annotations

import argparse
import json
import shlex
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from hildanext.commands import Context, add_model, add_request, asked, left_to_right
from hildanext.config.decode import WINDOW
from hildanext.errors import DecodeError

HELP = "generate text from a prompt"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The prompt, a flag per field of a request, and how the result is shown."""
    parser.add_argument("--prompt", required=True, metavar="TEXT", help="text to continue; '-' reads it from stdin")
    add_model(parser)
    add_request(parser)
    parser.add_argument("--chat", action="store_true", help="treat the prompt as a user's chat turn")
    parser.add_argument("--stream", action="store_true", help="show the canvas while it is filled")
    parser.add_argument("--trace", type=Path, metavar="FILE", help="write the canvas after every step as JSON lines")
    parser.add_argument(
        "--save", type=Path, metavar="FILE",
        help="write how it was decoded: .html (a player), .gif, .svg, or .jsonl (docs/events.md)",
    )  # fmt: skip
    parser.add_argument("--infill", action="store_true", help="fill the gaps written <gap:N> in the prompt")
    parser.add_argument(
        "--suffix", metavar="TEXT", help="text that follows: --max-new-tokens tokens are written between prompt and it"
    )
    parser.add_argument(
        "--ar", action="store_true", help="read the model left to right, token by token, as its AR parent was trained"
    )


def run(context: Context) -> dict[str, Any]:
    """The result as an object; the text on stdout unless --json."""
    from hildanext.decoding.modes import resolve_mode
    from hildanext.decoding.request import Request
    from hildanext.engines.opening import open_engine
    from hildanext.report.recording import suffix_of

    args = context.args
    if args.save:
        suffix_of(args.save)
    fields, config = _fields(args), context.config
    request = Request.of(**{**fields, **(_left_to_right(fields) if args.ar else {})})
    resolve_mode(request, config.decode, {})  # a mode or policy that is none is told before anything is loaded
    if args.trace:
        _write(args.trace, "", "--trace")
    if args.save:
        _write(args.save, "", "--save", "a")
    engine = open_engine(config=left_to_right(config) if args.ar else config, console=context.console)
    live = args.stream and not args.json
    result = _result(args, engine, request, live)
    if args.trace:
        _write(args.trace, "".join(json.dumps(step) + "\n" for step in result.trace), "--trace")
    if not args.json and not live:
        print(result.text)
    _report(context, result, engine.session.capability.reasons)
    return dict(result.as_dict())


def _result(args: argparse.Namespace, engine: Any, request: Any, live: bool) -> Any:
    from hildanext.decoding.wire import begun, entry
    from hildanext.report.recording import Recording
    from hildanext.report.terminal import watch

    if not live and not args.save:
        return engine.generate(request)
    title = f"hildanext generate{' --chat' if args.chat else ''} --prompt {shlex.quote(args.prompt)}"
    # a chat's prompt stands in the title alone: what the model saw of it is the template's
    entries = [begun("" if args.chat else request.prompt or "", title=title, infill=args.infill)]
    events = _noted(engine.stream(request), entries, entry) if args.save else engine.stream(request)
    if live:
        result = watch(events, args.infill)
    else:
        *_, last = events
        result = last.result
    if args.save:
        Recording(tuple(entries), title).save(args.save)
    return result


def _noted(events: Iterator[Any], entries: list[Any], entry: Callable[[Any], Any]) -> Iterator[Any]:
    for event in events:
        entries.append(entry(event))
        yield event


def _left_to_right(fields: dict[str, Any]) -> dict[str, Any]:
    if fields.get("prompt") == "":
        raise DecodeError("--ar: an empty prompt leaves nothing to read from; give a text")
    other: list[str] = [
        name for name in ("mode", "policy", "carry", "kv", "tau_mask", "tau_edit", *WINDOW) if name in fields
    ]
    other += [name for name in ("infill", "suffix") if fields[name]]
    if other:
        flags = ", ".join(f"--{name.replace('_', '-')}" for name in other)
        raise DecodeError(f"--ar: reads one token after the other, which leaves {flags} no meaning; leave it out")
    return {"block": 1, "policy": {"type": "static_quota"}}


def _write(path: Path, text: str, flag: str, how: str = "w") -> None:
    try:
        with path.open(how, encoding="utf-8") as file:
            file.write(text)
    except OSError as error:
        raise DecodeError(
            f"{flag}: cannot write {path} ({error.strerror}); name a file in an existing folder"
        ) from error


def _fields(args: argparse.Namespace) -> dict[str, Any]:
    prompt = _from_stdin() if args.prompt == "-" else args.prompt
    text = {"messages": ({"role": "user", "content": prompt},)} if args.chat else {"prompt": prompt}
    own = {"trace": args.trace is not None, "infill": args.infill, "suffix": args.suffix}
    return {**text, **asked(args), **own}


def _from_stdin() -> str:
    raw = getattr(sys.stdin, "buffer", None)
    try:
        return raw.read().decode("utf-8").replace("\r\n", "\n") if raw is not None else sys.stdin.read()
    except UnicodeDecodeError as error:
        raise DecodeError(f"--prompt -: stdin is not UTF-8 (byte {error.start}); convert it, as with iconv") from None


def _report(context: Context, result: Any, told: Sequence[str]) -> None:
    from hildanext.engines.choose import brief

    metrics, say = result.metrics, context.console.say
    if result.reasons and context.console.quiet:
        context.console.warn(f"served by {result.engine}, not by an earlier engine: {brief(result.reasons)}")
    for note in result.notes:
        if note not in told:
            context.console.warn(note)
    say(
        f"{metrics.tokens} tokens ({result.finish_reason}) in {metrics.forwards} forwards: "
        f"{metrics.tokens_per_forward:.2f} tokens per forward{_width(metrics)}, "
        f"{metrics.tokens_per_second:.1f} tokens/s, first block after {metrics.first_block_seconds:.2f} s"
    )
    if metrics.grammar:
        under = metrics.grammar
        say(
            f"grammar: {under['tokens']:.0f} tokens, {under['forced']:.0f} of them forced, in {under['forwards']:.0f}"
            f" forwards: {under['tokens_per_forward']:.2f} per forward"
        )
    preset = result.preset or {}
    edits = f"{sum(metrics.edits_applied)} edits, {sum(metrics.edits_reverted)} reverted"
    mode = f"{preset.get('mode') or 'values'} from the {preset.get('source')}"
    say(f"engine {result.engine}, {mode}, policy {metrics.policy}, {edits}")


def _width(metrics: Any) -> str:
    if metrics.tokens_per_forward_unfused is None:
        return ""
    return (
        f" ({metrics.tokens_per_forward_unfused:.2f} with every commit a forward of its own) of "
        f"{metrics.positions_per_forward:.1f} positions"
    )
