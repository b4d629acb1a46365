# A denoiser as an ONNX graph: its numbers are PyTorch's, and everything the decoder promises holds over it unchanged.
# Entry points: pytest. Whole module skips where the extra `onnx` is not installed.
# Oracles: transformers' own forward, the independent decoder of test/decoding, the float32 graph for the rounded ones.
"""ONNX export, kind of model and engine."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from decoding import checks
from decoding.check_records import records_are_the_oracles
from decoding.reference import MASK
from decoding.subjects import BLOCK, Letters, Subject, prompt, request
from engines.toy import toy_tokenizer
from models import families
from models.imports import importing

from hildanext.config import Config
from hildanext.config.decode import MODES, DecodeConfig
from hildanext.core.masks import additive
from hildanext.decoding.driver import Driver
from hildanext.decoding.engine import BlockEngine
from hildanext.decoding.request import Request
from hildanext.decoding.statistics import Sampling, statistics
from hildanext.engines.onnx import Onnx
from hildanext.engines.opening import open_engine
from hildanext.errors import EngineError, ModelError
from hildanext.models.denoiser import HFDenoiser
from hildanext.models.load import Loaded, load_model
from hildanext.models.meta import HildaMeta
from hildanext.models.onnx import denoiser as runner
from hildanext.models.onnx import folder as writer
from hildanext.models.onnx.denoiser import OnnxDenoiser
from hildanext.models.onnx.folder import Form, write_onnx
from hildanext.progress import Console
from hildanext.world import story

pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")
QUIET = Console(quiet=True)
PROMPTS = ("One day", "Tom had a", "Once", "A girl called", "In the morning")


def loaded_around(model: Any, shift: str = "none", mask_id: int = MASK) -> Loaded:
    """A loaded model with single letters as tokens."""
    denoiser = HFDenoiser(model, mask_id, shift=shift).eval()
    meta = HildaMeta(mask_id=mask_id, shift=shift, block=BLOCK)  # type: ignore[arg-type]
    return Loaded(denoiser, toy_tokenizer(), meta, None, torch.float32, "", torch.device("cpu"))


def exported(loaded: Loaded, folder: Path, **form: Any) -> OnnxDenoiser:
    """The graph of a model, opened."""
    write_onnx(loaded, folder, Form(**form))
    denoiser = loaded.denoiser
    return OnnxDenoiser.open(folder, denoiser.mask_id, denoiser.shift, denoiser.block_grid)


Pair = tuple[HFDenoiser, OnnxDenoiser]


@pytest.fixture(scope="module")
def pairs(random_model: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Pair]:
    """By family: a network, and its graph."""
    found = {}
    for family in ("qwen3", "llama", "qwen2"):
        loaded = loaded_around(random_model(family, seed=1))
        found[family] = loaded.denoiser, exported(loaded, tmp_path_factory.mktemp(family) / "out")
    return found  # type: ignore[return-value]


UNSHIFTED = pytest.mark.parametrize("subject", [("qwen3", "none")], ids="-".join, indirect=True)
"""The independent decoder reads a token's logits at its own position."""


@pytest.fixture(params=[("qwen3", "none"), ("llama", "clean")], ids="-".join)
def subject(request: Any, pairs: dict[str, Pair], monkeypatch: Any) -> Subject:
    """A graph behind the decoder, with room that grows every eight cells."""
    monkeypatch.setattr(runner, "CELLS", 8)
    family, shift = request.param
    own = OnnxDenoiser(pairs[family][1].session, pairs[family][1].facts, MASK, shift)
    return Subject(SimpleNamespace(denoiser=own, tokenizer=Letters(), meta=HildaMeta()), pairs[family][0].model)


