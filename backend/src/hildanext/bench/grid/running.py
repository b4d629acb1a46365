# All cells of a grid, one after the other, and the page that lays them side by side.
# Entry points: run_grid.
# A cell that has its result for the same configuration is not run again; adding a cell runs that cell alone.
"""Running a grid."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from hildanext.bench.grid.cell import RESULT, Cell, folder_of, run_cell
from hildanext.bench.grid.page import grid_page, told
from hildanext.bench.grid.paired import paired_cells
from hildanext.bench.grid.scoring import parent_nll
from hildanext.config import Config
from hildanext.data.prepare import prepare
from hildanext.data.tokenize import tokenize
from hildanext.disk import write_atomic
from hildanext.errors import ConfigError, HildaError, Interrupted, RunError
from hildanext.models.hardware import restart_peak
from hildanext.models.load import choose_device, located
from hildanext.progress import Console
from hildanext.run_dir import RunDir
from hildanext.train.training import shards_folder

ASKED = "asked.json"


def run_grid(config: Config, console: Console, path: Path | None) -> dict[str, Any]:
    """The report of all cells and seeds: report.json and grid.html in a run directory, written after every cell.
    Interrupted where a cell was: the same command goes on with it. A cell that cannot be run does not keep the others
    from it: RunError at the end, with the reason of each."""
    run = RunDir.create(config, "compare", path)
    with run.running(console):
        if config.train.prepare and not shards_folder(config).is_dir():
            prepare(config, console)
            tokenize(located(config), console)
        parent, results = parent_nll(config, Console(quiet=True)), list[dict[str, Any]]()
        folders, failed, report = list[Path](), list[str](), dict[str, Any]()
        asked = [(name, seed) for seed in config.grid.seeds for name in config.grid.cells]
        for name, seed in asked:
            _asked(config, name, seed, run.path)
        for number, (name, seed) in enumerate(asked, start=1):
            console.say(f"cell {number} of {len(asked)}: {name}, seed {seed}")
            run.status(step=number, total=len(asked))
            try:
                results.append(_result(config, name, seed, run.path, console))
            except Interrupted:
                raise
            except HildaError as error:
                failed.append(f"{name}, seed {seed}: {error}")
                console.warn(f"left out: {failed[-1]}")
                continue
            folders.append(folder_of(run.path, name, seed))
            report = {
                "parent": parent, "budget": _budget(config), "results": results, "run": str(run.path),
                "paired": paired_cells(results, folders),
            }  # fmt: skip
            run.write_json("report.json", report)
            write_atomic(run.path / "grid.html", grid_page(report, config.description))
        if report:
            told(report, console)
            console.say(f"page: {run.path / 'grid.html'}")
        if failed:
            raise RunError(f"{len(failed)} of {len(asked)} cells have no result: " + "; ".join(failed))
    return report


def _budget(config: Config) -> str:
    grid = config.grid
    return f"{grid.seconds:g} processor seconds" if grid.seconds else f"{grid.tokens:,} tokens"


def _asked(config: Config, name: str, seed: int, root: Path) -> tuple[Path, str]:
    """The cell's folder, and what it is asked for; ConfigError where that was something else before."""
    folder = folder_of(root, name, seed)
    values = config.model_dump(mode="json", exclude_unset=True, exclude={"description"})
    values["grid"] = config.grid.model_dump(mode="json", exclude={"cells", "seeds"})
    values["cell"] = [one.model_dump(mode="json") for one in config.grid.cells[name]]
    known, asked = folder / ASKED, json.dumps(values, indent=2, sort_keys=True) + "\n"
    if known.exists() and known.read_text(encoding="utf-8") != asked:
        raise ConfigError(f"{folder}: was run with other values ({known}); remove it, or name another --run-dir")
    return folder, asked


def _result(config: Config, name: str, seed: int, root: Path, console: Console) -> dict[str, Any]:
    folder, asked = _asked(config, name, seed, root)
    folder.mkdir(parents=True, exist_ok=True)
    write_atomic(folder / ASKED, asked)
    if (folder / RESULT).exists():
        found: dict[str, Any] = json.loads((folder / RESULT).read_text(encoding="utf-8"))
        return found
    restart_peak(choose_device(config.model.device))
    return run_cell(Cell(name, seed, folder, config), console)
