# GGUF files: read through transformers, de-quantised, and written as an ordinary Hugging Face folder.
# Entry points: gguf_at (the file a path names), folder_of, unpacked (beside it, once), unpack, require_packages.
# Everything after this file sees the folder alone. A tensor that would be dropped or drawn at random is an error: the
# file must fill its network exactly.
"""Reading GGUF."""

from __future__ import annotations

import io
import os
import re
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError

from hildanext.disk import replacing, write_atomic
from hildanext.environment import file_hash
from hildanext.errors import HildaError, ModelError, first_line
from hildanext.models.licence import carry
from hildanext.models.meta import META_FILE, HildaMeta
from hildanext.progress import Console

SUFFIX, MAGIC = ".gguf", b"GGUF"
PLAIN = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
DIGITS = ("smollm", "starcoder", "refact", "command-r", "codeshell")
TOKEN = "tokenizer.ggml.{}_token_id"
PART = re.compile(r"-\d{5}-of-\d{5}\.gguf$")
CARD = """---
library_name: transformers
license: {licence}
---
# {name}

{made_by}'s weights, read from the GGUF file `{file}` ({stored}) by hildanext and written as {dtype}. What was rounded
when the file was quantised stays rounded.

| fact | value |
| --- | --- |
| architecture | {architecture} |
| licence | {licence} |
| origin | {origin} |
| SHA-256 of the file | {sha256} |
"""


def gguf_at(path: Path) -> Path | None:
    """The GGUF file that a path names: the path itself, or the only one in a folder without config.json. ModelError
    where such a folder holds several."""
    if path.suffix.lower() == SUFFIX:
        return path
    if not path.is_dir() or (path / "config.json").exists() or (path / META_FILE).exists():
        return None
    found = sorted(file for file in path.iterdir() if file.suffix.lower() == SUFFIX and file.is_file())
    if len(found) > 1:
        raise ModelError(
            f"{path}: {len(found)} GGUF files ({', '.join(file.name for file in found)}); name one of them"
        )
    return found[0] if found else None


def folder_of(file: Path) -> Path:
    """Where the ordinary folder of a GGUF file stands: beside it."""
    return file.with_name(f"{file.stem}-unpacked")


def unpacked(file: Path) -> Path:
    """folder_of the file, written where it is missing or the file has changed since. ModelError as unpack."""
    folder = folder_of(file)
    if not file.is_file():
        raise ModelError(f"{file}: no such file; give a GGUF file, a Hugging Face folder or a run")
    if _current(file, folder):
        return folder
    if not os.access(file.parent, os.W_OK):
        raise ModelError(
            f"{file}: is read into a folder beside it, and {file.parent} may not be written; say"
            f" `hildanext fetch {file} --output FOLDER` and use that folder"
        )
    console = Console()
    console.say(f"{file}: GGUF, read into the ordinary folder {folder}, once")
    with replacing(folder) as fresh:
        unpack(file, fresh, str(file.name))
    return folder


def _current(file: Path, folder: Path) -> bool:
    if not (folder / "config.json").is_file():
        return False
    known = next((past for past in HildaMeta.read(folder).history if "gguf" in past), {})
    told = file.stat()
    return known.get("bytes") == told.st_size and told.st_mtime <= (folder / META_FILE).stat().st_mtime


def unpack(file: Path, fresh: Path, origin: str, fetched: str = "") -> None:
    """Write a GGUF file into an empty folder: weights (bfloat16 where they were quantised), tokenizer, chat template,
    licence files beside it, a card naming `origin`, hildanext.json with `fetched`. ModelError for what is none,
    unsupported or incomplete, and where a package is missing."""
    require_packages(str(file))
    _require(file)
    reader = _opened(file)
    stored = Counter({tensor.tensor_type.name: 0 for tensor in reader.tensors})
    for tensor in reader.tensors:
        stored[tensor.tensor_type.name] += int(tensor.n_elements)
    kind = stored.most_common(1)[0][0]
    dtype = PLAIN.get(kind, torch.bfloat16)
    try:
        with _quiet():
            network, tokenizer = _network(file, reader), _tokenizer(file, reader)
    except HildaError:
        raise
    except Exception as error:  # transformers and gguf raise whatever a file leads them to
        raise ModelError(
            f"{file}: this GGUF cannot be read ({type(error).__name__}: {first_line(error)}); get the model as"
            " safetensors"
        ) from error
    _filled(file, reader, network, sum(stored.values()))
    network.to(dtype).save_pretrained(fresh)
    tokenizer.save_pretrained(fresh)
    carry(file.parent, fresh)
    digest = file_hash(file)
    past = {"gguf": file.name, "bytes": file.stat().st_size, "sha256": digest, "stored": kind}
    past |= {"fetched": fetched} if fetched else {}
    write_atomic(
        fresh / "README.md", _card(reader, network, file, {"stored": kind, "origin": origin, "sha256": digest})
    )
    meta = _meta(file, reader)
    write_atomic(fresh / META_FILE, meta.model_copy(update={"history": [*meta.history, past]}).text())


def _meta(file: Path, reader: Any) -> HildaMeta:
    written = _text(reader, "hildanext.meta")
    try:
        return HildaMeta.model_validate_json(written) if written else HildaMeta()
    except ValidationError as error:
        raise ModelError(
            f"{file}: hildanext.meta: {error.errors()[0]['msg']}; export it again with this version"
        ) from error


