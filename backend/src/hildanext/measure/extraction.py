# How an answer is read out of generated text: numbers for GSM8K, code for HumanEval and MBPP.
# Entry points: gsm8k_gold, gsm8k_answer, same_number, completed_function, code_block.
# Pure text in, text out; the rules are those of the reference evaluations named at each function.
"""Answer extraction."""

from __future__ import annotations

import ast
import re
from decimal import Decimal, InvalidOperation

NUMBER = re.compile(r"-?\$?\d[\d,]*(?:\.\d+)?|-?\.\d+")
WHOLE = r"(-?[\d.,]+)(?![\w^]|[/:]\d)"
TORN = re.compile(r"\w*\d[^\W\d]+\d\w*")
FRACTION = re.compile(r"\\[dt]?frac|\d\s*/\s*\d")
BOXES = re.compile(r"\\boxed\{((?:[^{}]|\{[^{}]*\})*)(\}?)")
FENCE = re.compile(r"```[ \t]*(?:python|py)?[ \t]*\n(.*?)(?:```|\Z)", re.S | re.I)
STOPS = ("\nclass ", "\ndef ", "\n#", "\nif ", "\nprint(", "\nassert ", "\n@", "\n```", "\nfrom ", "\nimport ")


def gsm8k_gold(answer: str) -> str:
    """The number after '####' in a reference answer, without commas. Source: GSM8K arXiv:2110.14168."""
    return answer.rsplit("####", 1)[-1].strip().replace(",", "")


def gsm8k_answer(text: str, rule: str = "flexible") -> str | None:
    """The number a reply gives: strict: after '####'; flexible: that, else the last of 'answer is' and \\boxed{}, else
    the last number. None where there is none, where what is marked is no whole number (448xx4, 12:30), or the last box
    is broken. After the filters of lm-evaluation-harness's task gsm8k, which take a number's beginning."""
    marked = re.search(rf"####\s*{WHOLE}", text)
    if marked or rule == "strict":
        return _plain(marked.group(1)) if marked else None
    said = [(found.start(), found.group(1)) for found in re.finditer(rf"answer is\s*\$?{WHOLE}", text, re.I)]
    said += [(found.start(), _boxed(*found.groups())) for found in BOXES.finditer(text)]
    if said:
        return _plain(max(said)[1])
    numbers = NUMBER.findall(TORN.sub(" ", text))
    return _plain(numbers[-1]) if numbers else None


def _boxed(content: str, closed: str) -> str:
    plain = content.replace("{,}", ",").replace("\\!", "").replace("\\,", "")
    whole = closed and not FRACTION.search(plain)
    numbers = re.findall(rf"(?<![\w.,-]){WHOLE}", plain.replace("$", "")) if whole else []
    return str(numbers[-1]) if numbers else ""


def _plain(number: str) -> str | None:
    cleaned = number.replace(",", "").replace("$", "").rstrip(".")
    return cleaned if re.search(r"\d", cleaned) else None


def same_number(found: str | None, gold: str) -> bool:
    """Whether two numbers are equal in value: 18, 18.0 and 18.00 are."""
    try:
        return found is not None and Decimal(found) == Decimal(gold)
    except InvalidOperation:
        return False


def completed_function(prompt: str, reply: str, entry_point: str) -> str:
    """A whole program from a HumanEval prompt and a reply: a fenced or bare definition of the function replaces the
    prompt's (its imports stay); anything else continues the prompt and is cut where the next top-level code begins."""
    code = code_block(reply)
    if re.search(rf"^def {re.escape(entry_point)}\b", code, re.M):
        head = prompt.split(f"def {entry_point}", 1)[0]
        return f"{head}\n{_parsable(code)}"
    cuts = [place for stop in STOPS if (place := reply.find(stop)) >= 0]
    return prompt + reply[: min(cuts)] if cuts else prompt + reply


def code_block(reply: str) -> str:
    """The first fenced block of a reply, or the reply itself. MBPP's [BEGIN] and [DONE] marks are removed."""
    fenced = FENCE.search(reply)
    if fenced:
        return fenced.group(1)
    return reply.split("[BEGIN]", 1)[-1].split("[DONE]", 1)[0]


def _parsable(code: str) -> str:
    lines = code.splitlines()
    for stop in range(len(lines), 0, -1):
        text = "\n".join(lines[:stop])
        try:
            ast.parse(text)
        except SyntaxError:
            continue
        return text
    return code
