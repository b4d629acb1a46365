# A child beside its parent on the same texts and prompts: likelihood, answers, speed on one clock, a sentence, a page.
# Entry points: compare_pair, texts_of, verdict.
# One model is in memory at a time. No filler is scored and no end token: the parent never saw one after these texts.
# The child's number is a bound, the parent's exact; the difference is taken text by text.
"""Comparing a child with its parent."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import torch

from hildanext.config import Config, load_config
from hildanext.core.batches import document_batch
from hildanext.core.likelihood import autoregressive_nll, block_elbo
from hildanext.data.archives import suffix_of
from hildanext.data.chat import prompt_ids
from hildanext.data.document import Document, from_json
from hildanext.data.source import Source
from hildanext.data.tokenizers import begun, tokenizer_hash
from hildanext.decoding.engine import DEFAULT_BLOCK
from hildanext.decoding.prompt import end_ids
from hildanext.decoding.request import Request
from hildanext.errors import DataError, ModelError
from hildanext.measure.generation import ARGenerator, Completion, DiffusionGenerator, Generator
from hildanext.measure.task import EvalContext, Task, cost
from hildanext.models.load import BUNDLED, load_model
from hildanext.progress import Console
from hildanext.registry import build
from hildanext.report.charts import bars
from hildanext.report.intervals import Measure, mean, ratio
from hildanext.report.page import Section, page
from hildanext.run_dir import RunDir, write_atomic

LONGEST, ROWS, SAMPLES, WARM = 1024, 4, 8, 4
SPLITS = {"eval": "eval.jsonl", "sft_eval": "sft_eval.jsonl"}


@dataclass(frozen=True)
class Text:
    """ids: of a whole text; first: the first scored one; prompt: what both models are asked to go on from."""

    ids: tuple[int, ...]
    first: int
    prompt: tuple[int, ...]


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


def compare_pair(
    config: Config, names: tuple[str, str], data: Path | None, limit: int, console: Console, path: Path | None
) -> dict[str, Any]:  # fmt: skip
    """The report on (parent, child): report.json and compare.html in a run directory. data: rows of texts or chats,
    None: what the child's run held out. ModelError where their tokenizers differ, or the child is no conversion."""
    documents = list(islice(texts_of(names[1], data), limit))
    if not documents:
        raise DataError(f"compare: no texts in {data or 'what the run held out'}; give --data FILE with some")
    run = RunDir.create(config, "compare", path)
    with run.running(console):
        child, texts, known = _child(config, names[1], documents, console)
        parent, judged = _parent(config, names[0], texts, known, child.answers, console)
        report = _report(parent, child, judged)
        report["answers"] = [
            {"prompt": str(known.decode(list(one.prompt))), "parent": a.text, "child": b.text}
            for one, a, b in zip(texts, parent.answers, child.answers, strict=True)
        ]
        run.write_json("report.json", report)
        write_atomic(run.path / "compare.html", _page(report, parent, child))
    console.table(report["table"], ("", parent.name, child.name, "difference"))
    console.say(report["verdict"])
    console.say(f"page: {run.path / 'compare.html'}")
    return {**report, "run": str(run.path), "page": str(run.path / "compare.html")}


def texts_of(child: str, data: Path | None) -> Iterator[Document]:
    """The documents of a file or folder, or of the evaluation split of the run that wrote the child. DataError where
    there is neither."""
    if data is not None:
        kind = "tinystories" if suffix_of(data) == ".txt" else "jsonl"
        source: Source = build("sources", {"type": kind, "path": str(data)}, "--data")
        yield from (one for unit in source.units() for one in source.read(unit) if isinstance(one, Document))
        return
    place = Path(child).expanduser()
    if child not in BUNDLED and not place.exists():
        raise DataError(f"compare: the child {child} is not there; give a model folder, a run or a bundled name")
    run = place if (place / "status.json").is_file() else place.parent
    if not (run / "status.json").is_file() or not (run / "config.json").is_file():
        raise DataError(f"compare: {child} lies in no run that held texts out; give --data FILE")
    own = load_config(run / "config.json")
    held = Path(own.paths.data) / "processed" / own.data.name / SPLITS.get(own.train.eval_split, "")
    if own.train.data or not held.is_file():
        raise DataError(f"compare: the texts that {run} held out are not here ({held}); give --data FILE")
    with held.open(encoding="utf-8") as lines:
        yield from map(from_json, lines)


