# A trained model beside every way of reading its AR parent left to right: speed in turns, and what the texts are worth.
# Entry points: contest, race, speed, verdict, show.
# The baselines are transformers' generate, our own cache, our engine at block 1, and llama.cpp on the GGUF files given;
# the model decodes by PyTorch in each precision, by onnxruntime and by llama.cpp, in its modes or by unjudged scripts.
# All go on from the same ids, greedily, to the end of the text, with the same number of threads. The variants of one
# precision take turns, llama.cpp in each.
"""The contest of the decoding benchmark."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from typing import Any, Literal

import torch

from hildanext.bench.decoding.asks import Ask, asks_for, parent_of, read_as
from hildanext.bench.decoding.llamacpp import HOW, LlamaCpp, runtime
from hildanext.bench.decoding.quality import Quality
from hildanext.bench.decoding.readers import (
    ByBlocks,
    Generate,
    Gguf,
    LeftToRight,
    Reader,
    Reading,
    exact_engine,
    shifted,
)
from hildanext.bench.decoding.timing import script
from hildanext.config import Config
from hildanext.config.bench import DecodeBenchConfig
from hildanext.decoding.modes import mode_values
from hildanext.engines.transformers import NativeSession
from hildanext.errors import HildaError, RunError
from hildanext.models.denoiser import network
from hildanext.models.quantise import int8
from hildanext.progress import Console
from hildanext.registry import build

WARM = 4
SCRIPTED = "scripts fill so many masks a forward, whatever the weights say: speeds alone, and no text is judged"
COLUMNS = ("tokens/s", "of the best AR", "TPF", "equal", "token F1", "nats/token", "repetition", "valid")


@dataclass
class Variant:
    """One way to continue the prompts. rounds: what each interleaved round gave, prompt by prompt."""

    kind: Literal["model", "baseline"]
    setting: Mapping[str, Any]
    rounds: list[list[Reading]] = field(default_factory=list)

    def report(self, quality: Quality | None) -> dict[str, Any]:
        """Median tokens/s of the rounds, each round's, and the quality of the texts of the first one, if any."""
        first, speeds = self.rounds[0], [speed(one) for one in self.rounds]
        tokens, forwards = sum(len(one.ids) for one in first), sum(one.forwards for one in first)
        return {
            "kind": self.kind, "setting": dict(self.setting), "tokens_per_second": statistics.median(speeds),
            "rounds": speeds, "tokens": tokens, "tokens_per_forward": tokens / forwards if forwards else None,
            **(quality.of_texts([one.ids for one in first]) if quality else {}),
        }  # fmt: skip


def contest(config: Config, console: Console) -> dict[str, Any]:
    """The report: variants with speed and quality, the fastest of the model (None where no conversion wrote it), the
    fastest baseline, notes on what could not take part. RunError where a GGUF file was named and cannot be read."""
    bench, where = config.bench.decode, parent_of(config, config.bench.decode.parent)
    parent = read_as(config, where, "float32", console)
    asks = asks_for(parent, bench.prompts, bench.texts)
    quality = None if bench.scripted else Quality.of(parent, asks, bench.text_tokens)
    asks = [ask.sized(bench.prompt_tokens) for ask in asks] if bench.scripted else asks
    del parent
    variants: dict[str, Variant] = {}
    notes = [] if where else ["no parent is named (bench.decode.parent): the model's own weights stand in for it"]
    with ExitStack() as opened:
        others, said = _exports(config, console, opened)
        others, notes = others | _files(config, asks, opened), notes + said
        for precision in bench.precisions:
            readers, said = _readers(config, where, precision, console)
            console.say(f"contest, {precision}: {len(readers) + len(others)} variants, {len(asks)} texts")
            notes += said
            _turns(variants, readers | others, asks, config, console)
    rows = {name: variant.report(quality) for name, variant in variants.items()}
    return {
        "parent": where or config.model.path, "prompts": [ask.text for ask in asks],
        "measures": quality.about if quality else SCRIPTED,
        "threads": torch.get_num_threads(), "clock": bench.clock, "variants": rows, "notes": notes,
        "parents_own": quality.own() if quality else None, **verdict(rows),
    }  # fmt: skip


