"""CUDA graphs of the decoding step against the same steps one kernel at a time."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from helpers.samples import mixed_prompts, tiny_backbone
from lit_vlaa.backbone import Backbone
from lit_vlaa.generation import CachedGenerator, RolloutKey
from lit_vlaa.types import Completion, SamplingParams

pytestmark = pytest.mark.gpu

KEY = RolloutKey(seed=7, step=3)
PARAMS = SamplingParams(max_new_tokens=150, temperature=1.0)


def on_gpu(**options: Any) -> Backbone:
    return tiny_backbone(**options).to("cuda").eval()


def run(generator: CachedGenerator, backbone: Backbone, *, mixed: bool = False) -> list[list[Completion]]:
    prompts = [prompt.to("cuda") for prompt in mixed_prompts(backbone)]
    with torch.autocast("cuda", dtype=torch.bfloat16, enabled=mixed):
        return generator.generate(backbone, prompts, group_size=4, params=PARAMS, key=KEY)


def agree(one: list[list[Completion]], other: list[list[Completion]], *, atol: float) -> None:
    """Log-probabilities up to the token where rounding turns a draw, which most completions never meet."""
    pairs = [pair for groups in zip(one, other, strict=True) for pair in zip(*groups, strict=True)]
    shared = 0
    for mine, theirs in pairs:
        length = min(len(mine.token_ids), len(theirs.token_ids))
        same = (mine.token_ids[:length] == theirs.token_ids[:length]).long().cumprod(0).bool()
        shared += int(same.sum())
        torch.testing.assert_close(mine.logprobs[:length][same], theirs.logprobs[:length][same], atol=atol, rtol=0)
    assert shared > 0.5 * sum(len(mine.token_ids) for mine, _ in pairs)


@pytest.mark.parametrize(
    ("dtype", "mixed", "atol"), [("float32", False, 2e-3), ("bfloat16", False, 0.1), ("float32", True, 0.1)]
)
@pytest.mark.parametrize("max_rows", [16, 5])
def test_graphs_sample_what_single_kernels_do(dtype: str, mixed: bool, atol: float, max_rows: int) -> None:
    backbone = on_gpu(dtype=dtype)
    generator = CachedGenerator(max_rows=max_rows)
    captured = run(generator, backbone, mixed=mixed)
    assert generator._graphs._graphs
    assert not generator._graphs.failed
    agree(captured, run(CachedGenerator(max_rows=max_rows, cuda_graphs=False), backbone, mixed=mixed), atol=atol)


@pytest.mark.parametrize("mixed", [False, True])
def test_graphs_follow_the_weights(mixed: bool) -> None:
    """After a step of the optimiser in place, and after new storage: never the numbers of the old weights."""
    backbone = on_gpu()
    generator = CachedGenerator()
    run(generator, backbone, mixed=mixed)
    with torch.no_grad():
        for parameter in backbone.language_model.parameters():
            parameter.mul_(1.1)
    fresh = CachedGenerator(cuda_graphs=False)
    agree(run(generator, backbone, mixed=mixed), run(fresh, backbone, mixed=mixed), atol=0.1 if mixed else 2e-3)
    for parameter in backbone.language_model.parameters():
        parameter.data = parameter.data.clone() * 0.9
    agree(run(generator, backbone, mixed=mixed), run(fresh, backbone, mixed=mixed), atol=0.1 if mixed else 2e-3)


@pytest.mark.parametrize("graphs", [False, True])
def test_rollouts_leave_no_growing_memory_behind(graphs: bool) -> None:
    backbone = on_gpu()
    generator = CachedGenerator(cuda_graphs=graphs)
    seen = []
    for _ in range(4):
        run(generator, backbone)
        torch.cuda.synchronize()
        seen.append(torch.cuda.memory_allocated())
    assert seen[1] == seen[2] == seen[3]
