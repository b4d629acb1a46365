# Tool calls: how a model's chat template writes them, the grammar of a reply that must make one, and reading them.
# Entry points: with_tools (a request that may call), ToolForm (of a tokenizer; grammar), ToolStream (push).
# The form is found by rendering a call and looking where its JSON stands. A form that is no JSON is refused.
"""Tools of a chat."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

from hildanext.data.template import end_of_turn, template_hash
from hildanext.decoding.grammar import SPACING
from hildanext.decoding.request import CallDelta, Grammar, Request
from hildanext.errors import DataError, DecodeError, first_line

PROBE = "probe_of_a_tool"
VALUE = {"probe_key": "probe_value"}
Tools = Sequence[Mapping[str, Any]]


@dataclass(frozen=True)
class ToolForm:
    """How a reply writes calls: `opening` call (`between` call)* `closing`; a call is an object of name and
    `arguments`, the key under which these stand."""

    opening: str
    between: str
    closing: str
    arguments: str

    @classmethod
    def of(cls, tokenizer: Any) -> ToolForm:
        """Of a tokenizer's chat template. DecodeError where it shows no tools or writes calls otherwise."""
        return _form(tokenizer, template_hash(tokenizer))

    @property
    def mark(self) -> str:
        """What a call begins with in a reply."""
        return self.opening.strip() or "{"

    def grammar(self, tools: Tools, several: bool) -> Grammar:
        """A reply that makes a call of one of `tools`, or more than one where `several` may be made."""
        calls = []
        for tool in tools:
            own = tool["function"]
            shown = {"name": {"const": own["name"]}, self.arguments: own.get("parameters") or {"type": "object"}}
            schema = {"type": "object", "properties": shown, "required": list(shown), "additionalProperties": False}
            defs = shown[self.arguments].get("$defs")
            schema |= {"$defs": defs} if defs else {}
            calls.append(f"%json {json.dumps(schema | {'x-guidance': SPACING})}")
        more = f" ({json.dumps(self.between)} call)*" if several else ""
        lines = [f"start: {json.dumps(self.opening)} call{more} {json.dumps(self.closing)}".replace('"" ', "")]
        lines[0] = lines[0].removesuffix(' ""')
        names = [f"call_{index}" for index in range(len(calls))]
        lines += [f"call: {' | '.join(names)}", *(f"{name}: {call}" for name, call in zip(names, calls, strict=True))]
        return Grammar(type="lark", text="\n".join(lines))


@lru_cache(maxsize=8)
def _form(tokenizer: Any, template: str) -> ToolForm:
    one, two = (_reply(tokenizer, count) for count in (1, 2))
    first, stop, key = _call_in(one, 0)
    after = _call_in(two, stop)
    return ToolForm(one[:first], two[stop : after[0]], one[stop:], key)


def _reply(tokenizer: Any, count: int) -> str:
    call = {"type": "function", "function": {"name": PROBE, "arguments": VALUE}}
    calls = [call | {"id": f"call{number:05d}"} for number in range(count)]
    tool = {"type": "function", "function": {"name": PROBE, "description": "d", "parameters": {"type": "object"}}}
    asked = {"tools": [tool], "tokenize": False}
    chat: list[dict[str, Any]] = [{"role": "user", "content": "Q"}]
    try:
        head = str(tokenizer.apply_chat_template(chat, add_generation_prompt=True, **asked))
        whole = str(tokenizer.apply_chat_template([*chat, {"role": "assistant", "content": "", "tool_calls": calls}],
                                                  **asked))  # fmt: skip
        end = end_of_turn(tokenizer).text
    except (DataError, ValueError, TypeError, KeyError) as error:
        raise DecodeError(
            f"tools: this model's chat template takes none ({first_line(error)}); leave them out"
        ) from error
    except Exception as error:  # a template is a program: whatever it raises refuses tools
        raise DecodeError(f"tools: this model's chat template refuses them ({first_line(error)})") from error
    if PROBE not in head:
        raise DecodeError("tools: this model's chat template shows no tools; leave them out")
    # what stands before a reply may differ by an empty thought
    start = next((at for at, (a, b) in enumerate(zip(head, whole, strict=False)) if a != b), min(len(head), len(whole)))
    return whole[start:].split(end)[0].rstrip("\n")


def _call_in(text: str, start: int) -> tuple[int, int, str]:
    for found in re.finditer(r"\{", text[start:]):
        at = start + found.start()
        try:
            value, stop = json.JSONDecoder().raw_decode(text, at)
        except ValueError:
            continue
        keys = [key for key, given in value.items() if given == VALUE]
        if list(value)[:1] == ["name"] and value["name"] == PROBE and len(value) == 2 and keys:
            return at, stop, keys[0]
    raise DecodeError("tools: this model's chat template writes calls in a form that is not read here; leave them out")


