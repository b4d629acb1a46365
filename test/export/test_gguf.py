# GGUF out: what is written reads back, through our own reader, as the same network, tokenizer and metadata.
# Entry points: pytest.
# Oracles: the network it was written from; transformers' reader, which permutes and names by itself.
"""Tests of export gguf."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from models.gguf_file import HERE, NEEDED, TEMPLATE, llama, vocabulary

from hildanext.data.tokenizers import storyworld_tokenizer
from hildanext.errors import ModelError
from hildanext.models import gguf_writing as writing
from hildanext.models.denoiser import HFDenoiser
from hildanext.models.load import Loaded, load_model
from hildanext.models.meta import HildaMeta
from hildanext.registry import build

pytestmark = pytest.mark.skipif(not HERE, reason=NEEDED)
Make = Callable[..., Any]
IDS = torch.tensor([[1, 70, 71, 72, 80, 99, 120, 3, 4, 5]])


def byte_level() -> Any:
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = vocabulary()
    held = Tokenizer(models.BPE(vocab={word: index for index, word in enumerate(words)}, merges=[("a", "b")]))
    digits, cut = pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)
    held.pre_tokenizer, held.decoder = pre_tokenizers.Sequence([digits, cut]), decoders.ByteLevel()
    held.add_special_tokens([AddedToken(word, special=True) for word in (*words[:3], "<|mask|>")])
    made = PreTrainedTokenizerFast(tokenizer_object=held, eos_token=words[2], bos_token=words[1], mask_token="<|mask|>")
    made.chat_template = TEMPLATE
    return made


def child(model: Any, tokenizer: Any, mask_id: int, shift: str = "clean") -> Loaded:
    meta = HildaMeta(mask_id=mask_id, shift=shift, block=8, parent="a parent", decode={"S_MODE": {"tau_mask": 0.4}})
    return Loaded(
        HFDenoiser(model, mask_id, shift=shift), tokenizer, meta, None, torch.float32, "", torch.device("cpu")
    )


def back(loaded: Loaded, folder: Path, dtype: str) -> Loaded:
    files = build("exports", {"type": "gguf", "dtype": dtype}).write(loaded, folder)
    assert sorted(files) == [".hildanext", "README.md", f"{folder.name}.gguf"]
    from hildanext.config.model import ModelConfig

    return load_model(ModelConfig(path=str(folder)))


@torch.no_grad()
def test_a_llama_child_comes_back_whole(random_model: Make, tmp_path: Path) -> None:
    rows = len(vocabulary()) + 1
    loaded = child(llama(random_model, vocab_size=rows, eos_token_id=2), byte_level(), rows - 1)
    found = back(loaded, tmp_path / "small", "f32")
    own, model = found.denoiser.model, loaded.denoiser.model
    assert torch.equal(own.get_input_embeddings().weight, model.get_input_embeddings().weight)
    assert all(torch.equal(a, b) for a, b in zip(own.parameters(), model.parameters(), strict=True))
    assert torch.allclose(own(IDS).logits, model(IDS).logits, atol=1e-6)
    assert (found.denoiser.mask_id, found.denoiser.shift, found.meta.block) == (rows - 1, "clean", 8)
    assert found.meta.decode == {"S_MODE": {"tau_mask": 0.4}} and found.denoiser.end_ids == {2}
    text = "ab<|im_end|>a12 3 <|mask|>"
    assert found.tokenizer(text)["input_ids"] == loaded.tokenizer(text)["input_ids"]
    assert found.tokenizer.chat_template == TEMPLATE and found.tokenizer.mask_token == "<|mask|>"
    assert "cuts text as 'smollm'" in (tmp_path / "small" / "README.md").read_text()


@torch.no_grad()
def test_a_planted_matrix_that_is_not_permuted_is_seen(
    random_model: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(writing, "_turned", lambda weight, heads: weight)
    loaded = child(llama(random_model), byte_level(), 5)
    found = back(loaded, tmp_path / "small", "f32")
    assert not torch.allclose(found.denoiser.model(IDS).logits, loaded.denoiser.model(IDS).logits, atol=1e-2)


@torch.no_grad()
@pytest.mark.parametrize(
    ("family", "dtype"), [("qwen3", "bf16"), ("qwen2", "f16"), ("qwen3", "q8_0"), ("qwen2", "q4_0")]
)
def test_each_family_and_type_comes_back_as_near_as_it_says(
    family: str, dtype: str, random_model: Make, tmp_path: Path
) -> None:
    shape = {"hidden_size": 64, "intermediate_size": 96, "tie_word_embeddings": family == "qwen3", "vocab_size": 1100}
    loaded = child(random_model(family, **shape), storyworld_tokenizer(tmp_path / "words"), 1090, "none")
    found = back(loaded, tmp_path / "small", dtype)
    nearness = {"bf16": 2**-8, "f16": 2**-11, "q8_0": 0.6 / 127, "q4_0": 1.1 / 8}[dtype]
    pairs = list(zip(found.denoiser.model.named_parameters(), loaded.denoiser.model.named_parameters(), strict=True))
    for (name, own), (_, wanted) in pairs:
        width = wanted.abs().amax(-1, keepdim=True) if dtype.startswith("q") and wanted.dim() > 1 else wanted.abs()
        assert ((own.float() - wanted).abs() <= width * (nearness + 2**-8) + 1e-6).all(), name
    assert found.meta.block == 8 and found.tokenizer.get_vocab() == loaded.tokenizer.get_vocab()
    assert "llama.cpp has none like it" in (tmp_path / "small" / "README.md").read_text()


def test_rows_that_do_not_fit_a_quantisation_stay_f16_and_the_card_says_so(random_model: Make, tmp_path: Path) -> None:
    model = random_model("qwen3", vocab_size=1100, intermediate_size=80, hidden_size=64)
    loaded = child(model, storyworld_tokenizer(tmp_path / "words"), 1090, "none")
    back(loaded, tmp_path / "small", "q8_0")
    assert "(2 of them f16, their rows are no multiple of 32)" in (tmp_path / "small" / "README.md").read_text()


def test_what_the_format_cannot_hold_is_refused_in_one_line(random_model: Make, tmp_path: Path) -> None:
    scaled = {"rope_type": "linear", "factor": 2.0, "rope_theta": 10000.0}
    odd = {
        "MistralForCausalLM": random_model("mistral"),
        "scaled .linear.": random_model("llama", rope_parameters=scaled),
        "no place for model.layers.0.self_attn.q_proj.bias": random_model("llama", attention_bias=True),
    }
    for said, model in odd.items():
        with pytest.raises(ModelError, match=said) as caught:
            build("exports", {"type": "gguf"}).write(child(model, byte_level(), 5), tmp_path / "out")
        assert "\n" not in str(caught.value) and not (tmp_path / "out").exists()


def test_the_cut_of_a_real_tokenizer_is_known(assets: Path) -> None:
    from transformers import AutoTokenizer

    assert writing._split(AutoTokenizer.from_pretrained(assets / "qwen3-tokenizer")) == "qwen2"
