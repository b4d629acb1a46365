# A denoiser under llama.cpp: its numbers are PyTorch's, and everything the decoder promises holds over it unchanged.
# Entry points: pytest. What needs llama-cpp-python is skipped where it is not installed; the rest runs everywhere.
# Oracles: transformers' own forward, the independent decoder of test/decoding, float32 weights for the rounded ones.
"""Engine `llamacpp` and its denoiser."""

from __future__ import annotations

from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from decoding import checks
from decoding.check_records import records_are_the_oracles
from decoding.reference import MASK
from decoding.subjects import BLOCK, Letters, Subject, prompt, request
from engines.toy import toy_tokenizer
from models.gguf_file import HERE, NEEDED
from models.imports import importing

from hildanext.config import Config
from hildanext.config.decode import MODES
from hildanext.core.masks import additive
from hildanext.decoding.request import Request
from hildanext.engines.llamacpp import LlamaCpp
from hildanext.engines.opening import open_engine
from hildanext.errors import EngineError, HildaError, ModelError
from hildanext.models.denoiser import HFDenoiser
from hildanext.models.gguf_writing import write_gguf
from hildanext.models.llamacpp import cells, library
from hildanext.models.llamacpp.denoiser import LlamaCppDenoiser
from hildanext.models.load import Loaded, load_model
from hildanext.models.meta import HildaMeta
from hildanext.progress import Console
from hildanext.world import story

QUIET = Console(quiet=True)
NO_LIBRARY = "llama.cpp needs llama-cpp-python, which is built from source and not installed"
needs = pytest.mark.skipif(find_spec("llama_cpp") is None or not HERE, reason=NO_LIBRARY if HERE else NEEDED)


def written(model: Any, folder: Path, shift: str = "none", stored: Any = "f32") -> tuple[HFDenoiser, LlamaCppDenoiser]:
    """A network with single letters as tokens, and its GGUF file under llama.cpp."""
    denoiser = HFDenoiser(model, MASK, shift=shift).eval()
    meta = HildaMeta(mask_id=MASK, shift=shift, block=BLOCK)  # type: ignore[arg-type]
    loaded = Loaded(denoiser, toy_tokenizer(), meta, None, torch.float32, "", torch.device("cpu"))
    write_gguf(loaded, folder, stored)
    return denoiser, LlamaCppDenoiser.open(folder / f"{folder.name}.gguf")


Pair = tuple[HFDenoiser, LlamaCppDenoiser]


@pytest.fixture(scope="module")
def pairs(random_model: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, str], Pair]:
    """By family and shift: a network, and its file under llama.cpp."""
    return {
        (family, shift): written(random_model(family, seed=1), tmp_path_factory.mktemp(family) / "out", shift)
        for family, shift in (("qwen3", "none"), ("llama", "clean"), ("qwen2", "none"))
    }


@pytest.fixture(params=[("qwen3", "none"), ("llama", "clean")], ids="-".join)
def subject(request: Any, pairs: dict[tuple[str, str], Pair]) -> Subject:
    """A file behind the decoder."""
    network, own = pairs[request.param]
    return Subject(SimpleNamespace(denoiser=own, tokenizer=Letters(), meta=HildaMeta()), network.model)


UNSHIFTED = pytest.mark.parametrize("subject", [("qwen3", "none")], ids="-".join, indirect=True)
"""The independent decoder reads a token's logits at its own position."""


