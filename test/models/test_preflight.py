# The memory estimate against what autograd really keeps, and the refusal with settings that fit.
# Entry points: pytest.
# Kept bytes are measured with saved_tensors_hooks, each storage once, parameters left out.
"""Tests of models/preflight.py and footprint.py."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from models.families import FAMILIES, network, tiny
from models.hybrids import configuration
from models.oracle import MASK, batch
from models.table_kind import Entry

from hildanext import registry
from hildanext.config import Config, load_config
from hildanext.config.train import ObjectiveSection
from hildanext.core.objective import BaseObjective
from hildanext.errors import ModelError
from hildanext.models import preflight, shallow
from hildanext.models.denoiser import HFDenoiser
from hildanext.models.footprint import NetworkFootprint
from hildanext.models.preflight import PARTS, estimate, require_memory

Make = Callable[..., Any]


@pytest.fixture(autouse=True)
def process(monkeypatch: pytest.MonkeyPatch) -> None:
    """This process's own memory does not change between two estimates."""
    monkeypatch.setattr(preflight, "resident_memory", lambda: 2**28)


def kept_bytes(model: HFDenoiser, length: int, block: int, rows: int = 1) -> int:
    own = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    seen: dict[int, tuple[int, torch.Tensor]] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            seen[storage.data_ptr()] = (storage.nbytes(), tensor)
        return tensor

    data = batch(rows, length)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        model.noisy_features(data.tokens, data, block, data.learn)
    return sum(size for size, _ in seen.values())


@pytest.mark.parametrize("family", ["qwen3", "llama"])
@pytest.mark.parametrize(("length", "block", "name"), [(64, 16, "dense"), (128, 16, "sliced"), (64, 64, "dense")])
def test_layer_activations_are_what_autograd_keeps(
    family: str, length: int, block: int, name: str, random_model: Make
) -> None:
    models = [HFDenoiser(random_model(family, num_hidden_layers=n), MASK, attention=name) for n in (1, 3)]
    measured = (kept_bytes(models[1], length, block) - kept_bytes(models[0], length, block)) / 2
    network = NetworkFootprint(models[0].config, 0, 0, 0, 0, family == "qwen3")
    assert sum(network.layer_bytes(length, block, name, 4).values()) == pytest.approx(measured, rel=0.1)


def config(path: Path, **values: Any) -> Config:
    return load_config(None, [f"model.path={path}", *(f"{key}={value}" for key, value in values.items())])


def test_qwen3_600m_needs_the_static_bytes_of_the_memory_table(assets: Path) -> None:
    found = estimate(config(assets / "qwen3-0.6b-config", **{"model.dtype": "float32"}), 512, available=2**40)
    assert found["parameters"] == found["gradients"] == 4 * 596_049_920
    assert found["optimizer"] == 8 * 596_049_920 and found["fits"]
    assert found["total"] == pytest.approx(sum(found.get(part, 0) for part in PARTS), abs=8)


def test_frozen_embeddings_and_8_bit_moments_shrink_as_in_the_memory_table(assets: Path) -> None:
    values = {"optimizer.freeze_embeddings": "true", "optimizer.name": "adamw8bit", "model.dtype": "float32"}
    found = estimate(config(assets / "qwen3-0.6b-config", **values), 512, available=2**40)
    trained = 596_049_920 - 151_936 * 1024
    assert found["gradients"] == 4 * trained and found["optimizer"] == 2 * trained


def test_lora_trains_ten_million_parameters_of_qwen3_600m(assets: Path) -> None:
    values = {"model.adapter.kind": "lora", "model.dtype": "float32"}
    found = estimate(config(assets / "qwen3-0.6b-config", **values), 512, available=2**40)
    assert found["gradients"] / 4 == pytest.approx(10.1e6, rel=0.01)


def test_beyond_the_limit_it_refuses_and_names_settings_that_fit(assets: Path) -> None:
    path = assets / "qwen3-0.6b-config"
    tight = config(path, **{"model.dtype": "float32", "train.batch": 8})
    found = estimate(tight, 1024, available=8 * 2**30)
    assert not found["fits"] and found["limit"] == round(0.85 * 8 * 2**30)
    with pytest.raises(ModelError, match=r"model\.max_vram_pct.*would fit: --set ") as caught:
        require_memory(found)
    assert "\n" not in str(caught.value)
    for remedy in found["remedies"]:
        changes = re.findall(r"--set (\S+)", remedy)
        fitting = load_config(None, [f"model.path={path}", "model.dtype=float32", "train.batch=8", *changes])
        assert estimate(fitting, 1024, available=8 * 2**30)["fits"]


def test_within_the_limit_it_says_nothing(assets: Path) -> None:
    found = estimate(config(assets / "stories260k-hf"), 64)
    assert found["fits"] and "remedies" not in found
    require_memory(found)


