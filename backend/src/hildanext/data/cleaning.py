# Cleaning one document: normal form, line ends, length, language, patterns. Every drop has a reason.
# Entry points: Cleaner(config).clean(document) -> document or the reason it is dropped.
# Texts change only by the normal form, "\r\n" -> "\n" and white space at both ends; pre-tokenised rows not at all.
"""Cleaning."""

from __future__ import annotations

import re
import unicodedata
from dataclasses import dataclass, field, replace
from typing import Literal

from hildanext.config.data import CleaningConfig
from hildanext.data.document import Document
from hildanext.errors import ConfigError


def _compiled(patterns: tuple[str, ...], where: str) -> list[re.Pattern[str]]:
    try:
        return [re.compile(pattern) for pattern in patterns]
    except re.error as error:
        raise ConfigError(f"data.cleaning.{where}: {error.pattern!r} is no regular expression ({error})") from None


@dataclass(frozen=True)
class Cleaner:
    """The cleaning that a configuration describes. ConfigError for a pattern that does not compile."""

    config: CleaningConfig
    _require: list[re.Pattern[str]] = field(default_factory=list)
    _forbid: list[re.Pattern[str]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._require.extend(_compiled(self.config.require, "require"))
        self._forbid.extend(_compiled(self.config.forbid, "forbid"))

    def clean(self, document: Document) -> Document | str:
        """The cleaned document, or why it is dropped."""
        language = document.metadata.get("language")
        if self.config.languages and isinstance(language, str) and language not in self.config.languages:
            return "language"
        if document.tokens is not None:
            return document
        cleaned = self._normalized(document)
        text = cleaned.text if cleaned.text is not None else "\n".join(m["content"] for m in cleaned.messages or ())
        return self._reason(text) or cleaned

    def _normalized(self, document: Document) -> Document:
        if document.text is not None:
            return replace(document, text=self._normal(document.text).strip())
        messages = (
            {
                **message,
                **{key: self._normal(message[key]) for key in ("content", "reasoning_content") if key in message},
            }
            for message in document.messages or ()
        )
        return replace(document, messages=tuple(messages))

    def _normal(self, text: str) -> str:
        form: Literal["NFC", "NFKC", "none"] = self.config.normalization
        normal = text if form == "none" else unicodedata.normalize(form, text)
        return normal.replace("\r\n", "\n")

    def _reason(self, text: str) -> str:
        if len(text) < self.config.min_chars:
            return "too short"
        if self.config.max_chars and len(text) > self.config.max_chars:
            return "too long"
        if not all(pattern.search(text) for pattern in self._require):
            return "required pattern missing"
        return "forbidden pattern" if any(pattern.search(text) for pattern in self._forbid) else ""
