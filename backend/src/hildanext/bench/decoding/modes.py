# How much the modes differ on a trained model: speed, edits, and by how much S_MODE's text is not Q_MODE's.
# Entry points: compare, settings, differences, prompts_for, show, per_forward.
# Without prompts of the user's, those are taken that the vocabulary needs the fewest tokens per word for.
"""Comparison of the modes, for the decoding benchmark."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from difflib import SequenceMatcher
from typing import Any

from hildanext.bench.decoding.timing import time_engine
from hildanext.config import Config
from hildanext.config.decode import MODES
from hildanext.decoding.request import Result
from hildanext.progress import Console

TINYSTORIES = ("Once upon a time", "One day, a little girl", "The dog saw a big", "Tom and Lily went to the park.")
STORIES = 8
PER_FORWARD = ("TPF", "TPF unfused", "positions/forward")


def prompts_for(tokenizer: Any, wanted: Sequence[str]) -> tuple[str, ...]:
    """`wanted`, if there are any; else openings of TinyStories, or of the story world where those take at most two
    thirds of the tokens per word."""
    from hildanext.world import story

    own = tuple(story(f"bench:{number}").sentences[0] for number in range(STORIES))
    fits = 1.5 * _tokens_per_word(tokenizer, own) <= _tokens_per_word(tokenizer, TINYSTORIES)
    return tuple(wanted) or (own if fits else TINYSTORIES)


def _tokens_per_word(tokenizer: Any, texts: Sequence[str]) -> float:
    words = sum(len(text.split()) for text in texts)
    return sum(len(tokenizer(text, add_special_tokens=False)["input_ids"]) for text in texts) / words


def compare(loaded: Any, config: Config) -> dict[str, Any]:
    """Every mode on bench.decode.prompts, all at once, each text up to its end, and again with bench.decode.windows
    blocks open: speed and edits of each, then S_MODE's differences from Q_MODE and one pair of texts."""
    prompts = prompts_for(loaded.tokenizer, config.bench.decode.prompts)
    report: dict[str, Any] = {"prompts": list(prompts)}
    results: dict[str, list[Result]] = {}
    for mode, fields in settings(config.bench.decode.windows).items():
        found = time_engine(loaded, config, {**fields, "ignore_eos": False}, len(prompts), prompts)
        results[mode] = found.pop("results")
        edits = sum(sum(result.metrics.edits_applied) for result in results[mode])
        report[mode] = {**found, "edits": edits, "text": results[mode][0].text}
    pairs = list(zip(results["S_MODE"], results["Q_MODE"], strict=True))
    report["s_against_q"] = differences(pairs) | {
        name: report["S_MODE"][name] / report["Q_MODE"][name] for name in ("tokens_per_forward", "tokens_per_second")
    }
    return report


def settings(windows: Sequence[int]) -> dict[str, dict[str, Any]]:
    """Fields of a request by what they are called in the report: each mode as it is, then with several blocks open."""
    several = [(mode, blocks) for mode in MODES for blocks in windows if blocks > 1]
    return {mode: {"mode": mode} for mode in MODES} | {
        f"{mode}, {blocks} blocks open": {"mode": mode, "window_blocks": blocks} for mode, blocks in several
    }


def differences(pairs: Sequence[tuple[Result, Result]]) -> dict[str, float]:
    """Shares in [0, 1]: of pairs with other tokens; of positions, counted to the longer text's end, whose tokens
    differ; of tokens outside the longest matching blocks (an insertion counts once)."""
    lengths = sum(max(len(one.token_ids), len(other.token_ids)) for one, other in pairs)
    same = sum(a == b for one, other in pairs for a, b in zip(one.token_ids, other.token_ids, strict=False))
    shared = sum(_shared(one.token_ids, other.token_ids) for one, other in pairs)
    both = sum(len(one.token_ids) + len(other.token_ids) for one, other in pairs)
    return {
        "texts_that_differ": sum(one.token_ids != other.token_ids for one, other in pairs) / len(pairs),
        "tokens_that_differ": 1 - same / max(1, lengths),
        "tokens_not_shared": 1 - 2 * shared / max(1, both),
    }


def _shared(one: Sequence[int], other: Sequence[int]) -> int:
    return sum(match.size for match in SequenceMatcher(None, one, other, autojunk=False).get_matching_blocks())


def _speed(row: tuple[str, ...]) -> float:
    return float(row[1])


def per_forward(row: Mapping[str, Any]) -> tuple[str, str, str]:
    """The cells under PER_FORWARD of a timed variant."""
    names = ("tokens_per_forward", "tokens_per_forward_unfused", "positions_per_forward")
    tpf, unfused, width = (float(row[name]) for name in names)
    return f"{tpf:.2f}", f"{unfused:.2f}", f"{width:.1f}"


def show(report: dict[str, Any], console: Console) -> None:
    """The comparison as a table and two sentences."""
    rows = [
        (mode, f"{row['tokens_per_second']:.1f}", *per_forward(row), str(row["edits"]), str(row["tokens"]))
        for mode, row in report.items()
        if isinstance(row, Mapping) and "edits" in row
    ]
    console.table(rows, ("mode", "tokens/s", *PER_FORWARD, "edits", "tokens"))
    gap = report["s_against_q"]
    console.say(
        f"S_MODE against Q_MODE on {len(report['prompts'])} prompts: {100 * gap['texts_that_differ']:.0f} % of texts "
        f"differ, {100 * gap['tokens_that_differ']:.1f} % of tokens by position, "
        f"{100 * gap['tokens_not_shared']:.1f} % in no common order; "
        f"{gap['tokens_per_forward']:.2f} times the tokens per forward, "
        f"{gap['tokens_per_second']:.2f} times the tokens/s"
    )
    fastest = max(rows, key=_speed)[0]
    console.say(f"most tokens/s here: {fastest}")
    for mode in ("S_MODE", "Q_MODE"):
        console.say(f"{mode}: {report['prompts'][0]}{report[mode]['text']}")
