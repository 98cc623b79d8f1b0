"""Layouts of packed sequences against hand-written ones."""

from __future__ import annotations

import pytest
import torch

from lit_vlaa.segments import Segments

CPU = torch.device("cpu")


def test_a_mask_shows_what_is_continued_and_what_came_before() -> None:
    # Three tokens, and two that continue them.
    assert Segments((3, 2), (-1, 0)).mask(1, CPU).int().tolist() == [[1, 1, 1, 1, 0], [1, 1, 1, 1, 1]]


def test_varlen_lists_the_keys_of_each_segment() -> None:
    # A prompt of two with completions of one and two, then a row on its own.
    queries, keys, most_queries, most_keys, source = Segments((2, 1, 2, 3), (-1, 0, 0, -1)).varlen(CPU)
    assert queries.tolist() == [0, 2, 3, 5, 8]
    assert keys.tolist() == [0, 2, 2 + 3, 5 + 4, 9 + 3]
    assert (most_queries, most_keys) == (3, 4)
    assert source is not None
    assert source.tolist() == [*[0, 1], *[0, 1, 2], *[0, 1, 3, 4], *[5, 6, 7]]
    assert queries.dtype == keys.dtype == torch.int32


def test_keys_stay_where_they_are_when_nothing_is_shared() -> None:
    queries, keys, _, _, source = Segments((2, 3), (-1, -1)).varlen(CPU)
    assert queries.tolist() == keys.tolist() == [0, 2, 5]
    assert source is None


@pytest.mark.parametrize(
    ("lengths", "continued"),
    [((), ()), ((2, 0), (-1, -1)), ((2,), (-1, -1)), ((2, 2), (-1, 1)), ((2, 2, 2), (-1, 0, 1)), ((2,), (-2,))],
)
def test_layouts_that_cannot_be_are_refused(lengths: tuple[int, ...], continued: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="segment"):
        Segments(lengths, continued)
