"""The value head's model: weights that visit a device and stay what they are, blocks of page-locked memory."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from helpers.reward_models import (
    MAX_PIXELS,
    save_reward_model,
)
from helpers.samples import sample
from lit_vlaa.backbone import BackboneConfig
from lit_vlaa.backbone.offload import pack, pin
from lit_vlaa.backbone.value_head import ValueHeadModel, load_value_head_model, running
from lit_vlaa.sequences import assemble
from lit_vlaa.types import Prompt


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_reward_model(tmp_path_factory.mktemp("reward_model"))


@pytest.fixture
def model(folder: Path) -> ValueHeadModel:
    return load_value_head_model(BackboneConfig(path=str(folder), max_pixels=MAX_PIXELS))


def tensors(model: ValueHeadModel) -> Iterator[tuple[str, torch.Tensor]]:
    yield from model.named_parameters()
    yield from model.named_buffers()


def where(model: ValueHeadModel) -> dict[str, tuple[torch.device, int]]:
    return {name: (tensor.device, tensor.data_ptr()) for name, tensor in tensors(model)}


@pytest.mark.parametrize("failing", [False, True])
def test_offloaded_weights_come_back_as_they_were(model: ValueHeadModel, failing: bool) -> None:
    """On the meta device every tensor of the pass must be a copy there: one of the CPU's would make it raise."""
    before = where(model)
    values = {name: tensor.clone() for name, tensor in tensors(model)}
    with running(model, torch.device("meta"), offload=True) as run:
        if failing:
            # In the middle of the call: a number cannot be read from the meta device.
            with pytest.raises(NotImplementedError, match="meta"):
                run.scores([(encoded(model), torch.tensor([5]))], max_tokens=100)
        else:
            inputs = assemble([(encoded(model), torch.tensor([5]))], pad_token_id=0, device="meta")
            result = torch.func.functional_call(model, run._weights, (inputs,))
            assert result.device.type == "meta"
            assert result.shape == (1,)
        assert where(model) == before
    assert where(model) == before
    assert all(tensor.equal(values[name]) for name, tensor in tensors(model))


def encoded(model: ValueHeadModel) -> Prompt:
    return model.backbone.processor.encode(sample("none", "What is 1 + 1?"))


def test_offload_runs_with_copies_and_without_it_the_model_moves(model: ValueHeadModel) -> None:
    with running(model, torch.device("meta"), offload=True):
        pass
    assert {tensor.device.type for _, tensor in tensors(model)} == {"cpu"}
    with running(model, torch.device("meta"), offload=False):
        pass
    assert {tensor.device.type for _, tensor in tensors(model)} == {"meta"}


def test_the_weights_that_are_passed_are_the_ones_that_count(model: ValueHeadModel) -> None:
    with running(model, torch.device("cpu"), offload=True) as run:
        rows = [(encoded(model), torch.tensor([5, 6]))]
        (exact,) = run.scores(rows, max_tokens=100)
        run._weights = {name: tensor.clone() for name, tensor in run._weights.items()}
        assert run.scores(rows, max_tokens=100) == [exact]
        run._weights["bias"] += 1
        assert run.scores(rows, max_tokens=100) == pytest.approx([exact + 1])  # type: ignore[operator]


def test_pinning_keeps_the_values(model: ValueHeadModel, caplog: pytest.LogCaptureFixture) -> None:
    values = {name: tensor.clone() for name, tensor in tensors(model)}
    pin(model)
    assert all(tensor.equal(values[name]) for name, tensor in tensors(model))
    assert all(p.is_pinned() for p in model.parameters()) or "pageable" in caplog.text


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("most", [2**31, 2**19])
def test_packing_takes_few_blocks(model: ValueHeadModel, dtype: torch.dtype, most: int) -> None:
    model.backbone.to(dtype)
    values = {name: parameter.clone() for name, parameter in model.named_parameters()}
    blocks: list[torch.Tensor] = []

    def allocate(size: int) -> torch.Tensor:
        blocks.append(torch.zeros(size, dtype=torch.uint8))
        return blocks[-1]

    pack(model, allocate, most=most)
    total = sum(value.numel() * value.element_size() for value in values.values())
    assert len(blocks) <= math.ceil(2 * total / most)
    assert sum(block.numel() for block in blocks) < 2 * total + 2**16
    for name, parameter in model.named_parameters():
        assert parameter.equal(values[name])
        (block,) = (b for b in blocks if 0 <= parameter.data_ptr() - b.data_ptr() < b.numel())
        assert (parameter.data_ptr() - block.data_ptr()) % 512 == 0
        # The next one would no longer have its values if it lay in the same place.
        parameter.zero_()


def test_the_language_models_head_takes_no_room(model: ValueHeadModel) -> None:
    assert not [name for name, _ in tensors(model) if "lm_head" in name]
