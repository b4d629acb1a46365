# The seccomp filter: which system calls a program may not make, as BPF instructions.
# Entry points: instructions, supported.
# A list of refusals, not of permissions: every standard module must work. Standard library only.
# Numbers are x86-64's and arm64's; the calls since Linux 5 have one number everywhere.
"""System calls that are refused."""

from __future__ import annotations

import errno
import functools
import struct

from hildanext.measure.sandbox.kernel import MACHINE

EVERYWHERE = {
    "pidfd_send_signal": 424, "io_uring_setup": 425, "io_uring_enter": 426, "io_uring_register": 427, "open_tree": 428,
    "move_mount": 429, "fsopen": 430, "fsconfig": 431, "fsmount": 432, "fspick": 433, "pidfd_open": 434,
    "pidfd_getfd": 438, "process_madvise": 440, "mount_setattr": 442, "quotactl_fd": 443, "process_mrelease": 448,
    "cachestat": 451, "open_tree_attr": 467,
}  # fmt: skip
X86 = {
    "ptrace": 101, "process_vm_readv": 310, "process_vm_writev": 311, "kcmp": 312, "setpriority": 141,
    "sched_setparam": 142, "sched_setscheduler": 144, "sched_setattr": 314, "sched_setaffinity": 203, "ioprio_set": 251,
    "migrate_pages": 256, "move_pages": 279, "mbind": 237, "set_mempolicy": 238, "tkill": 200, "rt_sigqueueinfo": 129,
    "rt_tgsigqueueinfo": 297, "socket": 41, "connect": 42, "bind": 49, "listen": 50, "accept": 43, "accept4": 288,
    "mount": 165, "umount2": 166, "pivot_root": 155, "chroot": 161, "setns": 308, "unshare": 272, "bpf": 321,
    "perf_event_open": 298, "userfaultfd": 323, "keyctl": 250, "add_key": 248, "request_key": 249,
    "open_by_handle_at": 304, "name_to_handle_at": 303, "init_module": 175, "delete_module": 176, "finit_module": 313,
    "kexec_load": 246, "kexec_file_load": 320, "reboot": 169, "swapon": 167, "swapoff": 168, "acct": 163,
    "settimeofday": 164, "clock_settime": 227, "clock_adjtime": 305, "adjtimex": 159, "sethostname": 170,
    "setdomainname": 171, "syslog": 103, "quotactl": 179, "fanotify_init": 300, "iopl": 172, "ioperm": 173,
    "modify_ldt": 154, "personality": 135, "vhangup": 153, "shmget": 29, "msgget": 68, "semget": 64, "mq_open": 240,
    "mknod": 133, "mknodat": 259,
}  # fmt: skip
ARM = {
    "ptrace": 117, "process_vm_readv": 270, "process_vm_writev": 271, "kcmp": 272, "setpriority": 140,
    "sched_setparam": 118, "sched_setscheduler": 119, "sched_setattr": 274, "sched_setaffinity": 122, "ioprio_set": 30,
    "migrate_pages": 238, "move_pages": 239, "mbind": 235, "set_mempolicy": 237, "tkill": 130, "rt_sigqueueinfo": 138,
    "rt_tgsigqueueinfo": 240, "socket": 198, "connect": 203, "bind": 200, "listen": 201, "accept": 202, "accept4": 242,
    "mount": 40, "umount2": 39, "pivot_root": 41, "chroot": 51, "setns": 268, "unshare": 97, "bpf": 280,
    "perf_event_open": 241, "userfaultfd": 282, "keyctl": 219, "add_key": 217, "request_key": 218,
    "open_by_handle_at": 265, "name_to_handle_at": 264, "init_module": 105, "delete_module": 106, "finit_module": 273,
    "kexec_load": 104, "kexec_file_load": 294, "reboot": 142, "swapon": 224, "swapoff": 225, "acct": 89,
    "settimeofday": 170, "clock_settime": 112, "clock_adjtime": 266, "adjtimex": 171, "sethostname": 161,
    "setdomainname": 162, "syslog": 116, "quotactl": 60, "fanotify_init": 262, "personality": 92, "vhangup": 58,
    "shmget": 194, "msgget": 186, "semget": 190, "mq_open": 180, "mknodat": 33,
}  # fmt: skip
REFUSED = {"x86_64": X86, "aarch64": ARM}
STARTING = {"x86_64": (57, 58, 59, 322), "aarch64": (221, 281)}
MARKING = {
    "x86_64": (132, 235, 261, 280, 90, 91, 268, 92, 93, 94, 260, 188, 189, 190, 197, 198, 199, 452, 463, 466, 469),
    "aarch64": (88, 52, 53, 54, 55, 5, 6, 7, 14, 15, 16, 452, 463, 466, 469),
}
NUMBERS = {"x86_64": (56, 62, 234, 302, 53, 72, 16), "aarch64": (220, 129, 131, 261, 199, 25, 29)}
ARCHITECTURE = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
LOAD, EQUAL, AT_LEAST, ANY_BIT, RETURN, AND = 0x20, 0x15, 0x35, 0x45, 0x06, 0x54
FILE_COMMANDS, FILE_REQUESTS = (8, 10, 15, 1024), (0x8901, 0x8902, 0x40086602, 0x401C5820)
ALLOW, KILL, ERROR = 0x7FFF0000, 0x80000000, 0x00050000
REFUSE, ABSENT, PRETEND = ERROR | errno.EPERM, ERROR | errno.ENOSYS, ERROR
THREAD, NAMESPACES = 0x10000, 0x7E020000