@dataclass
class ToolStream:
    """Reads a reply as it comes. calls: the calls so far, (name, arguments as JSON text)."""

    form: ToolForm
    calls: list[list[str]] = field(default_factory=list)
    content: str = ""
    _left: str = ""
    _state: str = "content"

    def push(self, text: str, last: bool = False) -> tuple[CallDelta, ...]:
        """What further text of the reply says; with `last` nothing is held back."""
        self._left += text
        found: list[CallDelta] = []
        while (step := getattr(self, f"_{self._state}_step")(last)) is not None:
            found += step
        if last and self._left and self._state in ("content", "head"):
            found += self._said(self._left)
        return tuple(found)

    def _said(self, text: str) -> list[CallDelta]:
        text = text if self.content or text.strip() else ""
        self.content += text
        return [CallDelta(content=text)] if text else []

    def _content_step(self, last: bool) -> list[CallDelta] | None:
        mark = self.form.mark
        place = self._left.find(mark) if mark != "{" or not self.content else -1
        if place < 0:
            held = 0 if last else max((n for n in range(len(mark)) if self._left.endswith(mark[:n])), default=0)
            text = self._left[: len(self._left) - held]
            # white space before a call is no part of what is said
            text = text if last else text.rstrip()
            self._left = self._left[len(text) :]
            found = self._said(text) if not self.calls else []
            return found or None
        text, self._left, self._state = self._left[:place].rstrip(), self._left[place:], "head"
        return self._said(text) if not self.calls else []

    def _head_step(self, last: bool) -> list[CallDelta] | None:
        pattern = rf'(?:{re.escape(self.form.opening.strip())})?[\s\[,]*\{{\s*"name"\s*:\s*("(?:[^"\\]|\\.)*")\s*,\s*'
        found = re.match(rf'{pattern}"{self.form.arguments}"\s*:\s*(?=\{{)', self._left)
        if found is None:
            return None
        name = str(json.loads(found[1]))
        self.calls.append([name, ""])
        self._left, self._state = self._left[found.end() :], "arguments"
        return [CallDelta(index=len(self.calls) - 1, name=name)]

    def _arguments_step(self, last: bool) -> list[CallDelta] | None:
        own = self.calls[-1]
        try:
            stop = json.JSONDecoder().raw_decode(own[1] + self._left)[1]
        except ValueError:
            stop = None
        size = len(self._left) if stop is None else stop - len(own[1])
        text, self._left = self._left[:size], self._left[size:]
        own[1] += text
        self._state = "arguments" if stop is None else "tail"
        deltas = [CallDelta(index=len(self.calls) - 1, arguments=text)] if text else []
        return (deltas or None) if stop is None else deltas

    def _tail_step(self, last: bool) -> list[CallDelta] | None:
        if not (found := re.match(r"\s*\}", self._left)):
            return None
        self._left, self._state = self._left[found.end() :], "content"
        return []


def with_tools(request: Request, tokenizer: Any) -> tuple[Request, ToolStream | None]:
    """The request, under the grammar of a call where its reply must make one, and what reads the reply; as it is
    without tools. DecodeError for tools that are none, a choice of none of them, beside a grammar, without a chat."""
    if not request.called:
        if request.tool_choice not in ("auto", "none"):
            raise DecodeError(f"tool_choice: {request.tool_choice!r} without tools; give tools")
        return request, None
    names = [_name(index, tool) for index, tool in enumerate(request.tools)]
    if request.messages is None or tokenizer is None:
        raise DecodeError("tools: go with messages; give a chat")
    form = ToolForm.of(tokenizer)
    if request.tool_choice == "auto":
        return request, ToolStream(form)
    if request.grammar is not None:
        raise DecodeError("grammar: beside a tool that must be called; give one of the two")
    wanted = [
        tool for tool, name in zip(request.tools, names, strict=True) if request.tool_choice in ("required", name)
    ]
    if not wanted:
        raise DecodeError(f"tool_choice: no tool {request.tool_choice!r}, there are {', '.join(names)}")
    several = request.several_calls and request.tool_choice == "required"
    return request.model_copy(update={"grammar": form.grammar(wanted, several)}), ToolStream(form)


def _name(index: int, tool: Mapping[str, Any]) -> str:
    own = tool.get("function")
    name = own.get("name") if isinstance(own, Mapping) and tool.get("type", "function") == "function" else None
    if not isinstance(name, str) or not re.fullmatch(r"[\w.-]{1,64}", name):
        raise DecodeError(f"tools[{index}]: no function with a name; give {{type: function, function: {{name, ...}}}}")
    if not isinstance(own.get("parameters") or {}, Mapping):  # type: ignore[union-attr]
        raise DecodeError(f"tools[{index}]: parameters are no JSON schema; give an object")
    return name