def two_rows() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Tokens and positions [2, 24] and the mask of blocks of eight, one position of each row padding."""
    tokens = torch.randint(0, MASK, (2, 24), generator=torch.Generator().manual_seed(0))
    block = torch.arange(24) // BLOCK
    mask = (block <= block[:, None]).expand(2, 1, 24, 24).clone()
    mask[1, :, :, 20:] = False
    return tokens, torch.arange(24).expand(2, -1), mask


@pytest.mark.parametrize("shift", ["none", "clean"])
@pytest.mark.parametrize("family", ["qwen3", "llama", "qwen2"])
def test_every_read_logit_is_that_of_the_networks_own_forward(pairs: dict[str, Pair], family: str, shift: str) -> None:
    pair = pairs[family]
    network, (tokens, positions, mask) = pair[0].model, two_rows()
    with torch.no_grad():
        wanted = network(input_ids=tokens, attention_mask=additive(mask, torch.float32), position_ids=positions).logits
    select = torch.rand(2, 24, generator=torch.Generator().manual_seed(1)) < 0.5
    select[1, 20:] = False
    before = torch.cat([wanted[:, :1], wanted[:, :-1]], dim=1) if shift == "clean" else wanted
    own = OnnxDenoiser(pair[1].session, pair[1].facts, MASK, shift)
    torch.testing.assert_close(own(tokens, positions, mask, select=select), before[select], atol=1e-4, rtol=0)
    every = own(tokens[:1], positions[:1], mask[:1])
    torch.testing.assert_close(every, before[:1], atol=1e-4, rtol=0)


@pytest.mark.parametrize(("policy", "sampling"), [("editing", "greedy"), ("no editing", "guided sampled")])
def test_every_way_of_caching_gives_the_same_tokens(subject: Subject, policy: str, sampling: str) -> None:
    checks.every_way_of_caching_agrees(subject, policy, sampling, (0, BLOCK - 1, 2 * BLOCK + 1))


@UNSHIFTED
@pytest.mark.parametrize(("policy", "sampling"), [("editing", "greedy"), ("remask", "sampled")])
def test_tokens_are_those_of_the_independent_decoder(subject: Subject, policy: str, sampling: str) -> None:
    checks.tokens_are_the_oracles(subject, policy, sampling)


@UNSHIFTED
def test_records_are_those_of_plain_forwards(subject: Subject) -> None:
    asked = request(prompt(BLOCK + 3), 2 * BLOCK, "editing", "sampled", trace=True, logprobs=0, window_blocks=2)
    records_are_the_oracles(subject, asked)


@pytest.mark.parametrize(("seed", "preempt"), [(1, 0.0), (10, 0.3)])
def test_company_and_preemption_change_nothing(subject: Subject, seed: int, preempt: float) -> None:
    checks.company_changes_nothing(subject, seed, preempt, requests=4)


def test_kept_cells_are_put_into_another_slot_and_another_state() -> None:
    state, new = runner.Columns(2, 200), torch.randn(2, 1, 3, 70, 4)
    state.append([(1, 0, 70, 0, 0)], *new)
    assert state.held[0].shape == (2, 3, 128, 4) and state.bytes() == 2 * 2 * 3 * 128 * 4 * 4
    kept = state.keep(1, 10, 70)
    other = runner.Columns(1, 100)
    other.put(0, 40, kept)
    assert other.held[0].shape[2] == 100 and torch.equal(torch.stack(other.keep(0, 40, 100)), new[:, 0, :, 10:70])
    state.grow(3, 200, [0, 20])
    assert torch.equal(torch.stack(state.keep(1, 0, 20)), new[:, 0, :, :20]) and state.held[0].shape == (3, 3, 64, 4)


def _blind(mask: Any, starts: Any, cells: int) -> Any:
    return torch.cat([torch.zeros(*mask.shape[:2], cells, dtype=torch.bool), mask[:, :, -mask.shape[1] :]], dim=2)


PLANTS = (
    (runner, "_visible", _blind, lambda found: checks.tokens_are_the_oracles(found, "editing", "greedy")),
    (runner.Columns, "move", lambda *_: None, lambda found: checks.company_changes_nothing(found, 2, requests=3)),
    (runner.Columns, "_allot", lambda self, cells, shape, kept: _emptied(self, cells, shape),
     lambda found: checks.tokens_are_the_oracles(found, "editing", "greedy")),
)  # fmt: skip


def _emptied(state: Any, cells: int, shape: tuple[int, int]) -> None:
    state.held = tuple(torch.zeros(state.slots, shape[0], cells + 8, shape[1]) for _ in range(2))


@pytest.mark.parametrize(("place", "name", "error", "check"), PLANTS, ids=[plant[1] for plant in PLANTS])
def test_a_planted_error_is_noticed(
    place: Any, name: str, error: Any, check: Any, random_model: Any, tmp_path: Path, monkeypatch: Any
) -> None:
    loaded = loaded_around(random_model("qwen3", seed=1))
    parts = SimpleNamespace(denoiser=exported(loaded, tmp_path / "out"), tokenizer=Letters(), meta=HildaMeta())
    monkeypatch.setattr(runner, "CELLS", 8)
    monkeypatch.setattr(place, name, error)
    with pytest.raises((AssertionError, RuntimeError)):
        check(Subject(parts, loaded.denoiser.model))  # type: ignore[attr-defined]


@pytest.fixture(scope="module")
def exports(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Exports of the bundled child, written by the engine that needs them."""
    folder = tmp_path_factory.mktemp("models")
    for weights in ("float32", "int8", "int4"):
        assert Onnx(weights=weights, export=True).open(config(folder), QUIET).capability.ok  # type: ignore[arg-type]
    return folder