def supported() -> bool:
    """Whether this machine's system call numbers are known here."""
    return MACHINE in REFUSED


@functools.cache
def instructions(own: int, processes: bool, marking: bool) -> bytes:
    """The filter as packed BPF. own: the process id that may be signalled and limited, 0 for any (a process namespace
    of its own); processes: whether programs may be started; marking: whether times, modes, owners and attributes of
    files may be changed (otherwise the call is swallowed: it answers success and does nothing)."""
    clone, kill, tgkill, prlimit, socketpair, fcntl, ioctl = NUMBERS[MACHINE]
    found = [_step(LOAD, 4), _step(EQUAL, ARCHITECTURE[MACHINE], 1, 0), _step(RETURN, KILL), _step(LOAD, 0)]
    found += [_step(AT_LEAST, 0x40000000, 0, 1), _step(RETURN, KILL)] if MACHINE == "x86_64" else []
    found += [_step(EQUAL, 435, 0, 1), _step(RETURN, ABSENT)]
    for number in (*EVERYWHERE.values(), *REFUSED[MACHINE].values(), *(() if processes else STARTING[MACHINE])):
        found += [_step(EQUAL, number, 0, 1), _step(RETURN, REFUSE)]
    for number in () if marking else MARKING[MACHINE]:
        found += [_step(EQUAL, number, 0, 1), _step(RETURN, PRETEND)]
    found += [_step(EQUAL, clone, 0, 5), _step(LOAD, 16), _step(ANY_BIT, NAMESPACES, 0, 1), _step(RETURN, REFUSE)]
    found += [_step(ANY_BIT, THREAD, 1, 0), _step(RETURN, ALLOW if processes else REFUSE), _step(LOAD, 0)]
    for number in (kill, tgkill) if own else ():
        found += [_step(EQUAL, number, 0, 4), _step(LOAD, 16), _step(EQUAL, own, 1, 0), _step(RETURN, REFUSE)]
        found += [_step(LOAD, 0)]
    found += [_step(EQUAL, socketpair, 0, 5), _step(LOAD, 24), _step(AND, 0xF), _step(EQUAL, 1, 1, 0)]
    found += [_step(RETURN, REFUSE), _step(LOAD, 0)]
    for number, values in ((fcntl, FILE_COMMANDS), (ioctl, FILE_REQUESTS)):
        found += [_step(EQUAL, number, 0, 2 + 2 * len(values)), _step(LOAD, 24)]
        found += [step for value in values for step in (_step(EQUAL, value, 0, 1), _step(RETURN, REFUSE))]
        found += [_step(LOAD, 0)]
    found += [_step(EQUAL, prlimit, 0, 4), _step(LOAD, 16), _step(EQUAL, 0, 2, 0), _step(EQUAL, own or 1, 1, 0)]
    found += [_step(RETURN, REFUSE), _step(RETURN, ALLOW)]
    return b"".join(found)


def _step(code: int, value: int, yes: int = 0, no: int = 0) -> bytes:
    return struct.pack("HBBI", code, yes, no, value)
