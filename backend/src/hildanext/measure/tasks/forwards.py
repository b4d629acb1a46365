# Task `forwards`: how good texts are against how many steps they took, for models of any kind by the same measures.
# Entry points: Forwards.
# steps: of a latent model's sampler, of the quota of a discrete one's block; left to right there is one setting.
"""Task plugin forwards."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import Annotated, Any, Literal

from pydantic import Field

from hildanext.config.base import SEEDS
from hildanext.config.decode import PolicySection, Temperature
from hildanext.config.model import ModelConfig
from hildanext.decoding.engine import DEFAULT_BLOCK
from hildanext.decoding.request import Request
from hildanext.errors import DataError
from hildanext.measure.generation import Completion, generator_for
from hildanext.measure.items import read_items
from hildanext.measure.ngrams import Profile, divergence
from hildanext.measure.scoring import causal_nats, pair_batch
from hildanext.measure.task import FAILED, EvalContext, Outcome, Task, cost
from hildanext.measure.tasks.tinystories import distinct, repetition
from hildanext.report.intervals import Measure, mean, ratio, share

SIZE = 3


@dataclass(frozen=True)
class Material:
    """starts: what is given of each text; rests: the true texts behind it; corpus: 3-grams of others."""

    starts: Sequence[str]
    rests: Sequence[str]
    corpus: Profile


class Forwards(Task):
    """Validity (story world), generative NLL under the parent, divergence of 3-grams from the corpus, self-repetition,
    distinct 2-grams and cost at every number of steps; the same of true texts as `of_references`."""

    path: str = Field(
        "", description="file of texts with a `text` field, JSON lines; empty: stories of the story world"
    )
    download: bool = Field(False, description="allow the network for a path on the hub")
    limit: int = Field(64, ge=1, description="texts at every number of steps")
    given: Literal["beginning", "nothing"] = Field("beginning", description="what a text is asked for by")
    words: int = Field(
        12, ge=1, description="words of a beginning; of a story of the story world it is its first sentence"
    )
    corpus: int = Field(2000, ge=1, description="further texts whose 3-grams are compared with")
    steps: tuple[Annotated[int, Field(ge=1)], ...] = Field(
        (1, 2, 4, 8, 16, 32, 64), min_length=1, description="steps of a sampler, or forwards of a block, counts"
    )
    parent: str = Field("", description="AR model folder that scores the texts; empty: no score")
    max_new_tokens: int = Field(224, ge=1, description="tokens per text")
    temperature: Temperature | None = Field(None, description="temperature of the texts; null: that of decode")
    seed: int = Field(7_000_001, ge=0, lt=SEEDS, description="seed of the story world's stories, and of sampling")

    def ready(self) -> None:
        """Read the texts and find the parent."""
        from hildanext.models.load import model_folder

        if self.path:
            self._material()
        if self.parent:
            model_folder(self.parent, "eval.tasks.forwards.parent")

    def run(self, context: EvalContext) -> Outcome:
        """All measures at every number of steps."""
        from hildanext.models.load import load_model

        parent = load_model(ModelConfig(path=self.parent)) if self.parent else None
        material = self._material()
        measures = self._of(material, material.rests, parent, "of_references")
        points: list[dict[str, Any]] = []
        for steps in self._settings(context):
            at = _at(context, steps) if steps else context
            done = at.complete(f"forwards: {steps or 'left to right'}", list(self._requests(material)))
            texts = [one.text for one in done if one.finish != FAILED]
            label = f"at_{steps}_steps" if steps else "left_to_right"
            found = self._of(material, texts, parent, label) | _cost(done, label)
            context.console.say(f"{label}: " + "; ".join(f"{name} {one.text()}" for name, one in found.items()))
            measures |= found
            points += self._point(context, found, label, steps)
        counts = {"texts": len(material.starts), "settings": len(points)}
        return Outcome(measures, counts, (), {"steps": points})

    def _settings(self, context: EvalContext) -> list[int]:
        """0 left to right; else the steps asked for. Under the quota a block takes no more forwards than it has
        positions, so of the steps from its size on the fewest stand for all, which is said."""
        from hildanext.models.latent import draws_texts

        if context.generator.kind != "diffusion":
            return [0]
        if draws_texts(context.loaded.denoiser):
            return list(self.steps)
        block = context.config.decode.block or context.loaded.meta.block or DEFAULT_BLOCK
        within = [steps for steps in self.steps if steps < block]
        beyond = sorted(steps for steps in self.steps if steps >= block)
        if left := beyond[1:]:
            names = ", ".join(map(str, left))
            context.console.say(f"steps {names}: as {beyond[0]}, since a block has {block} positions")
        return [*within, *beyond[:1]]

    def _requests(self, material: Material) -> Iterator[Request]:
        for index, start in enumerate(material.starts):
            yield Request(
                prompt=start,
                max_new_tokens=self.max_new_tokens,
                temperature=self.temperature,
                sample=index,
                seed=self.seed,
            )

    def _material(self) -> Material:
        both = [self._parted(text) for text in islice(self._every(), self.limit + self.corpus)]
        if len(both) <= self.limit:
            raise DataError(f"{self.path}: {len(both)} texts; {self.limit} are asked for, and others to compare with")
        own, others = both[: self.limit], both[self.limit :]
        return Material(
            [one for one, _ in own], [rest for _, rest in own], Profile.of((rest for _, rest in others), SIZE)
        )

    def _every(self) -> Iterator[str]:
        from hildanext.world import story

        if self.path:
            return (str(item["text"]) for item in read_items(self.path, ("text",), self.download))
        return (story(f"{self.seed}:{index}").text for index in range(self.limit + self.corpus))

    def _parted(self, text: str) -> tuple[str, str]:
        if self.given == "nothing":
            return "", text
        start = " ".join(text.split()[: self.words]) if self.path else text[: text.index(".") + 1]
        return start, text[len(start) :]

    def _point(
        self, context: EvalContext, found: Mapping[str, Measure], label: str, steps: int
    ) -> list[dict[str, Any]]:  # fmt: skip
        kl = found.get(f"3_gram_kl {label}")
        if kl is None:
            context.console.warn(f"forwards: {label}: no text has {SIZE} words; there is nothing to draw")
            return []
        values = {name.removesuffix(f" {label}"): one.value for name, one in found.items()}
        place = {"x": values["forwards_per_text"], "y": kl.value, "low": kl.low, "high": kl.high}
        return [{**place, "label": str(steps or ""), "steps": steps, **values}]

    def _of(self, material: Material, texts: Sequence[str], parent: Any, label: str) -> dict[str, Measure]:
        pairs = list(zip(material.starts, texts, strict=False))
        found: dict[str, Measure] = {"repetition": mean([repetition(text) for text in texts])}
        if any(len(text.split()) >= SIZE for text in texts):
            found["3_gram_kl"] = divergence(texts, material.corpus)
            found["distinct_2"] = share(*distinct(texts, 2))
        if not self.path:
            found["valid"] = _valid(pairs)
        if parent is not None and any(texts):
            found["nll"] = _nll(parent, pairs)
        return {f"{name} {label}": one for name, one in found.items()}


def _valid(pairs: Sequence[tuple[str, str]]) -> Measure:
    from hildanext.world import check

    whole = [f"{start}{'' if not start or text[:1].isspace() else ' '}{text}" for start, text in pairs]
    return share(sum(check(text.strip()).valid for text in whole), len(whole))


def _nll(parent: Any, pairs: Sequence[tuple[str, str]]) -> Measure:
    written = [(start, text) for start, text in pairs if text]
    nats = [causal_nats(parent, start, text) for start, text in written]
    tokens = [float(pair_batch(parent.tokenizer, start, text, 0).learn.sum()) for start, text in written]
    return ratio(nats, tokens, "nats per token")


def _cost(done: Sequence[Completion], label: str) -> dict[str, Measure]:
    written = [one for one in done if one.finish != FAILED]
    told = {name: one for name, one in cost(done).items() if name in ("tokens_per_forward", "tokens_per_second")}
    told["forwards_per_text"] = mean([float(one.forwards) for one in written], "forwards")
    return {f"{name} {label}": one for name, one in told.items()}


def _at(context: EvalContext, steps: int) -> EvalContext:
    quota = PolicySection.model_validate({"type": "static_quota", "steps": steps})
    config, decode = context.config, context.config.decode.model_copy(update={"policy": quota})
    latent = config.latent.model_copy(update={"steps": steps})
    config = config.model_copy(update={"decode": decode, "latent": latent})
    return replace(context, config=config, generator=generator_for("diffusion", context.loaded, decode, latent))
