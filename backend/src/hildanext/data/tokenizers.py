# Tokenizers: loading a folder, its hash, its end-of-document id, and a word-level one for small vocabularies.
# Entry points: load_tokenizer, tokenizer_hash, begun, end_of_document, encode_texts, train_small, storyworld_tokenizer.
# The word-level tokenizer keeps the space before a word in the token ("dog" and " dog" are two entries) and falls back
# to bytes, so any text comes back exactly. Text never becomes a control token: "<|im_end|>" in a document stays text.
"""Tokenizers."""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from hildanext.errors import DataError, ModelError

END_OF_TEXT, TURN_START, TURN_END, MASK = "<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|mask|>"
SPECIAL = (END_OF_TEXT, TURN_START, TURN_END, MASK)
ROLES = ("user", "assistant", "system", "tool")
PIECES = r" ?[A-Za-z]+| ?[0-9]| ?[^\sA-Za-z0-9]|\s"
CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
FILES = ("tokenizer.json", "tokenizer.model", "tokenizer_config.json", "vocab.json")
MASK_NAMES = frozenset((MASK, "[MASK]", "<mask>", "<|mdm_mask|>"))
PROBE = "One day, Mia's 12 dogs  ran:\n\tdef f(x): return x+1 # \u00e9t\u00e9 \u732b \U0001f436 <|endoftext|>"


def load_tokenizer(folder: Path | str) -> Any:
    """The Hugging Face tokenizer of a local folder. ModelError where there is none or it cannot be read."""
    path = Path(folder)
    if not any((path / name).is_file() for name in FILES):
        raise ModelError(f"{path}: no tokenizer files there (tokenizer.json missing); give the folder of a model")
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(str(path), local_files_only=True)
    except Exception as error:  # transformers and tokenizers raise whatever a damaged file leads them to
        said = " ".join(str(error).split())[:200] or type(error).__name__
        raise ModelError(f"{path}: the tokenizer cannot be read ({said}); restore its files") from error


def tokenizer_hash(tokenizer: Any) -> str:
    """SHA-256 over vocabulary and a probe's ids; the same after saving again or adding a mask token.
    tokenizer: a folder or a loaded tokenizer."""
    loaded = load_tokenizer(tokenizer) if isinstance(tokenizer, str | Path) else tokenizer
    ignored = MASK_NAMES | {loaded.mask_token}
    vocabulary = sorted(item for item in loaded.get_vocab().items() if item[0] not in ignored)
    probe = loaded(PROBE, add_special_tokens=False)["input_ids"]
    return hashlib.sha256(json.dumps([vocabulary, probe]).encode()).hexdigest()


def end_of_document(tokenizer: Any) -> int:
    """The id that ends a document and fills blocks: <|endoftext|> where it exists, else the tokenizer's EOS."""
    known = tokenizer.get_vocab().get(END_OF_TEXT)
    if known is None and tokenizer.eos_token_id is None:
        raise DataError(f"{tokenizer.name_or_path}: the tokenizer has no end-of-document token; set its eos_token")
    return int(tokenizer.eos_token_id if known is None else known)


def document_start(tokenizer: Any) -> list[int]:
    """Ids that the tokenizer puts before a text, such as BOS. What it puts behind one is left to who ends a document:
    a prompt that ends in EOS has nothing to go on with."""
    text = tokenizer("a", add_special_tokens=False)["input_ids"]
    whole, size = list(tokenizer("a")["input_ids"]), len(text)
    places = [place for place in range(len(whole) - size + 1) if whole[place : place + size] == list(text)]
    return whole[: places[0]] if places else []


def begun(ids: list[int], tokenizer: Any, start: Sequence[int] | None = None) -> list[int]:
    """The ids of a text as a document begins: behind `start` (None: the tokenizer's own), once. The rule of training
    rows and of prompts."""
    lead = document_start(tokenizer) if start is None else list(start)
    return ids if ids[: len(lead)] == lead else [*lead, *ids]


def encode_texts(tokenizer: Any, texts: Sequence[str]) -> list[list[int]]:
    """Ids of each text, no control tokens among them, encoded in parallel by the Rust tokenizer where there is one."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        return [tokenizer.encode(text, add_special_tokens=False, split_special_tokens=True) for text in texts]
    before = backend.encode_special_tokens
    backend.no_truncation()
    backend.no_padding()
    backend.encode_special_tokens = True
    try:
        return [encoding.ids for encoding in backend.encode_batch_fast(list(texts), add_special_tokens=False)]
    finally:
        backend.encode_special_tokens = before


def storyworld_tokenizer(path: Path) -> Any:
    """The tokenizer of the story world, saved as a Hugging Face folder: each word with and without a space before."""
    from hildanext.world import VOCABULARY

    return _save([form for word in (*ROLES, *VOCABULARY) for form in (word, f" {word}")], path)


def train_small(texts: Iterable[str], path: Path, size: int = 4096) -> Any:
    """A word-level tokenizer of the `size` entries that `texts` use most (bytes and control tokens included), saved as
    a Hugging Face folder. Ties in frequency are broken by the entry."""
    counts: Counter[str] = Counter()
    for text in texts:
        counts.update(re.findall(PIECES, text))
    room = max(0, size - 256 - len(SPECIAL) - len(ROLES))
    kept = sorted(counts, key=lambda form: (-counts[form], form))[:room]
    return _save([*ROLES, *kept], path)


def _save(forms: Sequence[str], path: Path) -> Any:
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    letters = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    entries = [*SPECIAL, *sorted(pre_tokenizers.ByteLevel.alphabet())]
    entries += ["".join(piece for piece, _ in letters.pre_tokenize_str(form)) for form in forms]
    vocabulary = {entry: index for index, entry in enumerate(dict.fromkeys(entries))}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[], ignore_merges=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(PIECES), "isolated"), letters])
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in SPECIAL])
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token=END_OF_TEXT,
        pad_token=END_OF_TEXT,
        mask_token=MASK,
        additional_special_tokens=[TURN_START, TURN_END],
        clean_up_tokenization_spaces=False,
    )
    fast.chat_template = CHAT_TEMPLATE
    path.mkdir(parents=True, exist_ok=True)
    fast.save_pretrained(str(path))
    return fast
