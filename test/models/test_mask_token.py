# Choice of the mask row, and the noise on its embedding, on real tokenizers and closed-form moments.
# Entry points: pytest.
# Real files: the Qwen3 tokenizer and stories260k.
"""Tests of models/mask_token.py."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from models.oracle import MASK, batch, noised
from transformers import AutoModelForCausalLM

from hildanext.config.model import ModelConfig
from hildanext.core.linear_cross_entropy import linear_cross_entropy
from hildanext.errors import ModelError
from hildanext.models.denoiser import HFDenoiser
from hildanext.models.load import load_model
from hildanext.models.mask_token import EmbeddingNoise, choose_mask_token, free_rows
from hildanext.models.meta import HildaMeta
from hildanext.models.save import save_model

Make = Callable[..., Any]


def tokenizer(folder: Path) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(folder, local_files_only=True)


def test_qwen3_has_its_mask_in_the_first_free_row_without_a_resize(assets: Path, random_model: Make) -> None:
    words = tokenizer(assets / "qwen3-tokenizer")
    model = random_model(vocab_size=151936, hidden_size=8, head_dim=2, intermediate_size=8, num_hidden_layers=1)
    assert len(words) == 151669 and free_rows(model, words) == range(151669, 151936)
    assert choose_mask_token(model, words) == 151669
    assert model.get_input_embeddings().weight.shape[0] == 151936
    assert words.decode([9707, 151669]) == "Hello<|mask|>"
    assert choose_mask_token(model, words) == 151669


def test_a_full_vocabulary_gets_one_row_and_stays_tied(assets: Path) -> None:
    from transformers import AutoModelForCausalLM

    folder = assets / "stories260k-hf"
    words, model = tokenizer(folder), AutoModelForCausalLM.from_pretrained(folder, local_files_only=True)
    before = model.get_input_embeddings().weight.detach().clone()
    assert choose_mask_token(model, words) == 512
    weight = model.get_input_embeddings().weight
    assert weight is model.get_output_embeddings().weight and model.config.vocab_size == 513
    assert torch.equal(weight[:512], before)
    torch.testing.assert_close(weight[512], before.mean(0))


def test_an_untied_model_gets_a_row_in_both_matrices(assets: Path, random_model: Make) -> None:
    model = random_model("llama", vocab_size=512, tie_word_embeddings=False)
    assert choose_mask_token(model, tokenizer(assets / "stories260k-hf")) == 512
    assert model.get_input_embeddings().weight is not model.get_output_embeddings().weight
    assert model.get_output_embeddings().weight.shape[0] == model.get_input_embeddings().weight.shape[0] == 513


def test_a_tokenizer_with_holes_in_its_ids_is_refused(assets: Path, random_model: Make) -> None:
    words = tokenizer(assets / "stories260k-hf")
    full = words.get_vocab()
    words.get_vocab = lambda: {**full, "far": 700}
    with pytest.raises(ModelError, match="first free row is 701"):
        choose_mask_token(random_model(vocab_size=800), words)


def noisy_rows(model: HFDenoiser, noise: EmbeddingNoise, tokens: torch.Tensor) -> torch.Tensor:
    with noise, torch.no_grad():
        found: torch.Tensor = model.model.get_input_embeddings()(tokens)
    return found


def test_noise_adds_its_variance_at_masks_and_nothing_elsewhere(random_model: Make) -> None:
    model = HFDenoiser(random_model(), MASK).train()
    weight = model.model.get_input_embeddings().weight.detach().clone()
    tokens = torch.full((1, 4000), MASK)
    tokens[0, ::2] = 5
    noise = EmbeddingNoise(model, steps=10, sigma=0.3)
    found = noisy_rows(model, noise, tokens)
    masked = found[0, 1::2].pow(2).sum(-1)
    expected = float(weight[MASK].pow(2).sum()) + weight.shape[1] * 0.3**2
    error = float(masked.std()) / len(masked) ** 0.5
    assert abs(float(masked.mean()) - expected) <= 4 * error
    assert torch.equal(found[0, ::2], weight[5].expand(2000, -1))
    assert torch.equal(model.model.get_input_embeddings().weight, weight)


def test_noise_is_off_in_evaluation_and_falls_linearly_to_zero(random_model: Make) -> None:
    model = HFDenoiser(random_model(), MASK)
    noise = EmbeddingNoise(model, steps=4, sigma=1.0)
    tokens = torch.tensor([[MASK, 3]])
    plain = model.model.get_input_embeddings()(tokens).detach()
    assert torch.equal(noisy_rows(model.eval(), noise, tokens), plain)
    model.train()
    scales = []
    for step in range(6):
        noise.set_scale(step)
        scales.append(noise.scale)
    assert scales == [1.0, 0.75, 0.5, 0.25, 0.0, 0.0]
    assert torch.equal(noisy_rows(model, noise, tokens), plain)
    noise.set_scale(0)
    assert not torch.equal(noisy_rows(model, noise, tokens), plain)
    assert torch.equal(model.model.get_input_embeddings()(tokens), plain)


def test_the_default_sigma_is_the_median_row_norm_over_the_root_of_the_width(random_model: Make) -> None:
    model = HFDenoiser(random_model(), MASK)
    rows = sorted(float(row.norm()) for row in model.model.get_input_embeddings().weight.detach())
    assert EmbeddingNoise(model, 1).sigma == pytest.approx(rows[(len(rows) - 1) // 2] / 32**0.5, rel=1e-6)


def test_a_mask_row_of_zeros_has_a_norm_gain_of_a_thousand_and_noise_removes_it(random_model: Make) -> None:
    norm = random_model(rms_norm_eps=1e-6).base_model.layers[0].input_layernorm
    norm.weight.data.fill_(1.0)
    gain = torch.autograd.functional.jacobian(norm, torch.zeros(32))
    torch.testing.assert_close(gain, 1000 * torch.eye(32), rtol=1e-5, atol=1e-3)
    gain = torch.autograd.functional.jacobian(norm, torch.randn(32))
    assert float(gain.abs().max()) < 10


def test_noise_reaches_the_training_forward(random_model: Make) -> None:
    model = HFDenoiser(random_model(), MASK).train()
    data = batch()
    noisy = noised(data)
    quiet = model.noisy_features(noisy, data, 4, data.learn)
    with EmbeddingNoise(model, steps=5, sigma=0.5, seed=1):
        first = model.noisy_features(noisy, data, 4, data.learn)
    with EmbeddingNoise(model, steps=5, sigma=0.5, seed=1):
        again = model.noisy_features(noisy, data, 4, data.learn)
    assert torch.equal(first, again) and not torch.equal(first, quiet)


def test_raising_the_mask_logit_by_a_thousand_leaves_the_loss(random_model: Make) -> None:
    model = HFDenoiser(random_model(dtype=torch.float64), MASK)
    data = batch()
    noisy = noised(data)
    select = noisy == MASK
    features = model.noisy_features(noisy, data, 4, select).detach()
    raised = model.head().detach().clone()
    thousand = torch.full((len(features), 1), 1000.0, dtype=torch.float64)
    raised[MASK] += torch.linalg.lstsq(features, thousand).solution[:, 0]
    lift = features @ (raised - model.head()).T
    torch.testing.assert_close(lift[:, MASK], thousand[:, 0])
    for exclude, same in ((MASK, True), (None, False)):
        losses = [linear_cross_entropy(features, w, data.tokens[select], exclude).nll for w in (model.head(), raised)]
        assert torch.allclose(losses[0], losses[1], atol=1e-9) is same


@pytest.fixture
def folder(assets: Path, tmp_path: Path) -> Path:
    copy = tmp_path / "model"
    shutil.copytree(assets / "stories260k-hf", copy, copy_function=shutil.copyfile)
    copy.chmod(0o755)
    return copy


def loaded(folder: Path, **settings: Any) -> Any:
    return load_model(ModelConfig(path=str(folder), **settings))


@pytest.mark.parametrize(("mask", "words"), [(400, "is the text"), (2, r"eos"), (1, r"bos"), (0, "unk")])
def test_an_id_that_texts_hold_is_no_mask(mask: int, words: str, folder: Path) -> None:
    with pytest.raises(ModelError, match=f"model.mask_id: mask_id {mask} .*{words}.*null, which adds a row"):
        loaded(folder, mask_id=mask)
    (folder / "hildanext.json").write_text(HildaMeta(mask_id=mask).text())
    with pytest.raises(ModelError, match=f"hildanext.json: mask_id {mask} .*{words}"):
        loaded(folder)


def test_a_turn_marker_is_no_mask_and_a_reserved_token_is(folder: Path) -> None:
    words = tokenizer(folder)
    words.add_special_tokens({"additional_special_tokens": ["<|turn|>", "<|reserved|>"]})
    words.chat_template = "{% for m in messages %}<|turn|>{{ m.content }}{% endfor %}"
    model = AutoModelForCausalLM.from_pretrained(folder, local_files_only=True)
    model.resize_token_embeddings(514)
    model.save_pretrained(folder)
    words.save_pretrained(folder)
    with pytest.raises(ModelError, match="of the chat template"):
        loaded(folder, mask_id=512)
    assert loaded(folder, mask_id=513).denoiser.mask_id == 513


@pytest.mark.parametrize("change", [{"mask_id": 513}, {"shift": "clean"}])
def test_what_a_model_was_trained_with_changes_only_on_purpose(change: dict[str, Any], folder: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(folder, local_files_only=True)
    model.resize_token_embeddings(520)
    model.save_pretrained(folder)
    (folder / "hildanext.json").write_text(HildaMeta(mask_id=512, block=8).text())
    with pytest.raises(ModelError, match=r"hildanext\.json records .*model\.override_recorded=true"):
        loaded(folder, **change)
    found = loaded(folder, override_recorded=True, **change).denoiser
    assert {"mask_id": found.mask_id, "shift": found.shift} == {"mask_id": 512, "shift": "none"} | change
    assert loaded(folder, mask_id=512, shift="none").denoiser.mask_id == 512


def test_a_parent_may_be_converted_with_any_shift(folder: Path) -> None:
    (folder / "hildanext.json").write_text(HildaMeta().text())
    assert loaded(folder, shift="clean").denoiser.shift == "clean"


def test_edit_actions_get_two_rows_once_and_are_recorded_with_the_model(tmp_path: Path) -> None:
    plain, asked = load_model(ModelConfig(path="tiny")), load_model(ModelConfig(path="tiny", edit_actions=True))
    rows = plain.denoiser.vocab_size
    assert getattr(plain.denoiser, "edit_ids", 0) is None and asked.denoiser.vocab_size == rows + 2
    folder = save_model(asked.denoiser, asked.tokenizer, tmp_path / "model", asked.meta)
    again = load_model(ModelConfig(path=str(folder), edit_actions=True))
    assert getattr(again.denoiser, "edit_ids", 0) == (rows, rows + 1) == again.meta.edit_ids
    assert again.denoiser.vocab_size == rows + 2 and len(again.tokenizer) == rows
    meta = folder / "hildanext.json"
    meta.write_text(meta.read_text().replace(str(rows + 1), str(rows + 7)))
    with pytest.raises(ModelError, match="edit_ids .* restore the file"):
        load_model(ModelConfig(path=str(folder)))