def config(models: Path, *engines: dict[str, Any], **more: Any) -> Config:
    """The bundled child, with its exports below a folder."""
    serve = {"engines": engines or ({"type": "onnx"},)}
    return Config.model_validate({"model": {"path": "tiny"}, "paths": {"models": str(models)}, "serve": serve, **more})


def test_twenty_prompts_in_every_mode_have_the_texts_of_pytorch(exports: Path) -> None:
    prompts = [" ".join(story(f"prompt:{number}").sentences)[: 20 + 4 * number] for number in range(20)]
    ways = [(prompt, mode, 0.0) for prompt in prompts for mode in MODES] + [(prompts[0], "Q_MODE", 0.8)]
    asked = [
        Request.of(prompt=prompt, mode=mode, temperature=heat, seed=7, max_new_tokens=16) for prompt, mode, heat in ways
    ]
    engines = [open_engine(config(exports, {"type": name}), QUIET) for name in ("tiny", "onnx")]
    ours, graph = ([result.text for result in engine.run(asked)] for engine in engines)
    assert graph == ours and len(set(graph)) > len(prompts)
    facts, result = engines[1].session.facts, engines[1].generate(asked[0])
    assert (facts.model, facts.dtype, result.engine, result.exact) == ("tiny-onnx", "float32", "onnx", True)


def test_rounded_weights_stay_within_their_drift(exports: Path) -> None:
    # measured on this text, AVX512 with VNNI: mean |difference| of a logit 0.013 and 0.155 standard deviations, best
    # tokens equal 99.0 and 94.7 %
    plain = load_model(Config().model)
    ids = torch.tensor(plain.tokenizer(" ".join(story("drift").sentences)).input_ids)
    tokens, positions = torch.where(torch.arange(len(ids)) % 2 == 0, ids, 3)[None], torch.arange(len(ids))[None]
    mask = torch.ones(1, 1, len(ids), len(ids), dtype=torch.bool)
    with torch.no_grad():
        wanted = plain.denoiser(tokens, positions, mask)[0]
    for weights, drift, same in (("int8", 0.03, 0.96), ("int4", 0.3, 0.88)):
        folder = exports / "exports" / f"tiny-onnx-{weights}"
        rounded = OnnxDenoiser.open(folder, 3, "none", "global")
        found = rounded(tokens, positions, mask)[0]
        assert not rounded.exact and 1e-4 < float((found - wanted).abs().mean() / wanted.std()) < drift
        assert float((found.argmax(1) == wanted.argmax(1)).float().mean()) >= same


def test_statistics_are_those_the_policies_read_without_mask(random_model: Any, tmp_path: Path) -> None:
    import onnxruntime

    model = random_model("llama", seed=3, tie_word_embeddings=False)
    with torch.no_grad():
        model.lm_head.weight[MASK] = 3 * model.lm_head.weight[7]
    loaded, (tokens, positions, mask) = loaded_around(model), two_rows()
    with torch.no_grad():
        logits = loaded.denoiser(tokens, positions, mask).flatten(0, 1)
    assert (logits.argmax(1) == MASK).any()
    wanted = statistics(logits, MASK, Sampling(), frozenset(("entropy", "second")), None, None)
    files = write_onnx(loaded, tmp_path / "out", Form(outputs="statistics"))
    nothing = np.zeros((2, 2, 1, 8), np.float32)
    feed = {"tokens": tokens.numpy(), "positions": positions.numpy(), "read": np.arange(48)}
    feed["mask"] = np.concatenate([np.zeros((2, 24, 1), bool), mask[:, 0].numpy()], axis=2)
    feed |= {f"past_{kind}.{layer}": nothing for kind in ("key", "value") for layer in range(2)}
    session = onnxruntime.InferenceSession(str(tmp_path / "out" / "model.onnx"))
    best, probability, entropy, second = session.run(["best", "probability", "entropy", "second"], feed)
    assert {"model.onnx", "onnx.json"} <= set(files) and best.tolist() == wanted.best.tolist()
    for found, other in ((probability, wanted.probability), (entropy, wanted.entropy), (second, wanted.second)):
        np.testing.assert_allclose(found, np.asarray(other), atol=1e-5)
    with pytest.raises(ModelError, match="gives statistics only"):
        OnnxDenoiser.open(tmp_path / "out", MASK, "none", "global")


