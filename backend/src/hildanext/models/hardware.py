# What the machine offers torch: devices, their memory, and whether the installed torch has kernels for them.
# Entry points: devices, kernel_problem, total_memory, peak_memory, restart_peak.
# A GPU the wheel was not built for fails late with "no kernel image"; this says so early, with the cure.
"""Hardware report."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

PASCAL = (
    "pip install 'torch>=2.6,<=2.7.1' (PyPI), or a cu126 build up to 2.14: later wheels carry no kernels for sm_60/61"
)
STATUS = Path("/proc/self/status")
OTHER = "install a torch build whose CUDA version supports this GPU (see pytorch.org's selector)"


def kernel_problem(capability: tuple[int, int], built_for: Sequence[str]) -> str:
    """'' when a wheel built for `built_for` (torch.cuda.get_arch_list) runs on `capability`, else the cure in one line.
    A binary sm_XY serves devices of the same major version and an equal or higher minor one; compute_XY any newer."""
    major, minor = capability
    for name in built_for:
        kind, _, digits = name.rstrip("af").partition("_")
        built = (int(digits[:-1]), int(digits[-1]))
        if kind == "sm" and built[0] == major and built[1] <= minor:
            return ""
        if kind == "compute" and built <= capability:
            return ""
    cure = PASCAL if major == 6 else OTHER
    return (
        f"the installed torch has no kernels for sm_{major}{minor} (built for {', '.join(built_for) or 'none'}): {cure}"
    )


def total_memory() -> int:
    """Physical memory of the machine, bytes; 0 where the system does not say."""
    if not hasattr(os, "sysconf") or "SC_PHYS_PAGES" not in os.sysconf_names:
        return 0
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def peak_memory(device: torch.device | None = None) -> int:
    """Peak bytes since the start or restart_peak: of the CUDA allocator where the device (None: any) is one, else of
    the resident set; 0 where the system does not tell."""
    if torch.cuda.is_available() if device is None else device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    if found := _resident("VmHWM"):
        return found
    try:
        from resource import RUSAGE_SELF, getrusage
    except ImportError:
        return 0
    return int(getrusage(RUSAGE_SELF).ru_maxrss) * (1 if sys.platform == "darwin" else 1024)


def restart_peak(device: torch.device) -> int:
    """Forget the peak (on a CPU where the kernel can, Linux); returns the bytes in use now."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        return int(torch.cuda.memory_allocated(device))
    marks = Path("/proc/self/clear_refs")
    if marks.exists():
        marks.write_text("5", encoding="ascii")
    return _resident("VmRSS")


def _resident(name: str) -> int:
    lines = STATUS.read_text(encoding="ascii").splitlines() if STATUS.exists() else []
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith(name)), 0)


def devices() -> list[dict[str, Any]]:
    """The CPU and every CUDA device: name, memory in bytes, capability, `problem` where torch has no kernels for it."""
    found: list[dict[str, Any]] = [{"device": "cpu", "name": "CPU", "memory": total_memory(), "problem": ""}]
    for index in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(index)
        capability = (properties.major, properties.minor)
        problem = kernel_problem(capability, torch.cuda.get_arch_list())
        row = {"device": f"cuda:{index}", "name": properties.name, "memory": properties.total_memory}
        found.append(row | {"capability": f"{capability[0]}.{capability[1]}", "problem": problem})
    return found
