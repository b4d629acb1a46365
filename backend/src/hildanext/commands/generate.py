# hildanext generate: continue a prompt, answer a chat turn, or fill gaps; text on stdout.
# Entry points: add_arguments, run.
# --stream on a terminal shows the canvas live on stderr; the text itself always goes to stdout.
"""Subcommand `generate`."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from hildanext.commands import Context
from hildanext.errors import DecodeError

HELP = "generate text from a prompt"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The request: prompt, mode, thresholds, length, seed, and how it is shown."""
    parser.add_argument("--prompt", required=True, metavar="TEXT", help="text to continue; '-' reads it from stdin")
    parser.add_argument("--model", metavar="FOLDER", help="model folder (default: model.path of the configuration)")
    parser.add_argument("--mode", metavar="MODE", help="S_MODE (speedy) | Q_MODE (quality) | CONSERVATIVE")
    parser.add_argument("--tau-mask", type=float, metavar="P", help="probability a mask must exceed to be filled")
    parser.add_argument("--tau-edit", metavar="P", help="probability a rewrite must exceed; 0: freely; off: no editing")
    parser.add_argument("--max-new-tokens", type=int, metavar="N", help="tokens to generate at most")
    parser.add_argument("--seed", type=int, metavar="N", help="seed of sampling")
    parser.add_argument("--chat", action="store_true", help="treat the prompt as a user's chat turn")
    parser.add_argument("--stream", action="store_true", help="show the canvas while it is filled")
    parser.add_argument("--trace", type=Path, metavar="FILE", help="write the canvas after every step as JSON lines")
    parser.add_argument("--infill", action="store_true", help="fill the gaps written <gap:N> in the prompt")


def run(context: Context) -> dict[str, Any]:
    """The result as an object; the text on stdout unless --json."""
    from hildanext.decoding.request import Request
    from hildanext.engines.opening import open_engine
    from hildanext.report.terminal import watch

    args = context.args
    request = Request.of(**_fields(args))
    if args.trace:
        _write(args.trace, "")
    config = context.config
    if args.model:
        config = config.model_copy(update={"model": config.model.model_copy(update={"path": args.model})})
    engine = open_engine(config=config, console=context.console)
    live = args.stream and not args.json
    result = watch(engine.stream(request), args.infill) if live else engine.generate(request)
    if args.trace:
        _write(args.trace, "".join(json.dumps(step) + "\n" for step in result.trace))
    if not args.json and not live:
        print(result.text)
    _report(context, result)
    return dict(result.as_dict())


def _write(path: Path, text: str) -> None:
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise DecodeError(
            f"--trace: cannot write {path} ({error.strerror}); name a file in an existing folder"
        ) from error


def _fields(args: argparse.Namespace) -> dict[str, Any]:
    prompt = sys.stdin.read() if args.prompt == "-" else args.prompt
    text = {"messages": ({"role": "user", "content": prompt},)} if args.chat else {"prompt": prompt}
    named = {name: getattr(args, name) for name in ("mode", "tau_mask", "max_new_tokens", "seed")}
    given = {name: value for name, value in named.items() if value is not None}
    return {**text, **given, **_tau_edit(args.tau_edit), "trace": args.trace is not None, "infill": args.infill}


def _tau_edit(value: str | None) -> dict[str, float | None]:
    if value is None:
        return {}
    if value == "off":
        return {"tau_edit": None}
    try:
        return {"tau_edit": float(value)}
    except ValueError:
        raise DecodeError(f"--tau-edit: {value!r} is neither a probability nor 'off'") from None


def _report(context: Context, result: Any) -> None:
    from hildanext.engines.choose import brief

    metrics, say = result.metrics, context.console.say
    if result.reasons and context.console.quiet:
        context.console.warn(f"served by {result.engine}, not by an earlier engine: {brief(result.reasons)}")
    for note in result.notes:
        context.console.warn(note)
    say(
        f"{metrics.tokens} tokens ({result.finish_reason}) in {metrics.forwards} forwards: "
        f"{metrics.tokens_per_forward:.2f} tokens per forward, {metrics.tokens_per_second:.1f} tokens/s, "
        f"first block after {metrics.first_block_seconds:.2f} s"
    )
    preset = result.preset or {}
    edits = f"{sum(metrics.edits_applied)} edits, {sum(metrics.edits_reverted)} reverted"
    mode = f"{preset.get('mode')} from the {preset.get('source')}"
    say(f"engine {result.engine}, {mode}, policy {metrics.policy}, {edits}")
