# Programs that want out of the sandbox: the disk, processes, network and secrets outside stay as they are.
# Entry points: pytest.
# Each is tried behind all walls of this machine and behind the fewest (Landlock and the seccomp filter alone).
# A program here ends with DONE where its attempt succeeded, so that passing without it is no escape.
"""Tests of measure/sandbox: escapes."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path

import pytest
from waiting import PATIENCE, until

from hildanext.measure.sandbox import Execution, Limits, run_program, walls, wardens

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the walls are Linux's")

QUICK = Limits(cpu_seconds=3, wall_seconds=PATIENCE)
ON_DISK = {
    "write": "open(T + '/kept', 'w').write('x')",
    "append": "open(T + '/kept', 'a').write('x')",
    "new file": "open(T + '/new', 'w').write('x')",
    "folder descriptor": "d = os.open(T, os.O_RDONLY); os.close(os.open('new', os.O_CREAT | os.O_WRONLY, dir_fd=d))",
    "folder descriptor, unlink": "d = os.open(T, os.O_RDONLY); os.unlink('kept', dir_fd=d)",
    "path descriptor": "d = os.open(T, os.O_PATH); os.close(os.open('kept', os.O_TRUNC | os.O_WRONLY, dir_fd=d))",
    "reopened by /proc": "d = os.open(T + '/kept', os.O_PATH); open(f'/proc/self/fd/{d}', 'w').write('x')",
    "root of another process": "open(f'/proc/{os.getppid()}/root' + T + '/kept', 'w').write('x')",
    "pipe": "os.mkfifo(T + '/new')",
    "device": "os.mknod(T + '/new', 0o600 | stat.S_IFCHR, os.makedev(1, 3))",
    "times": "os.utime(T + '/kept', (1, 1))",
    "mode": "os.chmod(T + '/kept', 0o700)",
    "owner": "os.chown(T + '/kept', 1234, 1234)",
    "attribute": "os.setxattr(T + '/kept', 'user.x', b'x')",
    "truncate": "os.truncate(T + '/kept', 0)",
    "folder": "os.mkdir(T + '/new')",
    "remove": "os.remove(T + '/kept')",
    "remove a tree": "shutil.rmtree(T)",
    "rename into": "open('own', 'w').close(); os.rename('own', T + '/new')",
    "rename out of": "os.rename(T + '/kept', 'own')",
    "link into": "open('own', 'w').close(); os.link('own', T + '/new')",
    "link out of, then write": "os.link(T + '/kept', 'own'); open('own', 'w').write('x')",
    "symbolic link into": "os.symlink('/', T + '/new')",
    "symbolic link out of, then write": "os.symlink(T + '/kept', 'own'); open('own', 'w').write('x')",
    "folder link, then write": "os.symlink(T, 'own'); open('own/new', 'w').write('x')",
    "up and over": "open('../' * 20 + T + '/new', 'w').write('x')",
    "another root": "os.chroot('/'); open(T + '/new', 'w').write('x')",
    "socket file": "import socket; a, b = socket.socketpair(); a.bind(T + '/new')",
    "C's own open": "c = ctypes.CDLL(None); c.creat((T + '/new').encode(), 0o600)",
}  # fmt: skip
OUTSIDE = {
    "signal to the parent": "os.kill(os.getppid() or P, signal.SIGTERM)",
    "signal to the asking process": "os.kill(P, signal.SIGTERM)",
    "signal by a descriptor": "signal.pidfd_send_signal(os.pidfd_open(P), signal.SIGTERM)",
    "signal to everybody": "os.kill(-1, signal.SIGTERM); os.killpg(P, signal.SIGTERM)",
    "signal to a group": "os.killpg(os.getpgid(P), signal.SIGTERM)",
    "signal by a file's owner": "import fcntl, socket; a, b = socket.socketpair(); fcntl.fcntl(a, fcntl.F_SETOWN, P)\n"
    "fcntl.fcntl(a, fcntl.F_SETFL, os.O_ASYNC); b.send(b'x'); time.sleep(0.1)",
    "signal by a file's owner, otherwise": "import fcntl, socket, struct; a, b = socket.socketpair()\n"
    "fcntl.ioctl(a, 0x8901, struct.pack('i', P)); fcntl.fcntl(a, fcntl.F_SETFL, os.O_ASYNC); b.send(b'x')",
    "queued signal": "c = ctypes.CDLL(None); assert c.sigqueue(P, 15, None) == 0",
    "limit of the asking process": "resource.prlimit(P, resource.RLIMIT_NOFILE, (64, 64))",
    "limit of the parent": "resource.prlimit(os.getppid() or P, resource.RLIMIT_NOFILE, (64, 64))",
    "priority": "os.setpriority(os.PRIO_PROCESS, P, 19)",
    "affinity": "os.sched_setaffinity(P, {0})",
    "tracing": "c = ctypes.CDLL(None); assert c.ptrace(16, P, None, None) == 0",
    "tracing the parent": "c = ctypes.CDLL(None); assert c.ptrace(16, os.getppid() or P, None, None) == 0",
    "memory of the asking process": "b = ctypes.create_string_buffer(32)\n"
    "class V(ctypes.Structure): _fields_ = [('p', ctypes.c_void_p), ('n', ctypes.c_size_t)]\n"
    "l, r = V(ctypes.addressof(b), 8), V(4096, 8)\nc = ctypes.CDLL(None, use_errno=True)\n"
    "c.process_vm_readv(P, ctypes.byref(l), 1, ctypes.byref(r), 1, 0)\nassert ctypes.get_errno() == 14",
    "memory by /proc": "open(f'/proc/{P}/mem', 'rb').read(0)",
    "environment by /proc": "assert open(f'/proc/{P}/environ').read()",
    "environment of the parent": "assert open(f'/proc/{os.getppid()}/environ').read()",
    "environment of process 1": "assert os.getpid() != 1; assert open('/proc/1/environ').read()",
    "a repository": "assert open(R).read()",
    "users": "assert open('/etc/passwd').read()",
    "home": "assert len(os.listdir(H)) > 1",
    "socket": "import socket; socket.socket()",
    "local server": "import socket; socket.create_connection(('127.0.0.1', N), 1)",
    "local server by a pair": "import socket; a, b = socket.socketpair(); a.connect(U)",
    "datagram by a pair": "import socket; a, b = socket.socketpair(1, socket.SOCK_DGRAM); a.sendto(b'x', D)",
    "unix server": "import socket; socket.socket(socket.AF_UNIX).connect(U)",
    "raw packets": "import socket; socket.socket(socket.AF_PACKET, socket.SOCK_RAW)",
    "kernel sockets": "import socket; socket.socket(16, socket.SOCK_RAW)",
    "name lookup": "import socket; socket.getaddrinfo('example.org', 80)",
    "http": "import urllib.request; urllib.request.urlopen(f'http://127.0.0.1:{N}', timeout=1)",
    "a program": "import subprocess; subprocess.run(['true'])",
    "a shell": "assert os.system('true') == 0",
    "fork": "os.fork()",
    "spawn": "import multiprocessing\np = multiprocessing.get_context('fork').Process(target=int)\np.start()",
    "exec": "os.execv('/bin/echo', ['echo', 'DO' + 'NE'])",
    "exec of memory": "d = os.memfd_create('x'); os.write(d, open('/bin/echo', 'rb').read())\n"
    "os.execve(d, ['echo', 'DO' + 'NE'], {})",
    "another user": "os.setuid(0); assert os.getuid() == 0; open(R)",
    "a limit lifted": "resource.setrlimit(resource.RLIMIT_CPU, (-1, -1))",
    "a core dump allowed": "resource.setrlimit(resource.RLIMIT_CORE, (-1, -1))",
    "io_uring": "c = ctypes.CDLL(None); assert c.syscall(425, 8, ctypes.create_string_buffer(256)) >= 0",
    "kernel keys": "n = 250 if os.uname().machine == 'x86_64' else 219\n"
    "assert ctypes.CDLL(None).syscall(n, 0, -3, 1) >= 0",
    "32-bit calls": "assert ctypes.CDLL(None).syscall(0x40000000 + 39) > 0",
    "shared memory": "assert ctypes.CDLL(None).shmget(1234, 4096, 0o1777) >= 0",
    "host name": "import socket; socket.sethostname('x')",
    "mount": "assert ctypes.CDLL(None).mount(b'/dev', b'.', None, 4096, None) == 0",
    "user namespace": "assert ctypes.CDLL(None).unshare(0x10000000) == 0",
    "network namespace": "assert ctypes.CDLL(None).unshare(0x40000000) == 0",
    "namespace of another": "assert ctypes.CDLL(None).setns(os.open(f'/proc/{P}/ns/net', 0), 0) == 0",
    "clock": "time.clock_settime(time.CLOCK_REALTIME, 1)",
    "state of the sandbox": "for m in list(sys.modules.values()):\n"
    " for n in ('DENIED', 'MOVES', 'REFUSED', 'EVERYWHERE'):\n  if hasattr(m, n): setattr(m, n, ())\n"
    "import socket; socket.socket()",
}  # fmt: skip
MARK = f"# asked for by {os.getpid()}\n"  # in the command line of every process of these tests: other workers ask too
HEAD = "import ctypes, os, resource, shutil, signal, stat, sys, time\n"


class Sandbox:
    """run_program by wardens of a plan of their own."""

    def __init__(self, fewest: bool) -> None:
        self.pool = wardens._Pool()
        self.pool.plans = [frozenset()] if fewest else self.pool.plans

    def __call__(self, source: str, limits: Limits = QUICK) -> Execution:
        """run_program."""
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(wardens, "_POOL", self.pool)
            patch.setattr(wardens, "START", wardens.START + MARK)
            return run_program(textwrap.dedent(source), limits)

    def stands(self) -> set[str]:
        """The walls behind which it runs."""
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(wardens, "_POOL", self.pool)
            patch.setattr(wardens, "START", wardens.START + MARK)
            return {wall.name for wall in walls() if wall.stands}

    def left(self) -> list[str]:
        """Processes the wardens still have."""
        pids = [one.process.pid for one in self.pool.idle]
        return [text for pid in pids if (text := Path(f"/proc/{pid}/task/{pid}/children").read_text())]


@pytest.fixture(scope="module", params=["all walls", "fewest walls"])
def sandbox(request: pytest.FixtureRequest) -> Iterator[Sandbox]:
    """All walls of this machine, or Landlock and the filter alone."""
    found = Sandbox(request.param == "fewest walls")
    if not {"landlock", "seccomp"} <= found.stands():
        pytest.skip("this kernel has no Landlock or no seccomp filters")
    yield found
    found.pool.end()


def _state(folder: Path) -> list[object]:
    names = sorted(path.name for path in folder.iterdir())
    found = [os.lstat(folder / name) for name in names]
    kept = folder / "kept"
    parts = [(one.st_mode, one.st_uid, one.st_size, one.st_mtime_ns, one.st_nlink, one.st_ino) for one in found]
    return [names, parts, kept.read_text(), os.listxattr(kept)]


@pytest.mark.parametrize("attempt", ON_DISK.values(), ids=ON_DISK)
def test_nothing_outside_the_scratch_folder_changes(attempt: str, sandbox: Sandbox, tmp_path: Path) -> None:
    folder = tmp_path / "outside"
    folder.mkdir()
    (folder / "kept").write_text("kept")
    for path in (folder, tmp_path, tmp_path.parent, folder / "kept"):
        path.chmod(0o777)
    before = _state(folder)
    sandbox(f"{HEAD}T = {str(folder)!r}\n{attempt}\n")
    assert _state(folder) == before


@pytest.mark.parametrize("attempt", OUTSIDE.values(), ids=OUTSIDE)
def test_nothing_outside_is_reached(attempt: str, sandbox: Sandbox, tmp_path: Path) -> None:
    place = f"\0hildanext-{os.getpid()}"
    with (
        socket.create_server(("127.0.0.1", 0)) as server,
        socket.socket(socket.AF_UNIX) as local,
        socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as letters,
        _bystander() as other,
    ):
        local.bind(place)
        local.listen()
        letters.bind(str(tmp_path / "letters"))
        for one in (server, local, letters):
            one.setblocking(False)
        known = {
            "P": other,
            "R": str(Path(__file__).resolve()),
            "H": str(Path.home()),
            "U": place,
            "D": str(tmp_path / "letters"),
        }
        known["N"] = server.getsockname()[1]
        names = "".join(f"{name} = {value!r}\n" for name, value in known.items())
        found = sandbox(f"{HEAD}{names}{attempt}\nprint('DONE')\n")
        assert "DONE" not in found.output, found.output
        for asked in (server, local):
            with pytest.raises(BlockingIOError):
                asked.accept()
        with pytest.raises(BlockingIOError):
            letters.recv(9)


@contextlib.contextmanager
def _bystander() -> Iterator[int]:
    process = subprocess.Popen([sys.executable, "-S", "-c", "import time; time.sleep(3600)"], start_new_session=True)
    limits = Path(f"/proc/{process.pid}/limits").read_text()
    try:
        yield process.pid
        assert process.poll() is None and Path(f"/proc/{process.pid}/limits").read_text() == limits
        assert os.getpriority(os.PRIO_PROCESS, process.pid) == os.getpriority(os.PRIO_PROCESS, 0)
        assert os.sched_getaffinity(process.pid) == os.sched_getaffinity(0)
    finally:
        process.kill()
        process.wait()


def test_the_program_sees_neither_the_environment_nor_the_checkout(
    monkeypatch: pytest.MonkeyPatch, sandbox: Sandbox
) -> None:
    monkeypatch.setenv("HILDANEXT_TOKEN_OF_TEST", "secret")
    source = "import os, sys\nprint(dict(os.environ), sys.argv, sys.path, os.getcwd())"
    found = sandbox(source)
    assert found.passed and "secret" not in found.output and str(Path(__file__).parents[2]) not in found.output


def test_the_program_holds_no_descriptor_of_a_folder_or_of_a_file_but_its_own_text(sandbox: Sandbox) -> None:
    source = """
    import os, stat
    for fd in range(64):
        try: mode = os.fstat(fd).st_mode
        except OSError: continue
        kind = [name for name in ("DIR", "REG", "SOCK", "FIFO", "CHR") if getattr(stat, "S_IS" + name)(mode)]
        print(fd, *kind)
    """
    found = sandbox(source)
    kinds = [line.split()[1] for line in found.output.splitlines()]
    assert kinds[:3] == ["CHR", "FIFO", "FIFO"] and kinds[3:] == ["SOCK"], found.output


def _sandboxed() -> set[int]:
    found = set()
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if MARK.encode() in (folder / "cmdline").read_bytes():
                found.add(int(folder.name))
    return found


def test_nothing_a_program_starts_survives_it(sandbox: Sandbox) -> None:
    source = """
    import os, time
    for _ in range(3):
        if os.fork() == 0:
            os.setsid()
            if os.fork() == 0:
                os.setsid()
                os.closerange(0, 64)
                time.sleep(3600)
            os._exit(0)
    """
    before = _sandboxed()
    assert sandbox(source, Limits(wall_seconds=PATIENCE, processes=16)).passed
    assert len(_sandboxed() - before) <= 1 and sandbox.left() == []


def test_a_fork_bomb_ends(sandbox: Sandbox) -> None:
    source = "import os\nwhile True:\n try: os.fork()\n except OSError: pass"
    before = _sandboxed()
    assert sandbox(source, Limits(cpu_seconds=1, wall_seconds=1.0, processes=8)).reason == "timeout"
    assert len(_sandboxed() - before) <= 1 and sandbox("x = 1").passed


def test_threads_are_bounded(sandbox: Sandbox) -> None:
    source = """
    import threading, time
    threading.stack_size(32768)
    count = 0
    try:
        for count in range(500): threading.Thread(target=time.sleep, args=(20,), daemon=True).start()
    except RuntimeError: pass
    print(count)
    """
    if not {"user", "uid"} <= sandbox.stands():
        pytest.skip("without users of their own threads are bounded by memory alone")
    assert int(sandbox(source).output) <= 70


def test_descriptors_and_the_scratch_folder_are_bounded(sandbox: Sandbox) -> None:
    source = """
    import os
    count, size, first = 0, 0, os.dup(0)
    try:
        while True: os.dup(0); count += 1
    except OSError: os.close(first)
    try:
        for name in range(40): size += open(str(name), "wb", 0).write(bytes(1 << 20))
    except OSError: pass
    print(count, size >> 20)
    """
    count, size = map(int, sandbox(source).output.split())
    assert count < 32 and (size <= 16 or "mounts" not in sandbox.stands())


def test_the_next_program_finds_nothing_of_the_one_before(sandbox: Sandbox) -> None:
    for _ in range(2):
        assert sandbox("import os\nassert os.listdir() == []\nopen('left', 'w').write('x')").passed


def test_a_program_ends_with_the_process_that_asked() -> None:
    source = (
        "from hildanext.measure.sandbox import Limits, run_program, wardens\n"
        f"wardens.START += {MARK!r}\n"
        "run_program('import time\\ntime.sleep(3600)', Limits(wall_seconds=3600.0))"
    )
    before = _sandboxed()
    asking = subprocess.Popen([sys.executable, "-c", source])
    try:
        until(lambda: len(_sandboxed() - before) >= 3)
        started = _sandboxed() - before
    finally:
        asking.send_signal(signal.SIGKILL)
        asking.wait()
    until(lambda: not started & _sandboxed())