@pytest.mark.parametrize("name", ["gpt2", "qwen3_moe", "gemma", "granite scaled up"])
def test_a_family_that_does_not_export_gets_one_line(name: str, tmp_path: Path) -> None:
    known = families.FAMILIES | {"granite scaled up": families.Family("granite", "", {"embedding_multiplier": 4.0})}
    with pytest.raises(ModelError, match="does not export") as caught:
        write_onnx(loaded_around(families.network(families.tiny(known[name]))), tmp_path / "out", Form())
    assert len(str(caught.value).splitlines()) == 1 and not (tmp_path / "out").exists()


def test_an_export_decodes_and_nothing_else(exports: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from hildanext.cli import main

    folder = exports / "exports" / "tiny-onnx"
    model = {"path": str(folder)}
    loaded = load_model(Config.model_validate({"model": model}).model)
    for use in ("train", "export"):
        with pytest.raises(ModelError, match="kind onnx cannot be used"):
            loaded.require(use)  # type: ignore[arg-type]
    for features in (loaded.denoiser.head, lambda: loaded.denoiser.causal_features(None, None)):  # type: ignore[arg-type]
        with pytest.raises(ModelError, match="decodes and gives no likelihoods"):
            features()
    assert loaded.denoiser.state_bytes(3) == load_model(Config().model).denoiser.state_bytes(3)
    engine = open_engine(Config.model_validate({"model": model}), QUIET)
    assert engine.session.name == "onnx" and any("is for engine onnx" in reason for reason in engine.reasons)
    assert (
        main(["inspect", "--quiet", "--json", str(folder)]) == 0 and '"weights": "float32"' in capsys.readouterr().out
    )
    for wrong in ({"dtype": "bfloat16"}, {"mask_id": 5}, {"shift": "clean"}):
        with pytest.raises(ModelError) as caught:
            load_model(Config.model_validate({"model": model | wrong}).model)
        assert len(str(caught.value).splitlines()) == 1


def test_without_an_export_or_a_runtime_another_engine_serves_and_it_is_said(
    exports: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    onnx, tiny = {"type": "onnx"}, {"type": "tiny"}
    engine = open_engine(config(tmp_path, onnx, tiny), QUIET)
    assert engine.session.name == "tiny" and "hildanext export --model tiny" in engine.reasons[0]
    with pytest.raises(EngineError, match="weights int8"):
        open_engine(config(exports, onnx, decode={"int8": True}), QUIET)
    meta = exports / "exports" / "tiny-onnx" / "hildanext.json"
    before = meta.read_text()
    meta.write_text(json.dumps(json.loads(before) | {"run": "another"}))
    assert "another state of the model" in open_engine(config(exports, onnx, tiny), QUIET).reasons[0]
    meta.write_text(before)
    monkeypatch.setattr(runner, "import_module", lambda name: (_ for _ in ()).throw(ImportError(f"No module {name}")))
    engine = open_engine(config(exports, onnx, tiny), QUIET)
    assert engine.session.name == "tiny" and "pip install -e 'backend[onnx]'" in engine.reasons[0]
    monkeypatch.setattr(writer, "find_spec", lambda name: None)
    assert Onnx().trials(config(exports)) == []
    with pytest.raises(ModelError, match="onnx and onnx_ir and onnxruntime not installed"):
        write_onnx(load_model(Config().model), tmp_path / "out", Form())


def test_tune_is_offered_every_kind_of_weights(exports: Path) -> None:
    offered = [trial["serve.engines"] for trial in Onnx().trials(config(exports))]
    assert offered == [{"weights": weights, "export": True} for weights in ("float32", "int8", "int4")]
    graph = Config.model_validate({"model": {"path": str(exports / "exports" / "tiny-onnx")}})
    assert Onnx().trials(graph) == [{}]


def test_nothing_imports_the_packages_before_they_are_needed(tmp_path: Path) -> None:
    assert importing(Path(writer.__file__).parents[2], "onnx") == []
    (tmp_path / "planted.py").write_text("import onnxruntime\n")
    assert importing(tmp_path, "onnx") == ["planted.py"]


def test_left_to_right_reading_goes_through_the_graph_too(exports: Path) -> None:
    decode = DecodeConfig(block=1, max_new_tokens=12)
    plain, graph = load_model(Config().model), exports / "exports" / "tiny-onnx"
    texts = []
    for denoiser in (
        HFDenoiser(plain.denoiser.model, 3, shift="clean"),
        OnnxDenoiser.open(graph, 3, "clean", "global"),
    ):  # type: ignore[attr-defined]
        parts = SimpleNamespace(denoiser=denoiser, tokenizer=plain.tokenizer, meta=HildaMeta())
        texts.append([r.text for r in Driver(BlockEngine(parts, decode)).run([Request.of(prompt=p) for p in PROMPTS])])
    assert texts[0] == texts[1]