def require_packages(where: str) -> None:
    """ModelError, naming the extra, where a package that reads GGUF is missing."""
    absent = [name for name in ("gguf", "accelerate") if find_spec(name) is None]
    if absent:
        raise ModelError(f"{where}: GGUF needs {' and '.join(absent)}; pip install 'hildanext[gguf]'")


def _require(file: Path) -> None:
    try:
        with file.open("rb") as opened:
            magic = opened.read(4)
    except OSError as error:
        raise ModelError(f"{file}: cannot be read ({error.strerror}); check the file and its permissions") from error
    if magic != MAGIC:
        raise ModelError(f"{file}: not a GGUF file, whatever its name (it begins with {magic!r}); get it again")
    if PART.search(file.name):
        raise ModelError(f"{file}: one part of several; join them (llama-gguf-split --merge) or get it as safetensors")


def _opened(file: Path) -> Any:
    from gguf import GGUFReader

    try:
        reader = GGUFReader(str(file))
        kind = _text(reader, "general.type") or "model"
    except Exception as error:  # the reader has no errors of its own: a cut file ends in numpy
        raise ModelError(f"{file}: damaged or of an unknown version ({first_line(error)}); get it again") from error
    if kind != "model" or not reader.tensors:
        raise ModelError(
            f"{file}: holds {kind if reader.tensors else 'no tensors'}, not a language model; name another"
        )
    return reader


def _text(reader: Any, field: str) -> str:
    found = reader.fields.get(field)
    return "" if found is None else bytes(found.parts[found.data[0]]).decode("utf-8", "replace")


@contextmanager
def _quiet() -> Iterator[None]:
    from transformers.utils import logging

    logging.disable_progress_bar()
    with redirect_stderr(io.StringIO()):
        yield


def _numbers(reader: Any, field: str) -> list[int]:
    found = reader.fields.get(field)
    return [] if found is None else [int(found.parts[index][0]) for index in found.data]


def _network(file: Path, reader: Any) -> Any:
    import transformers

    extra = {}
    config = transformers.AutoConfig.from_pretrained(str(file.parent), gguf_file=file.name, local_files_only=True)
    width = _numbers(reader, f"{_text(reader, 'general.architecture')}.attention.key_length")
    if width and hasattr(config, "head_dim"):  # which transformers reads for few families, and guesses for the others
        config.head_dim = width[0]
    if hasattr(transformers, "GgufConfig"):  # newer ones keep the blocks otherwise, and cannot save them
        extra["quantization_config"] = transformers.GgufConfig(dequantize=True)
    network, told = transformers.AutoModelForCausalLM.from_pretrained(
        str(file.parent), gguf_file=file.name, dtype=torch.float32, local_files_only=True, output_loading_info=True,
        config=config,
        **extra,
    )  # fmt: skip
    if told["missing_keys"]:
        absent = sorted(told["missing_keys"])
        raise ModelError(
            f"{file}: {len(absent)} tensors of its network are missing, the first {absent[0]}; use another file"
        )
    if ends := [one for one in _numbers(reader, "hildanext.end_ids") if one >= 0]:
        network.config.eos_token_id = network.generation_config.eos_token_id = ends
    return network


def _filled(file: Path, reader: Any, network: Any, count: int) -> None:
    own = sum(parameter.numel() for parameter in network.parameters())
    if own == count:
        return
    odd = [tensor.name for tensor in reader.tensors if not tensor.name.startswith(("blk.", "token_embd", "output"))]
    said = f", such as {odd[0]}" if odd else ""
    raise ModelError(
        f"{file}: holds {count:,} values, its network as transformers builds it {own:,}: tensors it does not know would"
        f" be dropped{said}; get the model as safetensors"
    )


def _tokenizer(file: Path, reader: Any) -> Any:
    from tokenizers import Tokenizer, pre_tokenizers
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    split = _text(reader, "tokenizer.ggml.pre")
    if held := _text(reader, "tokenizer.huggingface.json"):
        whole = PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_str(held))
        for name in ("bos", "eos", "pad", "mask"):
            known = [whole.convert_ids_to_tokens(one) for one in _numbers(reader, TOKEN.format(name))]
            if known and known[0] is not None:
                setattr(whole, f"{name}_token", known[0])
        whole.chat_template = _text(reader, "tokenizer.chat_template") or None
        return whole
    tokenizer = AutoTokenizer.from_pretrained(str(file.parent), gguf_file=file.name, local_files_only=True)
    backend = tokenizer.backend_tokenizer
    if split in DIGITS:  # these were trained with single digits, which transformers does not read from the file
        digits = pre_tokenizers.Digits(individual_digits=True)
        backend.pre_tokenizer = pre_tokenizers.Sequence([digits, pre_tokenizers.ByteLevel(add_prefix_space=False)])
    return tokenizer


def _card(reader: Any, network: Any, file: Path, facts: dict[str, str]) -> str:
    return CARD.format(
        name=file.stem, made_by=_text(reader, "general.organization") or _text(reader, "general.author") or "The maker",
        file=file.name, dtype=str(network.dtype).removeprefix("torch."), architecture=type(network).__name__,
        licence=_text(reader, "general.license") or "unknown", **facts,
    )  # fmt: skip
