# The kernel check knows which wheels run on which GPUs.
# Entry points: pytest.
# Architecture lists are those published wheels report.
"""Tests of models/hardware.py."""

from pathlib import Path
from typing import Any

import pytest
import torch

from hildanext.config.model import ModelConfig
from hildanext.models import hardware
from hildanext.models.hardware import devices, kernel_problem, multiplies, slow_dtype
from hildanext.models.load import load_model
from hildanext.progress import Console

CU126 = ["sm_50", "sm_60", "sm_70", "sm_75", "sm_80", "sm_86", "sm_90"]
CU130 = ["sm_75", "sm_80", "sm_86", "sm_90", "sm_100", "sm_120", "compute_120"]


@pytest.mark.parametrize(
    ("capability", "built", "runs"),
    [
        ((6, 1), CU126, True),
        ((6, 1), CU130, False),
        ((9, 0), CU130, True),
        ((8, 9), CU126, True),
        ((12, 1), CU130, True),
        ((7, 0), [], False),
    ],
)
def test_a_wheel_serves_its_own_major_and_newer_minors(
    capability: tuple[int, int], built: list[str], runs: bool
) -> None:
    assert (kernel_problem(capability, built) == "") is runs


def test_a_pascal_card_gets_the_line_that_helps() -> None:
    assert "2.7.1" in kernel_problem((6, 1), CU130)


def test_the_cpu_is_always_there_with_its_memory() -> None:
    assert devices()[0]["device"] == "cpu" and devices()[0]["memory"] > 1 << 30


@pytest.mark.parametrize(
    ("units", "level", "limit", "there"),
    [
        ({"avx2": True, "f16c": True}, "AVX2", "", False),
        ({"avx512_f": True}, "AVX512", "", False),
        ({"avx512_bf16": True}, "AVX512", "", True),
        ({"amx_bf16": True}, "AVX512", "", True),
        ({"avx512_bf16": True}, "AVX2", "", False),
        ({"avx512_bf16": True}, "AVX512", "AVX2", False),
    ],
)
def test_bfloat16_needs_units_that_torch_may_use(
    units: dict[str, bool], level: str, limit: str, there: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hardware, "cpu_units", lambda: units)
    monkeypatch.setattr(hardware.platform, "machine", lambda: "x86_64")
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: level)
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", limit)
    cpu = torch.device("cpu")
    assert multiplies(torch.bfloat16, cpu) is there and multiplies(torch.float32, cpu)
    assert (slow_dtype(torch.bfloat16, cpu, "model.dtype") == "") is there
    assert devices()[0]["units"]["bfloat16"] is there


def test_loading_in_a_dtype_without_units_warns_even_when_quiet(
    assets: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.setattr(hardware, "cpu_units", lambda: {"avx2": True})
    path = str(assets / "stories260k-hf")
    load_model(ModelConfig(path=path, device="cpu"), Console(quiet=True))
    assert "warning" not in capsys.readouterr().err
    load_model(ModelConfig(path=path, device="cpu", dtype="bfloat16"), Console(quiet=True))
    assert "warning: model.dtype: cpu has no units for bfloat16" in capsys.readouterr().err
