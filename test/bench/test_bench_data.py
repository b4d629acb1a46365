# bench data in small: it measures both sides, reports the ratio and cleans up after itself.
# Entry points: pytest.
# No figure is judged here; time and memory are measured by hand with `hildanext bench data`.
"""Tests of bench/data.py."""

from __future__ import annotations

import json
from pathlib import Path

from data.material import QUIET

from hildanext.bench.data import run
from hildanext.config import load_config


def test_the_report_holds_rates_and_their_ratio_and_the_corpus_is_removed(tmp_path: Path) -> None:
    bench = {"speed_megabytes": 0.05, "repeats": 1, "memory_megabytes": []}
    config = load_config(base={"paths": {"runs": str(tmp_path)}, "bench": {"data": bench}})
    report = run(config, QUIET)
    rates = report["throughput"]["megabytes_per_second"]
    assert report["throughput"]["ratio"] == rates["tokenize"] / rates["encode_batch"] > 0
    (folder,) = tmp_path.iterdir()
    assert json.loads((folder / "report.json").read_text()) == report
    assert not (folder / "work").exists()
