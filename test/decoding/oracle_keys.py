# Threshold decoding under a rule about keys, slow and independent: nothing is kept, everything is run again each time.
# Entry points: decode (rules that drop or select), decode_parts (blocks in parts, with the old keys of the rest).
# The rule is a visibility of its own per layer, head, query and key, written entry by entry into the masks of a model
# that the package never touched.
"""Independent oracle of decoding under a compressor."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from decoding.oracle import mask
from decoding.reference import MASK
from torch import Tensor
from transformers import DynamicCache

NEVER = 10**9
Made = dict[int, tuple[int, float]]


class Rule:
    """gone[layer][head][key]: the committed length at which a key was dropped; focus[layer][head]: the keys of the
    prefix that later looks see, or None."""

    def __init__(self, named: dict[str, Any], layers: int, heads: int, scores: Any = None) -> None:
        self.named, self.scores = named, scores
        self.gone = [[dict[int, int]() for _ in range(heads)] for _ in range(layers)]
        self.focus: list[list[set[int]]] | None = None

    def sees(self, place: tuple[int, int], query: int, key: int, block: int, open_at: int) -> bool:
        """Whether a query sees a key at (layer, head)."""
        layer, head = place
        own = query // block * block
        if key // block >= query // block:
            return key // block == query // block
        if self.gone[layer][head].get(key, NEVER) <= own:
            return False
        return query < open_at or self.focus is None or key in self.focus[layer][head]

    def commit(self, run: Callable[..., Any], length: int) -> None:
        """Drop what the rule drops once `length` tokens are committed."""
        kind, recent = self.named["type"], self.named.get("recent", 0)
        if kind not in ("window", "knorm", "kvzap"):
            return
        out = run(length, output_hidden_states=True)
        for layer, heads in enumerate(self.gone):
            for head, gone in enumerate(heads):
                older = [key for key in range(length - recent) if key not in gone]
                if kind == "window":
                    lost = [key for key in older if key >= self.named["sinks"]]
                elif kind == "knorm":
                    keys = out.past_key_values.layers[layer].keys[0, head]
                    lost = sorted(older, key=lambda key: float(keys[key].norm()))[self.named["budget"] :]
                else:
                    hidden = out.hidden_states[layer][0]
                    score = {key: self._score(hidden[key], layer, head) for key in older}
                    lost = [k for k in older if k >= self.named["sinks"] and score[k] < self.named["threshold"]]
                gone.update(dict.fromkeys(lost, length))

    def _score(self, hidden: Tensor, layer: int, head: int) -> float:
        scale = math.sqrt(sum(float(value) ** 2 for value in hidden) / len(hidden) + 1e-6)
        pairs = zip(hidden.tolist(), self.scores.weight[layer, head].tolist(), strict=True)
        return sum(value / scale * weight for value, weight in pairs) + float(self.scores.bias[layer, head])

    def look(self, attentions: Any, open_at: int, stop: int, besides: set[int]) -> None:
        """Choose what later looks see, from the first look's attention weights, per layer [1, Hq, K, K]."""
        self.focus = []
        for weights in attentions:
            group = weights.shape[1] // len(self.gone[0])
            chosen = []
            for head in range(len(self.gone[0])):
                own = weights[0, head * group : (head + 1) * group, open_at:stop, :open_at].sum(dim=(0, 1)).tolist()
                chosen.append(set(sorted(range(open_at), key=lambda key: -own[key])[: self.named["budget"]]) | besides)
            self.focus.append(chosen)


