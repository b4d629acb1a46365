# Edit actions of a block: what each token of a draft must become so that rounds of editing reach the target.
# Entry points: Controls, controls_of (a model), labels (from the longest common subsequence), apply, moved.
# A label is a token id: the token itself (KEEP), another one (SUBSTITUTE), or a control token (DELETE, INSERT).
# Blocks have a fixed length: what INSERT pushes out at the end is lost, what DELETE frees there is [MASK].
"""Levenshtein labels and their application."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol, runtime_checkable


class Controls(NamedTuple):
    """Token ids that stand for actions, and [MASK]."""

    delete: int
    insert: int
    mask: int


@runtime_checkable
class Acts(Protocol):
    """A denoiser that may have rows for actions."""

    edit_ids: tuple[int, int] | None
    """Ids of DELETE and INSERT."""


def controls_of(model: Any) -> Controls | None:
    """The control tokens of a denoiser; None where it has none."""
    found = model.edit_ids if isinstance(model, Acts) else None
    return None if found is None else Controls(*found, int(model.mask_id))


def labels(draft: Sequence[int], target: Sequence[int], controls: Controls) -> list[int]:
    """The label of each draft token. Between two tokens that match, drafts take the target's tokens, surplus drafts
    DELETE, and where targets are missing the matching token behind them has INSERT, one a round; behind the last match
    all DELETE. [MASK] matches any target. Source: LLaDA2.2 sec. 3.1; its ties are ours, see docs/papers.md."""
    anchors = _anchors(draft, target, controls.mask)
    made = [controls.delete] * len(draft)
    i = j = 0
    for at, own in anchors:
        drafts, targets = at - i, own - j
        for step in range(min(drafts, targets)):
            made[i + step] = target[j + step]
        made[at] = controls.insert if targets > drafts else target[own]
        i, j = at + 1, own + 1
    return made


def _anchors(draft: Sequence[int], target: Sequence[int], mask: int) -> list[tuple[int, int]]:
    width = len(target) + 1
    table = [[0] * width]
    for token in draft:
        above, row = table[-1], [0]
        for j in range(1, width):
            same = token in (mask, target[j - 1])
            row.append(above[j - 1] + 1 if same else above[j] if above[j] >= row[j - 1] else row[j - 1])
        table.append(row)
    found, i, j = list[tuple[int, int]](), len(draft), len(target)
    while i and j:
        if draft[i - 1] in (mask, target[j - 1]) and table[i][j] == table[i - 1][j - 1] + 1:
            i, j = i - 1, j - 1
            found.append((i, j))
        elif table[i][j - 1] == table[i][j]:
            j -= 1
        else:
            i -= 1
    return _nearest(found[::-1], draft, len(target), mask)


def _nearest(anchors: list[tuple[int, int]], draft: Sequence[int], size: int, mask: int) -> list[tuple[int, int]]:
    made, low = list[tuple[int, int]](), 0
    for index, (i, j) in enumerate(anchors):
        if draft[i] == mask:
            high = anchors[index + 1][1] - 1 if index + 1 < len(anchors) else size - 1
            j = min(max(i, low), high)
        made.append((i, j))
        low = j + 1
    return made


def moved(actions: Sequence[int], controls: Controls) -> list[int]:
    """For each position of the edited block the position of the draft it comes from, -1 for a new [MASK]."""
    sources = list[int]()
    for place, action in enumerate(actions):
        if action != controls.delete:
            sources += [-1, place] if action == controls.insert else [place]
    return (sources + [-1] * len(actions))[: len(actions)]


def apply(draft: Sequence[int], actions: Sequence[int], controls: Controls) -> list[int]:
    """The block after one action per token: DELETE closes the gap to the left, INSERT puts [MASK] before the token,
    every other action is the token written. Same length. Source: LLaDA2.2 sec. 3.1."""
    written = [token if action == controls.insert else action for token, action in zip(draft, actions, strict=True)]
    return [controls.mask if source < 0 else written[source] for source in moved(actions, controls)]
