# Rewards against answers worked out by hand and against the reference answers of real sets.
# Entry points: pytest.
# Real sets are read beside the checkout and skip where they are missing; a planted fault is a right answer made wrong.
"""Tests of core/reward.py and measure/rewards."""

from __future__ import annotations

import csv
import itertools
import json
import math
import sys
import threading
from fractions import Fraction
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from transformers import AutoTokenizer, LlamaConfig, LlamaForSequenceClassification

import hildanext
from hildanext.core.reward import Attempt, Reward, total
from hildanext.errors import ConfigError, DataError, HildaError
from hildanext.measure.rewards.countdown import value_of
from hildanext.registry import build
from hildanext.world import corpus

MADE: dict[tuple[str, str], Reward] = {}


def made(name: str, **fields: Any) -> Reward:
    known = (name, json.dumps(fields))
    if known not in MADE:
        MADE[known] = build("rewards", {"type": name, **fields})
    return MADE[known]


def worth(name: str, row: dict[str, Any], reply: str, **fields: Any) -> float:
    return made(name, **fields).score(Attempt(row, reply))


def test_the_world_judges_its_own_rows() -> None:
    for register in ("chat", "arithmetic", "coding"):
        for row in corpus(register, 3, 6):
            reply = row["messages"][-1]["content"]
            assert worth("storyworld", row, reply) == 1.0
            assert worth("storyworld", row, "no idea") == 0.0
    story = next(corpus("stories", 3, 1))["text"]
    assert worth("storyworld", {}, story) == 1.0
    broken = ". ".join(story.split(". ")[:-2]) + "."
    assert 0 < worth("storyworld", {}, broken) < 1 and worth("storyworld", {}, broken, graded=False) == 0.0


def test_code_that_passes_some_of_its_tests_earns_a_share_only_where_that_is_asked_for() -> None:
    cases = [[[3, 2], 3], [[1, 4], 4], [[5, 5], 5], [[0, 7], 7]]
    how = {"type": "code", "prompt": "# Return the larger of a and b.\ndef larger(a, b):", "entry_point": "larger"}
    row = {"register": "coding", "check": {**how, "cases": cases}}
    assert worth("storyworld", row, "return max(a, b)", partial=0.4) == 1.0
    assert worth("storyworld", row, "return b", partial=0.4) == pytest.approx(0.4 * 3 / 4)
    assert worth("storyworld", row, "return b // (a - a)", partial=0.4) == 0.0 == worth("storyworld", row, "return b")


def test_a_sum_is_right_or_its_first_digits_are() -> None:
    row = {"check": {"type": "number", "answer": 57}}
    assert worth("arithmetic", row, "5 0 + 7 = 5 7. Tom has 5 7 coins now.") == 1.0
    assert worth("arithmetic", row, "Tom has 5 8 coins") == 0.0
    assert worth("arithmetic", row, "Tom has 5 8 coins", graded=0.5) == 0.25
    assert worth("arithmetic", {"answer": "57"}, "57") == 1.0 and worth("arithmetic", row, "", graded=0.5) == 0.0
    with pytest.raises(DataError, match=r"no whole number in check\.answer or answer, but 'many'"):
        made("arithmetic").ready([{"answer": "many"}])


COUNT = {"input": "30,100,93", "output": "23"}


@pytest.mark.parametrize(
    ("reply", "value"),
    [
        ("<answer>30 + 93 - 100</answer>", 1.0), ("30+93-100 = 23", 1.0), ("We try 30*93.\n(93 - 100) + 30", 1.0),
        ("<answer>30 + 100 - 93</answer>", 0.1), ("<answer>30 + 93 - 100 + 30 - 30</answer>", 0.0),
        ("<answer>23</answer>", 0.0), ("<answer>__import__('os').getcwd()</answer>", 0.0), ("", 0.0),
        ("<answer>30 / (93 - 93)</answer>", 0.0), ("<answer>9**9**9**9</answer>", 0.0), ("(" * 5000 + "1+1", 0.0),
        ("<answer>True + 30 + 93 - 100</answer>", 0.0),
    ],
)  # fmt: skip
def test_a_countdown_uses_each_number_once_and_makes_the_target(reply: str, value: float) -> None:
    assert worth("countdown", COUNT, reply) == value


def solved(numbers: list[int], target: int) -> str | None:
    """An expression found by trying all of them."""
    for a, b, c in itertools.permutations(numbers):
        for f, g in itertools.product("+-*/", repeat=2):
            for text in (f"({a} {f} {b}) {g} {c}", f"{a} {f} ({b} {g} {c})"):
                if value_of(text)[0] == target:
                    return text
    return None


