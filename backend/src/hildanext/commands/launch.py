# hildanext launch: how a training run is started on many machines, printed or written; starts nothing.
# Entry points: add_arguments, run.
# The configuration file, --set and --run-dir are those of the run.
"""Subcommand `launch`."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from hildanext.commands import Context

HELP = "print or write what starts a training run on many machines: torchrun, Slurm, Kubernetes"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """COMMAND, `--for NAME`, `--nodes N`, `--processes N`, `--output FILE`."""
    parser.add_argument("what", metavar="COMMAND", help="what trains: convert-wsd, sft or another")
    parser.add_argument(
        "--for", dest="form", choices=("torchrun", "slurm", "kubernetes"), default="torchrun",
        help="a line for every machine, a script for sbatch, or a JobSet for kubectl apply (default torchrun)",
    )  # fmt: skip
    parser.add_argument("--nodes", dest="launch.nodes", metavar="N", help="machines")
    parser.add_argument("--processes", dest="launch.processes", metavar="N", help="ranks of a machine, one a GPU")
    parser.add_argument("--output", type=Path, metavar="FILE", help="write it there instead of printing it")


def run(context: Context) -> dict[str, Any] | None:
    """What was written, where --json or a file asks for it."""
    from hildanext.disk import write_atomic
    from hildanext.errors import ConfigError
    from hildanext.train.launch import FORMS, Started

    args, config = context.args, context.config
    started = Started(args.what, str(args.config or ""), tuple(args.set), str(args.run_dir or ""), config.launch)
    launch, parallel = config.launch, config.train.parallel
    ranks = launch.nodes * launch.processes
    if ranks > 1 and parallel == "none":
        raise ConfigError(f"train.parallel: none, but launch starts {ranks} processes; set ddp or fsdp2")
    if (made := config.train.ranks(ranks)) != ranks:
        raise ConfigError(
            f"train.parallel: its numbers make {made} ranks, launch starts {ranks}, {launch.processes} a machine; let"
            " them agree"
        )
    if launch.least not in (0, launch.nodes) and not isinstance(parallel, str):
        raise ConfigError(
            f"launch.least: {launch.least} of {launch.nodes} machines are fewer ranks than the numbers of"
            " train.parallel make; set ddp or fsdp2, which any number of ranks goes on with, or least 0"
        )
    text = FORMS[args.form](started)
    if args.output is None and not args.json:
        print(text, end="")
        return None
    if args.output is not None:
        write_atomic(args.output, text)
        context.console.say(f"{args.output}: written")
    return {"form": args.form, "text": text, "file": str(args.output or "")}
