# Visibility against formulas written out entry by entry, worked masks and counts.
# Entry points: pytest.
# The oracle is a triple loop over (row, query, key) that shares nothing with the package.
"""Tests of core/masks.py."""

from __future__ import annotations

import random

import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention

from hildanext.core.masks import (
    BlockDiffusionRule,
    block_causal_mask,
    block_diffusion_mask,
    block_ids,
    causal_mask,
    document_mask,
    document_starts,
    mask_mod,
)
from hildanext.models.attention import diffusion_slices

LENGTHS = (4, 6, 8, 12)


def divisors(number: int) -> list[int]:
    return [block for block in range(1, number + 1) if number % block == 0]


def random_docs(length: int, seed: int) -> torch.Tensor:
    rng = torch.Generator().manual_seed(seed)
    return (torch.rand(2, length, generator=rng) < 0.3).long().cumsum(1)


def block_of(row: list[int], position: int, block: int, grid: str) -> int:
    start = 0
    if grid == "per_document":
        start = position
        while start > 0 and row[start - 1] == row[position]:
            start -= 1
    return (position - start) // block


def literal(
    docs: list[list[int]], block: int, grid: str, groups: list[list[int]] | None = None, fault: str = ""
) -> torch.Tensor:
    length = len(docs[0])
    mask = torch.zeros(len(docs), 1, 2 * length, 2 * length, dtype=torch.bool)
    for row, ids in enumerate(docs):
        for query in range(2 * length):
            for key in range(2 * length):
                i, j = query % length, key % length
                clean_query, clean_key = query >= length, key >= length
                b_query, b_key = block_of(ids, i, block, grid), block_of(ids, j, block, grid)
                g_query, g_key = (groups[row][i], groups[row][j]) if groups else (b_query, b_key)
                within = b_query >= b_key or fault == "a later block of the group is seen"
                diagonal = not clean_query and not clean_key and g_query == g_key and within
                begins = b_query if fault == "the clean text of the own group is seen" else g_query
                offset = not clean_query and clean_key and begins > b_key
                if fault == "blocks of the group are not seen":
                    diagonal = diagonal and b_query == b_key
                causal = clean_query and clean_key and b_query >= b_key
                mask[row, 0, query, key] = ids[i] == ids[j] and (diagonal or offset or causal)
    return mask


@pytest.mark.parametrize("grid", ["global", "per_document"])
@pytest.mark.parametrize("length", LENGTHS)
def test_block_diffusion_mask_equals_the_formula_entry_by_entry(length: int, grid: str) -> None:
    for block in divisors(length):
        for seed in range(3):
            docs = random_docs(length, seed)
            assert torch.equal(block_diffusion_mask(length, block, docs, grid), literal(docs.tolist(), block, grid))


@pytest.mark.parametrize("grid", ["global", "per_document"])
def test_flex_mask_mod_equals_the_formula(grid: str) -> None:
    from torch.nn.attention.flex_attention import create_mask

    docs = random_docs(12, 5)
    rule = BlockDiffusionRule.of(12, 3, docs, grid)
    found = create_mask(mask_mod(rule), 2, 1, 24, 24, device="cpu")
    assert torch.equal(found, literal(docs.tolist(), 3, grid))


def random_groups(docs: torch.Tensor, block: int, grid: str, seed: int) -> list[list[int]]:
    source, made = random.Random(seed), []
    for ids in docs.tolist():
        row = [block_of(ids, i, block, grid) for i in range(len(ids))]
        for i in range(1, len(ids)):
            new = ids[i] != ids[i - 1] or (block_of(ids, i, block, grid) != block_of(ids, i - 1, block, grid))
            joins = ids[i] == ids[i - 1] and (not new or source.random() < 0.6)
            row[i] = row[i - 1] if joins else row[i]
        made.append(row)
    return made


@pytest.mark.parametrize("grid", ["global", "per_document"])
def test_masks_of_groups_equal_the_formula_entry_by_entry_dense_sliced_and_flex(grid: str) -> None:
    from torch.nn.attention.flex_attention import create_mask

    query, key, value = torch.randn(3, 2, 1, 24, 4, generator=torch.Generator().manual_seed(0))
    for seed in range(6):
        docs, block = random_docs(12, seed), (2, 3)[seed % 2]
        groups = random_groups(docs, block, grid, seed)
        wanted = literal(docs.tolist(), block, grid, groups)
        given = torch.tensor(groups)
        assert torch.equal(block_diffusion_mask(12, block, docs, grid, given), wanted)
        rule = BlockDiffusionRule.of(12, block, docs, grid, given)
        assert torch.equal(create_mask(mask_mod(rule), 2, 1, 24, 24, device="cpu"), wanted)
        sliced = diffusion_slices(docs, block, grid, given).attend(query, key, value, None)
        dense = scaled_dot_product_attention(query, key, value, attn_mask=wanted)
        torch.testing.assert_close(sliced, dense, atol=1e-6, rtol=0)


