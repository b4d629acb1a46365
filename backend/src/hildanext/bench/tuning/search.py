# hildanext tune: the fastest setting on this machine whose texts are as good as those without tuning.
# Entry points: tune.
# One short text each cuts most settings, the faster sessions first; the fastest ones then write whole texts, which the
# AR parent judges (without one: agreement with the reference's texts); the last few take turns with the reference and
# with the parent read left to right.
"""The search for the fastest setting."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from statistics import median
from typing import Any

import torch

from hildanext.bench.decoding.asks import Ask, asks_for, parent_of, read_as
from hildanext.bench.decoding.contest import WARM, answer, race, speed, verdict
from hildanext.bench.decoding.quality import Agreement, Quality
from hildanext.bench.decoding.readers import ByBlocks, Generate, LeftToRight, Reader
from hildanext.bench.tuning.sessions import Sessions, Threaded
from hildanext.bench.tuning.space import THREADS, Trial, reference, trials
from hildanext.config import Config
from hildanext.decoding.engine import DEFAULT_BLOCK
from hildanext.errors import HildaError, ModelError
from hildanext.models.denoiser import network
from hildanext.models.load import place
from hildanext.models.recommended import recommend
from hildanext.progress import Bar, Console
from hildanext.run_dir import RunDir

OPENINGS, FIRST, CANDIDATES = 0.4, 0.7, 1.0
PATIENCE = 3.0
REPEATS_MORE, SHORTEST = 0.1, 0.5
SHOWN = 12
AR = "AR, {}, {}"


def tune(config: Config, console: Console, path: Any = None) -> dict[str, Any]:
    """The report, report.json in a run directory; with tune.write the winner goes into the model folder. ModelError for
    a model that no conversion wrote."""
    child = read_as(config, "", "float32", console)
    if child.meta.block is None:
        raise ModelError(f"model.path {config.model.path}: no conversion wrote it, so that there is nothing to tune")
    asks = asks_for(child, config.tune.prompts, config.tune.texts)
    space = trials(config, config.decode.block or child.meta.block or DEFAULT_BLOCK)
    folder, own = place(config.model.path), torch.get_num_threads()
    del child
    directory = RunDir.create(config, "tune", path)
    with directory.running(console):
        search = Search(config, asks, space, console)
        try:
            report = search.run()
        finally:
            search.sessions.close()
            torch.set_num_threads(own)
        report["run"] = str(directory.path)
        if config.tune.write:
            about = {name: report[name] for name in ("answer", "measures", "tokens_per_second")}
            report["written"] = str(recommend(folder, report["values"], about))
        directory.environment(device=config.model.device)
        directory.write_json("report.json", report)
    _show(report, console)
    return report


@dataclass
class Search:
    """One search: what was measured of each setting, and why settings were cut, by their place in `space`."""

    config: Config
    asks: Sequence[Ask]
    space: Sequence[Trial]
    console: Console
    measured: dict[int, dict[str, Any]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.sessions = Sessions(self.config, self.config.tune.finalists + 1)
        self.started = time.monotonic()
        self.clock = self.config.tune.clock

    def run(self) -> dict[str, Any]:
        """Cut, judge, compare."""
        settings, usual = self.config.tune, reference(self.space, self.config)
        self.console.say(f"tune: {len(self.space)} settings, about {settings.seconds:.0f} s; reference: {_said(usual)}")
        own = self._reader(usual)
        if own is None:
            raise ModelError(f"tune: the reference does not open: {self.sessions.refused[usual.group]}")
        texts = [own.read(ask, settings.text_tokens).ids for ask in self.asks]
        where = parent_of(self.config, settings.parent)
        judge: Quality | Agreement = Agreement(texts)
        if where:
            judge = Quality.of(read_as(self.config, where, "float32", self.console), self.asks, settings.text_tokens)
        self.started, self.sessions.seconds = time.monotonic(), 0.0
        self._first(usual)
        finalists = self._candidates(usual, judge, judge.of_texts(texts))
        return self._last(usual, finalists, judge, where)

    def _left(self, share: float) -> bool:
        spent = time.monotonic() - self.started - self.sessions.seconds
        return spent < share * self.config.tune.seconds

    def _reader(self, trial: Trial, patience: float | None = None) -> ByBlocks | None:
        session = self.sessions.of(trial)
        return None if session is None else ByBlocks(session, trial.asked, self.clock, patience)

    def _first(self, usual: Trial) -> None:
        # every session once, as the reference is asked; then all that may be asked of the fastest sessions first
        groups: dict[str, list[int]] = {}
        for index, trial in enumerate(self.space):
            groups.setdefault(trial.group, []).append(index)
        one_each = [next((i for i in own if self.space[i].asked == usual.asked), own[0]) for own in groups.values()]
        with self.console.bar("tune: one short text each", len(self.space)) as bar:
            best = self._tried_out(one_each, OPENINGS, 0.0, bar)
            rank = {self.space[index].group: -self._short(index) for index in one_each}
            rest = sorted(set(range(len(self.space))) - set(one_each), key=lambda i: (rank[self.space[i].group], i))
            self._tried_out([i for i in rest if rank[self.space[i].group]], FIRST, best, bar)
        if over := len(self.space) - len(self.measured):
            self.console.say(
                f"tune: {over} settings of slower sessions were left out; give more time with tune.seconds"
            )

    def _short(self, index: int) -> float:
        return float(self.measured.get(index, {}).get("first_tokens_per_second", 0.0))

    def _tried_out(self, order: Sequence[int], share: float, best: float, bar: Bar) -> float:
        tokens = self.config.tune.first_tokens
        for index in order:
            if self._left(share):
                patience = PATIENCE * tokens / best if best else None
                self.measured[index] = self._timed(self.space[index], self.asks[0], tokens, patience)
                best = max(best, self._short(index))
            bar.advance(best_tokens_per_second=best)
        return best

    def _timed(self, trial: Trial, ask: Ask, tokens: int, patience: float | None) -> dict[str, Any]:
        known = trial.group in self.sessions.held
        reader = self._reader(trial, patience)
        if reader is None:
            return {"cut": f"does not open: {self.sessions.refused[trial.group]}"}
        try:
            if not known:
                reader.read(ask, tokens)
            return {"first_tokens_per_second": speed([reader.read(ask, tokens)])}
        except HildaError as error:
            return {"cut": str(error)}

    def _candidates(self, usual: Trial, judge: Quality | Agreement, base: Mapping[str, Any]) -> list[int]:
        tried = [index for index, found in self.measured.items() if "first_tokens_per_second" in found]
        order = sorted(tried, key=lambda index: -self.measured[index]["first_tokens_per_second"])
        kept: list[int] = []
        wanted = self.config.tune.finalists
        with self.console.bar("tune: whole texts of the fastest", wanted) as bar:
            for index in order:
                if len(kept) == wanted or not self._left(CANDIDATES) or self.space[index] == usual:
                    break  # what is slower than the reference has nothing to offer
                reader = self._reader(self.space[index])
                assert reader is not None
                readings = [reader.read(ask, self.config.tune.text_tokens) for ask in self.asks]
                texts = judge.of_texts([one.ids for one in readings])
                cut = worse(texts, base, self.config.tune.tolerance)
                self.measured[index] |= {"tokens_per_second": speed(readings), **texts, **({"cut": cut} if cut else {})}
                if not cut:
                    kept.append(index)
                    bar.advance()
        return kept

    def _last(self, usual: Trial, finalists: Sequence[int], judge: Quality | Agreement, where: str) -> dict[str, Any]:
        settings = self.config.tune
        chosen = {_said(trial): trial for trial in (usual, *(self.space[index] for index in finalists))}
        readers: dict[str, Reader] = {}
        for name, trial in chosen.items():
            reader = self._reader(trial)
            if reader is not None:
                readers[name] = Threaded(reader, torch.get_num_threads())
        readers |= self._baseline(where)
        rounds = race(readers, self.asks, settings.text_tokens, settings.repeats, self.console)
        rows = {}
        for name, found in rounds.items():
            own = chosen.get(name)
            rows[name] = {
                "kind": "baseline" if own is None else "model", "setting": {} if own is None else own.setting(),
                "tokens_per_second": median(speed(one) for one in found),
                **judge.of_texts([one.ids for one in found[0]]),
            }  # fmt: skip
        said: dict[str, Any] = {"variants": rows, **verdict(rows)}
        winner = chosen[said["fastest"]]
        return {
            **said, "answer": answer(said), "values": winner.values, "measures": judge.about,
            "tokens_per_second": rows[said["fastest"]]["tokens_per_second"], "reference": _said(usual),
            "parent": where or None, "seconds": time.monotonic() - self.started, "tried": self._tried(),
        }  # fmt: skip

    def _baseline(self, where: str) -> dict[str, Reader]:
        # the fastest way to read the parent left to right, by one short text each
        found: dict[str, Reader] = {}
        threads = max(int(trial.opened.get(THREADS) or 1) for trial in self.space)
        dtypes = dict.fromkeys(str(trial.opened.get("model.dtype", "float32")) for trial in self.space)
        for dtype in dtypes:
            with suppress(HildaError):
                loaded = read_as(self.config, where, dtype, self.console)
                held = {"transformers generate": Generate(network(loaded.denoiser), self.clock)}
                both: dict[str, Reader] = {**held, "our own cache": LeftToRight(loaded, self.clock)}
                found |= {AR.format(name, dtype): Threaded(reader, threads) for name, reader in both.items()}
        for reader in found.values():
            reader.read(self.asks[0], WARM)
        speeds = {name: speed([one.read(self.asks[0], self.config.tune.first_tokens)]) for name, one in found.items()}
        best = max(speeds, key=speeds.__getitem__)
        return {best: found[best]}

    def _tried(self) -> list[dict[str, Any]]:
        return [{"setting": self.space[index].setting(), **found} for index, found in self.measured.items()]


def worse(texts: Mapping[str, Any], base: Mapping[str, Any], tolerance: float) -> str:
    """Why texts are not as good as the reference's, empty where they are: nats per token (or agreement), repetition,
    length."""
    if "agreement" in texts:
        return "" if texts["agreement"] >= 1 - tolerance else f"agreement {texts['agreement']:.2f}"
    if texts["nats"] is None or texts["tokens"] < SHORTEST * base["tokens"]:
        return f"{texts['tokens']:.0f} tokens, the reference has {base['tokens']:.0f}"
    if base["nats"] is not None and texts["nats"] > (1 + tolerance) * base["nats"]:
        return f"{texts['nats']:.2f} nats per token, the reference has {base['nats']:.2f}"
    if texts["repetition"] > base["repetition"] + REPEATS_MORE:
        return f"repetition {texts['repetition']:.2f}, the reference has {base['repetition']:.2f}"
    return ""


def _said(trial: Trial) -> str:
    return ", ".join(f"{name} {value}" for name, value in trial.setting().items())


def _show(report: Mapping[str, Any], console: Console) -> None:
    tried = sorted(report["tried"], key=lambda row: -row.get("first_tokens_per_second", 0.0))[:SHOWN]
    names = list(tried[0]["setting"]) if tried else []
    rows = [
        (*(str(row["setting"].get(name, "")) for name in names), _number(row.get("first_tokens_per_second")),
         _number(row.get("tokens_per_second")), row.get("cut", "")) for row in tried
    ]  # fmt: skip
    console.table(rows, (*names, "tokens/s, short", "tokens/s, whole", "cut because of"))
    for name, row in report["variants"].items():
        worth = ", ".join(f"{key} {_number(row[key])}" for key in ("nats", "agreement", "repetition") if key in row)
        console.say(f"{row['tokens_per_second']:8.1f} tokens/s  {name}  ({worth})")
    console.say(f"judged by: {report['measures']}")
    if "written" in report:
        console.say(f"{report['written']}: generate, chat and serve use it from now on, on this machine")
    console.say(report["answer"])


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}"
