# tokenize: processed JSON lines -> shards of packed rows, one folder per split, and a manifest that reconciles.
# Entry points: tokenize(config, console), filled_to.
# The tokenizer is saved beside the shards; the folder is swapped in at the end, the previous one stays until then.
"""Tokenising a prepared set."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hildanext.config import Config
from hildanext.config.data import TokenizeConfig
from hildanext.data.encode_split import SplitEncoder
from hildanext.data.encode_units import Parts, encoded
from hildanext.data.prepare import FILES
from hildanext.data.storage import fetched, joined, mirror, written
from hildanext.data.template import end_of_turn
from hildanext.data.tokenizers import load_tokenizer, storyworld_tokenizer, tokenizer_hash
from hildanext.disk import write_atomic
from hildanext.errors import ConfigError, DataError
from hildanext.progress import Console

SHOWN = 5
LOSSES = {
    "dropped_turns": "turns longer than the window dropped",
    "shortened": "chats shortened",
    "replaced_ids": "ids replaced",
}


def tokenize(config: Config, console: Console) -> dict[str, Any]:
    """Build <paths.data>/tokenized/<name>/{train,eval,sft_train,sft_eval} and return the manifest. DataError where the
    prepared set is missing, pre-tokenised ids are outside the vocabulary, or nothing of a training split is left."""
    settings, place = filled_to(config), joined(config.paths.data, "processed", config.data.name)
    _check_blocks(settings)
    source = _at_hand(place)
    prepared = _prepared(source)
    output = joined(config.paths.data, "tokenized", settings.name or config.data.name)
    with written(output, "shards") as folder:
        tokenizer = _tokenizer(config, mirror(output), folder, console)
        encoder = SplitEncoder(settings, tokenizer, tokenizer_hash(tokenizer), joined(output, "tokenizer"))
        parts = Parts.of(config, encoder, place, folder / "tokenizer", console)
        done = parts.done(source, prepared["files"]) if parts else {}
        manifest: dict[str, Any] = {
            "tokenizer": encoder.place,
            "tokenizer_hash": encoder.hash,
            "vocab_size": encoder.vocabulary,
            "document_start": encoder.start,
            "config": config.tokenize.model_dump(),
            "splits": {},
        }
        for name in FILES:
            facts = prepared["files"][name]
            with console.bar(f"tokenize {name}", facts["documents"]) as bar:
                path = source / f"{name}.jsonl"
                found = encoded(done[name], encoder) if parts else None
                manifest["splits"][name] = encoder.encode(path, facts, folder / name, bar, found)
        _refuse_nothing(source, manifest["splits"])
        manifest["end_of_turn"] = _turn_end(manifest["splits"], tokenizer, console)
        write_atomic(folder / "manifest.json", json.dumps(manifest, indent=2) + "\n")
    if parts:
        parts.remove()
    for name, split in manifest["splits"].items():
        console.say(
            f"{joined(output, name)}: {split['rows']:,} rows, {split['tokens']:,} tokens, fill {split['fill_rate']:.3f}"
            f"{_lost(split)}"
        )
        for identity, reason in split["refused"][:SHOWN]:
            console.warn(f"{name} {identity}: dropped, {reason}")
    return manifest


def _at_hand(place: str) -> Path:
    try:
        return fetched(place)
    except DataError as error:
        raise DataError(f"{error}; run `hildanext prepare-data` with these paths first") from None


def filled_to(config: Config) -> TokenizeConfig:
    """The settings of tokenize with pad_to_block said: null is the block the run is decoded with."""
    settings, ladder = config.tokenize, config.ladder
    own = ladder.fixed or ladder.decay_to
    return settings if settings.pad_to_block is not None else settings.model_copy(update={"pad_to_block": own})


def _lost(split: Mapping[str, Any]) -> str:
    dropped = ", ".join(f"{reason} {count:,}" for reason, count in split["dropped"].items())
    found = [f"dropped: {dropped}" if dropped else ""]
    found += [f"{text} {split[name]:,}" if split[name] else "" for name, text in LOSSES.items()]
    return "".join(f"; {text}" for text in found if text)


def _refuse_nothing(source: Path, splits: Mapping[str, Mapping[str, Any]]) -> None:
    for name in ("train", "sft_train"):
        split = splits[name]
        if split["documents_in"] and not split["documents"]:
            first = f"; {split['refused'][0][0]}: {split['refused'][0][1]}" if split["refused"] else ""
            raise DataError(
                f"{source / name}.jsonl: none of {split['documents_in']:,} documents is left{_lost(split)}{first}; "
                "raise tokenize.window, set tokenize.over_length, or give a tokenizer whose template takes these chats"
            )
    if not any(split["documents"] for split in splits.values()):
        raise DataError(f"{source}: holds no document to tokenize; look at its manifest.json and prepare it again")


def _turn_end(splits: Mapping[str, Mapping[str, Any]], tokenizer: Any, console: Console) -> str | None:
    if all(split["chat_template"] is None for split in splits.values()):
        return None
    end = end_of_turn(tokenizer)
    if not end.written:
        console.warn(
            f"the chat template does not end every reply with a token; {end.text} is put after each and learned, "
            "in training and in prompts alike"
        )
    return end.text


def _check_blocks(settings: TokenizeConfig) -> None:
    for name in ("pad_to_block", "pad_text_to_block"):
        block = getattr(settings, name)
        if block and settings.window % block:
            raise ConfigError(
                f"tokenize.{name}: {block} does not divide tokenize.window {settings.window}; choose a divisor or 0"
            )


def _prepared(folder: Path) -> dict[str, Any]:
    try:
        manifest: dict[str, Any] = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
        _ = [(manifest["files"][name]["bytes"], manifest["files"][name]["sha256"]) for name in FILES]
    except FileNotFoundError:
        raise DataError(f"{folder}: not prepared (no manifest.json); run `hildanext prepare-data` first") from None
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(
            f"{folder}/manifest.json: cannot be read ({error}); run `hildanext prepare-data` again"
        ) from error
    for name in FILES:
        path, facts = folder / f"{name}.jsonl", manifest["files"][name]
        size = path.stat().st_size if path.exists() else -1
        if size != facts["bytes"]:
            raise DataError(
                f"{path}: {size} bytes, its manifest says {facts['bytes']}; run `hildanext prepare-data` again"
            )
        with path.open("rb") as file:
            if hashlib.file_digest(file, "sha256").hexdigest() != facts["sha256"]:
                raise DataError(f"{path}: damaged, not what its manifest says; run `hildanext prepare-data` again")
    return manifest


def _tokenizer(config: Config, output: Path, folder: Path, console: Console) -> Any:
    wanted = config.tokenize.tokenizer
    for candidate in (config.model.path, config.model.new.tokenizer) if wanted == "auto" else ():
        own = Path(candidate).resolve().is_relative_to(output.resolve())
        if candidate and not own and (Path(candidate) / "tokenizer.json").exists():
            wanted = candidate
            break
        if candidate and not own and Path(candidate).is_dir():
            raise DataError(f"tokenize.tokenizer auto: {candidate} holds no tokenizer.json; name the folder that does")
    if wanted in ("auto", "storyworld"):
        console.say("tokenizer: word level, from the story world's vocabulary")
        return storyworld_tokenizer(folder / "tokenizer")
    console.say(f"tokenizer: {wanted}")
    tokenizer = load_tokenizer(wanted)
    tokenizer.save_pretrained(str(folder / "tokenizer"))
    return tokenizer
