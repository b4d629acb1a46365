# Files and folders on disk: whole or not at all, nothing of anybody else's replaced, nothing left behind.
# Entry points: pytest.
# A killed child process stands for kill -9, a limit on the size of files for a full disk.
"""Tests of hildanext.disk."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from hildanext import disk
from hildanext.disk import RECORD, replacing, write_atomic
from hildanext.errors import HildaError, cure


def test_a_reader_never_sees_half_a_file(tmp_path: Path) -> None:
    path, stop, seen = tmp_path / "file.json", threading.Event(), set()
    write_atomic(path, json.dumps(["a"] * 5000))

    def read() -> None:
        while not stop.is_set():
            seen.add(len(json.loads(path.read_text())))

    reader = threading.Thread(target=read)
    reader.start()
    for i in range(200):
        write_atomic(path, json.dumps(["b"] * (5000 + i % 2)))
    stop.set()
    reader.join()
    assert seen <= {5000, 5001} and list(tmp_path.iterdir()) == [path]


def test_a_failed_write_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "file"
    write_atomic(path, "old")
    with pytest.raises(UnicodeEncodeError):
        write_atomic(path, "\ud800")
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]


def _listing(folder: Path) -> dict[str, str]:
    files = [path for path in folder.rglob("*") if path.is_file() and path.name != RECORD]
    return {str(path.relative_to(folder)): path.read_text() for path in files}


def test_a_folder_is_replaced_whole_and_nothing_is_left_beside_it(tmp_path: Path) -> None:
    for content in ("first", "second"):
        with replacing(tmp_path / "set") as fresh:
            assert list(fresh.iterdir()) == []
            (fresh / content).write_text(content)
            assert _listing(tmp_path / "set") == ({} if content == "first" else {"first": "first"})
    assert _listing(tmp_path) == {"set/second": "second"} and len(list(tmp_path.iterdir())) == 1


def test_a_failed_block_leaves_the_old_folder_alone(tmp_path: Path) -> None:
    with replacing(tmp_path / "set") as fresh:
        (fresh / "old").write_text("old")
    with pytest.raises(KeyboardInterrupt), replacing(tmp_path / "set") as fresh:
        (fresh / "half").write_text("half")
        raise KeyboardInterrupt
    assert _listing(tmp_path) == {"set/old": "old"} and len(list(tmp_path.iterdir())) == 1


KILLED = """
import os, sys
from pathlib import Path
from hildanext.disk import replacing
target, moment = Path(sys.argv[1]), sys.argv[2]
renames = []
plain = Path.rename
def rename(self, other):
    renames.append(other)
    if moment == "between" and len(renames) == 2:
        os._exit(9)
    return plain(self, other)
Path.rename = rename
with replacing(target) as fresh:
    (fresh / "new").write_text("new")
    if moment == "writing":
        os._exit(9)
