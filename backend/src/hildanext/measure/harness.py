# A model class for lm-evaluation-harness: text by block diffusion, likelihoods by the block ELBO.
# Entry points: HildanextLM; `python -m hildanext.measure.harness --model hildanext --model_args pretrained=...`, with
# lm_eval's own arguments. A diffusion model's log-likelihoods are lower bounds: compare them with each other only.
"""Adapter to lm-evaluation-harness (needs the `eval` extra)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from lm_eval.api.model import LM
from lm_eval.api.registry import register_model

from hildanext.config.decode import DecodeConfig
from hildanext.config.model import ModelConfig
from hildanext.core.batches import document_batch, padded
from hildanext.core.likelihood import autoregressive_nll, block_elbo
from hildanext.core.types import Batch
from hildanext.data.chat import prompt_ids
from hildanext.decoding.request import Request
from hildanext.measure.generation import generator_for
from hildanext.measure.scoring import pair_batch
from hildanext.models.load import load_model

DEFAULT_NEW_TOKENS = 256
WINDOW = 1024
KNOWN = {"until", "max_gen_toks", "temperature", "do_sample", "top_p", "top_k"}


@register_model("hildanext")
class HildanextLM(LM):  # type: ignore[misc]
    """pretrained: folder; mode, tau_mask, tau_edit: of decoding; generator: auto | diffusion | autoregressive; samples:
    Monte-Carlo draws of a bound, 0 exact (block <= 8); greedy: also decode, to say whether a continuation is the greedy
    one (slow; False otherwise); seed: of draws."""

    def __init__(
        self, pretrained: str = "tiny", samples: int = 16, greedy: bool = False, seed: int = 0, **settings: Any
    ) -> None:
        super().__init__()
        self.loaded = load_model(ModelConfig(path=pretrained, device=settings.pop("device", None) or "auto"))
        self.samples, self.greedy, self.seed = int(samples), str(greedy).lower() == "true", int(seed)
        kind = str(settings.pop("generator", "auto"))
        for unused in ("batch_size", "max_batch_size"):
            settings.pop(unused, None)
        self.generator = generator_for(kind, self.loaded, DecodeConfig(**settings))
        self._chats: dict[str, tuple[dict[str, str], ...]] = {}

    @property
    def tokenizer_name(self) -> str:
        """Name in the harness's cache keys."""
        return str(self.loaded.tokenizer.name_or_path)

    def chat_template(self, chat_template: bool | str = False) -> str | None:
        """The tokenizer's template."""
        return str(self.loaded.tokenizer.chat_template) if chat_template else None

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        """The text of a chat's prompt ids, by which the chat is known again when it comes back as a context."""
        tokenizer = self.loaded.tokenizer
        if not add_generation_prompt:
            return str(tokenizer.apply_chat_template(chat_history, tokenize=False, add_generation_prompt=False))
        text = str(tokenizer.decode(prompt_ids(tokenizer, None, chat_history), clean_up_tokenization_spaces=False))
        self._chats[text] = tuple(chat_history)
        return text

    def generate_until(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[str]:
        """Texts up to the first stop string. ValueError for generation arguments that would be ignored."""
        asked = [_request(request.args[1], **self._asked(request.args[0])) for request in requests]
        return [one.text for one in self.generator.complete(asked)]

    def _asked(self, context: str) -> dict[str, Any]:
        chat = self._chats.get(context)
        return {"prompt": context} if chat is None else {"messages": chat}

    def loglikelihood(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        """(log-likelihood or its lower bound in nats, whether the continuation is the greedy one) per request."""
        found = []
        for request in requests:
            context, continuation = request.args
            chat, tokenizer = self._chats.get(context), self.loaded.tokenizer
            lead = context if chat is None else prompt_ids(tokenizer, None, chat)
            batch = pair_batch(tokenizer, lead, continuation, self._window())
            found.append((-self._nats(batch), self.greedy and self._is_greedy(batch)))
        return found

    def loglikelihood_rolling(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[float]:
        """Log-likelihood, or its lower bound, of whole texts, in windows that do not see each other."""
        return [-sum(map(self._nats, self._windows(request.args[0]))) for request in requests]

    def _windows(self, text: str) -> list[Batch]:
        tokenizer, room = self.loaded.tokenizer, max(1, self._window() - 1)
        ids = list(tokenizer(text, add_special_tokens=False)["input_ids"])
        rows = [[int(tokenizer.eos_token_id), *ids[start : start + room]] for start in range(0, len(ids), room)]
        return [document_batch([(row, 1)], 0) for row in rows]

    def _window(self) -> int:
        return self.loaded.denoiser.window or WINDOW

    def _nats(self, batch: Batch) -> float:
        model, batch = self.loaded.denoiser, batch.to(self.loaded.denoiser.device)
        if self.generator.kind == "autoregressive":
            return autoregressive_nll(model, batch).nats
        block = self.loaded.meta.block or 1
        rng = torch.Generator().manual_seed(self.seed)
        return block_elbo(model, padded(batch, block, model.mask_id), block, rng, self.samples).nats

    def _is_greedy(self, batch: Batch) -> bool:
        ids, learn = batch.tokens[0], batch.learn[0]
        prompt, wanted = tuple(ids[~learn].tolist()), tuple(ids[learn].tolist())
        request = Request(prompt_ids=prompt, max_new_tokens=len(wanted), ignore_eos=True, temperature=0.0)
        return self.generator.complete([request])[0].ids == wanted


def _request(arguments: dict[str, Any], **asked: Any) -> Request:
    unknown = set(arguments) - KNOWN
    if unknown:
        raise ValueError(f"generate_until: {sorted(unknown)} would be ignored; known are {sorted(KNOWN)}")
    until = arguments.get("until") or []
    sampled = bool(arguments.get("do_sample", False))
    temperature = float(arguments.get("temperature", 1.0 if sampled else 0.0)) if sampled else 0.0
    drawing = {name: arguments[name] for name in ("top_p", "top_k") if sampled and name in arguments}
    return Request(
        stop=tuple([until] if isinstance(until, str) else until), temperature=temperature,
        max_new_tokens=int(arguments.get("max_gen_toks", DEFAULT_NEW_TOKENS)), **drawing, **asked,
    )  # fmt: skip


def main() -> None:
    """lm_eval's command line with this model registered."""
    from lm_eval.__main__ import cli_evaluate

    cli_evaluate()


if __name__ == "__main__":
    from hildanext.measure.harness import main as registered

    registered()
