# Task `infill`: what stands between a prefix and a suffix, by the model and by baselines of the same code.
# Entry points: Infill, WAYS.
# A model decoded in blocks sees of the suffix what lies in the gap's own block: `fill` makes the whole text one block,
# `block` keeps the model's own. A gap has no end token, so how long it is stands beside every number.
"""Task plugin infill."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from pydantic import Field, model_validator

from hildanext.config.base import SEEDS
from hildanext.config.decode import Tokens
from hildanext.config.model import ModelConfig
from hildanext.decoding.request import Request
from hildanext.errors import DataError
from hildanext.measure.endings import Ending, causal
from hildanext.measure.filling import Choice, ladder, nats_of, shortest_good, shrunk
from hildanext.measure.gaps import CODE_FIELDS, Gap, code_gaps, edit_similarity, story_gaps, text_gaps
from hildanext.measure.generation import ARGenerator, Completion
from hildanext.measure.items import chosen, read_items
from hildanext.measure.judging import Program, judge
from hildanext.measure.sandbox import Limits
from hildanext.measure.task import FAILED, EvalContext, Outcome, Task
from hildanext.report.intervals import Measure, mean, share

Way = Literal[
    "reference", "fill_true", "fill_fixed", "fill_chosen", "fill_edited", "block_true", "alone_true", "parent_true",
    "parent_cut", "best_true", "best_cut",
]  # fmt: skip
WAYS: dict[str, str] = {
    "reference": "the middle as it was",
    "fill_true": "the model between prefix and suffix, the true length told",
    "fill_fixed": "the same, always `fixed` tokens",
    "fill_chosen": "the same, several lengths, the shortest good one",
    "fill_edited": "fill_fixed, then as many tokens less as `editor` deletes, and filled anew",
    "block_true": "the model in its own blocks, which hide most of the suffix",
    "alone_true": "the model from the prefix alone",
    "parent_true": "the parent left to right from the prefix alone, the true length told",
    "parent_cut": "the same, up to its first end of a line or sentence",
    "best_true": "the likeliest, suffix included, of `best` texts of the parent, the true length told",
    "best_cut": "the same, each up to its first end of a line or sentence",
}


@dataclass(frozen=True)
class Written:
    """What one way wrote: a middle for each gap, forwards for all it tried, and the length it decided for, tokens."""

    middles: list[str]
    forwards: list[float]
    lengths: list[int]


class Infill(Task):
    """Exact matches, edit similarity, pass@1 or validity of the whole, and forwards, for each way of filling gaps.
    Source: HumanEval-Infilling arXiv:2207.14255; docs/getting-started.md, infilling."""

    source: Literal["story", "text", "code"] = Field(
        "story", description="story world; the middle sentence of texts; HumanEval-Infilling"
    )
    path: str = Field("", description="file of texts or of a HumanEval-Infilling set, JSON lines")
    download: bool = Field(False, description="allow the network for a path on the hub")
    limit: int = Field(50, ge=1, description="gaps")
    longest: int = Field(0, ge=0, description="characters of a text at most; 0: any")
    sentences: int = Field(7, ge=3, description="text: sentences taken, of which the middle one is left out")
    sentence: int = Field(3, ge=-1, description="story: which sentence is left out; 3 says object and colour; -1: any")
    seed: int = Field(7_000_001, ge=0, lt=SEEDS, description="story: seed of the stories")
    ways: tuple[Way, ...] = Field((), description="ways compared; empty: all that parent and source allow")
    parent: str = Field("", description="AR model folder of the baselines; empty: none")
    fixed: Tokens = Field(12, description="length of fill_fixed, tokens")
    most: Tokens = Field(24, description="tokens at most of fill_chosen, parent_cut and best_cut")
    lengths: tuple[Tokens, ...] = Field((), description="lengths fill_chosen tries; empty: twelve up to `most`")
    score: Literal["bound", "autoregressive"] = Field("bound", description="what fill_chosen compares texts by")
    draws: int = Field(4, ge=2, multiple_of=2, description="draws of noise per block of that bound")
    slack: float = Field(1.0, ge=0, description="nats by which a shorter text of fill_chosen may be worse")
    editor: str = Field("", description="model folder with edit actions, of the same tokenizer, for fill_edited")
    tau_delete: float = Field(0.5, ge=0, lt=1, description="probability its DELETE must exceed")
    best: int = Field(8, ge=1, description="texts of best_true and best_cut")
    temperature: float = Field(0.8, gt=0, le=100, description="temperature those are drawn at")
    cpu_seconds: int = Field(10, ge=1, description="code: processor time of one program's tests, seconds")

    def ready(self) -> None:
        """Read the items, find the parent, and see that what is asked for can be had."""
        from hildanext.models.load import model_folder

        self._ways(self._gaps(0))
        for name in ("parent", "editor"):
            if folder := getattr(self, name):
                model_folder(folder, f"eval.tasks.infill.{name}")

    @model_validator(mode="after")
    def _path_is_read(self) -> Infill:
        if self.source == "story" and self.path:
            raise ValueError("path: source story makes its own texts; leave it out, or give source text or code")
        return self

    def run(self, context: EvalContext) -> Outcome:
        """Write every gap in every way, then judge."""
        gaps = self._gaps(context.config.seed)
        writer = _Writer(self, context, gaps)
        measures: dict[str, Measure] = {}
        counts: dict[str, int] = {"gaps": len(gaps)}
        texts: dict[str, list[str]] = {}
        for way in self._ways(gaps):
            written = writer.write(way)
            texts[way] = written.middles
            found = self._judged(context, way, gaps, written, counts)
            measures |= {f"{way}_{name}": each for name, each in found.items()}
        shown = [
            {"id": gap.name, "before": gap.before[-200:], "after": gap.after[:200], "true": gap.middle}
            | {way: texts[way][at] for way in texts}
            for at, gap in enumerate(gaps[: context.config.eval.samples])
        ]
        return Outcome(measures, counts, shown)

    def _gaps(self, seed: int) -> list[Gap]:
        if self.source == "story":
            return story_gaps(self.seed, self.limit, self.sentence)
        if self.source == "code":
            gaps = code_gaps(read_items(self.path, CODE_FIELDS, self.download))
        else:
            rows = read_items(self.path, ("text",), self.download)
            gaps = text_gaps([str(row["text"]) for row in rows], self.sentences)
        gaps = [gap for gap in gaps if not self.longest or len(gap.whole(gap.middle)) <= self.longest]
        if not gaps:
            raise DataError(f"infill.path: {self.path} has no text with such a gap; lower sentences, or raise longest")
        return [item["gap"] for item in chosen([{"gap": gap} for gap in gaps], self.limit, seed)]

    def _ways(self, gaps: Sequence[Gap]) -> list[str]:
        ended = all(gap.end for gap in gaps)
        parented = [way for way in WAYS if way.startswith(("parent", "best"))]
        lacking = {way: "parent: no AR model is named; give its folder" for way in parented if not self.parent}
        no_end = "source: this set's gaps have no end that a text could be cut at; take parent_true and best_true"
        lacking |= {way: no_end for way in parented if way.endswith("cut") and not ended}
        lacking |= (
            {} if self.editor else {"fill_edited": "editor: no model with edit actions is named; give its folder"}
        )
        if wrong := [way for way in self.ways if way in lacking]:
            raise DataError(f"infill.ways: {wrong[0]} needs infill.{lacking[wrong[0]]}")
        return list(self.ways) or [way for way in WAYS if way not in lacking]

    def _judged(
        self, context: EvalContext, way: str, gaps: Sequence[Gap], written: Written, counts: dict[str, int]
    ) -> dict[str, Measure]:
        pairs = list(zip(gaps, written.middles, strict=True))
        exact = sum(middle.strip() == gap.middle.strip() for gap, middle in pairs)
        found = {
            "exact": share(exact, len(pairs)),
            "edit_similarity": mean([edit_similarity(middle.strip(), gap.middle.strip()) for gap, middle in pairs]),
            "forwards": mean(written.forwards, "forwards"),
            "tokens": mean([float(each) for each in written.lengths], "tokens"),
        }
        if self.source == "story":
            found["valid"] = share(sum(gap.valid(middle) for gap, middle in pairs), len(pairs))
        if self.source == "code":
            programs = [Program(gap.name, middle, gap.program(middle)) for gap, middle in pairs]
            limits = Limits(cpu_seconds=self.cpu_seconds, wall_seconds=2.0 * self.cpu_seconds)
            outcome = judge(context, f"infill, {way}", programs, (), limits)
            found |= outcome.measures
            counts |= {f"{way}: {reason}": count for reason, count in outcome.counts.items()}
        return found


class _Writer:
    """The ways of one task over its gaps; the parent is loaded when the first way needs it."""

    def __init__(self, task: Infill, context: EvalContext, gaps: Sequence[Gap]) -> None:
        self.task, self.context, self.gaps = task, context, gaps
        self.sizes = [self._tokens(gap.middle) for gap in gaps]
        self._parent: EvalContext | None = None

    def write(self, way: str) -> Written:
        """A middle for every gap; a gap that could not be written has an empty one."""
        task, fixed = self.task, [self.task.fixed] * len(self.gaps)
        made: dict[str, Callable[[], Written]] = {
            "reference": lambda: Written([gap.middle for gap in self.gaps], [0.0] * len(self.gaps), self.sizes),
            "fill_true": lambda: self._filled(self.sizes),
            "fill_fixed": lambda: self._filled(fixed),
            "fill_chosen": self._chosen,
            "fill_edited": self._edited,
            "block_true": lambda: self._filled(self.sizes, self.context.loaded.meta.block),
            "alone_true": lambda: self._alone(self.context, self.sizes, False),
            "parent_true": lambda: self._alone(self.parent, self.sizes, False),
            "parent_cut": lambda: self._alone(self.parent, [task.most] * len(self.gaps), True),
            "best_true": lambda: self._best(self.sizes, False),
            "best_cut": lambda: self._best([task.most] * len(self.gaps), True),
        }
        return made[way]()

    @property
    def parent(self) -> EvalContext:
        """The parent, read left to right."""
        from hildanext.models.load import load_model

        if self._parent is None:
            model, config = self.context.config.model, self.context.config
            loaded: Any = load_model(ModelConfig(path=self.task.parent, device=model.device, dtype=model.dtype))
            self._parent = EvalContext(
                loaded, config, self.context.console, ARGenerator(loaded, config.decode), self.context.failed
            )
        return self._parent

    def _ids(self, text: str) -> list[int]:
        return list(self.context.loaded.tokenizer(text, add_special_tokens=False)["input_ids"])

    def _tokens(self, text: str) -> int:
        return max(1, len(self._ids(text)))

    def _fill(self, gap: Gap, size: int, block: int | None = None) -> Request:
        return Request(prompt=gap.before, suffix=gap.after, max_new_tokens=size, block=block)

    def _filled(self, sizes: Sequence[int], block: int | None = None) -> Written:
        asks = [self._fill(gap, size, block) for gap, size in zip(self.gaps, sizes, strict=True)]
        done = self.context.complete("infill", asks)
        return Written([one.text for one in done], [float(one.forwards) for one in done], list(sizes))

    def _chosen(self) -> Written:
        task, lengths = self.task, self.task.lengths or ladder(self.task.most)
        how = Choice(task.score, task.draws, 0, task.slack)
        done = self.context.complete(
            "infill: lengths", [self._fill(gap, size) for gap in self.gaps for size in lengths]
        )
        found = Written([], [], [])
        with self.context.console.bar("infill: scores", len(self.gaps)) as bar:
            for at, gap in enumerate(self.gaps):
                tried = done[at * len(lengths) : (at + 1) * len(lengths)]
                good = [index for index, one in enumerate(tried) if one.finish != FAILED]
                texts = [tried[index].text for index in good]
                nats = nats_of(self.context.loaded, gap.before, texts, gap.after, how) if good else []
                place = shortest_good([lengths[index] for index in good], nats, how.slack) if good else 0
                found.middles.append(texts[place] if good else "")
                found.lengths.append(lengths[good[place]] if good else 0)
                found.forwards.append(float(sum(one.forwards for one in tried)))
                bar.advance()
        return found

    def _edited(self) -> Written:
        from hildanext.models.load import load_model

        first = self._filled([self.task.fixed] * len(self.gaps))
        model = self.context.config.model
        editor: Any = load_model(ModelConfig(path=self.task.editor, device=model.device, dtype=model.dtype))
        sizes, looks = [], []
        for gap, text in zip(self.gaps, first.middles, strict=True):
            before, middle, after = (self._ids(part) for part in (gap.before, text, gap.after))
            sizes.append(max(1, len(shrunk(editor, before, middle, after, self.task.tau_delete))))
            looks.append(len(middle) - sizes[-1] + 1)
        again = self._filled(sizes)
        forwards = [sum(each) for each in zip(first.forwards, looks, again.forwards, strict=True)]
        return Written(again.middles, forwards, sizes)

    def _alone(self, context: EvalContext, sizes: Sequence[int], cut: bool) -> Written:
        asks = [
            Request(prompt=gap.before, max_new_tokens=size, ignore_eos=not cut)
            for gap, size in zip(self.gaps, sizes, strict=True)
        ]
        done = context.complete("infill: from the prefix", asks)
        middles = [gap.cut(one.text) if cut else one.text for gap, one in zip(self.gaps, done, strict=True)]
        return Written(middles, [float(one.forwards) for one in done], self._lengths(middles, sizes, cut))

    def _best(self, sizes: Sequence[int], cut: bool) -> Written:
        task, parent = self.task, self.parent
        asks = [
            Request(
                prompt=gap.before, max_new_tokens=size, ignore_eos=not cut, sample=number, temperature=task.temperature
            )
            for gap, size in zip(self.gaps, sizes, strict=True)
            for number in range(task.best)
        ]
        done = parent.complete("infill: the parent's texts", asks)
        middles, forwards = [], []
        for at, gap in enumerate(self.gaps):
            tried = done[at * task.best : (at + 1) * task.best]
            middles.append(self._likeliest(gap, tried, cut))
            forwards.append(float(sum(one.forwards for one in tried)))
        return Written(middles, forwards, self._lengths(middles, sizes, cut))

    def _likeliest(self, gap: Gap, tried: Sequence[Completion], cut: bool) -> str:
        texts = list(dict.fromkeys(gap.cut(one.text) if cut else one.text for one in tried if one.finish != FAILED))
        if not texts:
            return ""
        loaded = self.parent.loaded
        nats = causal(loaded.denoiser, [Ending.of(loaded, gap.before, text + gap.after) for text in texts])
        return texts[min(range(len(texts)), key=nats.__getitem__)]

    def _lengths(self, middles: Sequence[str], sizes: Sequence[int], cut: bool) -> list[int]:
        return [self._tokens(middle) for middle in middles] if cut else list(sizes)
