# The parallel half of tokenize under a cluster's executor: a range of a prepared file -> its encoded documents.
# Entry points: EncodeJob, Parts, encoded.
# Packing stays with the process that asked: it goes through the documents in their order, so that rows are the same
# however the ranges were cut. A part holds tokens, marks and lengths in one .npz, its counts in the report.
"""Encoding in parts."""

from __future__ import annotations

import hashlib
import io
import json
import shutil
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from hildanext.config import Config
from hildanext.config.data import TokenizeConfig
from hildanext.data.document import from_json
from hildanext.data.encode_split import Encoded, SplitEncoder
from hildanext.data.executor import Clustered, Report
from hildanext.data.storage import fetched, is_remote, joined, mirror, publish, read, removed
from hildanext.data.tokenizers import load_tokenizer, tokenizer_hash
from hildanext.errors import DataError
from hildanext.progress import Console
from hildanext.registry import build
from hildanext.run_dir import write_atomic


@dataclass(frozen=True)
class EncodeJob:
    """Bytes [start, stop) of a prepared file, whole lines; tokenizer: its folder, which every machine reaches, and its
    hash; text: the split is no sft one."""

    parts: ClassVar[tuple[str, ...]] = (".npz",)
    stem: Path
    file: str
    start: int
    stop: int
    settings: TokenizeConfig
    tokenizer: str
    hash: str
    text: bool

    def run(self) -> Report:
        """Encode the range. DataError where the tokenizer of this machine is another one."""
        tokenizer = load_tokenizer(fetched(self.tokenizer))
        if (found := tokenizer_hash(tokenizer)) != self.hash:
            raise DataError(
                f"{self.tokenizer}: this machine reads it as tokenizer {found[:12]}, the one that started reads"
                f" {self.hash[:12]}; install the same versions of transformers and tokenizers on both"
            )
        encoder = SplitEncoder(self.settings, tokenizer, self.hash, self.tokenizer, as_text=self.text)
        lines = list(io.BytesIO(read(self.file, self.start, self.stop)))
        step, found_all = self.settings.batch_documents, list[Encoded]()
        for first in range(0, len(lines), step):
            found_all += encoder.batch([from_json(line) for line in lines[first : first + step]])
        _save(self.stem.with_suffix(".npz"), found_all)
        report = {"counts": dict(encoder.counts), "refused": encoder.refused}
        write_atomic(self.stem.with_suffix(".json"), json.dumps(report))
        return report


def _save(path: Path, documents: Sequence[Encoded]) -> None:
    shape = [one if isinstance(one, str) else [len(ids) for ids, _ in one] for one in documents]
    pieces = [piece for one in documents if not isinstance(one, str) for piece in one]
    tokens, learn = ([part for piece in pieces for part in piece[side]] for side in (0, 1))
    np.savez(
        path, shape=np.frombuffer(json.dumps(shape).encode(), dtype=np.uint8),
        tokens=np.array(tokens, dtype=np.int64), learn=np.array(learn, dtype=np.uint8),
    )  # fmt: skip


@dataclass(frozen=True)
class Parts:
    """The jobs of one tokenize: where their files go (`place`, and `folder` on this machine), what all have in common
    and who does them."""

    executor: Clustered
    place: str
    folder: Path
    source: str
    common: EncodeJob
    workers: int
    console: Console

    @classmethod
    def of(cls, config: Config, encoder: SplitEncoder, source: str, tokenizer: Path, console: Console) -> Parts | None:
        """What a cluster's executor needs: the tokenizer of this folder goes beside the parts; None for the executor
        of this process. source: the prepared set."""
        executor = build("executors", config.data.executor, "data.executor")
        if not isinstance(executor, Clustered):
            return None
        above, name = joined(config.paths.data, "tokenized"), config.tokenize.name or config.data.name
        key = hashlib.sha256(repr([encoder.settings, encoder.hash, executor.documents]).encode()).hexdigest()[:12]
        place = joined(above if is_remote(above) else str(Path(above).resolve()), f".{name}.parts-{key}")
        mirror(place).mkdir(parents=True, exist_ok=True)
        publish(tokenizer, joined(place, "tokenizer"))
        common = EncodeJob(mirror(place), "", 0, 0, encoder.settings, joined(place, "tokenizer"), encoder.hash, True)
        return cls(executor, place, mirror(place), source, common, config.data.workers, console)

    def done(self, source: Path, files: Mapping[str, Mapping[str, Any]]) -> dict[str, list[tuple[EncodeJob, Report]]]:
        """Every part of the prepared files, done by the executor all at once, in order, by file. source: their folder
        on this machine; files: of their manifest."""
        jobs = {name: self._jobs(source / f"{name}.jsonl", str(facts["sha256"])) for name, facts in files.items()}
        every = [job for some in jobs.values() for job in some]
        found = self.executor.reports(every, self.place, self.workers, self.console) if every else iter(())
        return {name: [(job, next(found)) for job in some] for name, some in jobs.items()}

    def _jobs(self, path: Path, digest: str) -> list[EncodeJob]:
        ends, place = [0], 0
        with path.open("rb") as lines:
            for number, line in enumerate(lines, 1):
                place += len(line)
                if number % self.executor.documents == 0:
                    ends.append(place)
        ends += [place] if ends[-1] != place else []
        file, text = joined(self.source, path.name), not path.stem.startswith("sft")
        return [
            replace(
                self.common, stem=self.folder / f"{path.stem}-{digest[:12]}-{index:06d}", file=file, text=text,
                start=start, stop=stop,
            )
            for index, (start, stop) in enumerate(zip(ends, ends[1:], strict=False))
        ]  # fmt: skip

    def remove(self) -> None:
        """Remove the parts."""
        removed(self.place)
        shutil.rmtree(self.folder, ignore_errors=True)


def encoded(parts: Sequence[tuple[EncodeJob, Report]], encoder: SplitEncoder) -> Iterator[list[Encoded]]:
    """The documents of a prepared file in order, a part at a time; what was counted there is added to the encoder."""
    for job, report in parts:
        encoder.add(Counter(report["counts"]), report["refused"])
        yield _read(job.stem.with_suffix(".npz"))


def _read(path: Path) -> list[Encoded]:
    with np.load(path) as file:
        tokens, learn = file["tokens"].tolist(), file["learn"].tolist()
        shape: list[Any] = json.loads(file["shape"].tobytes())
    found, place = list[Encoded](), 0
    for one in shape:
        if isinstance(one, str):
            found.append(one)
            continue
        ends = [place, *(place := place + size for size in one)]
        found.append([(tokens[a:b], learn[a:b]) for a, b in zip(ends, ends[1:], strict=False)])
    return found
