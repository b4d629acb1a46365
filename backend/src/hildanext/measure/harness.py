# A model class for lm-evaluation-harness: text by block diffusion, likelihoods by the block ELBO.
# Entry points: HildanextLM; `lm_eval --model hildanext --model_args pretrained=...`, or, whoever wrote the command
# `lm_eval` last, `python -m hildanext.measure.harness` with the same arguments (harness_command.py).
# A diffusion model's log-likelihoods are lower bounds: compare them with each other only.
"""Adapter to lm-evaluation-harness (needs the `eval` extra)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import torch
from lm_eval.api.model import LM
from lm_eval.api.registry import MODEL_REGISTRY, register_model
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

from hildanext.core.batches import document_batch, padded
from hildanext.core.likelihood import autoregressive_nll, block_elbo
from hildanext.core.types import Batch
from hildanext.data.chat import prompt_ids
from hildanext.data.template import PLAIN_TEMPLATE
from hildanext.data.tokenizers import document_start, encode_texts
from hildanext.decoding.request import Request
from hildanext.errors import ConfigError, DataError
from hildanext.measure.generation import generator_for, window_of
from hildanext.measure.harness_arguments import LOG, asked, settings
from hildanext.measure.harness_command import NAME, main
from hildanext.measure.scoring import pair_batch
from hildanext.models.load import load_model

DEFAULT_NEW_TOKENS = 256
WINDOW = 1024
AT_ONCE = 64
Chat = tuple[dict[str, str], ...]


class HildanextLM(LM):  # type: ignore[misc]
    """pretrained: folder; device, dtype, trust_remote_code, max_length, batch_size as for lm_eval's own models;
    max_new_tokens: of tasks that name no length; generator: auto | diffusion | autoregressive; samples: Monte-Carlo
    draws of a bound, 0 exact (block <= 8); seed: of draws; mode, tau_mask and every other setting of decoding."""

    def __init__(self, pretrained: str = "tiny", **given: Any) -> None:
        super().__init__()
        found = settings({"pretrained": pretrained, **given})
        self.loaded, self.samples, self.seed = load_model(found.model), found.samples, found.decode.seed
        self.generator = generator_for(found.generator, self.loaded, found.decode)
        self.window = window_of(self.loaded.denoiser, found.decode) or WINDOW
        self.new_tokens = found.new_tokens or min(DEFAULT_NEW_TOKENS, self.window // 2)
        self._chats: dict[str, tuple[Chat, list[int]]] = {}

    @property
    def tokenizer_name(self) -> str:
        """Name in the harness's cache keys."""
        return str(self.loaded.tokenizer.name_or_path)

    def chat_template(self, chat_template: bool | str = False) -> str | None:
        """The template of chats. ConfigError where one of several is asked for by name."""
        if isinstance(chat_template, str) and chat_template not in ("", "default"):
            raise ConfigError(f"apply_chat_template {chat_template!r}: only the template of training is rendered")
        return str(self.loaded.tokenizer.chat_template or PLAIN_TEMPLATE) if chat_template else None

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        """The text of a chat's prompt ids, by which the chat is known again when it comes back as a context. Without
        add_generation_prompt the last message begins the reply. A template without system turns is asked again without
        them."""
        try:
            ids = self._rendered(chat_history, add_generation_prompt)
        except DataError as error:
            kept = [turn for turn in chat_history if turn["role"] != "system"]
            if len(kept) == len(chat_history):
                raise
            LOG.warning("%s; going on without the system turn", error)
            chat_history, ids = kept, self._rendered(kept, add_generation_prompt)
        text = str(self.loaded.tokenizer.decode(ids, clean_up_tokenization_spaces=False))
        self._chats[text] = (tuple(chat_history), ids)
        return text

    def _rendered(self, chat: list[dict[str, str]], open_turn: bool) -> list[int]:
        tokenizer = self.loaded.tokenizer
        if open_turn:
            return prompt_ids(tokenizer, None, chat)
        return prompt_ids(tokenizer, None, chat[:-1]) + encode_texts(tokenizer, [chat[-1]["content"]])[0]

    def generate_until(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[str]:
        """Texts up to the first stop string; the same request again is another sample of it. A prompt that leaves no
        room for its text loses tokens from its left. ConfigError for generation arguments that would be ignored."""
        seen: Counter[str] = Counter()
        made = [self._request(request.args, seen) for request in requests]
        texts: list[str] = []
        for start in range(0, len(made), AT_ONCE):
            done = self.generator.complete(made[start : start + AT_ONCE])
            for request, one in zip(requests[start:], done, strict=False):
                self.cache_hook.add_partial("generate_until", request.args, one.text)
            texts += [one.text for one in done]
        return texts

    def _request(self, arguments: tuple[str, dict[str, Any]], seen: Counter[str]) -> Request:
        context, more = arguments
        key, fields = repr(arguments), asked(more, self.new_tokens)
        sample, seen[key] = seen[key], seen[key] + 1
        room, new = self.window - fields["max_new_tokens"], fields["max_new_tokens"]
        if room < 1:
            raise ConfigError(
                f"max_gen_toks: {new} new tokens fill the model's window of {self.window}; pass --gen_kwargs "
                f"max_gen_toks={max(1, self.window // 2)} or less"
            )
        chat, ids = self._lead(context)
        fields |= {"sample": sample} | ({"prompt": context} if chat is None else {"messages": chat})
        if len(ids) > room:
            LOG.warning("a context of %d tokens and %d new ones exceed %d: cut on the left", len(ids), new, self.window)
        if len(ids) > room or (chat is not None and chat[-1]["role"] == "assistant"):
            fields |= {"prompt": None, "prompt_ids": tuple(ids[-room:])}  # a chat's turns still say what ends the reply
        return Request(**fields)

    def _lead(self, context: str) -> tuple[Chat | None, list[int]]:
        if context in self._chats:
            return self._chats[context]
        return None, prompt_ids(self.loaded.tokenizer, context, None, self.loaded.meta.document_start)

    def loglikelihood(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        """(log-likelihood or its lower bound in nats, whether the continuation is what greedy decoding writes) per
        request."""
        rows = [self._pair(*request.args) for request in requests]
        nats = [self._nats(row) for row in rows]
        return [(-value, greedy) for value, greedy in zip(nats, self._greedy(rows), strict=True)]

    def _pair(self, context: str, continuation: str) -> Batch:
        lead = self._chats[context][1] if context in self._chats else context
        whole = pair_batch(self.loaded.tokenizer, lead, continuation, 0)
        learned, length = int(whole.learn.sum()), whole.tokens.shape[1]
        if learned >= self.window:
            raise ConfigError(f"a continuation of {learned} tokens does not fit the model's window of {self.window}")
        if length > self.window:
            LOG.warning("a context and continuation of %d tokens exceed %d: cut on the left", length, self.window)
        return document_batch([(whole.tokens[0, -self.window :].tolist(), min(length, self.window) - learned)], 0)

    def _greedy(self, rows: Sequence[Batch]) -> list[bool]:
        pairs = [(tuple(row.tokens[0][~row.learn[0]].tolist()), row.tokens[0][row.learn[0]].tolist()) for row in rows]
        longest: dict[tuple[int, ...], int] = {}
        for prompt, wanted in pairs:
            longest[prompt] = max(longest.get(prompt, 0), len(wanted))
        written = self.generator.complete([
            Request(prompt_ids=prompt, max_new_tokens=max(1, size), ignore_eos=True, temperature=0.0)
            for prompt, size in longest.items()
        ])  # fmt: skip
        texts = {prompt: list(one.ids) for prompt, one in zip(longest, written, strict=True)}
        return [texts[prompt][: len(wanted)] == wanted for prompt, wanted in pairs]

    def loglikelihood_rolling(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[float]:
        """Log-likelihood, or its lower bound, of whole texts, in windows as the harness cuts them: each begins with the
        last token of the one before, the last one with as many as fit."""
        return [-sum(map(self._nats, self._windows(request.args[0]))) for request in requests]

    def _windows(self, text: str) -> list[Batch]:
        tokenizer = self.loaded.tokenizer
        lead = document_start(tokenizer) or [int(tokenizer.eos_token_id)]
        ids, room = list(tokenizer(text, add_special_tokens=False)["input_ids"]), max(1, self.window - len(lead))
        cuts = map(make_disjoint_window, get_rolling_token_windows(ids, lead[-1], room, 1))
        pairs = [([*lead[:-1], *seen] if not number else seen, new) for number, (seen, new) in enumerate(cuts)]
        return [document_batch([([*seen, *new], len(seen))], 0) for seen, new in pairs]

    def _nats(self, batch: Batch) -> float:
        model, batch = self.loaded.denoiser, batch.to(self.loaded.denoiser.device)
        if self.generator.kind == "autoregressive":
            return autoregressive_nll(model, batch).nats
        block = self.loaded.meta.block or 1
        rng = torch.Generator().manual_seed(self.seed)
        return block_elbo(model, padded(batch, block, model.mask_id), block, rng, self.samples).nats


if __name__ == "__main__":
    main()
elif NAME not in MODEL_REGISTRY:
    register_model(NAME)(HildanextLM)