"""


@pytest.mark.parametrize("moment", ["writing", "between"])
def test_what_killed_writes_left_is_gone_after_the_next_and_the_old_folder_lives(moment: str, tmp_path: Path) -> None:
    with replacing(tmp_path / "set") as fresh:
        (fresh / "old").write_text("old")
    for _ in range(2):
        assert subprocess.run([sys.executable, "-c", KILLED, str(tmp_path / "set"), moment]).returncode == 9
    with pytest.raises(ValueError, match="stop"), replacing(tmp_path / "set"):
        raise ValueError("stop")
    assert _listing(tmp_path) == {"set/old": "old"} and len(list(tmp_path.iterdir())) == 1


def written(folder: Path, *names: str, holds: str = "model") -> Path:
    with replacing(folder, holds) as fresh:
        for name in names:
            (fresh / name).parent.mkdir(exist_ok=True)
            (fresh / name).write_text("ours")
    return folder


def everything(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def a_root_of_models(place: Path) -> Path:
    written(place / "target" / "child", "hildanext.json")
    return place / "target"


def strange_files(place: Path) -> Path:
    (place / "target").mkdir()
    (place / "target" / "thesis.tex").write_text("mine")
    return place / "target"


def ours_with_a_note_in_it(place: Path) -> Path:
    (written(place / "target", "hildanext.json", "model.safetensors") / "notes.txt").write_text("mine")
    return place / "target"


def ours_with_a_folder_in_it(place: Path) -> Path:
    return written(written(place / "target", "hildanext.json") / "deeper", "hildanext.json").parent


def ours_of_another_kind(place: Path) -> Path:
    return written(place / "target", "manifest.json", "train/tokens.bin", holds="shards")


def unrecorded_shards(place: Path) -> Path:
    (written(place / "target", "manifest.json", holds="shards") / RECORD).unlink()
    return place / "target"


def unrecorded_with_a_note(place: Path) -> Path:
    (ours_with_a_note_in_it(place) / RECORD).unlink()
    return place / "target"


def a_run(place: Path) -> Path:
    (place / "target").mkdir()
    (place / "target" / "status.json").write_text("{}")
    return place / "target"


def a_file(place: Path) -> Path:
    (place / "target").write_text("mine")
    return place / "target"


def a_link_to_strange_files(place: Path) -> Path:
    (place / "elsewhere").mkdir()
    (place / "link").symlink_to(strange_files(place / "elsewhere"))
    return place / "link"


def the_working_directory(place: Path) -> Path:
    strange_files(place)
    return place / "target" / "."


FOREIGN = [
    a_root_of_models, strange_files, ours_with_a_note_in_it, ours_with_a_folder_in_it, ours_of_another_kind,
    unrecorded_shards, unrecorded_with_a_note, a_run, a_file, a_link_to_strange_files, the_working_directory,
    lambda place: Path("/"),
]  # fmt: skip


@pytest.mark.parametrize("make", FOREIGN)
def test_a_folder_with_anything_else_in_it_is_refused_by_name_and_nothing_is_touched(
    make: Callable[[Path], Path], tmp_path: Path
) -> None:
    target, entered = make(tmp_path), False
    before = everything(tmp_path)
    with pytest.raises(HildaError, match="name (another folder|a folder below)") as refused, replacing(target):
        entered = True
    assert not entered and everything(tmp_path) == before
    assert len(str(refused.value).splitlines()) == 1


def empty_folder(place: Path) -> Path:
    (place / "target").mkdir()
    return place / "target"


def recorded(place: Path) -> Path:
    return written(place / "target", "anything.at.all", "deeper/too")


def unrecorded_model(place: Path) -> Path:
    (written(place / "target", "hildanext.json", "model.safetensors", "tokenizer.json") / RECORD).unlink()
    return place / "target"


@pytest.mark.parametrize("make", [empty_folder, recorded, unrecorded_model, lambda place: place / "free"])
def test_an_empty_folder_and_one_of_ours_are_replaced_also_from_before_records(
    make: Callable[[Path], Path], tmp_path: Path
) -> None:
    assert _listing(written(make(tmp_path), "new")) == {"new": "ours"}
    assert len(list(tmp_path.iterdir())) == 1


def test_a_link_leads_to_the_folder_that_is_replaced(tmp_path: Path) -> None:
    written(tmp_path / "disk" / "set", "old")
    (tmp_path / "link").symlink_to(tmp_path / "disk" / "set")
    written(tmp_path / "link", "new")
    assert (tmp_path / "link").is_symlink() and _listing(tmp_path / "disk" / "set") == {"new": "ours"}


def test_a_folder_that_fills_while_its_replacement_is_made_is_kept(tmp_path: Path) -> None:
    target = written(tmp_path / "set", "old")
    with pytest.raises(HildaError, match="holds notes"), replacing(target) as fresh:
        (fresh / "new").write_text("new")
        (target / "notes").write_text("mine")
    assert _listing(tmp_path) == {"set/old": "ours", "set/notes": "mine"}


def test_two_writers_of_one_folder_do_not_mix(tmp_path: Path) -> None:
    with replacing(tmp_path / "set") as fresh:
        (fresh / "first").write_text("first")
        with pytest.raises(HildaError, match="another process is writing it"):
            written(tmp_path / "set", "second")
        written(tmp_path / "beside", "third")
    assert _listing(tmp_path) == {"set/first": "first", "beside/third": "ours"}


def test_what_a_killed_write_left_goes_with_the_next_write_to_the_same_place_of_whatever_name(tmp_path: Path) -> None:
    written(tmp_path / "kept", "old")
    for moment in ("writing", "between"):
        code = [sys.executable, "-c", KILLED, str(tmp_path / "kept"), moment]
        assert subprocess.run(code).returncode == 9
    assert not (tmp_path / "kept").exists()
    written(tmp_path / "other", "new")
    assert _listing(tmp_path) == {"kept/old": "ours", "other/new": "ours"} and len(list(tmp_path.iterdir())) == 2


FULL = """
import resource, signal, sys
from pathlib import Path
from hildanext.disk import replacing, write_atomic
from hildanext.errors import RunError
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
try:
    with replacing(Path(sys.argv[1])) as fresh:
        (fresh / "a").write_bytes(b"a" * 900)
        (fresh / "b").write_bytes(b"b" * 9000)
except RunError as error:
    print(error)
try:
    write_atomic(Path(sys.argv[2]), b"x" * 9000)
except OSError as error:
    print(error.errno)
