# A model folder small enough for tests: random Qwen3 over a tokenizer of single characters, with a chat template.
# Entry points: toy_folder.
# Answers are gibberish, but the same gibberish every time.
"""A toy model folder."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

CHARACTERS = " abcdefghijklmnopqrstuvwxyz.,!?'\n0123456789ABCDEFGHIJ:;-"
SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|mask|>")
TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def toy_tokenizer() -> Any:
    """One token per character."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    vocabulary = {text: number for number, text in enumerate((*SPECIAL, *CHARACTERS))}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="?"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    tokenizer.decoder = decoders.Fuse()
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token=SPECIAL[0], pad_token=SPECIAL[0], mask_token=SPECIAL[3], unk_token="?",
        additional_special_tokens=list(SPECIAL[1:3]),
    )  # fmt: skip
    fast.chat_template = TEMPLATE
    return fast


def toy_folder(folder: Path, random_model: Callable[..., Any]) -> Path:
    """Write the folder; returns it."""
    tokenizer = toy_tokenizer()
    random_model("qwen3", vocab_size=len(SPECIAL) + len(CHARACTERS), eos_token_id=0).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