Readers = dict[str, tuple[Variant, Reader]]


def _files(config: Config, asks: Sequence[Ask], opened: ExitStack) -> Readers:
    bench, threads = config.bench.decode, torch.get_num_threads()
    how = runtime(bench.node)
    if bench.gguf and how is None:
        raise RunError(f"bench.decode.gguf: llama.cpp is not here; {HOW}; or leave the files out")
    window, found = max(len(ask.ids) for ask in asks) + bench.text_tokens + 8, Readers()
    for file in map(Path, bench.gguf):
        assert how is not None
        process = opened.enter_context(LlamaCpp.open(how, file, window, threads, bench.clock))
        found[f"AR, llama.cpp, {file.stem}"] = Variant("baseline", {"engine": how.name}), Gguf(process)
    return found


def _exports(config: Config, console: Console, opened: ExitStack) -> tuple[Readers, list[str]]:
    found, notes = Readers(), []
    bench = config.bench.decode
    wanted = [("onnx", {"weights": one}) for one in bench.onnx] + [
        ("llamacpp", {"stored": one}) for one in bench.llamacpp
    ]
    for engine, fields in wanted:
        (dtype,), section = fields.values(), {"type": engine, **fields, "export": True}
        opening = build("engines", section, f"bench.decode.{engine}").open(config, console)
        if not opening.capability.ok:
            notes.append(f"{engine}, {dtype} took no part: {'; '.join(opening.capability.reasons)}")
            continue
        opened.callback(opening.session.close)
        found |= _blocks(config, opening.session, dtype)
    return found, notes


def _blocks(config: Config, session: NativeSession, dtype: str) -> Readers:
    found, bench = Readers(), config.bench.decode
    own = "" if session.name == "transformers" else f", {session.name}"
    for setting, fields in _scripts(bench) if bench.scripted else _modes(config, session):
        how = setting.get("mode") or f"scripted {setting['scripted']} per forward"
        said = setting | {"dtype": dtype, "threads": torch.get_num_threads(), "engine": session.name}
        reader = ByBlocks(session, fields, bench.clock)
        found[f"{how}, block {setting['block']}, {dtype}{own}"] = Variant("model", said), reader
    return found


Ways = Iterator[tuple[dict[str, Any], dict[str, Any]]]


def _modes(config: Config, session: NativeSession) -> Ways:
    for mode in config.decode.modes:
        window = mode_values(mode, config.decode, session.loaded.meta.decode).get("window_blocks", 1)
        yield {"mode": mode, "block": session.engine.block, "window": window}, {"mode": mode}


def _scripts(bench: DecodeBenchConfig) -> Ways:
    for block, count in product(bench.blocks, bench.scripted):
        fields = {"block": block, "window_blocks": 1, "ignore_eos": True, **script(block, count)}
        yield {"scripted": count, "block": block, "window": 1}, fields


def _readers(config: Config, where: str, precision: str, console: Console) -> tuple[Readers, list[str]]:
    bench, found = config.bench.decode, Readers()
    parent, child = (read_as(config, path, precision, console) for path in (where, ""))

    def baseline(name: str, reader: Reader) -> None:
        found[f"AR, {name}, {precision}"] = Variant("baseline", {"engine": name, "dtype": precision}), reader

    try:
        if precision == "int8":  # the head that our own cache multiplies by would be expanded at every token
            baseline("transformers generate", Generate(network(int8(shifted(parent, "none")).denoiser), bench.clock))
            child = int8(child)
        else:
            baseline("transformers generate", Generate(network(parent.denoiser), bench.clock))
            baseline("our own cache", LeftToRight(parent, bench.clock))
            baseline("our engine at block 1", exact_engine(parent, config))
    except HildaError as error:
        return found, [f"{config.model.path} in int8 took no part: {error}"]
    if child.meta.block is None:
        return found, [f"{config.model.path}: no conversion wrote it; it is read left to right alone"]
    session = NativeSession("transformers", child, config)
    return found | _blocks(config, session, precision), []


