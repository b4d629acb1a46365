# tokenize: processed JSON lines -> shards of packed rows, one folder per split, and a manifest that reconciles.
# Entry points: tokenize(config, console).
# The tokenizer is saved beside the shards; the folder is swapped in at the end, the previous one stays until then.
"""Tokenising a prepared set."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from hildanext.config import Config
from hildanext.config.data import TokenizeConfig
from hildanext.data.encode_split import SplitEncoder
from hildanext.data.prepare import FILES
from hildanext.data.tokenizers import load_tokenizer, storyworld_tokenizer, tokenizer_hash
from hildanext.disk import replacing, write_atomic
from hildanext.errors import ConfigError, DataError
from hildanext.progress import Console


def tokenize(config: Config, console: Console) -> dict[str, Any]:
    """Build <paths.data>/tokenized/<name>/{train,eval,sft_train,sft_eval} and return the manifest. DataError where the
    prepared set is missing or pre-tokenised ids are outside the vocabulary."""
    settings, source = config.tokenize, Path(config.paths.data) / "processed" / config.data.name
    _check_blocks(settings)
    prepared = _prepared(source)
    output = Path(config.paths.data) / "tokenized" / (settings.name or config.data.name)
    with replacing(output, "shards") as folder:
        tokenizer = _tokenizer(config, output, folder, console)
        encoder = SplitEncoder(settings, tokenizer, tokenizer_hash(tokenizer), str(output / "tokenizer"))
        manifest: dict[str, Any] = {
            "tokenizer": encoder.place,
            "tokenizer_hash": encoder.hash,
            "vocab_size": encoder.vocabulary,
            "document_start": encoder.start,
            "config": settings.model_dump(),
            "splits": {},
        }
        for name in FILES:
            facts = prepared["files"][name]
            with console.bar(f"tokenize {name}", facts["documents"]) as bar:
                manifest["splits"][name] = encoder.encode(source / f"{name}.jsonl", facts, folder / name, bar)
        write_atomic(folder / "manifest.json", json.dumps(manifest, indent=2) + "\n")
    for name, split in manifest["splits"].items():
        console.say(
            f"{output / name}: {split['rows']:,} rows, {split['tokens']:,} tokens, fill {split['fill_rate']:.3f}"
        )
    return manifest


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
    if wanted in ("auto", "storyworld"):
        console.say("tokenizer: word level, from the story world's vocabulary")
        return storyworld_tokenizer(folder / "tokenizer")
    console.say(f"tokenizer: {wanted}")
    tokenizer = load_tokenizer(wanted)
    tokenizer.save_pretrained(str(folder / "tokenizer"))
    return tokenizer
