# hildanext generate: continue a prompt, answer a chat turn, or fill gaps; text on stdout.
# Entry points: add_arguments, run.
# --stream on a terminal shows the canvas live on stderr; the text itself always goes to stdout.
"""Subcommand `generate`."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

from hildanext.commands import Context, add_model
from hildanext.errors import DecodeError

if TYPE_CHECKING:
    from hildanext.config import Config

HELP = "generate text from a prompt"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The prompt, a flag per field of a request (names_in "cli"), and how the result is shown."""
    from hildanext.decoding.request import Request, names_in

    parser.add_argument("--prompt", required=True, metavar="TEXT", help="text to continue; '-' reads it from stdin")
    add_model(parser)
    for field, name in names_in("cli").items():
        about = Request.model_fields[field]
        several: dict[str, Any] = {"action": "append"} if field == "stop" else {}
        parser.add_argument(
            f"--{name.replace('_', '-')}", dest=field, metavar=_metavar(field, about.annotation),
            help=about.description, **several,
        )  # fmt: skip
    parser.add_argument("--chat", action="store_true", help="treat the prompt as a user's chat turn")
    parser.add_argument("--stream", action="store_true", help="show the canvas while it is filled")
    parser.add_argument("--trace", type=Path, metavar="FILE", help="write the canvas after every step as JSON lines")
    parser.add_argument("--infill", action="store_true", help="fill the gaps written <gap:N> in the prompt")
    parser.add_argument(
        "--ar", action="store_true", help="read the model left to right, token by token, as its AR parent was trained"
    )


def _metavar(field: str, annotation: Any) -> str:
    if field.startswith("tau_") or field == "top_p":
        return "P"
    kinds = set(_leaves(annotation))
    return "N" if int in kinds else "X" if float in kinds else "TEXT" if field == "stop" else field.upper()


def _leaves(annotation: Any) -> Iterator[Any]:
    yield annotation
    for part in get_args(annotation):
        yield from _leaves(part)


def run(context: Context) -> dict[str, Any]:
    """The result as an object; the text on stdout unless --json."""
    from hildanext.decoding.modes import resolve_mode
    from hildanext.decoding.request import Request
    from hildanext.engines.opening import open_engine
    from hildanext.report.terminal import watch

    args = context.args
    fields, config = _fields(args), context.config
    request = Request.of(**{**fields, **(_left_to_right(fields) if args.ar else {})})
    resolve_mode(request, config.decode, {})  # a mode or policy that is none is told before anything is loaded
    if args.trace:
        _write(args.trace, "")
    engine = open_engine(config=_causal(config) if args.ar else config, console=context.console)
    live = args.stream and not args.json
    result = watch(engine.stream(request), args.infill) if live else engine.generate(request)
    if args.trace:
        _write(args.trace, "".join(json.dumps(step) + "\n" for step in result.trace))
    if not args.json and not live:
        print(result.text)
    _report(context, result, engine.session.capability.reasons)
    return dict(result.as_dict())


def _left_to_right(fields: dict[str, Any]) -> dict[str, Any]:
    if fields.get("prompt") == "":
        raise DecodeError("--ar: an empty prompt leaves nothing to read from; give a text")
    other: list[str] = [name for name in ("mode", "policy", "tau_mask", "tau_edit") if name in fields]
    other += ["infill"] if fields["infill"] else []
    if other:
        flags = ", ".join(f"--{name.replace('_', '-')}" for name in other)
        raise DecodeError(f"--ar: reads one token after the other, which leaves {flags} no meaning; leave it out")
    return {"block": 1, "policy": {"type": "static_quota"}}


def _causal(config: Config) -> Config:
    from hildanext.config.serve import EngineSection

    # at block 1 with the AR shift every token is read from the one before it: the AR model itself, cached
    native = tuple(section for section in config.serve.engines if section.type in ("transformers", "tiny"))
    update = {
        "model": config.model.model_copy(update={"shift": "clean", "override_recorded": True}),
        "decode": config.decode.model_copy(update={"block": 1}),
        "serve": config.serve.model_copy(update={"engines": native or (EngineSection(type="transformers"),)}),
    }
    return config.model_copy(update=update)


def _write(path: Path, text: str) -> None:
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise DecodeError(
            f"--trace: cannot write {path} ({error.strerror}); name a file in an existing folder"
        ) from error


def _fields(args: argparse.Namespace) -> dict[str, Any]:
    from hildanext.decoding.request import names_in

    prompt = _from_stdin() if args.prompt == "-" else args.prompt
    text = {"messages": ({"role": "user", "content": prompt},)} if args.chat else {"prompt": prompt}
    given = {field: _value(field, said) for field in names_in("cli") if (said := getattr(args, field)) is not None}
    return {**text, **given, "trace": args.trace is not None, "infill": args.infill}


def _from_stdin() -> str:
    raw = getattr(sys.stdin, "buffer", None)
    try:
        return raw.read().decode("utf-8").replace("\r\n", "\n") if raw is not None else sys.stdin.read()
    except UnicodeDecodeError as error:
        raise DecodeError(f"--prompt -: stdin is not UTF-8 (byte {error.start}); convert it, as with iconv") from None


def _value(field: str, said: Any) -> Any:
    if field == "tau_edit":
        return _tau_edit(said)
    if field == "policy" and said.startswith("{"):
        try:
            return json.loads(said)
        except json.JSONDecodeError as error:
            raise DecodeError(f"--policy: {said!r} is no JSON object ({error}); name a policy, or give one") from None
    return said


def _tau_edit(said: str) -> float | str | None:
    try:
        return None if said == "off" else "preset" if said == "preset" else float(said)
    except ValueError:
        raise DecodeError(f"--tau-edit: {said!r} is neither a probability nor 'off'") from None


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