def _turns(
    variants: dict[str, Variant], readers: Readers, asks: Sequence[Ask], config: Config, console: Console
) -> None:
    bench = config.bench.decode
    found = race(
        {name: reader for name, (_, reader) in readers.items()}, asks, bench.text_tokens, bench.repeats, console
    )
    for name, rounds in found.items():
        variants.setdefault(name, readers[name][0]).rounds += rounds


def race(
    readers: Mapping[str, Reader], asks: Sequence[Ask], new: int, rounds: int, console: Console
) -> dict[str, list[list[Reading]]]:
    """What each gave, by round and prompt: in every round, for every prompt, all take their turn, after a warm-up."""
    for reader in readers.values():
        reader.read(asks[0], min(new, WARM))
    found: dict[str, list[list[Reading]]] = {name: [[] for _ in range(rounds)] for name in readers}
    with console.bar("contest", rounds * len(asks) * len(readers)) as bar:
        for turn in range(rounds):
            for ask in asks:
                for name, reader in readers.items():
                    found[name][turn].append(reader.read(ask, new))
                    bar.advance()
    return found


def speed(readings: Sequence[Reading]) -> float:
    """Tokens of all texts over the seconds of all, tokens/s."""
    return sum(len(one.ids) for one in readings) / max(1e-9, sum(one.seconds for one in readings))


def verdict(rows: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """best: name of the fastest baseline; fastest: of the fastest variant of the model, None where it has none; times:
    its tokens/s as a multiple of each baseline's."""
    speeds = {
        kind: {name: row["tokens_per_second"] for name, row in rows.items() if row["kind"] == kind}
        for kind in ("model", "baseline")
    }
    best = max(speeds["baseline"], key=speeds["baseline"].__getitem__)
    fastest = max(speeds["model"], key=speeds["model"].__getitem__, default=None)
    own = speeds["model"][fastest] if fastest else 0.0
    times = {name: own / value for name, value in speeds["baseline"].items()} if fastest else {}
    return {"best": best, "fastest": fastest, "times": times}


def show(found: Mapping[str, Any], console: Console) -> None:
    """The table, the notes, which baselines are beaten and by how much, and the one line that answers."""
    rows, best = found["variants"], found["variants"][found["best"]]["tokens_per_second"]
    table = [(name, *_cells(row, row["tokens_per_second"] / best)) for name, row in rows.items()]
    if own := found["parents_own"]:
        table.append(("the parent's own greedy texts, float32", *_cells({**own, "tokens_per_second": None}, None)))
    console.table(table, (f"contest on {len(found['prompts'])} texts", *COLUMNS))
    console.say(f"{found['measures']}; {found['clock']} seconds, {found['threads']} threads, medians of turns")
    for note in found["notes"]:
        console.say(note)
    for name, times in found["times"].items():
        console.say(f"{'beats' if times > 1 else 'does not beat'} {name}: {times:.2f} times its tokens/s")
    console.say(answer(found))


def _cells(row: Mapping[str, Any], share: float | None) -> tuple[str, ...]:
    names = ("tokens_per_forward", "equal", "token_f1", "nats", "repetition", "valid")
    speeds = (_number(row["tokens_per_second"], 1), _number(share, 2))
    return (*speeds, *(_number(row.get(name), 2) for name in names))


def _number(value: float | None, digits: int) -> str:
    return "" if value is None else f"{value:.{digits}f}"


def answer(found: Mapping[str, Any]) -> str:
    """One line: the fastest setting and how it stands to the best AR baseline."""
    best = f"{found['best']}, {found['variants'][found['best']]['tokens_per_second']:.1f} tokens/s"
    if found["fastest"] is None:
        return f"fastest here: reading left to right, {best}; the model has no block decoder of its own"
    setting = said(found["variants"][found["fastest"]]["setting"])
    times = found["times"][found["best"]]
    return (
        f"fastest setting on this machine: {setting}; {times:.2f} times the best AR baseline ({best})"
        f"{'' if times > 1 else '; left to right is faster here'}"
    )


def said(setting: Mapping[str, Any]) -> str:
    """A setting in words: mode, block, window, dtype, threads, engine."""
    alone = {"mode": "{}", "dtype": "{}"}
    return ", ".join(alone.get(name, name + " {}").format(value) for name, value in setting.items())
