# prepare-data: sources -> cleaned, deduplicated, mixed, split JSON lines and a manifest that reconciles.
# Entry points: prepare(config, console).
# Units are done by the executor of data.executor, into a part folder that a later run with the same settings takes up
# again; the output folder is swapped in at the end, so an interrupted run leaves the previous output as it was. Its
# place is held from the first unit on: a second process there is refused.
"""Preparing a data set."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections import Counter
from collections.abc import Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass, field
from io import BufferedWriter
from pathlib import Path
from typing import Any

from hildanext.config import Config
from hildanext.config.data import DataConfig
from hildanext.data.archives import looks_like
from hildanext.data.cleaning import Cleaner
from hildanext.data.executor import Clustered
from hildanext.data.near import Near
from hildanext.data.records import ACCEPTED
from hildanext.data.source import Source, Unit
from hildanext.data.splitting import below, duplicates, mixture_thresholds, table
from hildanext.data.storage import is_remote, joined, mirror, removed, written
from hildanext.data.units import BAD_EXAMPLES, WARNED, Report, UnitJob
from hildanext.errors import DataError
from hildanext.progress import Console
from hildanext.registry import build

FILES = ("train", "eval", "sft_train", "sft_eval")
PART_FORMAT = 2


def prepare(config: Config, console: Console) -> dict[str, Any]:
    """Build <paths.data>/processed/<data.name> and return its manifest. DataError where a source has no usable data, a
    file breaks off or more than data.max_bad_rows rows are unreadable; nothing of the output is touched then."""
    Cleaner(config.data.cleaning)
    sources: list[Source] = [build("sources", section, "data.sources") for section in config.data.sources]
    output = joined(config.paths.data, "processed", config.data.name)
    units = [source.units() for source in sources]
    with written(output, "data set") as folder:
        jobs, parts = _jobs(config, sources, units, output)
        reports = _run_all(config, parts, jobs, console)
        _refuse_nothing(config, jobs, reports, console)
        near = _near(config, jobs, parts, console)
        manifest = _merge(config, sources, jobs, reports, near, folder)
    for left in mirror(output).parent.glob(f".{config.data.name}.parts-*"):
        shutil.rmtree(left)
    if is_remote(output):
        removed(parts)
    console.say(f"{output}: {_summary(manifest)}")
    return manifest


def _jobs(
    config: Config, sources: Sequence[Source], units: Sequence[Sequence[Unit]], output: str
) -> tuple[list[tuple[int, UnitJob]], str]:
    settings = (config.data.cleaning, config.data.max_bad_rows)
    key = hashlib.sha256(repr([PART_FORMAT, settings, list(sources), units]).encode()).hexdigest()[:12]
    name = f".{config.data.name}.parts-{key}"
    parts = mirror(output).parent / name
    parts.mkdir(parents=True, exist_ok=True)
    jobs = [
        (number, UnitJob(source, unit, settings[0], parts / f"{number:02d}-{index:06d}", settings[1]))
        for number, source in enumerate(sources)
        for index, unit in enumerate(units[number])
    ]
    return jobs, joined(config.paths.data, "processed", name)


def _run_all(config: Config, place: str, jobs: Sequence[tuple[int, UnitJob]], console: Console) -> list[Report]:
    reports, executor = list[Report](), build("executors", config.data.executor, "data.executor")
    every = executor.reports([job for _, job in jobs], place, config.data.workers, console)
    with console.bar("prepare-data, parts", len(jobs)) as bar, closing(every) as found:
        for report in found:
            reports.append(report)
            _refuse_bad(config, reports)
            bar.advance(1, documents=sum(one["kept"] for one in reports))
    return reports


def _near(config: Config, jobs: Sequence[tuple[int, UnitJob]], parts: str, console: Console) -> Near | None:
    settings, executor = config.data.near_duplicates, build("executors", config.data.executor)
    if not settings.words:
        return None
    if not isinstance(executor, Clustered):  # the units lie on this machine then
        executor, parts = build("executors", {"type": "local"}), str(jobs[0][1].stem.parent)
    place = parts if is_remote(parts) else str(Path(parts).resolve())
    names = tuple(job.stem.name for _, job in jobs)
    return Near(settings, executor, place, names, config.data.workers, console)


def _refuse_nothing(
    config: Config, jobs: Sequence[tuple[int, UnitJob]], reports: Sequence[Report], console: Console
) -> None:
    for number, section in enumerate(config.data.sources):
        own = [report for (source, _), report in zip(jobs, reports, strict=True) if source == number]
        empty = [_nothing(report) for report in own if not report["kept"]]
        if len(empty) == len(own):
            raise DataError(
                f"data.sources.{number} ({section.type}): no usable document; "
                f"{'; '.join(empty[:3]) or 'nothing asked'}; accepted are {ACCEPTED}"
            )
        for line in empty[:WARNED]:
            console.warn(f"no document from {line}")
        if len(empty) > WARNED:
            console.warn(f"no document from {len(empty) - WARNED} more parts")


def _nothing(report: Report) -> str:
    looks = f", looks like {looks_like(report['unit'])}" if Path(report["unit"]).is_file() else ""
    reasons = ", ".join(f"{reason} {count:,}" for reason, count in report["dropped"].items())
    return f"{report['unit']}: {report['read']:,} rows{looks}{f' ({reasons})' if reasons else ''}"


def _refuse_bad(config: Config, reports: Sequence[Report]) -> None:
    damaged = [row for report in reports for row in report["damaged"]]
    if damaged and not config.data.allow_damaged:
        shown = "; ".join(
            f"{file}:{line} {reason}, begins like {looks_like(file)}" for file, line, reason in damaged[:5]
        )
        raise DataError(
            f"data.sources: a file breaks off ({shown}); restore it, or take what can be read with "
            "--set data.allow_damaged=true"
        )
    bad = sum(report["bad"] for report in reports)
    if bad > config.data.max_bad_rows:
        examples: dict[str, str] = {}
        for file, line, reason in (row for report in reports for row in report["rows"]):
            examples.setdefault(reason, f"{file}:{line} {reason}")
        shown = "; ".join(list(examples.values())[:5])
        raise DataError(
            f"data.sources: {bad} or more unreadable rows, at most {config.data.max_bad_rows} are skipped ({shown}); "
            "repair them or raise data.max_bad_rows"
        )


@dataclass
class _Split:
    file: BufferedWriter
    documents: int = 0
    size: int = 0
    digest: Any = field(default_factory=hashlib.sha256)

    def write(self, line: bytes) -> None:
        self.file.write(line)
        self.digest.update(line)
        self.documents += 1
        self.size += len(line)

    def facts(self) -> dict[str, Any]:
        return {"documents": self.documents, "bytes": self.size, "sha256": self.digest.hexdigest()}


def _merge(
    config: Config, sources: Sequence[Source], jobs: Sequence[tuple[int, UnitJob]], reports: Sequence[Report],
    near: Near | None, to: Path,
) -> dict[str, Any]:  # fmt: skip
    dropped, out = Counter[str](), [0] * len(sources)
    for report in reports:
        dropped.update(report["dropped"])
    keep = _kept(config, sources, jobs, near, dropped)
    with ExitStack() as stack:
        splits = {name: _Split(stack.enter_context((to / f"{name}.jsonl").open("wb"))) for name in FILES}
        for (number, job), wanted in zip(jobs, keep, strict=True):
            out[number] += _copy(job.stem, wanted, config.data, splits)
    manifest = {
        "name": config.data.name,
        "documents": {
            "read": sum(r["read"] for r in reports),
            "kept": sum(out),
            "dropped": dict(sorted(dropped.items())),
        },
        "sources": [
            {"type": type(source).__name__.lower(), "kept": count, **source.version()}
            for source, count in zip(sources, out, strict=True)
        ],
        "files": {name: split.facts() for name, split in splits.items()},
        "bad_rows": [row for report in reports for row in report["rows"]][:BAD_EXAMPLES],
        "config": config.data.model_dump(mode="json", exclude={"workers", "bench", "executor"}),
    }
    (to / "manifest.json").write_text(json.dumps(manifest, indent=2) + "\n", encoding="utf-8")
    return manifest


def _kept(
    config: Config, sources: Sequence[Source], jobs: Sequence[tuple[int, UnitJob]], near: Near | None,
    dropped: Counter[str],
) -> list[Any]:  # fmt: skip
    keep, chars = _without_duplicates(config, jobs, dropped), [0] * len(sources)
    if near is not None:
        whole, keep = keep, near.without_near(keep)
        dropped["near duplicate"] += sum(int(one.sum()) for one in whole) - sum(int(one.sum()) for one in keep)
    for (number, job), wanted in zip(jobs, keep, strict=True):
        chars[number] += int(table(job.stem)["chars"][wanted].sum())
    shares = mixture_thresholds(chars, [source.weight for source in sources])
    mixed = []
    for (number, job), wanted in zip(jobs, keep, strict=True):
        chosen = wanted & below(table(job.stem)["mix"], shares[number])
        dropped["mixture weight"] += int(wanted.sum() - chosen.sum())
        mixed.append(chosen)
    dropped += Counter()
    return mixed


def _without_duplicates(config: Config, jobs: Sequence[tuple[int, UnitJob]], dropped: Counter[str]) -> list[Any]:
    stems = [job.stem for _, job in jobs]
    repeated, start, keep = duplicates(stems, config.data.cleaning.deduplicate), 0, []
    for stem in stems:
        count = len(table(stem))
        keep.append(~repeated[start : start + count])
        start += count
    dropped["duplicate"] += int(repeated.sum())
    return keep


def _copy(stem: Path, wanted: Any, settings: DataConfig, splits: dict[str, _Split]) -> int:
    found = table(stem)
    held_out = below(found["split"], settings.eval_share)
    with stem.with_suffix(".jsonl").open("rb") as lines:
        for line, keep, chat, held in zip(lines, wanted, found["chat"], held_out, strict=True):
            if keep:
                splits[FILES[2 * int(chat) + int(held)]].write(line)
            if keep and chat and settings.chat_in_text:
                splits[FILES[int(held)]].write(line)
    return int(wanted.sum())


def _summary(manifest: dict[str, Any]) -> str:
    counts = ", ".join(f"{name} {facts['documents']:,}" for name, facts in manifest["files"].items())
    documents = manifest["documents"]
    reasons = ", ".join(f"{reason} {count:,}" for reason, count in documents["dropped"].items())
    return f"{documents['kept']:,} of {documents['read']:,} documents ({counts}); dropped: {reasons or 'none'}"
