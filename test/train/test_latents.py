# Latent models as a training run: exact resume, a folder loaded by name, what it refuses, what it says of itself.
# Entry points: pytest.
# A resumed run's oracle is the uninterrupted one, to the byte of its weights; a plant takes away what makes it so.
"""Tests of train/recipes/latents.py, models/latent.py and engines/latent.py on a run."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch
from api.live import config_in, live_server, wait_ready
from safetensors.torch import load_file
from train.material import QUIET, losses, overrides
from waiting import PATIENCE

from hildanext import load
from hildanext.cli import main
from hildanext.config import Config, load_config
from hildanext.decoding.driver import Driver
from hildanext.decoding.events import Commit, Done
from hildanext.decoding.request import Request
from hildanext.engines.choose import choose
from hildanext.engines.latent import LatentSession
from hildanext.engines.transformers import NativeSession
from hildanext.errors import ConfigError, DecodeError, HildaError, ModelError
from hildanext.measure.generation import LatentGenerator, generator_for
from hildanext.models.inspection import inspect
from hildanext.models.latent import LATENT
from hildanext.models.latent_footprint import latent_footprint
from hildanext.models.listing import listing
from hildanext.models.load import kind_at, load_model
from hildanext.train.merge import merge_folders
from hildanext.train.recipes import latents
from hildanext.train.recipes.latents import latent_command

COLA = {"type": "cola", "block": 8, "latent": 4, "heads": 2, "vae_layers": 1, "layers": 1, "alone": 0.3, "prompt": 0.5}


def fit(path: Path, shards: Path, parent: Path, **changes: Any) -> dict[str, Any]:
    given = {
        "model__path": str(parent),
        "latent__model": COLA,
        "train__steps": 4,
        "train__checkpoint_every": 2,
        **changes,
    }
    return latent_command(load_config(None, overrides(shards, **given)), QUIET, path)


@pytest.fixture(scope="module")
def whole(shards: Path, parent: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("latent") / "run"
    fit(path, shards, parent)
    return path


VFM = {"type": "vfm", "block": 8, "width": 8, "layers": 1, "looks": 2}


@pytest.fixture(scope="module")
def proposing(shards: Path, parent: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("vfm") / "run"
    fit(path, shards, parent, latent__model=VFM)
    return path


def test_proposals_carry_their_child_and_are_decoded_by_the_block_decoder(
    proposing: Path, shards: Path, parent: Path, tmp_path: Path
) -> None:
    session, _ = choose(config_of(proposing), QUIET)
    assert isinstance(session, NativeSession) and session.capability.exact and session.facts.block == 8
    ask = Request.of(prompt="the cat", max_new_tokens=12, ignore_eos=True, tau_mask=0.1)
    found = Driver(session).run([ask])[0]
    assert found.exact and len(found.token_ids) == 12 and inspect(str(proposing / "model"))["exact"]
    (alike,) = generator_for("auto", load_model(config_of(proposing).model), config_of(proposing).decode).complete(
        [ask]
    )
    assert alike.ids == found.token_ids == load(proposing).generate("the cat", **asked(ask)).token_ids
    gap = Request.of(prompt="the <gap:4> sat", infill=True)
    assert "the" in Driver(choose(config_of(proposing), QUIET)[0]).run([gap])[0].text  # what the child can, this can
    fit(tmp_path / "run", shards, parent, latent__model=VFM, train__resume=str(proposing / "checkpoints/step-000002"))
    assert same(proposing, tmp_path / "run") and losses(proposing)[2:] == losses(tmp_path / "run")
    with pytest.raises(ModelError, match="needs its parent folder"):
        shutil.rmtree(shutil.copytree(proposing / "model", tmp_path / "bare") / "parent")
        load_model(config_of(tmp_path / "bare").model)


def asked(request: Request) -> dict[str, Any]:
    return {name: getattr(request, name) for name in ("max_new_tokens", "ignore_eos", "tau_mask")}


def weights(run: Path) -> dict[str, torch.Tensor]:
    return load_file(run / "model" / "latent.safetensors")


def same(first: Path, second: Path) -> bool:
    ours, theirs = weights(first), weights(second)
    return ours.keys() == theirs.keys() and all(torch.equal(value, theirs[name]) for name, value in ours.items())


def went_on(path: Path, whole: Path, shards: Path, parent: Path) -> Path:
    fit(path, shards, parent, train__resume=str(whole / "checkpoints" / "step-000002"))
    return path


def test_a_resumed_run_is_the_uninterrupted_one_to_the_byte(
    whole: Path, shards: Path, parent: Path, tmp_path: Path
) -> None:
    other = went_on(tmp_path / "run", whole, shards, parent)
    assert same(whole, other) and losses(whole)[2:] == losses(other)


@pytest.mark.parametrize("planted", ["rows", "averages"])
def test_a_planted_loss_of_state_makes_another_run(
    whole: Path, shards: Path, parent: Path, tmp_path: Path, planted: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if planted == "rows":
        monkeypatch.setattr(latents.Fitting, "load_state_dict", lambda self, state: None)
    else:
        kept = latents._loaded

        def forgetting(opened: Any) -> Any:
            loaded = kept(opened)
            loaded.denoiser.latent.get_buffer("shift").zero_()
            return loaded

        monkeypatch.setattr(latents, "_loaded", forgetting)
    assert not same(whole, went_on(tmp_path / "run", whole, shards, parent))


def test_the_run_reports_its_terms_and_no_likelihood(whole: Path) -> None:
    report = json.loads((whole / "report.json").read_text())
    assert {"reconstruction", "kl", "denoise", "flow"} <= report["last"]["terms"].keys()
    assert (
        report["parent_nll"] is None and report["last"]["terms"]["reconstruction"] < report["first"]["terms"]["kl"] + 9
    )
    facts = inspect(str(whole / "model"))
    assert facts["meta"]["kind"] == "latent" and facts["exact"] is False and "cola" in facts["architecture"]["reason"]
    assert facts["meta"]["block"] == 8 and facts["meta"]["history"][-1]["objective"] == "cola"
    rows = listing(Config().paths.model_copy(update={"runs": str(whole.parent), "models": str(whole)}))
    assert "latent" in {row["kind"] for row in rows}


def config_of(run: Path, **changes: Any) -> Config:
    given = [
        f"{name.replace('__', '.')}={value if isinstance(value, str) else json.dumps(value)}"
        for name, value in changes.items()
    ]
    return load_config(None, [f"model.path={run}", "decode.max_new_tokens=12", *given])


def test_serve_and_generate_open_it_by_name_and_say_that_it_is_not_exact(whole: Path, capsys: Any) -> None:
    session, reasons = choose(config_of(whole), QUIET)
    assert session.name == "latent" and not session.capability.exact and "latent" in " ".join(reasons)
    number = session.submit(Request.of(prompt="the cat", max_new_tokens=12, ignore_eos=True))
    events = [event for _ in range(4) for event in session.step()]
    done = [event for event in events if isinstance(event, Done)][0].result
    assert done.exact is False and "not exact" in done.notes[0] and len(done.token_ids) == 12
    assert [event.request for event in events] == [number] * len(events) and session.pending == 0
    assert len([event for event in events if isinstance(event, Commit)]) == 2 and session.capability.stream == "block"
    assert main(["generate", "--model", str(whole), "--prompt", "the cat", "--max-new-tokens", "8", "--json"]) == 0
    assert '"exact": false' in capsys.readouterr().out


def test_texts_depend_on_their_seed_and_steps_cost_what_they_say(whole: Path) -> None:
    def drawn(**fields: Any) -> Any:
        asked = {"prompt": "the cat sat", "max_new_tokens": 16, "ignore_eos": True, **fields}
        return Driver(choose(config_of(whole), QUIET)[0]).run([Request.of(**asked)])[0]

    one = drawn()
    assert one.token_ids == drawn().token_ids != drawn(seed=5).token_ids
    assert drawn(sample=1).token_ids != one.token_ids and one.seed == 0
    # two blocks: steps and two passes each, and the prefill's two
    assert one.metrics.forwards == 2 * (16 + 2) + 2
    four = drawn(overrides={"steps": 4})
    assert four.metrics.forwards == 2 * (4 + 2) + 2 and four.preset["steps"] == 4
    assert drawn(policy={"type": "static_quota", "steps": 4}).token_ids == four.token_ids
    assert drawn(overrides={"steps": 4, "sampler": "heun"}).metrics.forwards == 2 * (7 + 2) + 2
    assert drawn(cfg_scale=1.0).preset["guidance"] == 2.0


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"prompt": "a <gap:4> b", "infill": True}, "infill: a latent model"),
        ({"prompt": "a", "tau_edit": 0.5}, "tau_edit: a latent model"),
        ({"prompt": "a", "suffix": "b"}, "suffix: a latent model"),
        ({"prompt": "a", "grammar": "regex:a+"}, "grammar: a latent model"),
        ({"prompt": "a", "logprobs": 1}, "logprobs: a latent model"),
        ({"prompt": "a", "policy": "entropy_bound"}, "policy: a latent model"),
        ({"prompt": "a", "overrides": {"step": 4}}, "did you mean 'steps'"),
        ({"prompt": "a", "overrides": {"sampler": "euller"}}, "did you mean 'euler'"),
        ({"prompt": "a", "overrides": {"steps": 0}}, "expected a count"),
    ],
)
def test_what_it_cannot_do_is_refused_by_name(whole: Path, fields: dict[str, Any], words: str) -> None:
    session, _ = choose(config_of(whole), QUIET)
    with pytest.raises(DecodeError, match=words):
        session.submit(Request.of(**fields))
    assert session.pending == 0


def test_likelihoods_training_and_parity_are_refused_by_name(whole: Path, shards: Path, tmp_path: Path) -> None:
    model = load(whole)
    with pytest.raises(ModelError, match=r"a latent model \(cola\) draws texts"):
        model.nll(model.batch("the cat sat on a mat"))
    with pytest.raises(ModelError, match="Hugging Face network"):
        model.score("the cat")
    assert main(["convert-wsd", "--run-dir", str(tmp_path / "r"), *sets(shards, whole)]) == 2
    with pytest.raises(ModelError, match="give a discrete model here"):
        fit(tmp_path / "s", shards, whole)
    with pytest.raises(ModelError, match="is a latent model, whose averages"):
        merge_folders([whole / "model", whole / "checkpoints" / "step-000002"], tmp_path / "merged")
    with pytest.raises(ConfigError, match="nothing left to right"):
        generator_for("autoregressive", load_model(config_of(whole).model), Config().decode)


def sets(shards: Path, path: Path) -> list[str]:
    return [word for one in overrides(shards, model__path=str(path)) for word in ("--set", one)]


def test_eval_and_python_draw_by_the_same_sampler(whole: Path) -> None:
    config = config_of(whole)
    loaded = load_model(config.model)
    generator = generator_for("auto", loaded, config.decode)
    assert isinstance(generator, LatentGenerator)
    (found,) = generator.complete([Request.of(prompt="the cat", max_new_tokens=12)])
    assert found.ids == load(whole).generate("the cat", max_new_tokens=12).token_ids and found.forwards > 0


def test_requests_that_are_drawn_alike_share_their_forwards_and_one_can_be_cancelled(whole: Path) -> None:
    session = LatentSession("latent", load_model(config_of(whole).model), config_of(whole))
    asked = [Request.of(prompt=text, max_new_tokens=16, ignore_eos=True) for text in ("the cat", "a mat and dog", "")]
    numbers = [session.submit(one) for one in asked] + [session.submit(asked[0].model_copy(update={"cfg_scale": 1.0}))]
    session.step()
    assert list(session.drawn) == numbers[:3] and list(session.waiting) == numbers[3:]
    stopped = session.cancel(numbers[1])
    assert stopped is not None and stopped.finish_reason == "cancelled" and session.pending == 3
    ended = [event.request for _ in range(9) for event in session.step() if isinstance(event, Done)]
    assert ended == [numbers[0], numbers[2], numbers[3]] and session.pending == 0
    alone = Driver(LatentSession("latent", session.loaded, session.config)).run(asked[:1])[0]
    assert len(alone.token_ids) == 16


def test_it_is_served_over_http_and_refuses_there_by_name(whole: Path, tmp_path: Path) -> None:
    session, _ = choose(config_of(whole), QUIET)
    served = config_in(tmp_path).model_copy(update={"model": config_of(whole).model})
    with live_server(served, session) as (url, _), httpx.Client(base_url=url, timeout=PATIENCE) as client:
        wait_ready(url)
        asked = {"prompt": "the cat", "max_new_tokens": 12, "ignore_eos": True, "overrides": {"steps": 2}}
        found = client.post("/generate", json=asked).json()
        assert found["exact"] is False and len(found["token_ids"]) == 12 and found["preset"]["steps"] == 2
        name = client.get("/v1/models").json()["data"][0]["id"]
        openai = client.post("/v1/completions", json={"model": name, "prompt": "the cat", "max_tokens": 12})
        assert openai.status_code == 200 and openai.json()["choices"][0]["finish_reason"] in ("length", "stop")
        refused = client.post("/generate", json={"prompt": "a <gap:2> b", "infill": True})
        assert refused.status_code == 400 and "infill: a latent model (cola)" in refused.text
        scored = client.post("/score", json={"texts": ["the cat"], "context": ""})
        assert scored.status_code == 400 and "has no likelihood" in scored.text


def test_the_preflight_counts_its_weights_and_refuses_what_does_not_fit(
    whole: Path, shards: Path, parent: Path, tmp_path: Path
) -> None:
    given = load_config(None, overrides(shards, model__path=str(parent), latent__model=COLA))
    found, base = latent_footprint(given), kind_at(str(parent)).footprint(given.model)
    counted = sum(value.numel() for value in weights(whole).values()) - 2 * COLA["latent"]  # averages are no parameters
    assert found.weights(torch.float32) == 4 * counted + base.weights(torch.float32)
    parts = found.training(given, 32, 1)
    assert parts["gradients"] == 4 * counted and parts["optimizer"] == 8 * counted and parts["activations"] > 0
    assert kind_at(str(whole)).footprint(given.model.model_copy(update={"path": str(whole)})).weights(torch.float32) > 0
    with pytest.raises(ModelError, match="memory: "):
        fit(tmp_path / "run", shards, parent, model__max_vram_pct=1e-4)


def test_a_damaged_folder_is_said_on_one_line(whole: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(whole / "model", tmp_path / "model"))
    (folder / LATENT).write_text("{}")
    with pytest.raises(ModelError, match="damaged") as caught:
        load_model(config_of(folder).model)
    assert len(str(caught.value).splitlines()) == 1
    shutil.copy(whole / "model" / LATENT, folder / LATENT)
    (folder / "latent.safetensors").write_bytes(b"no")
    with pytest.raises(ModelError, match="cannot be loaded"):
        load_model(config_of(folder).model)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"model__path": "new"}, "is built on a trained one"),
        ({"model__adapter": {"kind": "lora"}}, "trains whole"),
        ({"train__gradient_checkpointing": True}, "gradient_checkpointing"),
        ({"train__panels_every": 2}, "no canvas"),
        ({"latent__model": {"type": "colla"}}, "did you mean 'cola'"),
        ({"latent__model": {**COLA, "width": 10}}, "is no multiple"),
    ],
)
def test_settings_without_meaning_are_refused(
    shards: Path, parent: Path, tmp_path: Path, changes: dict[str, Any], words: str
) -> None:
    with pytest.raises(HildaError, match=words):
        fit(tmp_path / "run", shards, parent, **changes)