def two_rows() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Tokens and positions [2, 24] and the mask of blocks of eight."""
    tokens = torch.randint(0, MASK, (2, 24), generator=torch.Generator().manual_seed(0))
    block = torch.arange(24) // BLOCK
    return tokens, torch.arange(24).expand(2, -1), (block <= block[:, None]).expand(2, 1, 24, 24).clone()


@needs
@pytest.mark.parametrize("which", [("qwen3", "none"), ("llama", "clean"), ("qwen2", "none")], ids="-".join)
def test_every_read_logit_is_that_of_the_networks_own_forward(
    pairs: dict[tuple[str, str], Pair], which: tuple[str, str]
) -> None:
    (network, own), (tokens, positions, mask) = pairs[which], two_rows()
    with torch.no_grad():
        wanted = network.model(
            input_ids=tokens, attention_mask=additive(mask, torch.float32), position_ids=positions
        ).logits
    before = torch.cat([wanted[:, :1], wanted[:, :-1]], dim=1) if which[1] == "clean" else wanted
    select = torch.rand(2, 24, generator=torch.Generator().manual_seed(1)) < 0.5
    torch.testing.assert_close(own(tokens, positions, mask, select=select), before[select], atol=1e-4, rtol=0)
    torch.testing.assert_close(own(tokens[:1], positions[:1], mask[:1]), before[:1], atol=1e-4, rtol=0)
    assert own(tokens, positions, mask, select=torch.zeros_like(select)).shape == (0, own.vocab_size)
    assert own.exact and own.stored == "f32" and own.window == network.window and own.end_ids == network.end_ids
    assert own.state_bytes(3) == network.state_bytes(3)


@needs
def test_a_library_that_promises_no_order_reads_block_by_block(
    pairs: dict[tuple[str, str], Pair], monkeypatch: pytest.MonkeyPatch
) -> None:
    (network, own), given = pairs["qwen3", "none"], two_rows()
    assert own.weights.order in (1, -1)
    with torch.no_grad():
        wanted = network(*given)
    monkeypatch.setitem(vars(own.weights), "order", -own.weights.order)
    assert float((own(*given) - wanted).abs().max()) > 0.1
    monkeypatch.setitem(vars(own.weights), "order", 0)
    torch.testing.assert_close(own(*given), wanted, atol=1e-4, rtol=0)


@needs
def test_other_masks_and_places_are_refused(pairs: dict[tuple[str, str], Pair]) -> None:
    own, (tokens, positions, mask) = pairs["qwen3", "none"][1], two_rows()
    holed = mask.clone()
    holed[0, 0, 20, 3] = False
    early = torch.tril(torch.ones(24, 24, dtype=torch.bool))[None, None].roll(-1, 3)
    for wrong in ((tokens, positions, holed), (tokens, positions + 1, mask), (tokens[:1], positions[:1], early)):
        with pytest.raises(ValueError, match="its own block and all before it"):
            own(*wrong)
    for call in (own.head, lambda: own.causal_features(None, None)):  # type: ignore[arg-type]
        with pytest.raises(ModelError, match="gives no likelihoods"):
            call()


@needs
@pytest.mark.parametrize(("policy", "sampling"), [("editing", "greedy"), ("no editing", "guided sampled")])
def test_every_way_of_caching_gives_the_same_tokens(subject: Subject, policy: str, sampling: str) -> None:
    checks.every_way_of_caching_agrees(subject, policy, sampling, (0, BLOCK - 1, 2 * BLOCK + 1))


@needs
@UNSHIFTED
@pytest.mark.parametrize(("policy", "sampling"), [("editing", "greedy"), ("remask", "sampled")])
def test_tokens_are_those_of_the_independent_decoder(subject: Subject, policy: str, sampling: str) -> None:
    checks.tokens_are_the_oracles(subject, policy, sampling)


@needs
@UNSHIFTED
@pytest.mark.parametrize("blocks", [2, 3])
def test_windows_are_those_of_the_independent_decoder(subject: Subject, blocks: int) -> None:
    checks.windows_are_the_oracles(subject, "editing", "greedy", blocks, (3, 2 * BLOCK + 1))


@needs
@UNSHIFTED
def test_records_are_those_of_plain_forwards(subject: Subject) -> None:
    asked = request(prompt(BLOCK + 3), 2 * BLOCK, "editing", "sampled", trace=True, logprobs=0, window_blocks=2)
    records_are_the_oracles(subject, asked)


@needs
@pytest.mark.parametrize(("seed", "preempt"), [(1, 0.0), (10, 0.3)])
def test_company_and_preemption_change_nothing(subject: Subject, seed: int, preempt: float) -> None:
    checks.company_changes_nothing(subject, seed, preempt, requests=4)


@needs
@UNSHIFTED
def test_a_prompt_longer_than_a_batch_is_read_in_pieces(subject: Subject, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = request(prompt(7 * BLOCK + 3), BLOCK, "editing")
    wanted = checks.expected(subject, asked)
    for name, value in (("WIDE", 2 * BLOCK), ("DEEPEST", 2), ("NARROW", 4)):
        monkeypatch.setattr(cells, name, value)
    assert list(checks.decoded(subject, asked).token_ids) == wanted


PLANTS = (
    (library.Context, "drop", lambda *_: None, lambda found: checks.tokens_are_the_oracles(found, "editing", "greedy")),
    (library.Context, "share", lambda *_: None, lambda found: checks.company_changes_nothing(found, 2, requests=3)),
    (cells.Cells, "_cut", lambda *_: None, lambda found: checks.tokens_are_the_oracles(found, "editing", "greedy")),
    (cells.Cells, "move", lambda *_: None, lambda found: checks.company_changes_nothing(found, 2, requests=3)),
    (library.Context, "saved", lambda *_: None, lambda found: checks.company_changes_nothing(found, 2, requests=3)),
)  # fmt: skip


@needs
@UNSHIFTED
@pytest.mark.parametrize(("place", "name", "error", "check"), PLANTS, ids=[plant[1] for plant in PLANTS])
def test_a_planted_error_is_noticed(
    place: Any, name: str, error: Any, check: Any, subject: Subject, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(place, name, error)
    with pytest.raises((AssertionError, HildaError, TypeError)):
        check(subject)


def config(models: Path, *engines: dict[str, Any], **more: Any) -> Config:
    """The bundled child, with its exports below a folder."""
    serve = {"engines": engines or ({"type": "llamacpp", "stored": "f32", "export": True},)}
    return Config.model_validate({"model": {"path": "tiny"}, "paths": {"models": str(models)}, "serve": serve, **more})


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where exports of the bundled child come to lie."""
    return tmp_path_factory.mktemp("models")


