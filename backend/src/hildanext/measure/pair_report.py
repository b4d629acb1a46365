# What a comparison of a child with its parent says: the table, one sentence, a page, the answers side by side.
# Entry points: Side, report_of, verdict, page_of, told, answers_told.
# Numbers only come in; nothing is measured here.
"""Report of a comparison."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from hildanext.measure.generation import Completion
from hildanext.measure.task import cost
from hildanext.progress import Console
from hildanext.report.charts import bars
from hildanext.report.intervals import Measure, mean, ratio
from hildanext.report.page import Section, page

SIDES = (("parent", "parent, our code"), ("child", "child, our code"))


@dataclass(frozen=True)
class Side:
    """What one model gave. scores: (nats, tokens) per text; answers: one per text; tasks: measures by task."""

    name: str
    block: int
    scores: Sequence[tuple[float, int]]
    answers: Sequence[Completion]
    tasks: Mapping[str, Mapping[str, Measure]]

    def cost(self) -> dict[str, Measure]:
        """Tokens per forward and per second."""
        return cost(self.answers)


def report_of(
    parent: Side, child: Side, judged: Sequence[Sequence[tuple[float, int]]], library: Sequence[Completion]
) -> dict[str, Any]:
    """The plain report. judged: (nats, characters) of each answer of both under the parent; library: the parent's
    answers by transformers' `generate`."""
    tokens = [float(count) for _, count in parent.scores]
    nll = [ratio([nats for nats, _ in side.scores], tokens, "nats per token") for side in (parent, child)]
    gap = ratio([b - a for (a, _), (b, _) in zip(parent.scores, child.scores, strict=True)], tokens, "nats per token")
    rows = [_row("text, nats per token (child: a bound)", nll, gap)]
    both = [(a, b) for a, b in zip(*judged, strict=True) if a[1] and b[1]]
    if both:
        each = [[nats / count for nats, count in side] for side in zip(*both, strict=True)]
        apart = mean([b - a for a, b in zip(*each, strict=True)], "nats per character")
        rows.append(_row("answers under the parent, nats per character", [mean(side) for side in each], apart))
    costs = [side.cost() for side in (parent, child)]
    for name in ("tokens_per_forward", "tokens_per_second"):
        rows.append(_row(name.replace("_", " "), [one[name] for one in costs]))
    theirs = cost(library)["tokens_per_second"]
    rows.append(("tokens per second, transformers' generate", _cell(theirs), "", ""))
    for task, found in parent.tasks.items():
        other = child.tasks[task]
        rows += [_row(f"{task}: {name}", (found[name], other[name])) for name in found if name in other]
    speed = costs[1]["tokens_per_second"].value
    factors = (speed / costs[0]["tokens_per_second"].value, speed / theirs.value)
    said = verdict((parent.name, child.name), gap, factors, costs[1]["tokens_per_forward"].value)
    return {
        "parent": parent.name, "child": child.name, "block": child.block, "texts": len(tokens), "verdict": said,
        "speed": factors[0], "speed_against_generate": factors[1], "difference": gap.as_dict(), "table": rows,
        "measures": {
            "parent": {"nll": nll[0].as_dict(), **{name: one.as_dict() for name, one in costs[0].items()},
                       "tokens_per_second_by_generate": theirs.as_dict()},
            "child": {"nll": nll[1].as_dict(), **{name: one.as_dict() for name, one in costs[1].items()}},
        },
    }  # fmt: skip


def _row(name: str, sides: Sequence[Measure], apart: Measure | None = None) -> tuple[str, ...]:
    return name, *map(_cell, sides), "" if apart is None else _cell(apart, "+")


def _cell(one: Measure, sign: str = "") -> str:
    # the row's name says the unit
    if one.unit == "share":
        return one.text()
    value, low, high = (f"{number:{sign}.3g}" for number in (one.value, one.low, one.high))
    return value if one.low == one.high else f"{value} [{low}, {high}]"


def verdict(names: tuple[str, str], gap: Measure, speeds: tuple[float, float], per_forward: float) -> str:
    """One sentence: how fast the child writes beside its parent, by our code and by transformers' generate, and whether
    it predicts these texts worse, better or as well, by the interval of the difference in nats per token."""
    how = "worse" if gap.low > 0 else "better" if gap.high < 0 else "as well, as far as these texts tell"
    return (
        f"{names[1]} writes {speeds[0]:.2f} times the tokens per second of {names[0]} ({per_forward:.2f} tokens per"
        f" forward; {speeds[1]:.2f} times those of transformers' generate) and predicts these {gap.items} texts {how}:"
        f" {gap.value:+.3f} nats per token [{gap.low:+.3f}, {gap.high:+.3f}], a bound against an exact value."
    )


def page_of(report: Mapping[str, Any]) -> str:
    """The page of a report."""
    speeds = [(name, report["measures"][side]["tokens_per_second"]["value"]) for side, name in SIDES]
    generate = report["measures"]["parent"]["tokens_per_second_by_generate"]["value"]
    chart = bars([*speeds, ("parent, transformers", generate)], "tokens/s")
    prose = (
        "95 % intervals over texts. Neither filler nor end tokens are scored. All were asked with the same ids, as"
        f" many at once, in the same dtype, and timed by the same clock. Parent: {report['parent']}. Child:"
        f" {report['child']}, block {report['block']}."
    )
    header = ("", "parent", "child", "difference, text by text")
    sections = [
        Section("Measures", prose, header, report["table"], even=True),
        Section("Speed", "Tokens per second.", charts=[chart]),
        Section(
            "Answers", "The same prompts, as each goes on.",
            header=("prompt", "parent", "child"),
            rows=[(one["prompt"], one["parent"], one["child"]) for one in report["answers"]], even=True,
        ),
    ]  # fmt: skip
    facts = [
        (f"{report['speed']:.2f}x", "the parent's tokens per second, by our code"),
        (f"{report['speed_against_generate']:.2f}x", "those of transformers' generate"),
        (f"{report['difference']['value']:+.3f}", "nats per token, child's bound minus parent's NLL"),
        (str(report["texts"]), "texts"),
    ]
    return page("Parent and child", report["verdict"], facts, sections, "hildanext compare")


def told(report: Mapping[str, Any], console: Console) -> None:
    """The table and the sentence on a console."""
    console.table(report["table"], ("", report["parent"], report["child"], "difference"))
    console.say(report["verdict"])


def answers_told(report: Mapping[str, Any], console: Console, show: int) -> None:
    """The first `show` prompts with both answers on a console."""
    for one in report["answers"][:show]:
        for who, text in (("", one["prompt"]), ("parent", one["parent"]), ("child", one["child"])):
            shown = " ".join(text.split())
            console.say(f"{who}: {shown}" if who else f"> {shown}")
        console.say("")