def test_the_limit_is_the_share_asked_for(assets: Path) -> None:
    half = estimate(config(assets / "stories260k-hf", **{"model.max_vram_pct": 0.5}), 64, available=1000)
    assert half["limit"] == 500 and not half["fits"]


def test_sharding_over_ranks_divides_the_weights(assets: Path) -> None:
    path = assets / "qwen3-0.6b-config"
    one = estimate(config(path), 512, available=2**40)
    four = estimate(config(path, **{"train.parallel": "fsdp2"}), 512, ranks=4, available=2**40)
    assert four["optimizer"] * 4 == one["optimizer"] and four["activations"] == one["activations"]


def test_decoding_counts_keys_and_values(assets: Path) -> None:
    values = {"model.dtype": "float32", "decode.requests": 2, "decode.prefix_bytes": 1 << 20}
    found = estimate(config(assets / "qwen3-0.6b-config", **values), 1000, training=False, available=2**40)
    assert found["kv"] == 2 * 1000 * 2 * 28 * 8 * 128 * 4 + (1 << 20) and found["optimizer"] == 0


class Taught(BaseObjective):
    """An objective with teachers."""

    teachers: tuple[str, ...] = ()

    @property
    def companions(self) -> tuple[str, ...]:
        return self.teachers


@pytest.fixture
def taught(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Config]:
    found = {"hildanext.objectives": [Entry("taught", Taught)]}
    monkeypatch.setattr(registry, "entry_points", lambda group: found.get(group, []))

    def make(plain: Config, *teachers: Path) -> Config:
        section = ObjectiveSection.model_validate({"type": "taught", "teachers": [str(path) for path in teachers]})
        return plain.model_copy(update={"objective": section})

    return make


def test_the_objectives_further_models_are_counted_and_nothing_else_changes(
    assets: Path, taught: Callable[..., Config]
) -> None:
    teacher, student = assets / "qwen3-0.6b-config", assets / "stories260k-hf"
    plain = config(student, **{"model.dtype": "float32", "model.adapter.kind": "lora"})
    alone = estimate(plain, 64, available=2**40)
    found = estimate(taught(plain, teacher, student), 64, available=2**40)
    assert found["companions"] == 4 * (596_049_920 + 260_032) and "companions" not in alone
    assert estimate(taught(plain), 64, available=2**40) == alone
    assert found.pop("total") == alone.pop("total") + found.pop("companions") and found == alone


def test_the_model_a_run_began_from_is_one_more_unless_adapters_train(assets: Path) -> None:
    path, section = assets / "stories260k-hf", ObjectiveSection.model_validate({"type": "distill"})
    for kind, wanted in (("none", 4 * 260_032), ("lora", None)):
        plain = config(path, **{"model.dtype": "float32", "model.adapter.kind": kind})
        found = estimate(plain.model_copy(update={"objective": section}), 64, available=2**40)
        assert found.get("companions") == wanted
        without = ObjectiveSection.model_validate({"type": "distill", "kl_weight": 0})
        assert "companions" not in estimate(plain.model_copy(update={"objective": without}), 64, available=2**40)


def test_decoding_holds_no_further_model(assets: Path, taught: Callable[..., Config]) -> None:
    plain = config(assets / "stories260k-hf")
    own = estimate(taught(plain, assets / "qwen3-0.6b-config"), 64, training=False, available=2**40)
    assert own == estimate(plain, 64, training=False, available=2**40)


def test_a_teacher_that_does_not_fit_is_named_and_counted_in_the_settings_that_would(
    assets: Path, taught: Callable[..., Config]
) -> None:
    path = assets / "qwen3-0.6b-config"
    plain = config(path, **{"model.dtype": "float32", "train.batch": 8})
    room = estimate(plain, 512, available=2**40)["total"] / 0.85 + 2**20
    assert estimate(plain, 512, available=int(room))["fits"]
    found = estimate(taught(plain, path), 512, available=int(room))
    with pytest.raises(ModelError, match=r"companions 2\.22, process .*would fit: --set "):
        require_memory(found)
    for remedy in found["remedies"]:
        changes = re.findall(r"--set (\S+)", remedy)
        fitting = load_config(None, [f"model.path={path}", "model.dtype=float32", "train.batch=8", *changes])
        assert estimate(taught(fitting, path), 512, available=int(room))["fits"]


def test_a_teacher_that_is_not_there_is_reported_as_the_field_that_names_it(tmp_path: Path) -> None:
    tiny(FAMILIES["llama"]).save_pretrained(tmp_path)
    section = ObjectiveSection.model_validate({"type": "distill", "parent": "nowhere"})
    with pytest.raises(ModelError, match=r"^objective\.parent 'nowhere': no Hugging Face model folder there"):
        estimate(config(tmp_path).model_copy(update={"objective": section}), 64, available=2**40)