@needs
def test_twenty_prompts_in_every_mode_have_the_texts_of_pytorch(models: Path) -> None:
    prompts = [" ".join(story(f"prompt:{number}").sentences)[: 20 + 4 * number] for number in range(20)]
    ways = [(prompt, mode, 0.0) for prompt in prompts for mode in MODES] + [(prompts[0], "Q_MODE", 0.8)]
    asked = [
        Request.of(prompt=prompt, mode=mode, temperature=heat, seed=7, max_new_tokens=16) for prompt, mode, heat in ways
    ]
    engines = [open_engine(config(models, {"type": "tiny"}), QUIET), open_engine(config(models), QUIET)]
    ours, theirs = ([result.text for result in engine.run(asked)] for engine in engines)
    assert theirs == ours and len(set(theirs)) > len(prompts)
    facts, result = engines[1].session.facts, engines[1].generate(asked[0])
    assert (facts.dtype, result.engine, result.exact) == ("f32", "llamacpp", True)


@needs
def test_rounded_weights_stay_within_their_drift(models: Path) -> None:
    plain = load_model(Config().model)
    ids = torch.tensor(plain.tokenizer(" ".join(story("drift").sentences)).input_ids)
    tokens, positions = torch.where(torch.arange(len(ids)) % 2 == 0, ids, 3)[None], torch.arange(len(ids))[None]
    mask = torch.ones(1, 1, len(ids), len(ids), dtype=torch.bool)
    with torch.no_grad():
        wanted = plain.denoiser(tokens, positions, mask)[0]
    for stored, drift, same in (("f16", 0.01, 0.98), ("q8_0", 0.04, 0.96), ("q4_0", 0.4, 0.85)):
        section = {"type": "llamacpp", "stored": stored, "export": True}
        rounded = open_engine(config(models, section), QUIET).session.loaded.denoiser
        found = rounded(tokens, positions, mask)[0]
        assert not rounded.exact and float((found - wanted).abs().mean() / wanted.std()) < drift, stored
        assert float((found.argmax(1) == wanted.argmax(1)).float().mean()) >= same, stored


@needs
def test_a_file_serves_as_it_is_and_one_of_another_state_does_not(models: Path, tmp_path: Path) -> None:
    loaded = load_model(Config().model)
    other = Loaded(
        loaded.denoiser, loaded.tokenizer, loaded.meta.model_copy(update={"run": "another"}), loaded.path,
        loaded.dtype, "", loaded.device,
    )  # fmt: skip
    write_gguf(other, tmp_path / "other", "f32")
    file = tmp_path / "other" / "other.gguf"
    engine = open_engine(config(tmp_path, {"type": "llamacpp", "file": str(file)}, {"type": "tiny"}), QUIET)
    assert engine.session.name == "tiny" and "another state of the model" in engine.reasons[0]
    own = config(tmp_path, {"type": "llamacpp"}, model={"path": str(file)})
    asked = Request.of(prompt="One day", max_new_tokens=12)
    texts = [open_engine(one, QUIET).generate(asked).text for one in (own, config(models))]
    assert texts[0] == texts[1]
    refusing = {"type": "llamacpp"}, {"type": "tiny"}
    assert "int8 rounds PyTorch's" in open_engine(config(models, *refusing, decode={"int8": True}), QUIET).reasons[0]
    assert "hildanext export --model tiny" in open_engine(config(tmp_path, *refusing), QUIET).reasons[0]
    with pytest.raises(ModelError, match="llama.cpp cannot read it"):
        library.Weights.open(Path(__file__))
    with pytest.raises(ModelError, match="256; lower decode.requests"):
        cells.Cells(257, 8)
    offered = [trial["serve.engines"]["stored"] for trial in LlamaCpp().trials(config(models))]
    assert offered == ["f16", "q8_0", "q4_0"]


def test_without_the_package_another_engine_serves_and_it_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    library.library.cache_clear()
    monkeypatch.setattr(
        library, "import_module", lambda name: (_ for _ in ()).throw(ImportError(f"No module named {name}"))
    )
    engine = open_engine(config(tmp_path, {"type": "llamacpp"}, {"type": "tiny"}), QUIET)
    assert engine.session.name == "tiny" and "pip install llama-cpp-python" in engine.reasons[0]
    with pytest.raises(EngineError, match="built from source"):
        open_engine(config(tmp_path), QUIET)
    old = SimpleNamespace(llama_context_params=SimpleNamespace(_fields_=[("n_ctx", int)]), __version__="0.2.1")
    monkeypatch.setattr(library, "import_module", lambda name: old)
    with pytest.raises(ModelError, match=r"0\.2\.1 has no llama_memory_seq_rm; install 0\.3\.16 or newer"):
        library.library()
    library.library.cache_clear()


def test_nothing_imports_the_package_before_it_is_needed(tmp_path: Path) -> None:
    assert importing(Path(library.__file__).parents[2], "llama_cpp") == []
    (tmp_path / "planted.py").write_text("import llama_cpp\n")
    assert importing(tmp_path, "llama_cpp") == ["planted.py"]