"""


def test_a_full_disk_does_not_stay_full_and_is_one_line(tmp_path: Path) -> None:
    written(tmp_path / "set", "old")
    write_atomic(tmp_path / "file", "old")
    done = subprocess.run(
        [sys.executable, "-c", FULL, str(tmp_path / "set"), str(tmp_path / "file")], capture_output=True, text=True
    )
    first, second = done.stdout.splitlines()
    assert "set: cannot be written (File too large); what was there stays; name another folder" in first
    assert int(second) == errno.EFBIG and "free the disk" not in first
    assert _listing(tmp_path) == {"set/old": "ours", "file": "old"} and len(list(tmp_path.iterdir())) == 2


def test_a_killed_writer_of_a_file_leaves_one_file_that_the_next_one_removes(tmp_path: Path) -> None:
    code = (
        "import os, sys; from pathlib import Path; from hildanext import disk;"
        "disk.os.fsync = lambda handle: os._exit(9); disk.write_atomic(Path(sys.argv[1]), 'half')"
    )
    for _ in range(3):
        assert subprocess.run([sys.executable, "-c", code, str(tmp_path / "file")]).returncode == 9
    assert [path.name for path in tmp_path.iterdir()] == [".file.tmp"]
    write_atomic(tmp_path / "file", "whole")
    assert _listing(tmp_path) == {"file": "whole"}


def test_many_writers_of_one_file_leave_one_whole_file(tmp_path: Path) -> None:
    path = tmp_path / "file"
    threads = [
        threading.Thread(target=lambda n=n: [write_atomic(path, str(n) * 4000) for _ in range(20)]) for n in "1234"
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(path.read_text())) == 1 and path.stat().st_size == 4000 and list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    ("error", "full"),
    [
        (OSError(errno.ENOSPC, "x"), True), (OSError(errno.EDQUOT, "x"), True), (OSError(errno.EROFS, "x"), False),
        (OSError(errno.EFBIG, "x"), False), (OSError(errno.EIO, "x"), False),
        (RuntimeError("I/O error: No space left on device (os error 28)"), True),
        (RuntimeError("I/O error: Read-only file system (os error 30)"), False),
        (RuntimeError("file write failed"), None),
    ],
)  # fmt: skip
def test_the_disk_is_to_be_freed_only_where_it_is_full(
    error: BaseException, full: bool | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for free in (1000, 10**9):
        monkeypatch.setattr("shutil.disk_usage", lambda path, free=free: type("Usage", (), {"free": free})())
        wanted = free == 1000 if full is None else full
        assert cure(error, "look", tmp_path) == ("free the disk" if wanted else "look")
    assert cure(RuntimeError("file write failed"), "look") == "look"


HOLDER = """
import os, sys, time
from pathlib import Path
from hildanext.disk import hold
held = hold(Path(sys.argv[1]))
if not os.fork():
    print(os.getpid(), flush=True)  # said by the worker: what runs in it after a fork has run
time.sleep(3600)
"""


@pytest.mark.skipif(os.name == "nt", reason="POSIX locks")
def test_a_lock_dies_with_its_process_though_a_worker_of_it_lives_on(tmp_path: Path) -> None:
    child = subprocess.Popen([sys.executable, "-c", HOLDER, str(tmp_path / "lock")], stdout=subprocess.PIPE, text=True)
    assert child.stdout is not None
    worker = int(child.stdout.readline())
    try:
        assert disk.hold(tmp_path / "lock") is None
        child.kill()
        child.wait()
        os.kill(worker, 0)
        held = disk.hold(tmp_path / "lock")
        assert held is not None and disk.hold(tmp_path / "lock") is None
        held.close()
        assert disk.hold(tmp_path / "lock") is not None
    finally:
        os.kill(worker, signal.SIGKILL)


def test_a_huge_file_is_read_anew_only_when_it_changed_after_its_fingerprint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "data").write_text("abc")
    known = disk.fingerprints(tmp_path)
    (tmp_path / "kept").write_text("{}")
    past = (tmp_path / "kept").stat().st_mtime_ns - 10**9
    (tmp_path / "data").write_text("abd")
    assert "data is not what was written" in disk.damage(tmp_path, known, "kept")
    monkeypatch.setattr(disk, "READ_ANEW", 2)
    os.utime(tmp_path / "data", ns=(past, past))
    assert disk.damage(tmp_path, known, "kept") == ""
    os.utime(tmp_path / "data", ns=(past, past + 2 * 10**9))
    assert "data is not what was written" in disk.damage(tmp_path, known, "kept")
    (tmp_path / "data").write_text("abcd")
    assert disk.damage(tmp_path, known, "kept") == "data has 4 bytes, 3 were written"
