# What the machine offers torch: devices, their memory, and whether the installed torch has kernels for them.
# Entry points: machine, devices, kernel_problem, multiplies, slow_dtype, total_memory, resident_memory, peak_memory,
# restart_peak, give_back.
# A GPU the wheel was not built for fails late with "no kernel image"; this says so early, with the cure. A dtype
# without units computes rightly and ten times too slowly; slow_dtype says that.
"""Hardware report."""

from __future__ import annotations

import ctypes
import os
import platform
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from hildanext.environment import usable_cores

PASCAL = (
    "pip install 'torch>=2.6,<=2.7.1' (PyPI), or a cu126 build up to 2.14: later wheels carry no kernels for sm_60/61"
)
STATUS, INFO = Path("/proc/self/status"), Path("/proc/cpuinfo")
UNITS = {
    torch.bfloat16: ("avx512_bf16", "amx_bf16", "avx10_2", "bf16", "sve_bf16"),
    torch.float16: ("avx512_fp16", "amx_fp16", "avx10_2", "fp16_arith"),
}
NARROW = ("DEFAULT", "NO AVX", "AVX2")
LIMITED = ("SSE41", "AVX", "AVX2", "AVX2_VNNI", "AVX512_CORE", "AVX512_CORE_VNNI")
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


def multiplies(dtype: torch.dtype, device: torch.device) -> bool:
    """Whether the device has units for matrix products of this dtype. A CPU's instructions count as far as torch may
    use them (ATEN_CPU_CAPABILITY, ONEDNN_MAX_CPU_ISA)."""
    if dtype not in UNITS:
        return True
    if device.type == "cuda":
        level = torch.cuda.get_device_capability(device)
        return level >= (8, 0) if dtype == torch.bfloat16 else level >= (7, 0) or level == (6, 0)
    if device.type != "cpu":
        return True
    return not _narrowed() and any(cpu_units().get(name) for name in UNITS[dtype])


def _narrowed() -> bool:
    if platform.machine().lower() not in ("x86_64", "amd64"):
        return False
    allowed = os.environ.get("ONEDNN_MAX_CPU_ISA", "").upper()
    return torch.backends.cpu.get_cpu_capability() in NARROW or allowed in LIMITED


def cpu_units() -> Mapping[str, Any]:
    """The CPU's instruction sets by torch's names."""
    if hasattr(torch.cpu, "get_capabilities"):
        return torch.cpu.get_capabilities()
    words = INFO.read_text(encoding="ascii", errors="replace").split() if INFO.exists() else []
    return dict.fromkeys(words, True)


def slow_dtype(dtype: torch.dtype, device: torch.device, where: str) -> str:
    """One line for a dtype that `where` asked for and the device has no units for, else ''."""
    if multiplies(dtype, device):
        return ""
    name = str(dtype).removeprefix("torch.")
    return (
        f"{where}: {device} has no units for {name}, so its products are emulated, about ten times slower than float32;"
        " use float32 here unless memory is all that counts"
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


def resident_memory() -> int:
    """Bytes of this process that are in memory now; 0 where the system does not tell."""
    return _resident("VmRSS")


def restart_peak(device: torch.device) -> int:
    """Forget the peak (on a CPU where the kernel can, Linux); returns the bytes in use now. Freed memory that the
    allocator kept goes back to the system first: a buffer put there would not be seen."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        return int(torch.cuda.memory_allocated(device))
    give_back()
    marks = Path("/proc/self/clear_refs")
    if marks.exists():
        marks.write_text("5", encoding="ascii")
    return _resident("VmRSS")


def give_back() -> None:
    """Hand memory that the C heap holds and nobody uses back to the system, where its allocator can."""
    if sys.platform == "linux" and (trim := getattr(ctypes.CDLL(None), "malloc_trim", None)) is not None:
        trim(0)


def _resident(name: str) -> int:
    lines = STATUS.read_text(encoding="ascii").splitlines() if STATUS.exists() else []
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith(name)), 0)


def machine() -> str:
    """This machine as far as the speed of a setting depends on it: processor or GPU, instructions torch uses, cores."""
    lines = INFO.read_text(encoding="utf-8", errors="replace").splitlines() if INFO.exists() else []
    name = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "")
    units = "+".join(str(dtype).removeprefix("torch.") for dtype in UNITS if multiplies(dtype, torch.device("cpu")))
    found = [name or platform.processor() or platform.machine(), torch.backends.cpu.get_cpu_capability(), units]
    gpus = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    return ", ".join([*filter(None, found), f"{usable_cores()} cores", *gpus])


def devices() -> list[dict[str, Any]]:
    """The CPU and every CUDA device: name, memory in bytes, capability, `problem` where torch has no kernels for it."""
    cpu = torch.device("cpu")
    units = {str(dtype).removeprefix("torch."): multiplies(dtype, cpu) for dtype in UNITS}
    found: list[dict[str, Any]] = [
        {"device": "cpu", "name": "CPU", "memory": total_memory(), "problem": "", "units": units}
    ]
    for index in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(index)
        capability = (properties.major, properties.minor)
        problem = kernel_problem(capability, torch.cuda.get_arch_list())
        row = {"device": f"cuda:{index}", "name": properties.name, "memory": properties.total_memory}
        found.append(row | {"capability": f"{capability[0]}.{capability[1]}", "problem": problem})
    return found
