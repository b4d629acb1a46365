# A parent's answers to a file of prompts, as chat rows that prepare-data and sft read.
# Entry points: answer (what the command does), keep_prompts.
# Answers are journalled as they end (answer_journal.py); the file is written from the journal, in the order of the
# prompts, when all are there or the run is stopped, so that it never holds half a row.
"""Answering prompts."""

from __future__ import annotations

import hashlib
import json
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hildanext.config import Config
from hildanext.config.decode import FRESH
from hildanext.data.chat import generation_prompt
from hildanext.data.prompt_writer import write_prompts
from hildanext.data.prompts import Prompt, PromptSet, read_prompts
from hildanext.data.template import ChatRefused, end_of_turn
from hildanext.decoding.statistics import Sampling
from hildanext.decoding.text import TextStream
from hildanext.disk import fingerprints, write_atomic
from hildanext.errors import ConfigError, DataError, Interrupted
from hildanext.measure.answer_journal import Answered, Journal
from hildanext.measure.generation import window_of
from hildanext.measure.left_to_right import Row, continued
from hildanext.models.load import Loaded, load_model, name_of
from hildanext.progress import Console

NO_WEIGHTS = ("README.md",)
Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class _Asked:
    """One answer that is wanted: the prompt with its ids, which sample of it, and whether that is the greedy one."""

    prompt: Prompt
    ids: tuple[int, ...]
    sample: int
    greedy: bool

    @property
    def key(self) -> tuple[str, int, bool]:
        return self.prompt.key, self.sample, self.greedy


def answer(config: Config, console: Console, progress: Progress | None = None) -> dict[str, Any]:
    """Answer the prompts of answer.path with the model of model.path, read left to right, into answer.output; returns
    the counts. What an earlier run with these settings answered is not asked again. progress(answered, wanted) is told.
    DataError, ConfigError before the model is loaded where they can be; Interrupted by a signal, with all kept."""
    settings = config.answer
    if settings.samples > 1 and not config.decode.temperature:
        raise ConfigError(
            f"answer.samples: {settings.samples} answers at temperature 0 are the same text; give --temperature"
        )
    if config.decode.temperature and config.decode.seed == FRESH:
        raise ConfigError("decode.seed: -1 draws anew each time, and nothing could be gone on with; give a seed")
    asked = read_prompts(settings.path, settings.field, settings.limit)
    for reason, count in asked.skipped.items():
        console.warn(f"{settings.path}: {count:,} of {asked.read:,} rows left out: {reason}")
    loaded = load_model(config.model, console)
    if loaded.path is None:
        raise ConfigError("answer: model.path new has nothing to say; give a model folder")
    if loaded.meta.block:
        console.warn(f"model {config.model.path}: a conversion wrote it; read left to right it is not its AR parent")
    output = Path(settings.output or Path(config.paths.data) / "raw" / "answers" / f"{name_of(loaded.path)}.jsonl")
    if output.is_dir():
        raise ConfigError(f"answer.output: {output} is a folder; name a file")
    wanted, refused = _wanted(asked, loaded, config)
    with closing(Journal.open(output, _deciding(config, loaded))) as journal:
        if journal.damaged:
            console.warn(f"{journal.path}: {journal.damaged} damaged lines left out; their answers are written again")
        report = _Report(asked, wanted, refused, journal, config)
        try:
            report.seconds = _give(wanted, journal, loaded, config, _Shown(console, progress))
        except KeyboardInterrupt:
            done = report.write(output, name_of(loaded.path))["answered"]
            raise Interrupted(
                f"{output}: stopped with {done:,} of {len(wanted):,} answered; the same command goes on"
            ) from None
        found = report.write(output, name_of(loaded.path))
    if found["answered"] and not found["written"]:
        raise DataError(
            f"{output}: nothing to train on, {_summary(found)}; take the answers as they are with --unfinished keep,"
            " or have longer ones with more --max-new-tokens and another --out"
        )
    console.say(f"{output}: {_summary(found)}")
    return found


@dataclass
class _Shown:
    console: Console
    progress: Progress | None


