"""Comparing what checkpoints hold."""

from __future__ import annotations

from typing import Any

import torch


def assert_equal(one: Any, other: Any) -> None:
    """Asserts that nested contents of checkpoints are equal, tensors bit by bit."""
    if isinstance(one, dict):
        assert one.keys() == other.keys()
        for key in one:
            assert_equal(one[key], other[key])
    elif isinstance(one, list | tuple):
        assert len(one) == len(other)
        for left, right in zip(one, other, strict=True):
            assert_equal(left, right)
    elif isinstance(one, torch.Tensor):
        assert torch.equal(one, other)
    else:
        assert one == other
