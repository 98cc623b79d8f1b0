"""Batches on their way between processes, and settings out of range."""

from __future__ import annotations

import multiprocessing
import pickle
from typing import Any

import pytest
import torch
from torch import Tensor

from helpers.samples import mixed_prompts, mixed_samples, tiny_backbone
from lit_vlaa.types import Prompt, PromptBatch, SamplingParams, SFTBatch


def same(one: Any, other: Any) -> bool:
    if isinstance(one, Tensor):
        return isinstance(other, Tensor) and one.dtype == other.dtype and one.equal(other)
    return bool(one == other)


def assert_same_prompts(ours: tuple[Prompt, ...], theirs: tuple[Prompt, ...]) -> None:
    assert len(ours) == len(theirs)
    for one, other in zip(ours, theirs, strict=True):
        for field in Prompt.__dataclass_fields__:
            assert same(getattr(one, field), getattr(other, field)), field


def test_batches_survive_packing() -> None:
    backbone = tiny_backbone()
    prompts = tuple(mixed_prompts(backbone))
    responses = tuple(backbone.processor.encode_response(item.record.response or "") for item in mixed_samples())
    batch = pickle.loads(pickle.dumps(SFTBatch(prompts, responses)))  # noqa: S301  # our own bytes
    assert_same_prompts(prompts, batch.prompts)
    assert all(map(same, responses, batch.responses))
    assert_same_prompts(prompts, pickle.loads(pickle.dumps(PromptBatch(prompts))).prompts)  # noqa: S301
    text_only = PromptBatch((prompts[2],))
    assert_same_prompts(text_only.prompts, pickle.loads(pickle.dumps(text_only)).prompts)  # noqa: S301


def test_a_batch_takes_one_shared_tensor_between_processes() -> None:
    """Each shared tensor costs a file descriptor, and a rollout has hundreds of prompts."""
    prompts = tuple(mixed_prompts(tiny_backbone()))
    shared: list[Tensor] = []

    class Counting(multiprocessing.reduction.ForkingPickler):
        def reducer_override(self, obj: Any) -> Any:
            if isinstance(obj, Tensor):
                shared.append(obj)
                return (torch.empty, (0,))
            return NotImplemented

    import io  # noqa: PLC0415

    Counting(io.BytesIO(), pickle.HIGHEST_PROTOCOL).dump(PromptBatch(prompts * 50))
    assert len(shared) == 1


@pytest.mark.parametrize(
    "options", [{"max_new_tokens": 0}, {"temperature": -1.0}, {"top_p": 0.0}, {"top_p": 1.5}, {"top_k": -1}]
)
def test_sampling_out_of_range_is_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(options))):
        SamplingParams(**{"max_new_tokens": 1, **options})