def _deciding(config: Config, loaded: Loaded) -> dict[str, Any]:
    assert loaded.path is not None
    files = fingerprints(loaded.path, NO_WEIGHTS)
    digest = hashlib.sha256(json.dumps({name: file["sha256"] for name, file in files.items()}).encode())
    names = ("temperature", "top_k", "top_p", "max_new_tokens", "seed", "thinking", "window")
    values = {name: getattr(config.decode, name) for name in names}
    return {"model": digest.hexdigest()[:16], "dtype": str(loaded.dtype), **values}


def _wanted(asked: PromptSet, loaded: Loaded, config: Config) -> tuple[list[_Asked], Counter[str]]:
    """Every answer that is to be there, in the order of the file, and why prompts get none."""
    window, refused, found = window_of(loaded.denoiser, config.decode), Counter[str](), list[_Asked]()
    for prompt in asked.prompts:
        try:
            ids = tuple(generation_prompt(prompt.messages, loaded.tokenizer, config.decode.thinking))
        except ChatRefused:
            refused["refused by the chat template"] += 1
            continue
        if window and len(ids) >= window:
            refused["longer than the window"] += 1
            continue
        for sample in range(config.answer.samples):
            greedy = not config.decode.temperature or (config.answer.greedy and sample == 0)
            found.append(_Asked(prompt, ids, sample, greedy))
    if not found:
        raise DataError(f"{config.answer.path}: no prompt can be asked ({dict(refused)}); give others")
    return found, refused


def _give(wanted: Sequence[_Asked], journal: Journal, loaded: Loaded, config: Config, shown: _Shown) -> float:
    """Answer what is missing, prompts of similar length together, and return the seconds it took."""
    missing = [one for one in wanted if not journal.has(*one.key)]
    started, decode, tokens = time.monotonic(), config.decode, 0
    drawn, at_once = Sampling(decode.temperature, decode.top_k, decode.top_p), _at_once(missing, loaded, config)
    if at_once < decode.requests:
        shown.console.warn(f"{at_once} answers at once, not {decode.requests}: decode.kv_bytes has room for no more")
    with shown.console.bar("answer", len(wanted)) as bar:
        bar.advance(len(wanted) - len(missing))
        for greedy, sampling in ((True, Sampling()), (False, drawn)):
            pairs = [(_row(one, loaded, config), one) for one in missing if one.greedy == greedy]
            pairs.sort(key=lambda pair: (len(pair[1].ids), pair[1].ids))
            whose = {id(row): one for row, one in pairs}
            for row in continued(loaded.denoiser, [row for row, _ in pairs], sampling, at_once):
                journal.add(Answered(*whose[id(row)].key, row.text.text, row.written, row.finish))
                tokens += row.written
                bar.advance(tokens_per_second=tokens / max(1e-9, time.monotonic() - started))
                if shown.progress:
                    shown.progress(int(bar.done), len(wanted))
    return time.monotonic() - started


def _at_once(missing: Sequence[_Asked], loaded: Loaded, config: Config) -> int:
    longest = max((len(one.ids) for one in missing), default=0) + config.decode.max_new_tokens
    room = config.decode.kv_bytes // max(1, loaded.denoiser.state_bytes(longest))
    return max(1, min(config.decode.requests, room))


def _row(one: _Asked, loaded: Loaded, config: Config) -> Row:
    tokenizer, denoiser = loaded.tokenizer, loaded.denoiser
    ends = denoiser.end_ids | {int(tokenizer.eos_token_id), end_of_turn(tokenizer).id}
    window, new = window_of(denoiser, config.decode), config.decode.max_new_tokens
    room = min(new, window - len(one.ids)) if window else new
    return Row(one.ids, TextStream(tokenizer, one.ids, (), ends), ends, room, config.decode.seed, one.sample)


