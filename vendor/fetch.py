# Clones the pinned commits of the two vendored repositories beside this file and verifies them.
# Entry points: `python vendor/fetch.py [name ...]`. The pins are the table of VERSIONS.md.
# The clones are git-ignored, and nothing in hildanext's core imports them.
"""Fetch vendored repositories at their pinned commits."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROW = re.compile(r"^\| *vendor/(?P<name>\w+) *\| *(?P<url>https://\S+) *\| *`(?P<commit>[0-9a-f]{7,40})` *\|")


@dataclass(frozen=True)
class Pin:
    """One vendored repository: folder name, clone address, commit (a prefix of at least 7 hexadecimal digits)."""

    name: str
    url: str
    commit: str


def pins(versions: Path) -> list[Pin]:
    """The pins in VERSIONS.md: rows `| vendor/name | address | commit |`."""
    rows = (ROW.match(line) for line in versions.read_text(encoding="utf-8").splitlines())
    return [Pin(**row.groupdict()) for row in rows if row]


def _git(*arguments: str, folder: Path | None = None) -> subprocess.CompletedProcess[str]:
    where = ["-C", str(folder)] if folder is not None else []
    return subprocess.run(["git", *where, *arguments], capture_output=True, text=True)


def fetch(pin: Pin, into: Path) -> str:
    """Clone or reuse `into`/name, check out the pinned commit, verify it. Returns '' or one line of what went wrong."""
    folder = into / pin.name
    if not (folder / ".git").exists():
        cloned = _git("clone", "--quiet", "--no-checkout", pin.url, str(folder))
        if cloned.returncode:
            reason = (cloned.stderr.strip().splitlines() or ["git failed"])[-1]
            return f"{pin.name}: cannot clone {pin.url} ({reason}); connect to the internet and run this again"
    checked = _git("checkout", "--quiet", "--detach", pin.commit, folder=folder)
    if checked.returncode:
        return f"{pin.name}: commit {pin.commit} is not in {folder}; delete that folder and run this again"
    head = _git("rev-parse", "HEAD", folder=folder).stdout.strip()
    return "" if head.startswith(pin.commit) else f"{pin.name}: at {head}, expected {pin.commit}; delete {folder}"


def main(names: Sequence[str]) -> int:
    """Fetch the named repositories, all by default; returns 1 when one of them failed."""
    known = pins(HERE.parent / "VERSIONS.md")
    unknown = set(names) - {pin.name for pin in known}
    if unknown:
        print(f"unknown: {', '.join(sorted(unknown))}; there are {', '.join(p.name for p in known)}", file=sys.stderr)
        return 2
    wanted = [pin for pin in known if not names or pin.name in names]
    failed = [problem for problem in (fetch(pin, HERE) for pin in wanted) if problem]
    print("\n".join(failed) or f"fetched {', '.join(pin.name for pin in wanted)}", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
