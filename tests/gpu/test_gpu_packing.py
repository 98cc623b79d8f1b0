"""Packed rows on a GPU: its variable-length kernel against segment by segment, and against padded rows."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from helpers.samples import tiny_backbone
from lit_vlaa.backbone import Backbone
from lit_vlaa.backbone.attention import by_segment, by_varlen, varlen_runs
from lit_vlaa.packing import pack
from lit_vlaa.segments import Segments
from lit_vlaa.sequences import assemble
from lit_vlaa.types import Prompt
from unit.test_packing import GROUPS, rows_of

pytestmark = pytest.mark.gpu

SEGMENTS = Segments((200, 70, 1, 129, 64), (-1, 0, 0, 0, -1))


def with_gradients(function: Any, dtype: torch.dtype) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    tokens = sum(SEGMENTS.lengths)
    inputs = [
        torch.randn(1, heads, tokens, 64, generator=generator).to("cuda", dtype).requires_grad_() for heads in (8, 2, 2)
    ]
    mixed = function(*inputs, SEGMENTS, scaling=0.125)
    weights = torch.randn(mixed.shape, generator=generator).to("cuda", dtype)
    return [t.float() for t in (mixed, *torch.autograd.grad((mixed * weights).sum(), inputs))]


def test_the_varlen_kernel_computes_what_sdpa_does() -> None:
    assert varlen_runs(torch.device("cuda", 0), torch.bfloat16, 64, 0.0)
    exact = with_gradients(by_segment, torch.float32)
    ours, theirs = (with_gradients(kernel, torch.bfloat16) for kernel in (by_varlen, by_segment))
    for mine, other, expected in zip(ours, theirs, exact, strict=True):
        # Neither is further from float32 than bfloat16 makes the other.
        assert (mine - expected).norm() < 1.5 * (other - expected).norm()


def scored(backbone: Backbone, inputs: Any) -> tuple[torch.Tensor, torch.Tensor]:
    backbone.zero_grad()
    logprobs = backbone(inputs, temperature=0.8, ban=True).logprobs
    logprobs.sum().backward()
    return logprobs.detach(), torch.cat([p.grad.flatten().float() for p in backbone.parameters() if p.grad is not None])


@pytest.mark.parametrize(("dtype", "similarity"), [("float32", 0.99999), ("bfloat16", 0.99)])
def test_shared_rows_score_and_learn_as_padded_ones(dtype: str, similarity: float) -> None:
    backbone = tiny_backbone(dtype=dtype).to("cuda")
    there: dict[int, Prompt] = {}
    rows = [
        (there.setdefault(id(prompt), prompt.to("cuda")), own)
        for prompt, own in rows_of(backbone, GROUPS["everything"])
    ]
    logprobs, gradient = scored(backbone, pack(rows, share_prompts=True, device="cuda"))
    expected, expected_gradient = scored(backbone, assemble(rows, pad_token_id=0, device="cuda"))
    torch.testing.assert_close(logprobs, expected, atol=2e-3 if dtype == "float32" else 0.15, rtol=0)
    assert torch.cosine_similarity(gradient, expected_gradient, dim=0) > similarity
