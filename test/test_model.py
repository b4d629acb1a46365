# The front door: what its methods return is what the rooms behind it compute, and its mistakes are one clear line.
# Entry points: pytest.
# The bundled pair is loaded once; policies and objectives of the tests are in no file of the registry.
"""Tests of hildanext.model."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from guards.test_command_line import modules_after

import hildanext
from hildanext.core.likelihood import autoregressive_nll, block_elbo
from hildanext.core.objective import BaseObjective
from hildanext.core.types import About, Batch, Canvas, Denoiser, LossReport, Stats, Update
from hildanext.decoding.events import Commit
from hildanext.decoding.policies.margin import Margin
from hildanext.decoding.policy import BlockPolicy, best_first, fill, masked
from hildanext.errors import HildaError
from hildanext.registry import build


class Rightmost(BlockPolicy):
    """The last masks of a block first."""

    take: int = 1

    def step(self, stats: Stats, canvas: Canvas) -> Update:
        return fill(stats, canvas, best_first(torch.arange(len(stats.best)).float(), masked(canvas), self.take))


class Special(BaseObjective):
    """How many special ids `prepare` told of, over the tokens of the batch."""

    told: int = 0

    def prepare(self, about: About) -> Special:
        return self.model_copy(update={"told": len(about.special)})

    def loss(self, model: Denoiser, batch: Batch, block: int, rng: torch.Generator) -> LossReport:
        return LossReport(torch.tensor(float(self.told)), torch.tensor(float(batch.tokens.numel())))


@pytest.fixture(scope="module")
def model() -> hildanext.Model:
    return hildanext.load("tiny")


def test_importing_the_package_loads_no_torch_and_reading_a_name_does() -> None:
    assert "torch" not in modules_after("import hildanext; dir(hildanext)")
    assert "torch" in modules_after("import hildanext; hildanext.load")


def test_every_public_name_is_there() -> None:
    assert all(getattr(hildanext, name) is not None for name in hildanext.__all__)
    with pytest.raises(AttributeError, match="no attribute 'lod'"):
        _ = hildanext.lod


def test_a_model_says_what_it_is_and_why(model: hildanext.Model) -> None:
    assert (model.block, model.device.type, model.dtype, model.notes) == (16, "cpu", torch.float32, ())
    assert "every processor" in model.dtype_reason
    assert model.tokenizer.decode(model.tokenizer("Tom ran.")["input_ids"]).strip() == "Tom ran."
    parent = hildanext.load("tiny-parent", dtype="bfloat16")
    assert parent.dtype == torch.bfloat16 and "left to right" in parent.notes[0]


def test_a_batch_holds_each_text_its_end_and_padding_that_is_not_learned(model: hildanext.Model) -> None:
    batch = model.batch(["Tom had a red ball.", [5, 6]], block=4)
    end, ids = model.tokenizer.eos_token_id, model.tokenizer("Tom had a red ball.")["input_ids"]
    assert batch.tokens.shape == (2, 8) and batch.block == 4
    assert batch.tokens[0, : len(ids) + 1].tolist() == [*ids, end]
    assert batch.tokens[1, :3].tolist() == [5, 6, end]
    assert batch.learn.sum(dim=1).tolist() == [len(ids) + 1, 3]
    assert batch.docs[1, 2] != batch.docs[1, 3]


def test_a_loss_is_the_objective_of_that_name_prepared_and_seeded(model: hildanext.Model) -> None:
    batch = model.batch(["Tom had a red ball.", "One day Lily ran."], block=4)
    objective = build("objectives", {"type": "autoregressive"})
    plain = objective.loss(model.denoiser, batch, 4, torch.Generator())
    assert float(model.loss(batch, "autoregressive")) == float(plain.total.detach() / plain.normaliser)
    first, again, other = (float(model.loss(batch, seed=seed)) for seed in (1, 1, 2))
    assert first == again != other
    assert float(model.loss(batch, {"type": "mask_and_edit", "m2t_weight": 0.0}, seed=1)) < first


def test_an_objective_of_ones_own_is_prepared_with_what_is_known_of_the_model(model: hildanext.Model) -> None:
    batch = model.batch("Tom ran.", block=4)
    assert float(model.loss(batch, Special())) == len(model.tokenizer.all_special_ids) / batch.tokens.numel()


def test_a_loss_carries_the_gradient_of_the_weights(model: hildanext.Model) -> None:
    own = hildanext.load("tiny")
    own.loss(own.batch("Tom had a red ball.", block=4)).total.backward()
    assert all(weight.grad is not None for weight in own.denoiser.parameters())  # type: ignore[attr-defined]


def test_the_likelihood_is_that_of_the_rooms_behind(model: hildanext.Model) -> None:
    batch = model.batch(["Tom had a red ball.", "One day Lily ran."], block=2)
    found = model.nll(batch, samples=4, seed=3)
    ends = {int(model.tokenizer.eos_token_id)}
    assert found.autoregressive == autoregressive_nll(model.denoiser, batch, ends)
    assert found.bound == block_elbo(model.denoiser, batch, 2, torch.Generator().manual_seed(3), 4, ends)
    assert found.autoregressive.tokens - sum(tokens for _, tokens in found.autoregressive.without_ends) == len(
        batch.docs
    )
    exact = model.nll(batch, samples=0)
    assert exact.bound.standard_error == 0.0 and exact.bound.tokens == exact.autoregressive.tokens
    alone = model.nll(batch, block=1)
    assert alone.block == 1 and alone.bound.nats != exact.bound.nats


def test_texts_in_a_list_are_those_of_each_prompt_alone(model: hildanext.Model) -> None:
    prompts = ["One day", "Lily had a little cat.", [{"role": "user", "content": "What pet did Lily have?"}], [7, 8]]
    together = model.generate(prompts, max_new_tokens=20)
    alone = [model.generate(prompt, max_new_tokens=20) for prompt in prompts]
    assert [one.token_ids for one in together] == [one.token_ids for one in alone]
    assert together[0].engine == "tiny"


def test_repeats_of_a_prompt_are_drawn_afresh_and_the_first_is_the_one_alone(model: hildanext.Model) -> None:
    asked = {"temperature": 1.0, "seed": 4, "max_new_tokens": 20}
    first, second = model.generate(["One day", "One day"], **asked)
    assert first.text == model.generate("One day", **asked).text != second.text


def test_a_policy_object_decodes_as_its_section_does(model: hildanext.Model) -> None:
    section = model.generate("One day", policy={"type": "margin", "steps": 5}, max_new_tokens=32)
    made = model.generate("One day", policy=Margin(steps=5), max_new_tokens=32)
    assert made.token_ids == section.token_ids and made.metrics.forwards == section.metrics.forwards
    assert model.generate("One day", policy="margin", overrides={"steps": 5}, max_new_tokens=32).text == section.text


def test_a_policy_of_ones_own_is_named_in_the_result_and_takes_overrides(model: hildanext.Model) -> None:
    result = model.generate("One day", policy=Rightmost(), overrides={"take": 4}, max_new_tokens=14, trace=True)
    assert result.metrics.policy == "Rightmost" and result.preset is not None and result.preset["take"] == 4
    states = [token["state"] for token in result.trace[0]["tokens"]]
    assert states == ["given"] * 2 + ["mask"] * 10 + ["new"] * 4


def test_a_stream_commits_the_text_of_the_result(model: hildanext.Model) -> None:
    events = list(model.stream("One day", max_new_tokens=20))
    assert "".join(event.text for event in events if isinstance(event, Commit)) == events[-1].result.text  # type: ignore[union-attr]


def test_generate_is_the_text_of_the_model_it_names(model: hildanext.Model) -> None:
    assert hildanext.generate("One day", "S_MODE", max_new_tokens=16) == (
        model.generate("One day", mode="S_MODE", max_new_tokens=16).text
    )
    parent = hildanext.load("tiny-parent").generate("One day", max_new_tokens=16)
    assert hildanext.generate("One day", max_new_tokens=16, model="tiny-parent") == parent.text


MISTAKES: list[tuple[Callable[[Any], Any], str]] = [
    (lambda model: hildanext.load("no/such/folder"), "no Hugging Face model folder there"),
    (lambda model: hildanext.load("tiny", dtyp="x"), "did you mean 'dtype'"),
    (lambda model: model.batch([]), "no texts"),
    (lambda model: model.batch(["Tom ran.", ""]), "empty text"),
    (lambda model: model.batch([3.5]), "neither a text nor token ids"),
    (lambda model: model.batch("Tom ran.", block=0), "block 0"),
    (lambda model: model.loss(model.batch("Tom ran.", block=4), "mask_and_edt"), "did you mean 'mask_and_edit'"),
    (lambda model: model.loss(model.batch("Tom ran.", block=8), block=3), "no multiple of block 3"),
    (lambda model: model.nll(model.batch("Tom ran.", block=32), samples=0), "block 32 cannot be enumerated"),
    (lambda model: model.generate([]), "expected a text"),
    (lambda model: model.generate(["One day", 3.5]), "expected a text"),
    (lambda model: model.generate("One day", polici="margin"), "did you mean 'policy'"),
    (lambda model: model.generate("One day", policy="margn"), "did you mean 'margin'"),
    (lambda model: model.generate("One day", policy=Rightmost(), tau_mask=0.5), "tau_mask: unknown key"),
    (lambda model: model.generate("One day", policy=Special()), "Special is no decoding policy"),
    (lambda model: model.generate("One day", policy=Rightmost(), overrides={"take": "x"}), "take"),
    (lambda model: hildanext.generate("One day", mode="FAST"), "no mode 'FAST'"),
]


@pytest.mark.parametrize(("mistake", "words"), MISTAKES, ids=lambda value: value if isinstance(value, str) else "")
def test_a_mistake_is_one_clear_line(mistake: Callable[[Any], Any], words: str, model: hildanext.Model) -> None:
    with pytest.raises(HildaError, match=words) as caught:
        mistake(model)
    assert len(str(caught.value).splitlines()) == 1


def test_a_loss_finds_its_second_model_and_keeps_it() -> None:
    model = hildanext.load("tiny")
    batch = model.batch(["Lily met a fox at the lake."], block=4)
    first = model.loss(batch, {"type": "distill", "parent": "tiny-parent"})
    assert float(first.counts["kl"]) > 0 and list(model.companions) == ["tiny-parent"]
    kept = model.companions["tiny-parent"]
    again = model.loss(batch, {"type": "distill", "parent": "tiny-parent"})
    assert torch.equal(first.total, again.total) and model.companions["tiny-parent"] is kept
    with pytest.raises(HildaError, match=r"objective\.parent: none is named"):
        model.loss(batch, "distill")
