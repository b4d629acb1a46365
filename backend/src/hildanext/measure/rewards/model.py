# Reward `model`: what a second model says of an answer, a sequence classifier in a folder or a server that is asked.
# Entry points: Scored.
# A classifier reads the chat by its own template, on the CPU; a server gets a list of {prompt: turns, reply, row} and
# answers {"scores": [a number for each]}. A learned reward is gamed sooner than one that can be checked.
"""Reward plugin model."""

from __future__ import annotations

import json
import math
import urllib.request
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import torch
from pydantic import Field, PrivateAttr, model_validator

from hildanext.core.reward import Attempt, Reward
from hildanext.errors import ConfigError, HildaError


class Scored(Reward):
    """scale x (score - offset), or the logistic function of it; the score is the classifier's logit of its only label,
    the log-odds of `label` where it has several, or what the server answers. Source: docs/rl.md."""

    path: str = Field("", description="folder of a Hugging Face sequence classifier; or url")
    url: str = Field("", description="address that is asked; or path")
    label: int = Field(1, ge=0, description="which label is good, where the classifier has several")
    offset: float = Field(0.0, description="taken from the score")
    scale: float = Field(1.0, description="factor after that")
    logistic: bool = Field(False, description="1 / (1 + exp(-x)) of the result, a reward in (0, 1)")
    at_once: int = Field(16, ge=1, description="answers scored together, a count")
    longest: int = Field(1024, ge=1, description="tokens read of prompt and answer, the last ones")
    seconds: float = Field(60.0, gt=0, description="that a server has for one answer to us")

    _held: list[Any] = PrivateAttr(default_factory=list)

    @model_validator(mode="after")
    def _not_both(self) -> Self:
        if self.path and self.url:
            raise ValueError("give path, a folder of a sequence classifier, or url, a server; not both")
        return self

    def ready(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """The classifier is loaded, or the server answers for the first row. ConfigError where neither is named."""
        if not self.path and not self.url:
            raise ConfigError("rewards.model: give path, a folder of a sequence classifier, or url, a server")
        if self.path:
            self._loaded()
        elif rows:
            self.scores([Attempt(rows[0], "")])

    def score(self, attempt: Attempt) -> float:
        """Of one answer."""
        return self.scores([attempt])[0]

    def scores(self, attempts: Sequence[Attempt]) -> list[float]:
        """`at_once` at a time."""
        found = list[float]()
        for start in range(0, len(attempts), self.at_once):
            own = attempts[start : start + self.at_once]
            found += self._read(own) if self.path else self._asked(own)
        made = [self.scale * (value - self.offset) for value in found]
        return [1 / (1 + math.exp(-max(-700.0, one))) for one in made] if self.logistic else made

    def _loaded(self) -> tuple[Any, Any]:
        if not self._held:
            from transformers import AutoModelForSequenceClassification, AutoTokenizer

            if not (Path(self.path) / "config.json").is_file():
                raise HildaError(f"reward model: {self.path!r} is no model folder; give one with config.json")
            try:
                model = AutoModelForSequenceClassification.from_pretrained(self.path, local_files_only=True)
                tokenizer = AutoTokenizer.from_pretrained(self.path, local_files_only=True)
            except (OSError, ValueError, KeyError) as error:
                raise HildaError(f"reward model: {self.path}: no sequence classifier ({error})") from error
            if 1 < model.config.num_labels <= self.label:
                raise HildaError(f"reward model: {self.path} has {model.config.num_labels} labels; label={self.label}")
            self._held.extend((model.eval().float(), tokenizer))
        return self._held[0], self._held[1]

    def _read(self, attempts: Sequence[Attempt]) -> list[float]:
        model, tokenizer = self._loaded()
        rows = [tokenizer(_text(one, tokenizer))["input_ids"][-self.longest :] for one in attempts]
        pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else 0
        width, values = max(map(len, rows)), list[float]()
        with torch.no_grad():
            if model.config.pad_token_id is None:
                logits = torch.cat([model(torch.tensor([row])).logits for row in rows])
            else:
                ids = torch.tensor([[*row, *[pad] * (width - len(row))] for row in rows])
                seen = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in rows])
                logits = model(ids, attention_mask=seen).logits
        for row in logits.double():
            values.append(float(row[0] if len(row) == 1 else row[self.label] - _others(row, self.label)))
        return values

    def _asked(self, attempts: Sequence[Attempt]) -> list[float]:
        body = [{"prompt": list(map(dict, one.turns)), "reply": one.reply, "row": dict(one.row)} for one in attempts]
        request = urllib.request.Request(
            self.url, json.dumps(body, default=str).encode(), {"content-type": "application/json"}
        )
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        try:
            with opener.open(request, timeout=self.seconds) as reply:
                said = json.load(reply)
        except (OSError, ValueError) as error:
            raise HildaError(f"reward model: {self.url} did not answer: {error}; start it, or name path") from error
        scores = said.get("scores") if isinstance(said, Mapping) else None
        fits = isinstance(scores, list) and len(scores) == len(body)
        if not fits or not all(isinstance(one, int | float) and math.isfinite(one) for one in scores or ()):
            raise HildaError(
                f"reward model: {self.url} answered {str(said)[:80]!r}; it must be"
                f' {{"scores": [{len(body)} finite numbers]}}'
            )
        return [float(one) for one in scores or ()]


def _others(row: torch.Tensor, label: int) -> torch.Tensor:
    kept = [place for place in range(len(row)) if place != label]
    return row[kept].logsumexp(dim=0)


def _text(attempt: Attempt, tokenizer: Any) -> str:
    turns = [*map(dict, attempt.turns), {"role": "assistant", "content": attempt.reply}]
    if getattr(tokenizer, "chat_template", None):
        return str(tokenizer.apply_chat_template(turns, tokenize=False))
    return "\n".join(str(turn["content"]) for turn in turns)
