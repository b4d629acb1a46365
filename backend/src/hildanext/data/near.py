# Near-duplicates by datatrove's MinHash: signatures of every unit, pairs per band, clusters; one of each cluster stays.
# Entry points: without_near.
# A task reads one unit, whatever the executor: so which one of a cluster stays depends on the units alone. Words are
# what white space parts: datatrove's own word tokenizers need a package for each language.
"""Near-duplicates."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hildanext.config.data import NearConfig
from hildanext.data.document import from_json
from hildanext.data.executor import Clustered, require_datatrove, run_all
from hildanext.data.storage import at_hand, joined, names_in, read, removed, write
from hildanext.progress import Console

Kept = Sequence[NDArray[np.bool_]]


@dataclass(frozen=True)
class Near:
    """The step: settings, where its tasks run, the folder of the units' lines (`names` + .jsonl), which every machine
    reaches, and tasks at a time."""

    settings: NearConfig
    executor: Clustered
    place: str
    names: tuple[str, ...]
    workers: int
    console: Console

    def without_near(self, keep: Kept) -> list[NDArray[np.bool_]]:
        """keep: per unit, which of its lines are no exact duplicates. Returns the same without near-duplicates."""
        require_datatrove("regex")
        from datatrove.pipeline.dedup import MinhashDedupBuckets, MinhashDedupCluster

        own, config = self.settings, _config(self.settings)
        folder = joined(self.place, f"near-{own.words}-{own.buckets}-{own.hashes}-{own.seed}")
        signed, paired, marked = (joined(folder, name) for name in ("signatures", "pairs", "clusters"))
        for name, lines in zip(self.names, keep, strict=True):
            write(joined(folder, f"{name}.keep"), np.packbits(lines).tobytes())
        signing = _Signing(self.settings, self.place, folder, self.names)
        self._run([signing], len(self.names), joined(folder, "logs-signatures"))
        self._run([MinhashDedupBuckets(signed, paired, config=config)], own.buckets, joined(folder, "logs-pairs"))
        self._run([MinhashDedupCluster(paired, marked, config)], 1, joined(folder, "logs-clusters"))
        found = [_less(lines, marked, index) for index, lines in enumerate(keep)]
        removed(folder)
        return found

    def _run(self, pipeline: list[Any], tasks: int, logs: str) -> None:
        run_all(self.executor, pipeline, tasks, self.workers, logs, self.console)


def _config(settings: NearConfig) -> Any:
    from datatrove.pipeline.dedup.minhash import MinhashConfig
    from datatrove.utils.hashing import HashConfig

    hashing = HashConfig(hash_fc="sha1")  # its xxhash needs a release below 4
    return MinhashConfig(settings.words, settings.buckets, settings.hashes, settings.seed, hash_config=hashing)


def _words() -> Any:
    from datatrove.utils.word_tokenizers import WordTokenizer

    class Words(WordTokenizer):  # type: ignore[misc]
        """White space parts words; datatrove has simplified the text before."""

        def word_tokenize(self, text: str) -> list[str]:
            return text.split()

        def sent_tokenize(self, text: str) -> list[str]:
            return [text]

        def span_tokenize(self, text: str) -> list[tuple[int, int]]:
            return [(0, len(text))]

    return Words()


@dataclass(frozen=True)
class _Signing:
    settings: NearConfig
    place: str
    folder: str
    names: tuple[str, ...]

    def __call__(self, data: Any, rank: int = 0, world_size: int = 1) -> Iterator[Any]:
        from datatrove.pipeline.dedup import MinhashDedupSignature

        signature: Any = MinhashDedupSignature(
            joined(self.folder, "signatures"), _config(self.settings), language=_words()
        )
        signature.run(self._lines(self.names[rank]), rank, world_size)
        return iter(())

    def _lines(self, name: str) -> Iterator[Any]:
        from datatrove.data import Document

        marks = np.unpackbits(np.frombuffer(read(joined(self.folder, f"{name}.keep")), dtype=np.uint8))
        with at_hand(joined(self.place, f"{name}.jsonl")) as path, path.open("rb") as lines:
            for number, line in enumerate(lines):
                if marks[number]:
                    yield Document(text=from_json(line).content(), id=str(number))


def _less(lines: NDArray[np.bool_], marked: str, index: int) -> NDArray[np.bool_]:
    name = f"{index:06d}.remove"
    if name not in names_in(marked):
        return lines
    left = lines.copy()
    left[np.flatnonzero(lines)[np.frombuffer(read(joined(marked, name)), dtype="<u4")]] = False
    return left