@dataclass
class _Report:
    asked: PromptSet
    wanted: Sequence[_Asked]
    refused: Counter[str]
    journal: Journal
    config: Config
    seconds: float = 0.0

    def write(self, output: Path, model: str) -> dict[str, Any]:
        """Write the rows there are and count everything: answered = written + dropped, wanted = answered + missing."""
        counts: Counter[str] = Counter()
        lines = [json.dumps(row, ensure_ascii=False) for row in self._rows(model, counts)]
        write_atomic(output, "".join(f"{line}\n" for line in lines).encode("utf-8", "replace"))
        answered = sum(self.journal.has(*one.key) for one in self.wanted)
        new, dropped = len(self.journal.answers) - self.journal.resumed, +self.dropped(counts)
        return {
            "output": str(output),
            "prompts": {"read": self.asked.read, "skipped": dict(self.asked.skipped), "refused": dict(self.refused),
                        "asked": len({one.prompt.key for one in self.wanted})},
            "wanted": len(self.wanted), "answered": answered, "new": new,
            "written": len(lines), "dropped": dict(dropped),
            "finished": counts["finished"], "unfinished": counts["unfinished"], "tokens": counts["tokens"],
            "seconds": self.seconds,
        }  # fmt: skip

    def dropped(self, counts: Counter[str]) -> Counter[str]:
        """Answers that are no rows, by reason."""
        unfinished = counts["unfinished"] if self.config.answer.unfinished == "drop" else 0
        return Counter({"unfinished": unfinished, "empty": counts["empty"]})

    def _rows(self, model: str, counts: Counter[str]) -> Iterator[dict[str, Any]]:
        for one in self.wanted:
            given = self.journal.answers.get(one.key)
            if given is None:
                continue
            counts["tokens"] += given.tokens
            if not given.text.strip():
                counts["empty"] += 1
                continue
            finished = given.finish == "eos"
            counts["finished" if finished else "unfinished"] += 1
            if finished or self.config.answer.unfinished == "keep":
                yield _chat_row(one, given, model)


def _chat_row(one: _Asked, given: Answered, model: str) -> dict[str, Any]:
    identity = one.prompt.id if one.sample == 0 else f"{one.prompt.id}#{one.sample}"
    about = {"finished": given.finish == "eos", "tokens": given.tokens, "greedy": given.greedy, "model": model}
    reply: dict[str, Any] = {"role": "assistant", "content": given.text}
    if given.finish == "length":
        reply["finished"] = False
    messages = [*one.prompt.messages, reply]
    return {"id": identity, "messages": messages, "metadata": about}


def _summary(found: dict[str, Any]) -> str:
    dropped = ", ".join(f"{reason} {count:,}" for reason, count in found["dropped"].items())
    speed = f"; {found['new']:,} new in {found['seconds']:.0f} s" if found["new"] else "; nothing was left to answer"
    return (
        f"{found['written']:,} rows from {found['answered']:,} answers to {found['prompts']['asked']:,} prompts"
        f" ({found['finished']:,} finished, {found['unfinished']:,} not); dropped: {dropped or 'none'}{speed}"
    )


def keep_prompts(config: Config, console: Console) -> dict[str, Any]:
    """Write answer.write prompts of our own to answer.output, as rows with `prompt`; the same ones for the same seed.
    A file that holds something else is not replaced."""
    settings = config.answer
    output = Path(settings.output or Path(config.paths.data) / "raw" / "prompts.jsonl")
    written = write_prompts(settings.write, config.seed, settings.held_out)
    part = "held-out" if settings.held_out else "ask"
    rows = [
        {"id": f"{part}-{config.seed}-{number}", "prompt": one.text, "metadata": {"kind": one.kind}}
        for number, one in enumerate(written, 1)
    ]
    text = "".join(json.dumps(row) + "\n" for row in rows)
    if output.exists() and (output.is_dir() or output.read_bytes() != text.encode()):
        raise DataError(f"{output}: something else stands there; name another --out")
    write_atomic(output, text)
    kinds = Counter(one.kind for one in written)
    console.say(
        f"{output}: {len(written):,} prompts ({', '.join(f'{kind} {count:,}' for kind, count in kinds.items())})"
    )
    return {"output": str(output), "prompts": len(written), "kinds": dict(kinds), "held_out": settings.held_out}
