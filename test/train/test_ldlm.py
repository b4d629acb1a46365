# LDLM through the seam: texts of packed rows, states of the frozen parent, exact resume, folders by name, refusals.
# Entry points: pytest.
# The oracle of a resumed run is the uninterrupted one; that of the texts of a row, a loop over its documents.
"""Tests of latents/ldlm.py."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from train.material import QUIET, losses, overrides, stop_after

import hildanext
from hildanext.cli import main
from hildanext.commands.latent import BASE
from hildanext.config import Config, load_config
from hildanext.config.model import ModelConfig
from hildanext.core.batches import stacked
from hildanext.core.latent import Draw, Ground
from hildanext.core.latents.ldlm.perceiver import normalised
from hildanext.core.latents.ldlm.times import AdaptiveTimes
from hildanext.core.types import Batch
from hildanext.data.shards import ShardSet
from hildanext.errors import ConfigError, DecodeError, Interrupted, ModelError
from hildanext.latents.ldlm import Ldlm, LdlmModel, texts_of
from hildanext.models.latent import ground_of
from hildanext.models.latent_footprint import LatentFootprint, latent_footprint
from hildanext.models.load import load_model
from hildanext.train.recipes.latents import latent_command

SIZES: dict[str, Any] = {
    "length": 32, "latents": 3, "size": 4, "encoder": 1, "dit": 1, "decoder": 1, "tokens": 1, "width": 8, "head": 8,
    "layer": -1, "steps": 4,
}  # fmt: skip
RUN = {"train__steps": 6, "train__checkpoint_every": 3}


def configured(shards: Path, parent: Path, **changes: Any) -> Config:
    own = {"model__path": str(parent), "latent__model": {"type": "ldlm", **SIZES}, **RUN, **changes}
    return load_config(None, overrides(shards, **own), base=BASE)


@pytest.fixture(scope="module")
def trained(shards: Path, parent: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("ldlm") / "run"
    latent_command(configured(shards, parent), QUIET, path)
    return path


@pytest.fixture(scope="module")
def ground(parent: Path) -> Ground:
    return ground_of(load_model(ModelConfig(path=str(parent))))


@pytest.fixture
def model(ground: Ground) -> LdlmModel:
    torch.manual_seed(0)
    made = Ldlm(**SIZES).build(ground)
    assert isinstance(made, LdlmModel)
    torch.nn.init.normal_(made.network.dit.out.weight, std=0.3)
    torch.nn.init.normal_(made.network.dit.layers[0].modulation.weight, std=0.3)
    return made.eval()


def test_the_preflight_counts_what_is_trained_after_a_model_was_loaded(
    shards: Path, parent: Path, model: LdlmModel
) -> None:
    found = latent_footprint(configured(shards, parent))  # transformers' loading replaces functions of torch
    assert isinstance(found, LatentFootprint) and found.count == sum(one.numel() for one in model.parameters())


@pytest.fixture(scope="module")
def batch(shards: Path) -> Batch:
    rows = ShardSet.open(shards / "sft_train")
    return stacked([rows[index] for index in range(4)], (0, 1, 2, 3))


def documents(batch: Batch, length: int) -> Iterator[list[int]]:
    for tokens, learn, docs in zip(batch.tokens.tolist(), batch.learn.tolist(), batch.docs.tolist(), strict=True):
        for number in dict.fromkeys(docs):
            own = [place for place, doc in enumerate(docs) if doc == number]
            if any(learn[place] for place in own):
                yield [tokens[place] for place in own][:length]


def of_rows(batch: Batch, length: int) -> list[list[int]]:
    place, text = texts_of(batch, length)
    return [row[own].tolist() for row, own in zip(batch.tokens.flatten()[place], text, strict=True)]


@pytest.mark.parametrize("length", [32, 5])
def test_every_document_of_a_row_is_a_text_and_padding_is_none(batch: Batch, length: int) -> None:
    assert of_rows(batch, length) == list(documents(batch, length)) and len(of_rows(batch, length)) > len(batch.tokens)


def test_texts_of_padding_are_seen(batch: Batch) -> None:
    taken = Batch(batch.tokens, torch.ones_like(batch.learn), batch.docs)
    assert of_rows(taken, 32) != list(documents(batch, 32))
    with pytest.raises(ValueError, match="no document"):
        texts_of(Batch(batch.tokens, torch.zeros_like(batch.learn), batch.docs), 32)


def test_the_states_of_a_text_are_those_of_the_text_alone(model: LdlmModel, batch: Batch) -> None:
    place, text = texts_of(batch, 32)
    whole = model.states(batch).flatten(0, 1)[place]
    for row, tokens in enumerate(of_rows(batch, 32)):
        own = torch.tensor([tokens])
        alone = model.states(Batch(own, torch.ones_like(own, dtype=torch.bool), torch.zeros_like(own)))
        assert torch.allclose(whole[row][text[row]], alone[0], atol=1e-5)


def test_the_layer_is_the_one_asked_for(ground: Ground, batch: Batch, model: LdlmModel) -> None:
    assert ground.states is not None
    assert torch.equal(model.states(batch), normalised(ground.states(batch, ground.layers)))
    assert LdlmModel(Ldlm(**SIZES | {"layer": -2}), ground).layer == ground.layers - 1
    assert LdlmModel(Ldlm(**SIZES | {"layer": 1}), ground).layer == 1


def test_the_loss_is_the_weighted_sum_of_its_terms_and_evaluation_changes_nothing(
    model: LdlmModel, batch: Batch
) -> None:
    before = {name: value.clone() for name, value in model.named_buffers()}
    found, again = (model.loss(batch, 0.5, torch.Generator().manual_seed(4)) for _ in range(2))
    assert torch.equal(found.total, again.total)
    assert all(torch.equal(value, before[name]) for name, value in model.named_buffers())
    mean = {name: float(found.parts[name] / found.counts[name]) for name in found.parts}
    assert float(found) == pytest.approx(mean["diffusion"] + mean["states"] + mean["tokens"], rel=1e-5)
    model.train().loss(batch, 0.5, torch.Generator().manual_seed(4))
    assert {name for name, value in model.named_buffers() if not torch.equal(value, before[name])} == {
        "network.times.losses", "network.encoder.standard.mean", "network.encoder.standard.variance"
    }  # fmt: skip


def test_the_parent_gets_no_gradient_and_is_no_part_of_the_model(model: LdlmModel, batch: Batch) -> None:
    model.train().loss(batch, 0.99, torch.Generator().manual_seed(4)).total.backward()
    assert all(p.grad is not None for name, p in model.named_parameters() if "prompt" not in name)
    assert model.ground.parent is not None
    assert not any(p.requires_grad or p.grad is not None for p in model.ground.parent.parameters())  # type: ignore[attr-defined]
    assert not {id(p) for p in model.parameters()} & {id(p) for p in model.ground.parent.parameters()}  # type: ignore[attr-defined]


def interrupted(path: Path, config: Config, patch: pytest.MonkeyPatch) -> dict[str, Tensor]:
    with patch.context() as until:
        stop_after(until, 2, signal.SIGTERM)
        with pytest.raises(Interrupted):
            latent_command(config, QUIET, path)
    goes_on = config.model_copy(update={"train": config.train.model_copy(update={"resume": "latest"})})
    latent_command(goes_on, QUIET, path)
    return load_file(path / "model" / "latent.safetensors")


def test_a_resumed_run_is_the_uninterrupted_one(
    trained: Path, shards: Path, parent: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = interrupted(tmp_path / "run", configured(shards, parent), monkeypatch)
    whole = load_file(trained / "model" / "latent.safetensors")
    assert found.keys() == whole.keys() and all(torch.equal(found[name], whole[name]) for name in whole)
    assert losses(tmp_path / "run") == losses(trained)


def test_averages_that_are_not_kept_are_seen(
    trained: Path, shards: Path, parent: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    load = AdaptiveTimes._load_from_state_dict

    def forgetful(self: AdaptiveTimes, *given: Any) -> None:
        load(self, *given)
        self.losses.fill_(1.0)

    monkeypatch.setattr(AdaptiveTimes, "_load_from_state_dict", forgetful)
    found = interrupted(tmp_path / "run", configured(shards, parent), monkeypatch)
    whole = load_file(trained / "model" / "latent.safetensors")
    assert not all(torch.equal(found[name], whole[name]) for name in whole)


def drawn(model: LdlmModel, prompts: list[list[int]], draw: Draw, new: int = 6) -> tuple[list[list[int]], int]:
    rngs = [torch.Generator().manual_seed(index) for index in range(len(prompts))]
    with torch.no_grad():
        (piece,) = model.sample(prompts, new, draw, rngs)
    return [list(one) for one in piece.tokens], piece.forwards


@pytest.mark.parametrize("sampler", ["ddim", "euler"])
@pytest.mark.parametrize("steps", [1, 2, 64])
def test_texts_of_any_number_of_steps_have_the_tokens_asked_for(model: LdlmModel, sampler: str, steps: int) -> None:
    model.network.tokens.out.bias.data[model.ground.mask_id] += 1e3
    prompts = [[5, 6, 7], [], [9]]
    tokens, forwards = drawn(model, prompts, Draw(steps, sampler))
    assert [len(one) for one in tokens] == [6, 6, 6] and forwards == steps + 3
    assert model.ground.mask_id not in {token for one in tokens for token in one}
    assert (tokens, forwards) == drawn(model, prompts, Draw(steps, sampler))
    assert drawn(model, [[], []], Draw(steps, sampler))[1] == steps + 2


def test_a_text_is_drawn_with_its_own_numbers_whoever_is_beside_it(model: LdlmModel) -> None:
    together, _ = drawn(model, [[5, 6, 7], [], [9, 8]], Draw(3, "ddim"))
    assert together[0] == drawn(model, [[5, 6, 7]], Draw(3, "ddim"))[0][0]


def test_what_a_text_has_no_positions_for_is_its_end(model: LdlmModel) -> None:
    tokens, _ = drawn(model, [[5] * 30, [5]], Draw(1, "ddim"), new=8)
    assert tokens[0][2:] == [model.ground.ends[0]] * 6 and len(tokens[1]) == 8


def test_guidance_of_one_is_none_and_more_costs_a_second_forward(
    model: LdlmModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = list[Tensor]()
    whole = model.network.dit.forward
    monkeypatch.setattr(model.network.dit, "forward", lambda *given: calls.append(given[4]) or whole(*given))
    _, plain = drawn(model, [[5, 6]], Draw(2, "ddim", 1.0))
    assert len(calls) == 2 and all(one.all() for one in calls)
    _, more = drawn(model, [[5, 6]], Draw(2, "ddim", 3.0))
    assert len(calls) == 6 and [bool(one.any()) for one in calls[2:]] == [True, False, True, False]
    assert (plain, more) == (5, 7) and drawn(model, [[]], Draw(2, "ddim", 3.0))[1] == 4


def test_a_folder_is_loaded_by_name_says_that_it_is_not_exact_and_draws(
    trained: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = hildanext.load(trained)
    asked: dict[str, Any] = {"max_new_tokens": 5, "overrides": {"steps": 3, "sampler": "euler"}}
    result = found.generate("the cat sat", **asked)
    assert not result.exact and any("not exact" in note for note in result.notes) and result.metrics.forwards == 6
    assert result.text == found.generate("the cat sat", **asked).text
    assert main(["generate", "--model", str(trained), "--prompt", "the cat", "--max-new-tokens", "4"]) == 0
    assert main(["inspect", "--json", "--set", f"model.path={trained}"]) == 0
    said = capsys.readouterr().out
    assert '"exact": false' in said and '"model_type": "latent ldlm"' in said


@pytest.mark.parametrize(
    ("fields", "words"), [({"infill": True}, "infill"), ({"tau_edit": 0.5}, "tau_edit"), ({"kv": "window"}, "kv")]
)
def test_what_it_cannot_do_is_refused_by_name(trained: Path, fields: dict[str, Any], words: str) -> None:
    with pytest.raises(DecodeError, match=words) as error:
        hildanext.load(trained).generate("the cat <gap:3> on" if "infill" in fields else "the cat", **fields)
    assert "ldlm" in str(error.value) and len(str(error.value).splitlines()) == 1


def test_a_likelihood_is_refused(trained: Path) -> None:
    found = hildanext.load(trained)
    with pytest.raises(ModelError, match="ldlm"):
        found.nll(found.batch(["the cat sat"]))


@pytest.mark.parametrize(
    ("changes", "words"),
    [({"block": 8}, "block 8"), ({"head": 7}, "head 7"), ({"layer": 9}, "layer 9"), ({"layer": 0}, "layer 0"),
     ({"length": 500}, "length 500")],
)  # fmt: skip
def test_settings_that_do_not_fit_the_parent_are_refused(ground: Ground, changes: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        Ldlm(**SIZES | changes).build(ground)
