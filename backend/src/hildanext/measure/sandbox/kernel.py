# System calls of Linux that Python 3.11 has no name for: clone, mount, pivot_root, capset, prctl, Landlock.
# Entry points: clone, unshare, mount, unmount, pivot, read_only, drop_capabilities, control, landlock, restrict.
# Standard library only. Every function raises OSError where the kernel refuses; elsewhere than Linux all of them do.
"""The kernel's own walls, as functions."""

from __future__ import annotations

import ctypes
import errno
import os
import platform
import signal
import struct
import sys
from collections.abc import Sequence
from pathlib import Path

MACHINE = platform.machine()
NEW_MOUNTS, NEW_NAMES, NEW_IPC, NEW_USER, NEW_PIDS, NEW_NETWORK = (
    0x20000, 0x4000000, 0x8000000, 0x10000000, 0x20000000, 0x40000000,
)  # fmt: skip
RECURSIVE_BIND, PRIVATE, NO_SETUID, NO_DEVICES = 0x5000, 0x44000, 2, 4
DEATH_SIGNAL, DUMPABLE, NO_NEW_PRIVILEGES, SECCOMP, SUBREAPER = 1, 4, 38, 22, 36
NUMBERS = {
    "x86_64": {"clone": 56, "pivot_root": 155, "capset": 126},
    "aarch64": {"clone": 220, "pivot_root": 41, "capset": 91},
}.get(MACHINE, {}) | {"mount_setattr": 442, "ruleset": 444, "rule": 445, "restrict": 446}
READ = 0b1101
FIRST_ABI, LAST_ABI = (1 << 13) - 1, 6

_C = ctypes.PyDLL(None, use_errno=True) if sys.platform == "linux" else None
if _C is not None:
    _C.syscall.argtypes = [ctypes.c_long] * 7
    _C.syscall.restype = ctypes.c_long
    _C.prctl.argtypes = [ctypes.c_long] * 5


def _checked(result: int, what: str) -> int:
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, f"{what}: {os.strerror(code)}")
    return result


def _call(name: str, *arguments: int) -> int:
    if _C is None or name not in NUMBERS:
        raise OSError(errno.ENOSYS, f"{name}: not on this machine")
    padded = [*arguments, *[0] * (6 - len(arguments))]
    return _checked(_C.syscall(NUMBERS[name], *padded), name)


def clone(spaces: int) -> int:
    """os.fork into new namespaces: 0 in the child, which is process 1 where `spaces` has NEW_PIDS."""
    if not spaces:
        return os.fork()
    ctypes.pythonapi.PyOS_BeforeFork()
    try:
        pid = _call("clone", spaces | signal.SIGCHLD)
    except OSError:
        ctypes.pythonapi.PyOS_AfterFork_Parent()
        raise
    if pid:
        ctypes.pythonapi.PyOS_AfterFork_Parent()
    else:
        ctypes.pythonapi.PyOS_AfterFork_Child()
    return pid


def unshare(spaces: int) -> None:
    """Move this process into new namespaces."""
    if _C is None:
        raise OSError(errno.ENOSYS, "unshare: not on this machine")
    _checked(_C.unshare(spaces), "unshare")


def mount(source: str, target: str, kind: str, flags: int, options: str = "") -> None:
    """mount(2)."""
    if _C is None:
        raise OSError(errno.ENOSYS, "mount: not on this machine")
    words = [os.fsencode(word) or None for word in (source, target, kind)]
    _checked(_C.mount(*words, ctypes.c_ulong(flags), options.encode() or None), f"mount {target}")


def unmount(target: str) -> None:
    """Detach what is mounted at `target`."""
    if _C is None:
        raise OSError(errno.ENOSYS, "unmount: not on this machine")
    _checked(_C.umount2(os.fsencode(target), 2), f"unmount {target}")


def pivot(root: str, old: str) -> None:
    """Make `root` this mount namespace's root and put the former one at `old`."""
    first, second = ctypes.create_string_buffer(os.fsencode(root)), ctypes.create_string_buffer(os.fsencode(old))
    _call("pivot_root", ctypes.addressof(first), ctypes.addressof(second))


def read_only(target: str, recursive: bool, devices: bool = False) -> None:
    """Take writing and set-user-id from the mount at `target`, and devices unless `devices`. Linux 5.12."""
    change = ctypes.create_string_buffer(struct.pack("QQQQ", 1 | NO_SETUID | (0 if devices else NO_DEVICES), 0, 0, 0))
    path = ctypes.create_string_buffer(os.fsencode(target))
    _call("mount_setattr", -100, ctypes.addressof(path), 0x8000 if recursive else 0, ctypes.addressof(change), 32)


def drop_capabilities() -> None:
    """Give up every capability of this process."""
    header = ctypes.create_string_buffer(struct.pack("Ii", 0x20080522, 0))
    nothing = ctypes.create_string_buffer(24)
    _call("capset", ctypes.addressof(header), ctypes.addressof(nothing))


def control(option: int, value: int, pointer: int = 0) -> None:
    """prctl(2)."""
    if _C is None:
        raise OSError(errno.ENOSYS, "prctl: not on this machine")
    _checked(_C.prctl(option, value, pointer, 0, 0), f"prctl {option}")


def landlock(read: Sequence[str], write: Sequence[str]) -> None:
    """Allow this process and its children the files beneath `read` and, also for writing, beneath `write`; nothing
    else, no TCP, and no signals or abstract sockets outside. Parts an older kernel lacks are left out. Linux 5.13."""
    abi = min(_call("ruleset", 0, 0, 1), LAST_ABI)
    files = FIRST_ABI | (1 << 13 if abi > 1 else 0) | (1 << 14 if abi > 2 else 0) | (1 << 15 if abi > 4 else 0)
    rules = struct.pack("QQQ", files, 3 if abi > 3 else 0, 3 if abi > 5 else 0)[
        : 24 if abi > 5 else 16 if abi > 3 else 8
    ]
    wanted = ctypes.create_string_buffer(rules, len(rules))
    ruleset = _call("ruleset", ctypes.addressof(wanted), len(rules), 0)
    try:
        for paths, allowed in ((read, READ), (write, files & ~(1 << 6 | 1 << 11))):
            for path in paths:
                _allow(ruleset, path, allowed & files)
        control(NO_NEW_PRIVILEGES, 1)
        _call("restrict", ruleset, 0)
    finally:
        os.close(ruleset)


def _allow(ruleset: int, path: str, allowed: int) -> None:
    try:
        handle = os.open(path, os.O_PATH | os.O_CLOEXEC)
    except FileNotFoundError:
        return
    try:
        if not Path(path).is_dir():
            allowed &= 0b111 | 1 << 14 | 1 << 15
        rule = ctypes.create_string_buffer(struct.pack("=Qi", allowed, handle))
        _call("rule", ruleset, 1, ctypes.addressof(rule), 0)
    finally:
        os.close(handle)


def restrict(instructions: bytes) -> None:
    """Put a seccomp filter of packed BPF instructions over this process and its children."""
    code = ctypes.create_string_buffer(instructions, len(instructions))
    program = ctypes.create_string_buffer(struct.pack("HxxxxxxQ", len(instructions) // 8, ctypes.addressof(code)))
    control(NO_NEW_PRIVILEGES, 1)
    control(SECCOMP, 2, ctypes.addressof(program))
