# Folders in and out: real weights, the plain Hugging Face folder, refusals, dtype with its reason.
# Entry points: pytest.
# Real weights: stories260k. The Qwen3-0.6B test builds random weights from the real configuration.
"""Tests of models/load.py, save.py, meta.py, new.py and kinds/hf.py."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from models.oracle import plain

from hildanext.config.model import ModelConfig, NewModelConfig
from hildanext.core.masks import block_diffusion_mask
from hildanext.core.types import Batch
from hildanext.errors import HildaError, ModelError
from hildanext.models import load
from hildanext.models.denoiser import HFDenoiser
from hildanext.models.load import choose_device, choose_dtype, load_model, model_folder
from hildanext.models.meta import HildaMeta
from hildanext.models.new import new_model
from hildanext.models.save import save_model
from hildanext.models.support import check_head, check_supported

Make = Callable[..., Any]


@pytest.fixture(scope="module")
def stories(assets: Path) -> load.Loaded:
    return load_model(ModelConfig(path=str(assets / "stories260k-hf")))


def reference(folder: Path) -> Any:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(folder, local_files_only=True).eval()


@torch.no_grad()
def test_block_one_reproduces_the_ar_logits_of_stories260k(stories: load.Loaded, assets: Path) -> None:
    tokens = stories.tokenizer("Once upon a time, there was a little girl named Lily.", return_tensors="pt").input_ids
    length = tokens.shape[1]
    mask = block_diffusion_mask(length, 1)
    positions = torch.arange(length)[None].repeat(1, 2)
    noisy = torch.full_like(tokens, stories.denoiser.mask_id)
    found = stories.denoiser(torch.cat([noisy, tokens], 1), positions, mask)[:, length:, :512]
    expected = reference(assets / "stories260k-hf")(input_ids=tokens, use_cache=False).logits
    assert (found - expected).abs().max() <= 1e-5 * max(1.0, float(expected.abs().max()))


@torch.no_grad()
def test_greedy_text_of_stories260k_is_that_of_transformers(stories: load.Loaded, assets: Path) -> None:
    prompt = stories.tokenizer("Once upon a time", return_tensors="pt").input_ids
    expected = reference(assets / "stories260k-hf").generate(prompt, max_new_tokens=40, do_sample=False)
    tokens = prompt
    for _ in range(40):
        batch = Batch(
            torch.cat([tokens, tokens[:, :1]], 1),
            torch.ones(1, tokens.shape[1] + 1, dtype=torch.bool),
            torch.zeros(1, tokens.shape[1] + 1, dtype=torch.long),
        )
        last = torch.zeros_like(batch.learn)
        last[:, -1] = True
        logits = stories.denoiser.causal_features(batch, last) @ stories.denoiser.head()[:512].T
        tokens = torch.cat([tokens, logits.argmax(-1)[None]], 1)
    assert stories.tokenizer.decode(tokens[0]) == stories.tokenizer.decode(expected[0])
    assert torch.equal(stories.denoiser.model.generate(prompt, max_new_tokens=40, do_sample=False), expected)


@pytest.mark.slow
@torch.no_grad()
def test_block_one_reproduces_the_ar_logits_of_a_random_qwen3_600m(assets: Path) -> None:
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.from_pretrained(assets / "qwen3-0.6b-config", local_files_only=True)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32, attn_implementation="sdpa")
    assert sum(parameter.numel() for parameter in model.parameters()) == 596_049_920
    model = model.to_empty(device="cpu")
    model.base_model.rotary_emb = type(model.base_model.rotary_emb)(config)
    period = 0.02 * torch.randn(1_000_003, generator=torch.Generator().manual_seed(0))
    for parameter in model.parameters():
        if parameter.dim() == 1:
            parameter.fill_(1.0)
            continue
        flat = parameter.view(-1)
        for start in range(0, flat.numel(), len(period)):
            flat[start : start + len(period)] = period[: flat.numel() - start]
    model.tie_weights()
    tokens = torch.randint(0, 151669, (1, 8), generator=torch.Generator().manual_seed(1))
    expected = model.eval()(input_ids=tokens, use_cache=False).logits
    denoiser = HFDenoiser(model, 151669)
    assert denoiser.head() is model.get_input_embeddings().weight
    mask, positions = block_diffusion_mask(8, 1), torch.arange(8)[None].repeat(1, 2)
    select = torch.arange(16)[None] >= 8
    found = denoiser(torch.cat([torch.full_like(tokens, 151669), tokens], 1), positions, mask, select=select)
    assert expected.std() > 1e-3
    assert (found - expected[0]).abs().max() <= 1e-5 * max(1.0, float(expected.abs().max()))


def test_a_saved_folder_is_plain_hugging_face_and_comes_back_equal(stories: load.Loaded, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    meta = HildaMeta(block=32, parent="stories260k", run="r1", decode={"S_MODE": {"tau_mask": 0.5}})
    folder = save_model(stories.denoiser, stories.tokenizer, tmp_path / "out", meta)
    model = AutoModelForCausalLM.from_pretrained(folder, local_files_only=True)
    state, other = stories.denoiser.model.state_dict(), model.state_dict()
    assert state.keys() == other.keys() and all(torch.equal(state[name], other[name]) for name in state)
    assert AutoTokenizer.from_pretrained(folder).decode([403, 512]).endswith("<|mask|>")
    again = load_model(ModelConfig(path=str(folder)))
    assert again.meta == meta.model_copy(update={"mask_id": 512})
    assert again.denoiser.mask_id == 512 and again.denoiser.vocab_size == 513
    values = json.loads((folder / "config.json").read_text())
    assert values["rope_theta"] == 10000.0 and values["tie_word_embeddings"] is True
    assert "hildanext" not in json.dumps(values)
    assert not [path for path in tmp_path.iterdir() if path.name != "out"]


def test_saving_over_a_folder_replaces_it_whole_unless_something_else_lies_in_it(stories: Any, tmp_path: Path) -> None:
    folder = tmp_path / "out"
    first = {path.name for path in save_model(stories.denoiser, stories.tokenizer, folder).iterdir()}
    assert {path.name for path in save_model(stories.denoiser, stories.tokenizer, folder).iterdir()} == first
    (folder / "old.txt").write_text("old")
    with pytest.raises(HildaError, match="holds old.txt, which hildanext did not write there"):
        save_model(stories.denoiser, stories.tokenizer, folder)
    assert (folder / "old.txt").read_text() == "old" and [path.name for path in tmp_path.iterdir()] == ["out"]


def test_the_rope_base_of_a_qwen3_folder_is_written_explicitly(stories: load.Loaded, tmp_path: Path) -> None:
    model = new_model(NewModelConfig(hidden=16, layers=1, heads=2, kv_heads=1, ffn=16, rope_theta=5e5, tied=False), 513)
    save_model(HFDenoiser(model, 512, shift="clean", block_grid="per_document"), stories.tokenizer, tmp_path / "q")
    values = json.loads((tmp_path / "q" / "config.json").read_text())
    assert values["rope_theta"] == 5e5 and values["tie_word_embeddings"] is False
    loaded = load_model(ModelConfig(path=str(tmp_path / "q")))
    assert loaded.denoiser.shift == "clean" and loaded.meta.block_grid == "per_document"
    assert loaded.denoiser.block_grid == "per_document"


def test_new_models_are_equal_for_equal_seeds_and_leave_global_randomness_alone() -> None:
    shape = NewModelConfig(hidden=16, layers=1, heads=2, kv_heads=1, ffn=16)
    torch.manual_seed(7)
    before = torch.random.get_rng_state()
    states = [new_model(shape, 40, seed).state_dict() for seed in (1, 1, 2)]
    assert torch.equal(torch.random.get_rng_state(), before)
    name = "model.embed_tokens.weight"
    assert torch.equal(states[0][name], states[1][name]) and not torch.equal(states[0][name], states[2][name])


def test_path_new_loads_a_random_model_with_its_tokenizer(assets: Path) -> None:
    shape = NewModelConfig(tokenizer=str(assets / "stories260k-hf"), hidden=16, layers=1, heads=2, kv_heads=1, ffn=16)
    loaded = load_model(ModelConfig(path="new", new=shape))
    assert loaded.path is None and loaded.denoiser.mask_id == 512 and loaded.denoiser.vocab_size == 513


def test_heads_that_do_not_divide_are_refused() -> None:
    with pytest.raises(ModelError, match="heads 4, kv_heads 3"):
        new_model(NewModelConfig(hidden=16, heads=4, kv_heads=3), 10)


def test_a_folder_that_is_no_model_is_one_clear_error(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"no config\.json.*tiny, tiny-parent"):
        model_folder(str(tmp_path))


def test_a_missing_bundled_model_is_one_clear_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(load.BUNDLED, "tiny", "absent")
    with pytest.raises(ModelError, match="bundled model is missing"):
        model_folder("tiny")


def copy(assets: Path, folder: Path) -> Path:
    shutil.copytree(assets / "stories260k-hf", folder)
    folder.chmod(0o755)
    for path in folder.iterdir():
        path.chmod(0o644)
    return folder


def test_pickle_weights_are_refused(assets: Path, tmp_path: Path) -> None:
    folder = copy(assets, tmp_path / "m")
    torch.save({}, folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    with pytest.raises(ModelError, match=r"only pytorch_model\.bin, a pickle"):
        load_model(ModelConfig(path=str(folder)))


def test_foreign_code_is_refused_unless_trusted(assets: Path, tmp_path: Path) -> None:
    folder = copy(assets, tmp_path / "m")
    values = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(values | {"auto_map": {"AutoModelForCausalLM": "evil.Evil"}}))
    with pytest.raises(ModelError, match="trust_remote_code=true"):
        load_model(ModelConfig(path=str(folder)))


def test_malformed_metadata_names_the_field(assets: Path, tmp_path: Path) -> None:
    folder = copy(assets, tmp_path / "m")
    (folder / "hildanext.json").write_text('{"shift": "left"}')
    with pytest.raises(ModelError, match=r"hildanext\.json: shift:.*found 'left'"):
        load_model(ModelConfig(path=str(folder)))


def test_a_mask_id_beyond_the_rows_is_refused(assets: Path) -> None:
    with pytest.raises(ModelError, match="mask_id 900: the embedding has rows 0 to 511"):
        load_model(ModelConfig(path=str(assets / "stories260k-hf"), mask_id=900))


@pytest.mark.parametrize(
    ("name", "changes", "reason"),
    [
        ("MistralConfig", {"sliding_window": 8}, "sliding-window"),
        ("Qwen2Config", {"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 1}, "sliding-window"),
        ("Gemma3TextConfig", {}, "sliding-window"),
        ("JambaConfig", {"num_hidden_layers": 4}, "not a softmax over a mask"),
        ("BambaConfig", {"num_hidden_layers": 4}, "cannot be decoded after a committed one"),
        ("MambaConfig", {}, "not a softmax over a mask"),
        ("RwkvConfig", {}, "AttentionInterface"),
        ("BloomConfig", {}, "AttentionInterface"),
        ("T5Config", {}, "encoder-decoder"),
    ],
)
def test_an_architecture_a_mask_cannot_express_is_refused(name: str, changes: dict[str, Any], reason: str) -> None:
    import transformers

    if not hasattr(transformers, name):
        pytest.skip(f"this transformers has no {name}")
    with pytest.raises(ModelError, match=reason):
        check_supported(getattr(transformers, name)(**changes), "folder")


def test_an_output_bias_or_scale_is_refused(random_model: Make) -> None:
    model = random_model(vocab_size=20)
    model.lm_head.bias = torch.nn.Parameter(torch.zeros(20))
    with pytest.raises(ModelError, match="output bias"):
        check_head(model, "folder")
    model = random_model(vocab_size=20)
    model.config.logits_scaling = 8.0
    with pytest.raises(ModelError, match="logits_scaling"):
        check_head(model, "folder")


@pytest.mark.parametrize("family", ["qwen3", "qwen2", "llama", "mistral", "qwen3_moe"])
def test_the_five_families_are_supported(family: str, random_model: Make) -> None:
    config = random_model(family).config
    check_supported(config, "folder")
    assert config.model_type == family


@pytest.mark.parametrize(
    ("level", "expected"), [(None, "float32"), ((6, 1), "float32"), ((7, 5), "float32"), ((8, 0), "bfloat16")]
)
def test_dtype_follows_the_hardware_and_says_why(level: Any, expected: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(load, "capability", lambda device: level)
    dtype, reason = choose_dtype("auto", torch.device("cpu"))
    assert dtype is getattr(torch, expected) and reason
    assert choose_dtype("float16", torch.device("cpu")) == (torch.float16, "asked for")


@pytest.mark.parametrize("name", ["cuda:99", "gpu"])
def test_a_device_that_is_not_there_is_refused(name: str) -> None:
    with pytest.raises(ModelError, match="model.device"):
        choose_device(name)


def test_adapting_a_model_leaves_its_own_forward_as_it_was(random_model: Make) -> None:
    model = random_model()
    tokens = torch.arange(8)[None]
    with torch.no_grad():
        before = plain(model)(input_ids=tokens).logits
        HFDenoiser(model, 66)
        assert torch.equal(model(input_ids=tokens).logits, before)