def test_every_countdown_item_that_can_be_solved_is_paid_for_its_solution(assets: Path) -> None:
    lines = (assets / "countdown-sudoku" / "countdown_cd3_test.jsonl").read_text().splitlines()[:12]
    rows, right = [json.loads(line) for line in lines], 0
    made("countdown").ready(rows)
    for row in rows:
        found = solved([int(part) for part in row["input"].split(",")], int(row["output"]))
        if found:
            right += worth("countdown", row, f"<answer>{found}</answer>") == 1.0
            assert worth("countdown", row, f"<answer>{found} + 1</answer>") == 0.0
    assert right == len(rows)


def test_the_solutions_of_real_sudokus_earn_one_and_a_wrong_cell_its_share(assets: Path) -> None:
    with (assets / "countdown-sudoku" / "4x4_test_sudoku.csv").open() as file:
        rows = list(csv.DictReader(file))
    made("sudoku").ready(rows)
    for row in rows[:50]:
        puzzle, solution = row["Puzzle"], row["Solution"]
        empty = puzzle.count("0")
        assert worth("sudoku", row, f"Answer: {solution}") == 1.0
        place, other = puzzle.index("0"), {"1": "2", "2": "3", "3": "4", "4": "1"}
        wrong = solution[:place] + other[solution[place]] + solution[place + 1 :]
        assert worth("sudoku", row, wrong) == pytest.approx((empty - 1) / empty)
        assert worth("sudoku", row, puzzle) == 0.0


def test_a_sudoku_that_changes_a_given_cell_earns_nothing() -> None:
    row = {"Puzzle": "3102200002100320", "Solution": "3142243142131324"}
    assert worth("sudoku", row, "3142 2431 4213 1324") == 1.0 and worth("sudoku", row, "31422431") == 0.0
    assert worth("sudoku", row, "1142243142131324") == 0.0
    with pytest.raises(DataError, match="no 4x4 puzzle"):
        made("sudoku").ready([{"Puzzle": "3102200002100320", "Solution": "1142243142131324"}])


def test_the_reference_answers_of_gsm8k_are_right_and_another_number_is_not(assets: Path) -> None:
    lines = (assets / "gsm8k" / "test.jsonl").read_text().splitlines()[:200]
    rows = [json.loads(line) for line in lines]
    made("gsm8k").ready(rows)
    assert all(worth("gsm8k", row, row["answer"]) == 1.0 for row in rows)
    assert all(worth("gsm8k", row, row["answer"] + "1") == 0.0 for row in rows)
    with pytest.raises(DataError, match="ends in no number"):
        made("gsm8k").ready([{"answer": "none"}])


def test_math_answers_are_compared_by_value_and_in_time() -> None:
    pytest.importorskip("math_verify")
    row = {"answer": r"\frac{1}{2}"}
    attempts = [Attempt(row, r"so it is $0.5$"), Attempt(row, r"\boxed{\frac{2}{3}}")]
    assert made("math_answer", seconds=300).scores(attempts) == [1.0, 0.0]
    assert made("math_answer", seconds=0.01).scores(attempts[:1]) == [0.0]


def test_math_without_its_package_is_one_clear_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hildanext.measure.rewards.math_answer.find_spec", lambda name: None)
    with pytest.raises(HildaError, match="pip install math-verify"):
        made("math_answer").ready([{"answer": "1"}])


@pytest.mark.skipif(sys.platform == "win32", reason="the sandbox needs resource limits")
def test_code_earns_the_share_of_its_tests_and_leaving_early_nothing() -> None:
    row = {"test_list": ["assert add(1, 2) == 3", "assert add(2, 2) == 4"]}
    replies = ["```python\ndef add(a, b):\n    return 3\n```", "def add(a, b):\n    raise SystemExit(0)"]
    attempts = [Attempt(row, reply) for reply in replies]
    assert made("unit_tests").scores(attempts) == [0.5, 0.0]
    with pytest.raises(DataError, match="no tests in test_list"):
        made("unit_tests").ready([{"text": "add"}])


ASKED = ({"role": "user", "content": "Who met Lily?"},)


