# bench prefix: time to the first block behind a long beginning that was met before, and what a chat's turns take over.
# Entry points: run(config, console, args).
# The same requests go to an engine that keeps finished blocks and to one that does not, in turns; texts are compared.
"""The benchmark of shared beginnings."""

from __future__ import annotations

from dataclasses import dataclass
from statistics import median
from typing import Any

from hildanext.bench.decoding.timing import CLOCKS, script
from hildanext.config import Config
from hildanext.config.bench import PrefixBenchConfig
from hildanext.data.chat import prompt_ids
from hildanext.decoding.driver import Driver
from hildanext.decoding.engine import BlockEngine
from hildanext.decoding.events import Commit
from hildanext.decoding.request import Request
from hildanext.errors import ConfigError, HildaError
from hildanext.models.load import Loaded, load_model
from hildanext.progress import Console
from hildanext.run_dir import RunDir


def run(config: Config, console: Console, args: Any = None) -> dict[str, Any]:
    """Seconds to the first block with and without shared blocks, and the tokens each turn of a chat takes over;
    report.json in a run directory. ConfigError where the beginning does not fit the model's window."""
    directory = RunDir.create(config, "bench-prefix", getattr(args, "run_dir", None))
    with directory.running(console):
        loaded, bench = load_model(config.model, console), config.bench.prefix
        report = {
            "run": str(directory.path), "model": config.model.path, "device": str(loaded.device),
            "dtype": str(loaded.dtype).removeprefix("torch."), "first_block": _first_blocks(loaded, config),
            "turns": _turns(loaded, config, console), "workload": bench.model_dump(),
        }  # fmt: skip
        directory.environment(device=report["device"], dtype=report["dtype"])
        directory.write_json("report.json", report)
    _show(report, console)
    return report


@dataclass(frozen=True)
class _First:
    """When the first block of a request was there, clock seconds; its token ids; cached tokens of the prompt."""

    seconds: float
    ids: tuple[int, ...]
    cached: int


def _first(engine: BlockEngine, request: Request, clock: str) -> _First:
    now, ids = CLOCKS[clock], tuple[int, ...]()
    started = now()
    number = engine.submit(request)
    while not ids:
        ids = next((event.token_ids for event in engine.step() if isinstance(event, Commit)), ())
    seconds, result = now() - started, engine.cancel(number)
    return _First(seconds, ids, (result.metrics.cached_tokens or 0) if result else 0)


def _first_blocks(loaded: Loaded, config: Config) -> dict[str, Any]:
    bench = config.bench.prefix
    off = config.decode.model_copy(update={"prefix_bytes": 0})
    engines = {"off": BlockEngine(loaded, off), "on": BlockEngine(loaded, config.decode)}
    requests = _requests(engines["on"], loaded, bench)
    found: dict[str, list[_First]] = {name: [] for name in engines}
    for request in requests:
        for name, engine in engines.items():
            found[name].append(_first(engine, request, bench.clock))
    # the first round warms the process up, and the cache
    seconds = {name: median(one.seconds for one in rounds[1:]) for name, rounds in found.items()}
    pairs = list(zip(found["off"], found["on"], strict=True))
    return {
        "seconds": seconds, "first_time": found["on"][0].seconds, "times_sooner": seconds["off"] / seconds["on"],
        "prompt_tokens": len(requests[0].prompt_ids or ()), "cached_tokens": found["on"][-1].cached,
        "block": engines["on"].block, "texts_equal": sum(one.ids == other.ids for one, other in pairs) / len(pairs),
        "rounds": {name: [one.seconds for one in rounds] for name, rounds in found.items()},
    }  # fmt: skip


def _requests(engine: BlockEngine, loaded: Loaded, bench: PrefixBenchConfig) -> list[Request]:
    size, room = bench.prefix_tokens + bench.question_tokens, engine.window - 2 * engine.block
    if engine.window and size > room:
        raise ConfigError(
            f"bench.prefix.prefix_tokens: {bench.prefix_tokens} and {bench.question_tokens} of the question exceed the "
            f"{room} positions before two blocks of this model; set at most {max(0, room - bench.question_tokens)}"
        )
    ids = [token for token in range(min(1001, loaded.denoiser.vocab_size)) if token != loaded.denoiser.mask_id]
    system = [ids[(7 * i + 5) % len(ids)] for i in range(bench.prefix_tokens)]
    policy = script(engine.block, bench.tokens_per_forward) if bench.tokens_per_forward else {}
    questions = [
        [ids[(11 * i + 3 * row + 1) % len(ids)] for i in range(bench.question_tokens)]
        for row in range(bench.repeats + 1)
    ]
    # two blocks, so that the first one does not end the request
    common = {"ignore_eos": True, "max_new_tokens": 2 * engine.block, **policy}
    return [Request.of(prompt_ids=(*system, *question), **common) for question in questions]


def _turns(loaded: Loaded, config: Config, console: Console) -> list[dict[str, int]]:
    bench, engine = config.bench.prefix, BlockEngine(loaded, config.decode)
    messages: list[dict[str, str]] = []
    before: list[int] = []
    found: list[dict[str, int]] = []
    try:
        for question in bench.questions:
            messages.append({"role": "user", "content": question})
            ids = prompt_ids(loaded.tokenizer, None, messages, loaded.meta.document_start, config.decode.thinking)
            asked = Request.of(messages=tuple(messages), max_new_tokens=bench.turn_tokens)
            result = Driver(engine).generate(asked)
            same = next((i for i, (a, b) in enumerate(zip(before, ids, strict=False)) if a != b), len(before))
            found.append(
                {
                    "prompt_tokens": len(ids),
                    "cached_tokens": result.metrics.cached_tokens or 0,
                    "tokens_before": len(before),
                    "rendered_alike": min(same, len(ids)),
                }
            )
            before = [*ids, *result.token_ids]
            messages.append({"role": "assistant", "content": result.text.strip()})
    except HildaError as error:
        console.warn(f"bench prefix: no chat is timed ({error})")
    return found


def _show(report: dict[str, Any], console: Console) -> None:
    first, clock = report["first_block"], report["workload"]["clock"]
    rows = [(name, f"{seconds:.3f}") for name, seconds in first["seconds"].items()]
    console.table(rows, ("finished blocks kept", f"seconds to the first block ({clock}, median)"))
    console.say(
        f"{first['cached_tokens']} of {first['prompt_tokens']} prompt tokens were there: the first block came "
        f"{first['times_sooner']:.1f} times sooner; {100 * first['texts_equal']:.0f} % of first blocks are equal"
    )
    for number, turn in enumerate(report["turns"], 1):
        console.say(
            f"turn {number}: {turn['cached_tokens']} of {turn['prompt_tokens']} prompt tokens were there; of the "
            f"{turn['tokens_before']} before it {turn['rendered_alike']} are rendered to the same ids up to the first "
            "that is not"
        )
    console.say(f"report: {report['run']}")