@contextmanager
def shown(model: Any, visible: list[Tensor]) -> Iterator[None]:
    """Inside, layer l attends by visible[l] [1, Hq, Q, K] bool."""

    def told(index: int) -> Callable[..., Any]:
        bias = torch.zeros(visible[index].shape).masked_fill(~visible[index], -math.inf)
        return lambda module, given, named: (given, {**named, "attention_mask": bias})

    handles = [
        layer.self_attn.register_forward_pre_hook(told(index), with_kwargs=True)
        for index, layer in enumerate(model.model.layers)
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def decode(model: Any, named: dict[str, Any], ids: tuple[int, ...], size: tuple[int, int], **how: Any) -> Made:
    """{position: (token, its probability)} of threshold decoding without editing; size: new tokens, block size; how:
    tau, scores, shift (a token is read one position earlier, a block's first from the last token before it, which is
    read again for that: a query of its own, whose key is that of its commit)."""
    new, block = size
    config = model.config
    rule = Rule(named, config.num_hidden_layers, config.num_key_value_heads, how.get("scores"))
    group = config.num_attention_heads // config.num_key_value_heads
    length = -(-(len(ids) + new) // block) * block
    x, made, open_at = [*ids, *[MASK] * (length - len(ids))], Made(), NEVER

    def run(stop: int, again: int = 0, **more: Any) -> Any:
        visible, where = [], [*range(stop), *([again - 1] if again else [])]
        for layer in range(config.num_hidden_layers):
            heads = [(layer, head // group) for head in range(config.num_attention_heads)]
            rows = [[[rule.sees(at, i, j, block, open_at) for j in range(stop)] for i in range(stop)] for at in heads]
            if again:  # one more query, at the position before the block, that nobody sees
                for at, table in zip(heads, rows, strict=True):
                    last = [rule.sees(at, again, j, block, open_at) or j == again - 1 for j in range(again)]
                    table.append(last + [False] * (stop - again))
                    for line in table:
                        line.append(False)
            visible.append(torch.tensor(rows)[None])
        with torch.no_grad(), shown(model, visible):
            return model(
                input_ids=torch.tensor([[x[i] for i in where]]), position_ids=torch.tensor([where]),
                attention_mask=torch.zeros(1, 1, len(where), len(where)), use_cache=True, **more,
            )  # fmt: skip

    begins = len(ids) // block * block
    if begins:
        rule.commit(run, begins)
    for start in range(begins, length, block):
        open_at, stop, first = start, start + block, True
        while MASK in x[start:stop]:
            looks = named["type"] == "mage" and first and start > named["budget"]
            out = run(stop, start if how.get("shift") else 0, output_attentions=looks)
            if looks:
                rule.look(out.attentions, start, stop, {start - 1} if how.get("shift") else set())
            logits = out.logits[0]
            if how.get("shift"):
                order = [stop if i == start and i else max(0, i - 1) for i in range(stop)]
                logits = logits[order]
            filled(x, logits, range(start, stop), (how["tau"], made))
            first = False
        rule.focus, open_at = None, NEVER
        rule.commit(run, stop)
    return made


def filled(x: list[int], logits: Tensor, places: range, into: tuple[float, Made]) -> None:
    """Fill the masks of `places` whose best token is surer than tau, or the surest; logits [*, V] by position."""
    tau, made = into
    scores = logits.clone()
    scores[:, MASK] = -math.inf
    p = scores.softmax(dim=1)
    hidden = [i for i in places if x[i] == MASK]
    best = {i: float(p[i].max()) for i in hidden}
    for i in [i for i in hidden if best[i] > tau] or [max(hidden, key=lambda i: (best[i], -i))]:
        x[i] = int(p[i].argmax())
        made[i] = (x[i], best[i])


def decode_parts(model: Any, inner: int, ids: tuple[int, ...], size: tuple[int, int], **how: Any) -> Made:
    """Threshold decoding in parts of `inner` positions: a look at a part reads the final prefix, the part itself, and
    the rest of its block with the keys of the last whole look; how: tau, every, shift (as above)."""
    new, block = size
    length = -(-(len(ids) + new) // block) * block
    x, made = [*ids, *[MASK] * (length - len(ids))], Made()
    for start in range(len(ids) // block * block, length, block):
        stop = start + block
        for at in range(start, stop, inner):
            looks, old = 0, None
            while MASK in x[at : at + inner]:
                if looks == 0 or how.get("every") and looks % how["every"] == 0:
                    with torch.no_grad():
                        out = model(
                            input_ids=torch.tensor([x[:stop]]), attention_mask=mask(stop, block), use_cache=True
                        )
                    old, logits = out.past_key_values, out.logits[0]
                    logits = logits[[max(0, i - 1) for i in range(stop)]] if how.get("shift") else logits
                elif how.get("shift") and at:
                    logits = torch.zeros(stop, out.logits.shape[2])
                    logits[at : at + inner] = alone(model, x, (at - 1, at + inner, stop), old, at == start)[:-1]
                else:
                    logits = torch.zeros(stop, out.logits.shape[2])
                    found = alone(model, x, (at, at + inner, stop), old)
                    order = [max(0, i - 1) for i in range(inner)] if how.get("shift") else range(inner)
                    logits[at : at + inner] = found[list(order)]
                filled(x, logits, range(at, at + inner), (how["tau"], made))
                looks += 1
    return made


def alone(model: Any, x: list[int], span: tuple[int, int, int], old: Any, again: bool = False) -> Tensor:
    """Logits of a part [first, last) that sees the keys of all other positions before `stop` as they were; again: the
    first is committed, sees what is committed and has its key there."""
    first, last, stop = span
    others = [i for i in range(stop) if not first + again <= i < last]
    cache = DynamicCache()
    for layer, held in enumerate(old.layers):
        cache.update(held.keys[:, :, others], held.values[:, :, others], layer)
    seen = torch.zeros(1, 1, last - first, stop + again)
    if again:  # columns: the others in order, the query itself, the part
        seen[0, 0, :, len(others)] = -math.inf
        seen[0, 0, 0] = -math.inf
        seen[0, 0, 0, : first + 1] = 0
    where = torch.arange(first, last)[None]
    with torch.no_grad():
        out = model(
            input_ids=torch.tensor([x[first:last]]), attention_mask=seen, position_ids=where, past_key_values=cache,
            use_cache=True,
        )  # fmt: skip
    logits: Tensor = out.logits[0]
    return logits
