# The demo's parts that use the bundled pair: tokens per second, repair of planted errors, one story watched.
# Entry points: speed, repair, watched.
# Speed is measured with the decoders taking turns, so that a busy machine slows all of them alike.
"""Parts of the demo that decode."""

from __future__ import annotations

import statistics
from typing import Any

import torch

from hildanext.core.repair import repair_probe
from hildanext.decoding.engine import BlockEngine
from hildanext.decoding.request import Request
from hildanext.measure.generation import ARGenerator, DiffusionGenerator, Generator
from hildanext.measure.tasks.nll import story_batches
from hildanext.report.charts import bars
from hildanext.report.frames import frames_of
from hildanext.report.intervals import share
from hildanext.report.page import Section
from hildanext.selftest.demo.part import SEED, Part, Stage

WATCHED = 24


def speed(stage: Stage) -> Part:
    """Median tokens per second, batch 1, the variants taking turns in one process, each at its better thread count."""
    parent, child = stage.model("parent"), stage.model("child")
    config = stage.config.decode
    variants: dict[str, tuple[Generator, str]] = {
        "parent, left to right": (ARGenerator(parent, config), "Q_MODE"),
        "child, Q_MODE": (DiffusionGenerator(child, config), "Q_MODE"),
        "child, S_MODE": (DiffusionGenerator(child, config), "S_MODE"),
    }
    seen = _rounds(stage, variants)
    middle = {threads: {k: statistics.median(v[1:]) for k, v in timed.items()} for threads, timed in seen.items()}
    best = {name: max(middle, key=lambda threads: middle[threads][name]) for name in variants}
    medians = {name: middle[threads][name] for name, threads in best.items()}
    first, *rest = medians
    ratios = {name: medians[name] / medians[first] for name in rest}
    prose = (
        f"One story at a time, median of {stage.sizes.rounds} rounds after one to warm up, the three decoders taking "
        "turns on the same first sentence, greedy in all three; each at the thread count that suits it."
    )
    rows = [(k, str(best[k]), f"{value:.0f}", f"{value / medians[first]:.2f}") for k, value in medians.items()]
    section = Section(
        "Tokens per second",
        prose,
        ("decoder", "threads", "tokens/s", "times the parent"),
        rows,
        [bars([*medians.items()], "tokens/s")],
    )
    fact = (f"{ratios['child, Q_MODE']:.1f} x", "the parent's tokens per second in Q_MODE")
    data = {"tokens_per_second": seen, "threads": best, "medians": medians, "ratios": ratios}
    return Part(section, data, (fact,))


def _rounds(stage: Stage, variants: dict[str, tuple[Generator, str]]) -> dict[int, dict[str, list[float]]]:
    from hildanext.world import story

    own = torch.get_num_threads()
    seen: dict[int, dict[str, list[float]]] = {n: {name: [] for name in variants} for n in sorted({1, own})}
    try:
        for turn in range(stage.sizes.rounds + 1):
            start = story(f"{SEED}:{turn}").sentences[0]
            for threads, timed in seen.items():
                torch.set_num_threads(threads)
                for name, (generator, mode) in variants.items():
                    request = Request(prompt=start, mode=mode, max_new_tokens=stage.sizes.new_tokens)
                    done = generator.complete([request])[0]
                    timed[name].append(done.tokens / done.seconds)
    finally:
        torch.set_num_threads(own)
    return seen


def repair(stage: Stage) -> Part:
    """One edit step over stories with a tenth of their words replaced at random."""
    child = stage.model("child")
    block = child.meta.block or 32
    batches, _ = story_batches(child.tokenizer, SEED, stage.sizes.stories, 16, block)
    rng = torch.Generator().manual_seed(SEED)
    totals: dict[float, Any] = {}
    for batch in batches:
        for tau, counts in repair_probe(child.denoiser, batch, block, rng).items():
            totals[tau] = totals[tau] + counts if tau in totals else counts
    rows = [
        (f"{tau:g}", share(c.repaired, c.planted).text(), share(c.changed, c.correct).text(), str(c.planted))
        for tau, c in totals.items()
    ]
    prose = "Random words were planted into true stories; one forward decides, with no mask in sight, what to rewrite."
    header = ("tau_edit", "planted errors repaired", "correct words changed", "errors planted")
    data = {"rates": {str(tau): vars(counts) for tau, counts in totals.items()}}
    top = max(totals)
    repaired, changed = 100 * totals[top].repair_rate, 100 * totals[top].false_edit_rate
    told = f"of planted errors repaired at tau_edit {top:g}, {changed:.1f} % of correct words changed"
    fact = (f"{repaired:.0f} %", told)
    return Part(Section("Finding and repairing planted errors", prose, header, rows), data, (fact,))


def watched(stage: Stage) -> Part:
    """A story, among some two dozen, that ended well and was edited most, kept forward by forward."""
    from hildanext.world import check, story

    child = stage.model("child")
    best: Any = None
    for index in range(WATCHED):
        start = story(f"{SEED}:watched:{index}").sentences[0]
        engine = BlockEngine(child, stage.config.decode)
        result = engine.generate(
            Request(prompt=start, mode="S_MODE", max_new_tokens=stage.sizes.new_tokens, trace=True)
        )
        rank = (check(f"{start} {result.text.strip()}").valid, sum(result.metrics.edits_applied))
        best = max(best, (rank, start, result), key=_rank) if best else (rank, start, result)
    _, start, result = best
    edits = sum(result.metrics.edits_applied)
    verdict = check(f"{start} {result.text.strip()}")
    told = "the checker accepts it" if verdict.valid else f"the checker's objections: {len(verdict.problems)}"
    prose = (
        f"S_MODE: {result.metrics.tokens} tokens in {result.metrics.forwards} forwards, {edits} words rewritten after "
        f"they were filled; {told}. Of {WATCHED} stories it is the valid one with most rewrites."
    )
    frames = frames_of(start, result.trace)
    section = Section("One story, forward by forward", prose, frames=frames)
    data = {"story": start + result.text, "valid": verdict.valid, "edits": edits, "forwards": result.metrics.forwards}
    return Part(section, data)


def _rank(candidate: tuple[tuple[bool, int], str, Any]) -> tuple[bool, int]:
    return candidate[0]
