# What a program can see of the disk: Python's own files, the system's libraries, five devices, one scratch folder.
# Entry points: READABLE, DEVICES, SCRATCH, build, scratch.
# The view is built once per warden; each program then gets its own empty folder in memory. Standard library only.
"""The file system of the sandbox."""

from __future__ import annotations

import os
import sys

from hildanext.measure.sandbox import kernel

BASE = os.path.realpath(sys.base_prefix)
READABLE = tuple(
    dict.fromkeys(
        [
            *(os.path.join(BASE, name) for name in ("lib", "lib64", "bin")),
            *("/usr/lib", "/usr/lib64", "/usr/bin", "/lib", "/lib64", "/bin", "/usr/share/zoneinfo"),
            *("/etc/ld.so.cache", "/etc/localtime", "/etc/mime.types"),
        ]
    )
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
    os.makedirs(ROOT + SCRATCH, 0o755, exist_ok=True)
    os.makedirs(f"{ROOT}/.old")
    kernel.pivot(ROOT, f"{ROOT}/.old")
    os.chdir("/")
    kernel.unmount("/.old")
    os.rmdir("/.old")
    kernel.read_only("/", recursive=False)


def _show(path: str) -> None:
    target = ROOT + path
    if not os.path.exists(path) or os.path.lexists(target):
        return
    os.makedirs(os.path.dirname(target), 0o755, exist_ok=True)
    if os.path.islink(path):
        real = os.path.realpath(path)
        os.symlink(real, target)
        _show(real)
        return
    if os.path.isdir(path):
        os.mkdir(target)
    else:
        os.close(os.open(target, os.O_CREAT | os.O_WRONLY, 0o644))
    kernel.mount(path, target, "", kernel.RECURSIVE_BIND)
    kernel.read_only(target, recursive=True, devices=path in DEVICES)


def scratch(owner: int, size: int) -> None:
    """Cover SCRATCH with an empty folder in memory of at most `size` bytes that belongs to user `owner`."""
    flags = kernel.NO_SETUID | kernel.NO_DEVICES
    kernel.mount("tmpfs", SCRATCH, "tmpfs", flags, f"size={size},nr_inodes=4096,mode=700,uid={owner},gid={owner}")
