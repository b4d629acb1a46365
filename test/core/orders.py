# The bound of a table model worked out by hand: every order in which a block can be filled, one after the other.
# Entry points: order_average, order_average_by_recursion, mixture_nll, order_probabilities.
# Uses TableModel.log_probability only; nothing of hildanext.
"""Oracles of the block ELBO."""

from __future__ import annotations

import itertools
import math

from core.stand_ins import TableModel


def order_probabilities(model: TableModel, row: list[int]) -> list[list[float]]:
    """For each block: log p(block's scored tokens) in every order; position 0 of the row is given."""
    blocks = []
    for start in range(0, len(row), model.block):
        places = [place for place in range(model.block) if start + place > 0]
        logs = [_order_log(model, row, start, order) for order in itertools.permutations(places)]
        blocks.append(logs)
    return blocks


def _order_log(model: TableModel, row: list[int], start: int, order: tuple[int, ...]) -> float:
    noisy = [model.mask_id if place in order else row[start + place] for place in range(model.block)]
    total = 0.0
    for place in order:
        total += model.log_probability(row[:start], noisy, place, row[start + place])
        noisy[place] = row[start + place]
    return total


def order_average(model: TableModel, row: list[int]) -> float:
    return -sum(sum(logs) / len(logs) for logs in order_probabilities(model, row))


def mixture_nll(model: TableModel, row: list[int]) -> float:
    return -sum(math.log(sum(map(math.exp, logs)) / len(logs)) for logs in order_probabilities(model, row))


def order_average_by_recursion(
    model: TableModel, row: list[int], masked: frozenset[int], known: dict[frozenset[int], float]
) -> float:
    """Mean over the orders of filling `masked` in a one-block row, each next place equally likely; known: {} at first,
    one for each row."""
    if not masked:
        return 0.0
    if masked not in known:
        noisy = [model.mask_id if place in masked else token for place, token in enumerate(row)]
        parts = [
            order_average_by_recursion(model, row, masked - {place}, known)
            - model.log_probability([], noisy, place, row[place])
            for place in masked
        ]
        known[masked] = sum(parts) / len(parts)
    return known[masked]