def _text(document: Document, tokenizer: Any, start: Sequence[int] | None, longest: int) -> Text | None:
    replies = [i for i, turn in enumerate(document.messages or ()) if turn["role"] == "assistant" and turn["content"]]
    if document.messages is not None:
        if not replies or not replies[-1]:
            return None
        head = prompt_ids(tokenizer, None, document.messages[: replies[-1]], start)
        said = tokenizer(document.messages[replies[-1]]["content"], add_special_tokens=False)["input_ids"]
        found = Text((*head, *said)[:longest], len(head), tuple(head))
    else:
        ids = list(document.tokens or tokenizer(document.text, add_special_tokens=False)["input_ids"])
        ids = begun(ids, tokenizer, start)[:longest]
        found = Text(tuple(ids), 0, tuple(ids[: max(4, len(ids) // 4)]))
    return found if len(found.ids) > max(1, found.first) and len(found.prompt) < longest else None


def _child(config: Config, name: str, documents: Sequence[Document], console: Console) -> tuple[Side, list[Text], Any]:
    loaded = load_model(config.model.model_copy(update={"path": name}), console)
    if loaded.meta.block is None:
        raise ModelError(
            f"compare: {name} was never converted to block diffusion; name the parent first, then the child"
        )
    block = config.decode.block or loaded.meta.block or DEFAULT_BLOCK
    longest = min(LONGEST, loaded.denoiser.window or LONGEST) // block * block
    new = config.decode.max_new_tokens
    found = [_text(one, loaded.tokenizer, loaded.meta.document_start, longest) for one in documents]
    texts = [one for one in found if one is not None and len(one.prompt) + new <= longest]
    if not texts:
        raise DataError(
            f"compare: none of {len(documents)} texts can be used: each needs something to predict, and its prompt with"
            f" decode.max_new_tokens={new} must fit {longest} positions"
        )
    rng = torch.Generator().manual_seed(config.seed)
    scores = [
        pair
        for batch in _batches(texts, loaded, block)
        for pair in block_elbo(loaded.denoiser, batch, block, rng, SAMPLES).documents
    ]
    answers = _answers(DiffusionGenerator(loaded, config.decode), texts)
    return Side(name, block, scores, answers, _tasks(loaded, config, console)), texts, loaded.tokenizer


def _parent(
    config: Config, name: str, texts: Sequence[Text], known: Any, others: Sequence[Completion], console: Console
) -> tuple[Side, list[list[tuple[float, int]]]]:
    # the parent is read as it was trained; what a config says of the child's mask and shift is not its
    asked = {"path": name, "mask_id": None, "shift": "auto", "block_grid": "auto"}
    loaded = load_model(config.model.model_copy(update=asked), console)
    if tokenizer_hash(loaded.tokenizer) != tokenizer_hash(known):
        raise ModelError(f"compare: {name} has another tokenizer than the child; name the parent it was converted from")
    scores = [
        pair for batch in _batches(texts, loaded, 1) for pair in autoregressive_nll(loaded.denoiser, batch).documents
    ]
    own = _answers(ARGenerator(loaded, config.decode), texts)
    ends = end_ids(Request(prompt=""), loaded.tokenizer, loaded.denoiser.end_ids)
    judged = [
        [_judged(loaded, text, one, ends) for text, one in zip(texts, side, strict=True)] for side in (own, others)
    ]
    return Side(name, 1, scores, own, _tasks(loaded, config, console)), judged


def _batches(texts: Sequence[Text], loaded: Any, block: int) -> Iterator[Any]:
    pad = int(loaded.tokenizer.eos_token_id)
    for start in range(0, len(texts), ROWS):
        rows = [(text.ids, text.first) for text in texts[start : start + ROWS]]
        yield document_batch(rows, pad, block).to(loaded.device)


def _answers(generator: Generator, texts: Sequence[Text]) -> list[Completion]:
    requests = [Request(prompt_ids=text.prompt, seed=0) for text in texts]
    generator.complete([request.model_copy(update={"max_new_tokens": WARM}) for request in requests[:1]])
    return generator.complete(requests)


def _judged(loaded: Any, text: Text, answer: Completion, ends: Collection[int]) -> tuple[float, int]:
    said = [one for one in answer.ids if one not in ends]
    if not said:
        return 0.0, 0
    batch = document_batch([((*text.prompt, *said), len(text.prompt))], int(loaded.tokenizer.eos_token_id))
    return float(autoregressive_nll(loaded.denoiser, batch.to(loaded.device)).nats), len(answer.text)


def _tasks(loaded: Any, config: Config, console: Console) -> dict[str, Mapping[str, Measure]]:
    if "tasks" not in config.eval.model_fields_set:
        return {}
    tasks: list[Task] = [build("tasks", section, "eval.tasks") for section in config.eval.tasks]
    context = EvalContext.of(loaded, config, console)
    names = [section.type for section in config.eval.tasks]
    return {name: task.run(context).measures for name, task in zip(names, tasks, strict=True)}


def _report(parent: Side, child: Side, judged: Sequence[Sequence[tuple[float, int]]]) -> dict[str, Any]:
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
    for task, found in parent.tasks.items():
        theirs = child.tasks[task]
        rows += [_row(f"{task}: {name}", (found[name], theirs[name])) for name in found if name in theirs]
    factor = costs[1]["tokens_per_second"].value / costs[0]["tokens_per_second"].value
    said = verdict((parent.name, child.name), gap, factor, costs[1]["tokens_per_forward"].value)
    return {
        "parent": parent.name, "child": child.name, "block": child.block, "texts": len(tokens), "verdict": said,
        "speed": factor, "difference": gap.as_dict(), "table": rows,
        "measures": {
            "parent": {"nll": nll[0].as_dict(), **{name: one.as_dict() for name, one in costs[0].items()}},
            "child": {"nll": nll[1].as_dict(), **{name: one.as_dict() for name, one in costs[1].items()}},
        },
    }  # fmt: skip


def _row(name: str, sides: Sequence[Measure], apart: Measure | None = None) -> tuple[str, ...]:
    return name, *(side.text() for side in sides), "" if apart is None else apart.text()


def verdict(names: tuple[str, str], gap: Measure, speed: float, per_forward: float) -> str:
    """One sentence: how fast the child writes beside its parent, and whether it predicts these texts worse, better or
    as well, by the interval of the difference in nats per token."""
    how = "worse" if gap.low > 0 else "better" if gap.high < 0 else "as well, as far as these texts tell"
    return (
        f"{names[1]} writes {speed:.2f} times the tokens per second of {names[0]} ({per_forward:.2f} tokens per"
        f" forward) and predicts these {gap.items} texts {how}: {gap.value:+.3f} nats per token [{gap.low:+.3f},"
        f" {gap.high:+.3f}], a bound against an exact value."
    )


def _page(report: Mapping[str, Any], parent: Side, child: Side) -> str:
    header = ("", "parent", "child", "difference, text by text")
    speeds = [(side.name, side.cost()["tokens_per_second"].value) for side in (parent, child)]
    prose = (
        "95 % intervals over texts. Neither filler nor end tokens are scored. Both were asked with the same ids, as"
        " many at once, and timed by the same clock."
    )
    answers = [(one["prompt"], one["parent"], one["child"]) for one in report["answers"]]
    sections = [
        Section("Measures", prose, header, report["table"], [bars(speeds, "tokens/s")], wide=True),
        Section("Answers", "The same prompts, as each goes on.", ("prompt", "parent", "child"), answers),
    ]
    facts = [
        (f"{report['speed']:.2f}x", "tokens per second"),
        (f"{report['difference']['value']:+.3f}", "nats per token, child's bound minus parent's NLL"),
        (str(report["texts"]), "texts"),
    ]
    return page("Parent and child", report["verdict"], facts, sections, "hildanext compare")
