"""Rows and micro-batches against hand-written values."""

from __future__ import annotations

import pytest
import torch

from helpers.samples import mixed_prompts, tiny_backbone
from lit_vlaa.sequences import (
    assemble,
    micro_batch_count,
    mrope_positions,
    split_contiguous,
    unflatten,
)

IMAGE = 9


def positions(ids: list[int], grids: list[list[int]] | None) -> list[list[int]]:
    grid = None if grids is None else torch.tensor(grids)
    return mrope_positions(torch.tensor(ids), image_token_id=IMAGE, image_grid_thw=grid, merge_size=2).tolist()


def test_text_advances_all_axes() -> None:
    assert positions([1, 2, 3], None) == [[0, 1, 2]] * 3


def test_image_spreads_over_rows_and_columns_and_text_goes_on_from_the_largest() -> None:
    # 4x6 patches make 2x3 tokens; they start at 1, and the largest coordinate is 1 + 2, so text continues at 4.
    assert positions([1, *[IMAGE] * 6, 2], [[1, 4, 6]]) == [
        [0, 1, 1, 1, 1, 1, 1, 4],
        [0, 1, 1, 1, 2, 2, 2, 4],
        [0, 1, 2, 3, 1, 2, 3, 4],
    ]


@pytest.mark.parametrize(
    ("ids", "grids"),
    [([IMAGE], None), ([IMAGE] * 3, [[1, 4, 4]]), ([1], [[1, 2, 2]]), ([IMAGE, 1, IMAGE], [[1, 2, 4]])],
)
def test_placeholders_that_do_not_match_the_grids_are_refused(ids: list[int], grids: list[list[int]] | None) -> None:
    with pytest.raises(ValueError, match="image"):
        positions(ids, grids)


def test_assemble_masks_exactly_the_completion_and_shares_images() -> None:
    backbone = tiny_backbone()
    one, two, none, _ = mixed_prompts(backbone)
    completions = [torch.tensor([11, 12, 13]), torch.tensor([21]), torch.tensor([31, 32]), torch.tensor([41])]
    rows = list(zip([one, one, none, two], completions, strict=True))
    inputs = assemble(rows, pad_token_id=0)
    for row, (prompt, completion) in enumerate(rows):
        start, stop = prompt.input_ids.numel(), prompt.input_ids.numel() + completion.numel()
        assert inputs.target_mask[row].nonzero().flatten().tolist() == list(range(start, stop))
        assert inputs.input_ids[row, :start].equal(prompt.input_ids)
        assert inputs.input_ids[row, start:stop].equal(completion)
        assert (inputs.input_ids[row, stop:] == 0).all()
        first = int(prompt.position_ids.max()) + 1
        assert inputs.position_ids[:, row, start:stop].tolist() == [list(range(first, first + len(completion)))] * 3
    # One image for the first two rows together, none for the third, two for the last.
    assert inputs.image_slots is not None
    assert inputs.image_slots.tolist() == [0, 0, 1, 2]
    assert inputs.image_grid_thw is not None
    assert inputs.image_grid_thw.shape == (3, 3)


def test_micro_batches_respect_the_budget() -> None:
    # Padded cost is rows times the longest: [3, 3] = 6, adding 5 would make 15 > 10.
    assert micro_batch_count([3, 3, 5, 5], max_tokens=10) == 2
    assert micro_batch_count([3, 3, 5, 5], max_tokens=100) == 1
    assert micro_batch_count([50, 3], max_tokens=10) == 2


@pytest.mark.parametrize("count", [1, 2, 3, 4, 5])
def test_split_gives_exactly_the_wanted_number_of_non_empty_contiguous_parts(count: int) -> None:
    parts = split_contiguous([5, 5, 5, 1, 1], count)
    assert len(parts) == count
    assert [row for part in parts for row in part] == [0, 1, 2, 3, 4]
    assert all(len(part) for part in parts)


def test_split_keeps_the_largest_part_small() -> None:
    assert split_contiguous([4, 4, 4, 4], 2) == [range(2), range(2, 4)]
    with pytest.raises(ValueError, match="split 2 row"):
        split_contiguous([1, 1], 3)


def test_unflatten_puts_values_in_their_places_and_keeps_gradients() -> None:
    mask = torch.tensor([[False, True, True], [True, False, False]])
    values = torch.tensor([1.0, 2.0, 3.0], requires_grad=True)
    placed = unflatten(values, mask)
    assert placed.tolist() == [[0, 1, 2], [3, 0, 0]]
    (placed * torch.tensor([[9.0, 4, 5], [6, 9, 9]])).sum().backward()
    assert values.grad is not None
    assert values.grad.tolist() == [4, 5, 6]
