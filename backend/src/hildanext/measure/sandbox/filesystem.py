# What a program can see of the disk: Python's own files, the system's libraries, five devices, one scratch folder.
# Entry points: READABLE, DEVICES, SCRATCH, build, scratch.
# The view is built once per warden; each program then gets its own empty folder in memory. Standard library only.
"""The file system of the sandbox."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from hildanext.measure.sandbox import kernel

BASE = Path(sys.base_prefix).resolve()
READABLE = (
    *(str(BASE / name) for name in ("lib", "lib64", "bin")),
    *("/usr/lib", "/usr/lib64", "/usr/bin", "/lib", "/lib64", "/bin", "/usr/share/zoneinfo"),
    *("/etc/ld.so.cache", "/etc/localtime", "/etc/mime.types"),
)
DEVICES = ("/dev/null", "/dev/zero", "/dev/full", "/dev/urandom", "/dev/random")
SCRATCH = "/tmp"
ROOT = "/sys"


def build() -> None:
    """Leave this mount namespace's root for one with READABLE and DEVICES alone, read-only, and an empty SCRATCH."""
    kernel.mount("none", "/", "", kernel.PRIVATE)
    kernel.mount("tmpfs", ROOT, "tmpfs", kernel.NO_SETUID | kernel.NO_DEVICES, "size=1m,mode=755")
    for path in (*READABLE, *DEVICES):
        _show(path)
    old = Path(ROOT, ".old")
    for folder in (Path(ROOT + SCRATCH), old):
        folder.mkdir(parents=True, exist_ok=True)
    kernel.pivot(ROOT, str(old))
    os.chdir("/")
    kernel.unmount("/.old")
    Path("/.old").rmdir()
    kernel.read_only("/", recursive=False)


def _show(name: str) -> None:
    path, target = Path(name), Path(ROOT + name)
    if not path.exists() or target.exists() or target.is_symlink():
        return
    target.parent.mkdir(0o755, parents=True, exist_ok=True)
    if path.is_symlink():
        real = path.resolve()
        target.symlink_to(real)
        _show(str(real))
        return
    if path.is_dir():
        target.mkdir()
    else:
        target.touch()
    kernel.mount(name, str(target), "", kernel.RECURSIVE_BIND)
    kernel.read_only(str(target), recursive=True, devices=name in DEVICES)


def scratch(owner: int, size: int) -> None:
    """Cover SCRATCH with an empty folder in memory of at most `size` bytes that belongs to user `owner`."""
    flags = kernel.NO_SETUID | kernel.NO_DEVICES
    kernel.mount("tmpfs", SCRATCH, "tmpfs", flags, f"size={size},nr_inodes=4096,mode=700,uid={owner},gid={owner}")
