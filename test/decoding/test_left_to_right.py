# Models that no conversion wrote, and blocks that are not the model's: said at load and in results, or read exactly.
# Entry points: the tests; the oracle of --ar is transformers' own greedy generate.
# Block 1 with the AR shift is the AR model itself, so nothing is to be warned of there.
"""Reading a model left to right."""

from __future__ import annotations

import json
from typing import Any

import pytest

from hildanext.cli import main
from hildanext.config import load_config
from hildanext.config.model import ModelConfig
from hildanext.decoding.engine import BlockEngine
from hildanext.decoding.request import Request
from hildanext.engines.opening import open_engine
from hildanext.models.load import load_model
from hildanext.models.meta import HildaMeta

PROMPT = "One windy morning a girl called Nora went to the zoo."
WORDS = ("no conversion wrote this model", "hildanext convert-wsd", "hildanext generate --ar")


def test_the_bundled_parent_is_told_of_at_load_and_in_every_result(capsys: Any) -> None:
    engine = open_engine(load_config(None, ["model.path=tiny-parent", 'serve.engines=[{"type":"transformers"}]']))
    said = capsys.readouterr().err
    assert all(word in said and word in engine.session.capability.reasons[0] for word in WORDS)
    for fields in ({}, {"block": 4}, {"mode": "S_MODE"}):
        result = engine.generate(Request.of(prompt=PROMPT, max_new_tokens=4, **fields))
        assert all(word in " ".join(result.notes) for word in WORDS)


def test_the_bundled_child_says_nothing_until_its_block_is_another(capsys: Any) -> None:
    engine = open_engine(load_config(None, ['serve.engines=[{"type":"tiny"}]']))
    assert engine.session.capability.reasons == () and "warning" not in capsys.readouterr().err
    notes = {
        block: engine.generate(Request.of(prompt=PROMPT, max_new_tokens=4, block=block)).notes
        for block in (None, 16, 8)
    }
    assert notes[None] == notes[16] == () and "block 8 is not the 16" in notes[8][0]
    open_engine(load_config(None, ["decode.block=4", 'serve.engines=[{"type":"tiny"}]']))
    assert "block 4 is not the 16" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("shift", "own", "block", "words"),
    [
        ("none", 16, 16, ""), ("clean", 16, 16, ""), ("none", 16, 1, "not the 16"), ("clean", 16, 1, ""),
        ("none", None, 1, "no conversion"), ("clean", None, 8, "no conversion"), ("clean", None, 1, ""),
    ],
)  # fmt: skip
def test_only_block_1_with_the_ar_shift_and_the_models_own_block_are_exact(
    shift: Any, own: Any, block: int, words: str
) -> None:
    found = HildaMeta(shift=shift, block=own).cautions(block)
    assert words in found[0] if words else not found


def test_an_evaluation_as_diffusion_of_an_ar_model_is_told_of(capsys: Any) -> None:
    from hildanext.measure.task import EvalContext
    from hildanext.progress import Console

    loaded = load_model(ModelConfig(path="tiny-parent"))
    for kind, told in (("auto", False), ("diffusion", True)):
        EvalContext.of(loaded, load_config(None, [f"eval.generator={kind}"]), Console(quiet=True))
        assert ("no conversion" in capsys.readouterr().err) == told


@pytest.mark.parametrize("model", ["tiny-parent", "tiny"])
def test_ar_is_the_models_own_greedy_text_and_is_not_warned_of(model: str, capsys: Any) -> None:
    assert main(["generate", "--model", model, "--prompt", PROMPT, "--max-new-tokens", "40", "--ar", "--json"]) == 0
    out, err = capsys.readouterr()
    found = json.loads(out)
    loaded = load_model(ModelConfig(path=model))
    ids = loaded.tokenizer(PROMPT, return_tensors="pt")["input_ids"]
    loaded.denoiser.model.set_attn_implementation("eager")
    wanted = loaded.denoiser.model.generate(
        ids, do_sample=False, max_new_tokens=40, suppress_tokens=[loaded.denoiser.mask_id], pad_token_id=0
    )
    assert found["token_ids"] == wanted[0, ids.shape[1] :].tolist()
    assert found["metrics"]["forwards"] == len(found["token_ids"]) and found["metrics"]["block"] == 1
    assert found["notes"] == [] and "warning" not in err


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--tau-mask", "0.5"], "leaves --tau-mask no meaning"), (["--tau-edit", "off"], "--tau-edit"),
        (["--mode", "S_MODE"], "--mode"), (["--policy", "factor"], "--policy"), (["--prompt", ""], "empty prompt"),
        (["--infill"], "--infill"), (["--suffix", "b"], "--suffix"), (["--window-blocks", "2"], "--window-blocks"),
    ],
)  # fmt: skip
def test_what_ar_has_no_use_for_is_refused(flags: list[str], words: str, capsys: Any) -> None:
    assert main(["generate", "--model", "tiny-parent", "--ar", "--prompt", "One day", *flags]) == 2
    assert words in capsys.readouterr().err


def test_ar_draws_and_stops_like_any_decoding(capsys: Any) -> None:
    rest = ["--temperature", "1", "--seed", "3", "--stop", "zoo", "--max-new-tokens", "60", "--json"]
    assert main(["generate", "--model", "tiny-parent", "--ar", "--prompt", "One day", *rest]) == 0
    found = json.loads(capsys.readouterr().out)
    assert "zoo" not in found["text"] and found["finish_reason"] in ("stop", "eos", "length")


def test_infill_counts_the_tokens_of_its_gaps_and_no_others() -> None:
    engine = BlockEngine(load_model(ModelConfig()), load_config(None, []).decode)
    result = engine.generate(Request.of(prompt="One day <gap:3> went to the <gap:2>.", infill=True))
    assert result.metrics.tokens == 5 and result.metrics.prompt_tokens == len(result.token_ids) - 5
    assert result.metrics.tokens_per_forward == 5 / result.metrics.forwards
    plain = engine.generate(Request.of(prompt=PROMPT, max_new_tokens=6))
    assert plain.metrics.tokens == len(plain.token_ids) == 6
