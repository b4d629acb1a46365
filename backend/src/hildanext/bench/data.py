# bench data: throughput of tokenize against a bare encode loop, and peak memory of both commands as the corpus grows.
# Entry points: run(config, console, args).
# The corpus is story-world text, each document made distinct by a number; both sides use the same cores and tokenizer.
# Memory is the kernel's peak resident size (VmHWM, Linux only) of a process of its own per command.
"""The data benchmark."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from hildanext.config import Config
from hildanext.data.document import from_json
from hildanext.data.encode_split import SplitEncoder
from hildanext.data.prepare import prepare
from hildanext.data.tokenize import tokenize
from hildanext.data.tokenizers import load_tokenizer, tokenizer_hash
from hildanext.environment import usable_cores
from hildanext.errors import RunError
from hildanext.progress import Console
from hildanext.run_dir import RunDir
from hildanext.world import corpus

BASE_STORIES = 500
FILE_BYTES = 50_000_000
QUIET = Console(quiet=True)
PEAK = Path("/proc/self/status")
CHILD = (
    "import sys; from hildanext.cli import main; code = main(sys.argv[1:]); "
    f"print(next(line for line in open('{PEAK}') if line.startswith('VmHWM'))); sys.exit(code)"
)


def run(config: Config, console: Console, args: Any = None) -> dict[str, Any]:
    """Throughput ratio (tokenize / bare encode_batch) and peak memory per corpus size; writes report.json."""
    directory = RunDir.create(config, "bench-data", getattr(args, "run_dir", None))
    work = directory.path / "work"
    with directory.running(console):
        try:
            report = {
                "cores": usable_cores(),
                "throughput": _throughput(config, work / "speed", console),
                "memory": _memory(config, work, console) if PEAK.exists() else [],
            }
        finally:
            shutil.rmtree(work, ignore_errors=True)
        directory.environment()
        directory.write_json("report.json", report)
    _show(report, console)
    return report


def _corpus(folder: Path, megabytes: float) -> Path:
    stories = [record["text"] for record in corpus("stories", 0, BASE_STORIES)]
    folder.mkdir(parents=True, exist_ok=True)
    left, number, part = int(megabytes * 1e6), 0, 0
    while left > 0:
        room = min(left, FILE_BYTES)
        left -= room
        with (folder / f"{part:04d}.jsonl").open("w", encoding="utf-8") as file:
            part += 1
            while room > 0:
                text = f"{stories[number % BASE_STORIES]} {number}"
                room -= len(text)
                file.write(json.dumps({"text": text}) + "\n")
                number += 1
    return folder


def _settings(config: Config, folder: Path, text: Path) -> dict[str, Any]:
    return {
        "paths": {"data": str(folder)},
        "data": {"name": "bench", "sources": [{"type": "jsonl", "path": str(text)}], "eval_share": 0, "workers": 1},
        "tokenize": config.tokenize.model_dump(mode="json") | {"name": "bench"},
        "model": config.model.model_dump(mode="json"),
    }


def _throughput(config: Config, folder: Path, console: Console) -> dict[str, Any]:
    text = _corpus(folder / "text", config.bench.data.speed_megabytes)
    job = Config.model_validate(_settings(config, folder, text))
    facts = prepare(job, QUIET)["files"]["train"]
    train = folder / "processed" / "bench" / "train.jsonl"
    tokenizer = load_tokenizer(tokenize(job, QUIET)["tokenizer"])
    texts, seconds = list(_texts(train)), dict[str, list[float]]()
    encoder = SplitEncoder(job.tokenize, tokenizer, tokenizer_hash(tokenizer), "")
    for _ in range(config.bench.data.repeats):
        start = time.perf_counter()
        encoder.encode(train, facts, folder / "shards", QUIET.bar("bench"))
        seconds.setdefault("tokenize", []).append(time.perf_counter() - start)
        for name in ("encode_batch", "encode_batch_fast"):
            bare = getattr(tokenizer.backend_tokenizer, name)
            seconds.setdefault(name, []).append(_bare_seconds(bare, texts, job.tokenize.batch_documents))
    size = sum(len(one.encode()) for one in texts) / 1e6
    rates = {name: size / min(found) for name, found in seconds.items()}
    console.say(", ".join(f"{name} {rate:.2f} MB/s" for name, rate in rates.items()))
    return {
        "megabytes": size,
        "seconds": seconds,
        "megabytes_per_second": rates,
        "ratio": rates["tokenize"] / rates["encode_batch"],
        "ratio_to_fast": rates["tokenize"] / rates["encode_batch_fast"],
    }


def _texts(path: Path) -> Iterator[str]:
    with path.open("rb") as lines:
        for line in lines:
            yield from_json(line).text or ""


def _bare_seconds(encode: Any, texts: list[str], batch: int) -> float:
    start = time.perf_counter()
    for first in range(0, len(texts), batch):
        for encoding in encode(texts[first : first + batch], add_special_tokens=False):
            encoding.ids  # noqa: B018
    return time.perf_counter() - start


def _memory(config: Config, work: Path, console: Console) -> list[dict[str, Any]]:
    found = []
    for megabytes in config.bench.data.memory_megabytes:
        folder = work / f"memory-{megabytes:g}"
        text = _corpus(folder / "text", megabytes)
        (folder / "config.json").write_text(json.dumps(_settings(config, folder, text)), encoding="utf-8")
        peaks = {name: _peak(name, folder / "config.json") for name in ("prepare-data", "tokenize")}
        shutil.rmtree(folder)
        console.say(
            f"{megabytes:g} MB: " + ", ".join(f"{name} {peak['peak_mb']:.0f} MB" for name, peak in peaks.items())
        )
        found.append({"megabytes": megabytes, **peaks})
    return found


def _peak(command: str, config: Path) -> dict[str, float]:
    start = time.perf_counter()
    words = [sys.executable, "-c", CHILD, command, "--quiet", "--config", str(config)]
    done = subprocess.run(words, capture_output=True, text=True)
    if done.returncode:
        last = "".join(done.stderr.strip().splitlines()[-1:])
        raise RunError(f"bench data: `hildanext {command}` ended with {done.returncode} ({last})")
    return {"seconds": time.perf_counter() - start, "peak_mb": int(done.stdout.split()[-2]) / 1024}


def _show(report: dict[str, Any], console: Console) -> None:
    console.say(f"tokenize / encode_batch: {report['throughput']['ratio']:.2f} (at least 0.7 wanted)")
    if len(report["memory"]) > 1:
        first, last = report["memory"][0], report["memory"][-1]
        for name in ("prepare-data", "tokenize"):
            ratio = last[name]["peak_mb"] / first[name]["peak_mb"]
            console.say(f"{name}: peak memory x{ratio:.2f} from {first['megabytes']:g} to {last['megabytes']:g} MB")
