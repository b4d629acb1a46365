# dInfer's guards, each failing in turn with its reason; and a session over a stand-in with dInfer's documented habits.
# Entry points: pytest.
# A run of dInfer itself needs its GPU stack; without it this file says what was and was not exercised.
"""Engine dinfer."""

from __future__ import annotations

import json
from importlib.metadata import PackageNotFoundError
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from engines.toy import toy_tokenizer

from hildanext.config import Config
from hildanext.decoding.events import Done
from hildanext.decoding.request import Request
from hildanext.engines import dinfer
from hildanext.engines.protocol import Failed
from hildanext.errors import DecodeError, RunError
from hildanext.progress import Console

QUIET = Console(quiet=True)
MASK, EOS = 3, 0


class StandIn:
    """Deletes EOS ids, inside the prompt too, and pads with EOS, as dInfer does."""

    num_forwards = 7

    def __init__(self, *arguments: Any, **named: Any) -> None:
        self.arguments, self.named, self.stopped, self.fails = arguments, named, False, False

    def generate(self, prompts: torch.Tensor, gen_length: int, block_length: int) -> torch.Tensor:
        if self.fails:
            raise RuntimeError("NCCL")
        self.length = gen_length
        kept = [token for token in prompts[0].tolist() if token != EOS]
        return torch.tensor([[*kept, *range(10, 10 + gen_length - 2), EOS, EOS]])

    def stop_serving(self) -> None:
        self.stopped = True


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "config.json").write_text(json.dumps({"architectures": ["LLaDA2MoeModelLM"], "model_type": "qwen3"}))
    meta = {"mask_id": MASK, "block": 8, "decode": {"Q_MODE": {"tau_mask": 0.77}}}
    (tmp_path / "hildanext.json").write_text(json.dumps(meta))
    toy_tokenizer().save_pretrained(tmp_path)
    return tmp_path


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> None:
    versions = {"vllm": "0.10.2", "sglang": "0.5.3"}
    monkeypatch.setattr(dinfer, "find_spec", lambda name: SimpleNamespace())
    monkeypatch.setattr(dinfer, "version", versions.__getitem__)
    monkeypatch.setattr(dinfer, "devices", lambda: [{"device": "cuda:0", "capability": "9.0"}])
    serving = SimpleNamespace(SamplingParams=lambda **named: SimpleNamespace(**named), DiffusionLLMServing=StandIn)
    monkeypatch.setattr(dinfer, "import_module", lambda name: serving)


def opened(folder: Path) -> Any:
    config = Config.model_validate({"model": {"path": str(folder)}})
    return dinfer.Dinfer().open(config, QUIET)


def reasons(folder: Path) -> str:
    opening = opened(folder)
    assert not opening.capability.ok
    return " ".join(opening.capability.reasons)


def test_without_its_packages_it_names_each_one_and_the_version(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dinfer, "find_spec", lambda name: None)
    monkeypatch.setattr(dinfer, "version", absent)
    monkeypatch.setattr(dinfer, "devices", lambda: [{"device": "cpu"}])
    found = reasons(folder)
    assert "dinfer is not installed" in found and "0.10.2 is needed" in found and "no CUDA device" in found


def absent(name: str) -> str:
    raise PackageNotFoundError(name)


@pytest.mark.usefixtures("installed")
def test_another_version_is_named_with_the_one_needed(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dinfer, "version", {"vllm": "0.11.0", "sglang": "0.5.3"}.__getitem__)
    assert "vllm is 0.11.0, 0.10.2 is needed" in reasons(folder)


@pytest.mark.usefixtures("installed")
def test_an_old_gpu_is_refused(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dinfer, "devices", lambda: [{"device": "cuda:0", "capability": "6.1"}])
    assert "6.1, 8.0 or more" in reasons(folder)


@pytest.mark.usefixtures("installed")
def test_a_model_it_has_no_class_for_is_refused(folder: Path) -> None:
    (folder / "config.json").write_text(json.dumps({"architectures": ["Qwen3ForCausalLM"]}))
    assert "no model class for Qwen3ForCausalLM" in reasons(folder)


@pytest.mark.usefixtures("installed")
def test_a_folder_of_another_kind_is_refused_with_the_cure(folder: Path) -> None:
    (folder / "config.json").unlink()
    (folder / "hildanext.json").write_text(json.dumps({"kind": "adapters", "mask_id": 3}))
    assert "is of kind adapters, it reads whole Hugging Face folders; export it first" in reasons(folder)


@pytest.mark.usefixtures("installed")
def test_a_model_without_a_mask_id_is_refused(folder: Path) -> None:
    (folder / "hildanext.json").write_text("{}")
    assert "gives no mask_id" in reasons(folder)


@pytest.mark.usefixtures("installed")
def test_a_start_that_fails_is_a_reason_not_a_crash(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        dinfer, "import_module", lambda name: (_ for _ in ()).throw(ImportError("is_torch_fx_available"))
    )
    assert "is_torch_fx_available" in reasons(folder)


@pytest.mark.usefixtures("installed")
def test_the_folder_decides_mask_block_and_threshold(folder: Path) -> None:
    engine = opened(folder).session.engine
    sampling = engine.named["sample_params"]
    assert (sampling.mask_id, sampling.eos_id, sampling.threshold) == (MASK, EOS, 0.77)
    assert engine.named["model_type"] == "llada2" and engine.named["dp_size"] == 1


@pytest.mark.usefixtures("installed")
def test_what_it_returns_is_cut_to_what_was_asked_for(folder: Path) -> None:
    session = opened(folder).session
    number = session.submit(Request.of(prompt_ids=(5, EOS, 6), max_new_tokens=9, ignore_eos=True))
    done = session.step()[-1]
    assert isinstance(done, Done) and done.request == number and done.result.token_ids == tuple(range(10, 19))
    assert (session.engine.length + 3) % 8 == 0 and session.pending == 0
    session.close()
    assert session.engine.stopped


@pytest.mark.usefixtures("installed")
def test_thresholds_of_a_request_are_refused(folder: Path) -> None:
    with pytest.raises(DecodeError, match="tau_mask, window_blocks, temperature"):
        opened(folder).session.submit(Request.of(prompt="a", tau_mask=0.5, window_blocks=2, temperature=0.5))


@pytest.mark.usefixtures("installed")
def test_a_failing_generation_ends_its_own_request_only(folder: Path) -> None:
    session = opened(folder).session
    session.engine.fails = True
    first, second = (session.submit(Request.of(prompt=text, max_new_tokens=9)) for text in "ab")
    (failed,) = session.step()
    assert isinstance(failed, Failed) and (failed.request, failed.kind) == (first, "failed")
    assert isinstance(failed.error, RunError) and "NCCL" in str(failed.error)
    session.engine.fails = False
    done = session.step()[-1]
    assert isinstance(done, Done) and done.request == second