@pytest.mark.parametrize("name", ["gpt2", "gpt_neox", "opt", "gpt_bigcode", "persimmon", "mixtral", "deepseek_v3"])
@pytest.mark.parametrize("length", [64])
def test_models_that_are_not_llama_shaped_are_weighed_too(name: str, length: int, tmp_path: Path) -> None:
    settings = tiny(FAMILIES[name])
    settings.save_pretrained(tmp_path)
    found = estimate(config(tmp_path), length, available=2**40)
    held = network(settings)
    assert found["parameters"] == 4 * sum(parameter.numel() for parameter in held.parameters())
    assert estimate(config(tmp_path), length, training=False, available=2**40)["kv"] > 0
    measured = kept_bytes(HFDenoiser(held, MASK, attention="dense"), length, 16)
    share = found["activations"] / (config(tmp_path).train.batch * measured)
    assert share == pytest.approx(1, abs=0.03), f"{share:.2f} of the measured bytes"


@pytest.mark.parametrize(
    ("family", "block"),
    [("lfm2", 1), ("lfm2", 16), ("qwen3_5_text", 1), ("qwen3_5_text", 16), ("granitemoehybrid", 4), ("nemotron_h", 4),
     ("falcon_h1", 4), ("zamba2", 4)],
)  # fmt: skip
def test_states_of_recurrent_layers_at_block_boundaries_are_counted(family: str, block: int, tmp_path: Path) -> None:
    settings = configuration(family)
    settings.save_pretrained(tmp_path)
    wanted = {"ladder.fixed": block, "train.batch": 2, "decode.requests": 3, "decode.prefix_bytes": 0}
    found = estimate(config(tmp_path, **wanted), 32, available=2**40)
    model = HFDenoiser(network(settings), MASK, attention="dense")
    near = 0.05 if family in ("granitemoehybrid", "nemotron_h") else 0.02
    assert found["activations"] == pytest.approx(kept_bytes(model, 32, block, 2), rel=near) and not found["unsure"]
    decoding = estimate(config(tmp_path, **wanted), 32, training=False, available=2**40)
    assert decoding["kv"] == 3 * model.state_bytes(32)


def test_a_recomputed_hybrid_counts_its_widest_layer(tmp_path: Path) -> None:
    configuration("qwen3_5_text").save_pretrained(tmp_path)
    wanted = {"ladder.fixed": 16, "train.batch": 2, "train.gradient_checkpointing": "true"}
    found = estimate(config(tmp_path, **wanted), 32, available=2**40)["activations"]
    alone = configuration("qwen3_5_text", num_hidden_layers=2, layer_types=["linear_attention", "full_attention"])
    both = configuration("qwen3_5_text", num_hidden_layers=3, layer_types=["linear_attention"] * 2 + ["full_attention"])
    kept = [kept_bytes(HFDenoiser(network(one), MASK, attention="dense"), 32, 16, 2) for one in (alone, both)]
    inputs = 3 * 2 * 64 * 32 * 4
    assert kept[1] - kept[0] < found - inputs < 1.15 * (kept[1] - kept[0]) + 0.2 * kept[0]


@pytest.mark.parametrize(("family", "name"), [("qwen3", "dense"), ("llama", "sliced"), ("gpt2", "dense")])
@pytest.mark.parametrize("rows", [1, 4])
def test_under_autocast_weights_are_copied_once_for_all_rows(family: str, name: str, rows: int, tmp_path: Path) -> None:
    settings = tiny(FAMILIES[family])
    settings.save_pretrained(tmp_path)
    wanted = {"train.autocast": "bfloat16", "train.batch": rows, "ladder.fixed": 8, "model.attention": name}
    found = estimate(config(tmp_path, **wanted), 32, available=2**40)
    with torch.autocast("cpu", torch.bfloat16):
        measured = kept_bytes(HFDenoiser(network(settings), MASK, attention=name), 32, 8, rows)
    assert found["activations"] == pytest.approx(measured, rel=0.03)


def test_a_network_that_cannot_be_traced_is_weighed_by_formulas_and_that_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tiny(FAMILIES["gpt2"]).save_pretrained(tmp_path)
    known = estimate(config(tmp_path), 48, available=2**40)

    def planted(*given: Any) -> float:
        raise TypeError("no shape for this\nand a second line")

    monkeypatch.setattr(shallow, "_traced", planted)
    shallow._kept.cache_clear()
    found = estimate(config(tmp_path), 48, available=2**40)
    shallow._kept.cache_clear()
    assert known["unsure"] == "" and 0 < found["activations"] != known["activations"]
    assert "gpt2" in found["unsure"] and found["unsure"].endswith("(TypeError: no shape for this)")


def test_the_preflight_refuses_what_loading_would_refuse_with_the_same_words(tmp_path: Path) -> None:
    tiny(FAMILIES["bloom"]).save_pretrained(tmp_path)
    with pytest.raises(ModelError, match="AttentionInterface"):
        estimate(config(tmp_path), 64, available=2**40)
