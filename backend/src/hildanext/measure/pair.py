# A child beside its parent on the same texts and prompts: likelihood, answers, speed on one clock, a sentence, a page.
# Entry points: compare_pair, texts_of.
# One model is in memory at a time. No filler is scored and no end token: the parent never saw one after these texts.
# The child's number is a bound, the parent's exact; the difference is taken text by text.
"""Comparing a child with its parent."""

from __future__ import annotations

import hashlib
import json
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
from hildanext.disk import fingerprints
from hildanext.errors import DataError, ModelError
from hildanext.measure.generation import ARGenerator, Completion, DiffusionGenerator, Generator, TransformersGenerator
from hildanext.measure.pair_report import Side, page_of, report_of, told
from hildanext.measure.task import EvalContext, Task
from hildanext.models.load import BUNDLED, load_model, model_folder
from hildanext.progress import Console
from hildanext.registry import build
from hildanext.report.intervals import Measure
from hildanext.run_dir import RunDir, write_atomic

LONGEST, ROWS, SAMPLES, WARM = 1024, 4, 8, 4
SPLITS = {"eval": "eval.jsonl", "sft_eval": "sft_eval.jsonl"}


@dataclass(frozen=True)
class Text:
    """ids: of a whole text; first: the first scored one; prompt: what both models are asked to go on from; said: the
    last turn of a chat, for a reader."""

    ids: tuple[int, ...]
    first: int
    prompt: tuple[int, ...]
    said: str = ""


def compare_pair(
    config: Config, names: tuple[str, str], data: Path | None, limit: int, console: Console, path: Path | None
) -> dict[str, Any]:  # fmt: skip
    """The report on (parent, child): report.json and compare.html in a run directory. data: rows of texts or chats,
    None: what the child's run held out. In a run that holds the report on just this nothing is measured again.
    ModelError where their tokenizers differ, or the child is no conversion."""
    documents = list(islice(texts_of(names[1], data), limit))
    if not documents:
        raise DataError(f"compare: no texts in {data or 'what the run held out'}; give --data FILE with some")
    asked = _asked(config, names, documents)
    if path is not None and (earlier := _earlier(path, asked)):
        told(earlier, console)
        console.say(f"compared before, in {path}; another --run-dir measures again")
        return earlier
    run = RunDir.create(config, "compare", path)
    with run.running(console):
        child, texts, known = _child(config, names[1], documents, console)
        parent, judged, library = _parent(config, names[0], texts, known, child.answers, console)
        report = report_of(parent, child, judged, library) | {"asked": asked, "run": str(run.path)}
        report["page"] = str(run.path / "compare.html")
        report["answers"] = [
            {"prompt": _shown(known, one), "parent": a.text, "child": b.text}
            for one, a, b in zip(texts, parent.answers, child.answers, strict=True)
        ]
        run.write_json("report.json", report)
        write_atomic(run.path / "compare.html", page_of(report))
    told(report, console)
    console.say(f"page: {run.path / 'compare.html'}")
    return report


def _shown(tokenizer: Any, text: Text) -> str:
    return text.said or str(tokenizer.decode(list(text.prompt)))


def _asked(config: Config, names: tuple[str, str], documents: Sequence[Document]) -> str:
    files = [fingerprints(model_folder(name)) for name in names]
    said = [one.messages or one.text for one in documents]
    parts = [config.model.model_dump(mode="json"), config.decode.model_dump(mode="json"), config.seed, files, said]
    parts.append(config.eval.model_dump(mode="json") if "tasks" in config.eval.model_fields_set else None)
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()


def _earlier(path: Path, asked: str) -> dict[str, Any] | None:
    try:
        found = json.loads((path / "report.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) and found.get("asked") == asked else None


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
        asked = str(document.messages[replies[-1] - 1]["content"])
        found = Text((*head, *said)[:longest], len(head), tuple(head), asked)
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
    alone = config.decode.model_copy(update={"prefix_bytes": 0})  # the other side keeps no beginnings either
    answers = _answers(DiffusionGenerator(loaded, alone), texts)
    return Side(name, block, scores, answers, _tasks(loaded, config, console)), texts, loaded.tokenizer


def _parent(
    config: Config, name: str, texts: Sequence[Text], known: Any, others: Sequence[Completion], console: Console
) -> tuple[Side, list[list[tuple[float, int]]], list[Completion]]:
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
    library = _answers(TransformersGenerator(loaded, config.decode), texts)
    return Side(name, 1, scores, own, _tasks(loaded, config, console)), judged, library


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
