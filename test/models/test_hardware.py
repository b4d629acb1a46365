# The kernel check knows which wheels run on which GPUs.
# Entry points: pytest.
# Architecture lists are those published wheels report.
"""Tests of models/hardware.py."""

import pytest

from hildanext.models.hardware import devices, kernel_problem

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
