"""The digest of weights: the same for the same bits, another for any other."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from callbacks.evaluation import weights
from callbacks.evaluation.weights import weights_digest
from helpers.samples import tiny_backbone


def named(**tensors: Tensor) -> str:
    return weights_digest(tensors.items())


BASE = {"a": torch.arange(6.0).reshape(2, 3), "b": torch.ones(2, dtype=torch.bfloat16)}


def test_the_order_of_the_tensors_does_not_matter() -> None:
    assert weights_digest(reversed(list(BASE.items()))) == named(**BASE)
    assert len(named(**BASE)) == 16


def one_bit_up(tensor: Tensor) -> Tensor:
    return torch.nextafter(tensor, torch.tensor(torch.inf))


@pytest.mark.parametrize(
    "change",
    [
        {"a": one_bit_up(BASE["a"])},
        {"a": BASE["a"].flip(0)},
        {"a": BASE["a"].reshape(3, 2)},
        {"a": BASE["a"].double()},
        {"b": torch.ones(2, dtype=torch.float16)},
        {"b": torch.tensor([1.0, -1.0], dtype=torch.bfloat16)},
        {"c": torch.zeros(0)},
    ],
    ids=["a bit", "order", "shape", "precision", "type", "sign", "one more"],
)
def test_every_change_shows(change: dict[str, Tensor]) -> None:
    assert named(**{**BASE, **change}) != named(**BASE)


def test_zeros_and_nothing() -> None:
    assert weights_digest([]) != named(a=torch.zeros(2))
    assert named(a=torch.zeros(2)) != named(a=torch.zeros(3))
    assert named(a=torch.tensor([0.0, -0.0])) != named(a=torch.zeros(2))


def test_large_tensors_are_summed_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    tensor = torch.randn(1000, generator=torch.Generator().manual_seed(0))
    whole = named(a=tensor)
    monkeypatch.setattr(weights, "_CHUNK", 7)
    assert named(a=tensor) == whole
    assert named(a=tensor.flip(0)) != whole


@pytest.mark.parametrize("dtype", [torch.int64, torch.float16, torch.uint8, torch.int8, torch.bool])
def test_all_types_are_read(dtype: torch.dtype) -> None:
    assert named(a=torch.tensor([0, 1]).to(dtype)) != named(a=torch.tensor([1, 0]).to(dtype))


def test_strides_do_not_matter() -> None:
    square = torch.arange(9.0).reshape(3, 3)
    assert named(a=square.t()) == named(a=square.t().contiguous())


def test_models_are_told_apart() -> None:
    one, two = tiny_backbone(), tiny_backbone()
    assert weights_digest(one.named_parameters()) == weights_digest(two.named_parameters())
    with torch.no_grad():
        next(two.parameters()).view(-1)[5] += 1e-3
    assert weights_digest(one.named_parameters()) != weights_digest(two.named_parameters())
