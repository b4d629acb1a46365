# hildanext inspect: what a model folder holds, how it differs from another, whether the adapter is exact for it.
# Entry points: add_arguments, run.
# With --run-dir, as a job has it, the report is saved there as report.json; looking leaves nothing behind otherwise.
"""Subcommand `inspect`."""

from __future__ import annotations

import argparse
from typing import Any

from hildanext.commands import Context
from hildanext.run_dir import RunDir

HELP = "architecture, parameters, mask token and logit parity of a model folder; against another, what changed"
JOB = ("model", "inspect")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """`folder`, `--against`, `--no-parity`."""
    parser.add_argument(
        "model.path", nargs="?", metavar="folder", help="Hugging Face folder, tiny or tiny-parent (default: model.path)"
    )
    parser.add_argument(
        "--against", dest="inspect.against", metavar="FOLDER", help="compare its tensors with those of this folder"
    )
    parser.add_argument(
        "--no-parity", dest="inspect.parity", action="store_const", const=False,
        help="do not load the model to compare logits",
    )  # fmt: skip


def run(context: Context) -> dict[str, Any]:
    """The report; exit code 1 where logit parity fails, 2 where the model is refused."""
    from hildanext.models.inspection import effective, inspect
    from hildanext.models.load import load_model

    config = context.config
    report = inspect(config.model.path, config.inspect.against or None)
    report["effective"] = effective(config.model, report)
    if report["architecture"]["supported"] and config.inspect.parity:
        loaded = load_model(config.model.model_copy(update={"attention": "dense"}))
        report["parity"] = loaded.kind.parity(loaded.denoiser, config.tokenize.window)
    _show(context, report)
    if context.args.run_dir is not None:
        run_dir = RunDir.create(config, "inspect", context.args.run_dir)
        with run_dir.running(context.console):
            run_dir.write_json("report.json", report)
        context.console.say(f"  saved to {run_dir.path / 'report.json'}")
    failed = not report.get("parity", {"ok": True})["ok"]
    refused = report["meta"]["kind"] == "hf" and not report["architecture"]["supported"]
    return report | {"exit_code": 2 if refused else int(failed)}


def _show_network(context: Context, report: dict[str, Any]) -> None:
    say, shape, words = context.console.say, report["architecture"], report["vocabulary"]
    say(
        f"{report['folder']}: {shape['model_type']}, {report['parameters']:,} parameters, {', '.join(report['dtypes'])}"
    )
    say(f"  {shape['num_hidden_layers']} layers, hidden {shape['hidden_size']}, heads {shape['num_attention_heads']}"
        f"/{shape['num_key_value_heads']}, window {shape['max_position_embeddings']}")  # fmt: skip
    say(f"  block diffusion: {'yes' if shape['supported'] else 'no'}, {shape['reason']}")
    skipped = report["skipped"]
    if skipped["tensors"]:
        say(f"  text only: {skipped['tensors']} tensors of {', '.join(skipped['parts'])} are skipped"
            f" ({skipped['parameters']:,} parameters), a child has none of them")  # fmt: skip
    say(f"  embedding {words['rows']} rows, tokenizer uses {words['tokenizer']}, {words['free_rows']} free;"
        f" [MASK] is {words['mask_id']} ({words['mask_from']}); tied: {report['ties']['config']}")  # fmt: skip
    used = report["effective"]
    say(f"  with these settings [MASK] is {used['mask_id']}, shift {used['shift']}")


def _show(context: Context, report: dict[str, Any]) -> None:
    say = context.console.say
    if "vocabulary" in report:
        _show_network(context, report)
    else:
        say(f"{report['folder']}: kind {report['meta']['kind']}, {report['architecture']['reason']}")
    if "parity" in report:
        found = report["parity"]
        state = "ok" if found["ok"] else "FAILED"
        say(
            f"  parity with the AR model: {state}, {found['worst']:.1e} of the largest value ({found['tolerance']:.0e})"
            f" at {', '.join(map(str, found.get('lengths', [])))} tokens"
        )
    if "against" in report:
        found = report["against"]
        counts = ", ".join(f"{len(found[name])} {name}" for name in ("changed", "reshaped", "missing", "added"))
        say(f"  against {found['folder']}: {found['equal']} tensors equal, {counts}")
        rows = [(row["name"], f"{row['norm']:.4g}", f"{row['relative']:.2%}") for row in found["changed"]]
        if rows:
            context.console.table(rows, ("tensor", "norm of difference", "relative"))