@pytest.fixture(scope="module")
def classifier(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sequence classifier of three labels with random weights, which pads."""
    folder, child = tmp_path_factory.mktemp("classifier"), Path(hildanext.__file__).parent / "tiny" / "child"
    tokenizer = AutoTokenizer.from_pretrained(child)
    torch.manual_seed(0)
    shape = {"hidden_size": 16, "intermediate_size": 16, "num_attention_heads": 2, "num_key_value_heads": 1}
    config = LlamaConfig(vocab_size=1000, num_hidden_layers=1, num_labels=3, pad_token_id=0, **shape)
    LlamaForSequenceClassification(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def test_a_classifier_says_the_log_odds_of_its_label_however_many_share_a_batch(classifier: Path) -> None:
    replies = ["A fox.", "The old bear met Lily in the garden near the red gate.", "Nobody"]
    found = made("model", path=str(classifier), label=2, at_once=3).scores(
        [Attempt({}, r, turns=ASKED) for r in replies]
    )
    model, tokenizer = (kind.from_pretrained(classifier) for kind in (LlamaForSequenceClassification, AutoTokenizer))
    for reply, value in zip(replies, found, strict=True):
        turns = [*ASKED, {"role": "assistant", "content": reply}]
        ids = tokenizer(tokenizer.apply_chat_template(turns, tokenize=False))["input_ids"]
        p = model(torch.tensor([ids])).logits.softmax(-1)[0, 2].item()
        assert value == pytest.approx(math.log(p / (1 - p)), abs=1e-4)
        squeezed = worth("model", {}, "", path=str(classifier), label=2, logistic=True, offset=-400.0)
        assert squeezed == pytest.approx(1.0)
    assert len({round(value, 6) for value in found}) == 3


class Scorer(BaseHTTPRequestHandler):
    said: ClassVar[Any] = None

    def do_POST(self) -> None:
        asked = json.loads(self.rfile.read(int(self.headers["content-length"])))
        scores = [len(one["reply"]) + len(one["prompt"][0]["content"]) + one["row"]["n"] for one in asked]
        body = json.dumps({"scores": scores} if self.said is None else self.said).encode()
        self.send_response(200)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        pass


def test_a_server_scores_answers_and_what_it_may_not_say_is_one_clear_line(monkeypatch: pytest.MonkeyPatch) -> None:
    attempts = [Attempt({"n": n}, "x" * n, turns=ASKED) for n in range(5)]
    with ThreadingHTTPServer(("127.0.0.1", 0), Scorer) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_port}/"
        assert made("model", url=url, at_once=2, scale=0.5, offset=13.0).scores(attempts) == [0.0, 1.0, 2.0, 3.0, 4.0]
        for said in ({"scores": [1.0]}, {"score": 1}, {"scores": [math.inf] * 5}, [1] * 5):
            monkeypatch.setattr(Scorer, "said", said)
            with pytest.raises(HildaError, match="5 finite numbers"):
                made("model", url=url).scores(attempts)
        server.shutdown()
    with pytest.raises(HildaError, match=r"did not answer.*start it"):
        made("model", url=url).ready([{"n": 1}])
    with pytest.raises(ConfigError, match="give path"):
        made("model").ready([])
    with pytest.raises(ConfigError, match="not both"):
        made("model", path="here", url=url)
    with pytest.raises(HildaError, match="no model folder"):
        made("model", path="nowhere").ready([])


def test_form_length_and_speed() -> None:
    assert worth("format", {}, " <a>x\ny</a> ", pattern="<a>.*</a>", whole=True) == 1.0
    assert worth("format", {}, "b <a></a>", pattern="<a>.*</a>", whole=True) == 0.0
    with pytest.raises(ConfigError, match="no regular expression"):
        made("format", pattern="(")
    long = made("length", free=10, most=20, endless=0.5)
    found = long.scores([Attempt({}, "", tokens=n, stopped=n < 20) for n in (5, 15, 40)])
    assert found == [0.0, -0.5, -1.5]
    group = [Attempt({}, "", 0, tokens, 4) for tokens in (4, 8)] + [Attempt({}, "", 1, 6, 4), Attempt({}, "", 1, 6, 4)]
    assert made("tokens_per_forward").scores(group) == [-1.0, 1.0, 0.0, 0.0]
    cut = [Attempt({}, "", 0, 4, 4), Attempt({}, "", 0, 8, 4, stopped=False)]
    assert made("tokens_per_forward").scores(cut) == [-1.0, 0.0]


def test_rewards_are_summed_with_their_weights() -> None:
    attempts = [Attempt({"answer": "7"}, "it is 7"), Attempt({"answer": "7"}, "8")]
    rewards = [made("arithmetic", weight=2.0), made("format", pattern="it is", weight=0.5)]
    found, scores = total(rewards, attempts)
    assert found.tolist() == [2.5, 0.0] and scores.tolist() == [[1.0, 0.0], [1.0, 0.0]]
    assert value_of("1 / 3")[0] == Fraction(1, 3)