@pytest.mark.parametrize("grid", ["global", "per_document"])
def test_groups_of_one_block_are_no_groups(grid: str) -> None:
    docs = random_docs(12, 2)
    alone = block_ids(12, 3, docs, grid).expand_as(docs)
    assert torch.equal(block_diffusion_mask(12, 3, docs, grid, alone), block_diffusion_mask(12, 3, docs, grid))
    assert diffusion_slices(docs, 3, grid, alone) == diffusion_slices(docs, 3, grid)


FAULTS = (
    "a later block of the group is seen", "the clean text of the own group is seen", "blocks of the group are not seen",
)  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS)
def test_a_wrong_rule_of_groups_is_noticed(fault: str) -> None:
    docs = torch.zeros(1, 8, dtype=torch.long)
    groups = torch.tensor([[0, 0, 0, 0, 2, 2, 2, 2]])
    found = block_diffusion_mask(8, 2, docs, "global", groups)
    assert torch.equal(found, literal(docs.tolist(), 2, "global", groups.tolist()))
    assert not torch.equal(found, literal(docs.tolist(), 2, "global", groups.tolist(), fault))


def test_flex_mask_mod_of_one_row_serves_many_rows() -> None:
    from torch.nn.attention.flex_attention import create_mask

    rule = BlockDiffusionRule.of(8, 2)
    found = create_mask(mask_mod(rule), 3, 1, 16, 16, device="cpu")
    assert torch.equal(found, literal([[0] * 8], 2, "global").expand(3, 1, 16, 16))


@pytest.mark.parametrize("length", LENGTHS)
def test_one_document_has_l_squared_plus_l_times_block_entries(length: int) -> None:
    for block in divisors(length):
        assert int(block_diffusion_mask(length, block).sum()) == length * length + length * block


def test_aligned_documents_have_the_sum_of_their_own_counts() -> None:
    sizes, block = (4, 8, 12), 4
    docs = torch.tensor([[i for i, size in enumerate(sizes) for _ in range(size)]])
    expected = sum(size * size + size * block for size in sizes)
    assert int(block_diffusion_mask(24, block, docs, "per_document").sum()) == expected


def worked(text: str) -> torch.Tensor:
    return torch.tensor([[char == "1" for char in line.replace("|", "")] for line in text.split()])[None, None]


def test_worked_mask_of_one_document() -> None:
    text = "1100|0000 1100|0000 0011|1100 0011|1100 0000|1100 0000|1100 0000|1111 0000|1111"
    assert torch.equal(block_diffusion_mask(4, 2), worked(text))


def test_worked_mask_of_two_documents_on_the_global_grid() -> None:
    text = "1100|0000 1100|0000 0010|1100 0001|0000 0000|1100 0000|1100 0000|1110 0000|0001"
    mask = block_diffusion_mask(4, 2, torch.tensor([[0, 0, 0, 1]]))
    assert torch.equal(mask, worked(text)) and int(mask.sum()) == 16


@pytest.mark.parametrize("grid", ["global", "per_document"])
def test_every_position_sees_itself_so_no_row_is_empty(grid: str) -> None:
    for seed in range(5):
        docs = random_docs(12, seed)
        for mask in (block_diffusion_mask(12, 4, docs, grid), block_causal_mask(12, 4, docs, grid), causal_mask(docs)):
            assert mask.diagonal(dim1=-2, dim2=-1).all()


def test_padding_is_seen_by_padding_only() -> None:
    docs = torch.tensor([[0, 0, 0, 0, 0, 7, 7, 7]])
    mask = block_diffusion_mask(8, 4, docs)[0, 0].view(2, 8, 2, 8)
    assert not mask[:, :5, :, 5:].any() and not mask[:, 5:, :, :5].any()


def test_block_one_is_causal_and_block_l_is_the_document() -> None:
    docs = random_docs(12, 3)
    assert torch.equal(block_causal_mask(12, 1, docs), causal_mask(docs))
    assert torch.equal(block_causal_mask(12, 12, docs), document_mask(docs))
    assert torch.equal(causal_mask(docs), document_mask(docs) & torch.ones(12, 12).tril().bool())


def test_clean_half_is_the_block_causal_mask() -> None:
    docs = random_docs(12, 4)
    assert torch.equal(block_diffusion_mask(12, 3, docs)[..., 12:, 12:], block_causal_mask(12, 3, docs))


@pytest.mark.parametrize(("length", "block"), [(8, 3), (8, 16), (8, 0), (8, -1)])
def test_a_block_that_does_not_divide_the_length_raises(length: int, block: int) -> None:
    with pytest.raises(ValueError, match="does not divide"):
        block_diffusion_mask(length, block)


def test_an_unknown_grid_raises() -> None:
    with pytest.raises(ValueError, match="per_document"):
        block_ids(8, 2, grid="local")


def test_document_starts_repeat_the_first_index_of_each_document() -> None:
    assert document_starts(torch.tensor([[5, 5, 2, 2, 2, 5]])).tolist() == [[0, 0, 2, 2, 2, 5]]
