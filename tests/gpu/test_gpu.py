"""What only a GPU can show: half precision, its own kernels, and training through the Trainer's GPU path.

Each test runs on the CPU too where that is possible, so that the code is exercised on machines without a GPU.
"""

from __future__ import annotations

import importlib.util
import math
from typing import Any

import pytest
import torch

from helpers.modules import InMemoryData, fit, make_module
from helpers.samples import mixed_prompts, mixed_samples, tiny_backbone
from lit_vlaa.backbone import Backbone
from lit_vlaa.generation import CachedGenerator, RolloutKey, TransformersGenerator
from lit_vlaa.sequences import assemble
from lit_vlaa.types import SamplingParams

DEVICES = pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
KINDS = pytest.mark.parametrize("kind", ["sft", "grpo"])
ACCELERATORS = {"cpu": "cpu", "cuda": "gpu"}
KEY = RolloutKey(seed=7, step=0)


def on(device: str, dtype: str, **options: Any) -> Backbone:
    return tiny_backbone(dtype=dtype, **options).to(device).eval()


def scores(backbone: Backbone) -> torch.Tensor:
    prompts = [prompt.to(backbone.device) for prompt in mixed_prompts(backbone)]
    responses = [backbone.processor.encode_response(item.record.response or "") for item in mixed_samples()]
    rows = list(zip(prompts, responses, strict=True))
    inputs = assemble(rows, pad_token_id=backbone.processor.pad_token_id, device=backbone.device)
    with torch.no_grad():
        logprobs: torch.Tensor = backbone(inputs).logprobs
    return logprobs.float().cpu()


@DEVICES
def test_engine_agrees_with_transformers_generate_in_bfloat16(device: str) -> None:
    """Completions part where rounding turns a draw; up to there the log-probabilities agree to bfloat16's precision."""
    backbone = on(device, "bfloat16")
    prompts = [prompt.to(device) for prompt in mixed_prompts(backbone)]
    params = SamplingParams(max_new_tokens=16, temperature=1.0)
    ours, theirs = (
        engine.generate(backbone, prompts, group_size=4, params=params, key=KEY)
        for engine in (CachedGenerator(), TransformersGenerator())
    )
    pairs = [pair for groups in zip(ours, theirs, strict=True) for pair in zip(*groups, strict=True)]
    shared = 0
    for mine, other in pairs:
        length = min(len(mine.token_ids), len(other.token_ids))
        same = (mine.token_ids[:length] == other.token_ids[:length]).long().cumprod(0).bool()
        shared += int(same.sum())
        torch.testing.assert_close(mine.logprobs[:length][same], other.logprobs[:length][same], atol=0.1, rtol=0)
    assert shared > 0.5 * sum(len(mine.token_ids) for mine, _ in pairs)


@DEVICES
def test_engine_logprobs_are_the_forward_passs_in_float32(device: str) -> None:
    backbone = on(device, "float32")
    prompts = [prompt.to(device) for prompt in mixed_prompts(backbone)]
    params = SamplingParams(max_new_tokens=40, temperature=0.8)
    groups = CachedGenerator().generate(backbone, prompts, group_size=4, params=params, key=KEY)
    rows = [(p, c.token_ids) for p, group in zip(prompts, groups, strict=True) for c in group]
    inputs = assemble(rows, pad_token_id=backbone.processor.pad_token_id, device=backbone.device)
    with torch.no_grad():
        expected = backbone(inputs, temperature=0.8, ban=True).logprobs.cpu()
    sampled = torch.cat([completion.logprobs for group in groups for completion in group])
    # On a GPU the patch embedding may run in TF32, which keeps ten bits, in both passes alike.
    torch.testing.assert_close(sampled, expected, atol=1e-3, rtol=0)


@DEVICES
@KINDS
@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_both_modules_train(kind: str, device: str, precision: str) -> None:
    """Two batches; the first step's numbers are those of the CPU in float32, up to the precision."""
    options: dict[str, Any] = {"optim": {"warmup_ratio": 0.0}}
    trainer: dict[str, Any] = {"accelerator": ACCELERATORS[device], "precision": precision, "limit_train_batches": 2}
    outcome = fit(make_module(kind, **options), InMemoryData(kind), **trainer)
    expected = fit(make_module(kind, **options), InMemoryData(kind), limit_train_batches=2)
    assert outcome["steps"] == expected["steps"] >= 2
    for values in outcome["logged"]:
        assert all(math.isfinite(value) for value in values.values())
    name = {"sft": "train/loss", "grpo": "policy/entropy"}[kind]
    tolerance = 0.02 if precision == "bf16-mixed" else 1e-3
    assert outcome["logged"][0][name] == pytest.approx(expected["logged"][0][name], rel=tolerance)
    for weight, (_, norm) in expected["weights"].items():
        assert outcome["weights"][weight][1] == pytest.approx(norm, rel=0.05, abs=0.05), weight


@DEVICES
@pytest.mark.parametrize(("precision", "gap"), [("32-true", 1e-3), ("bf16-mixed", 0.1)])
def test_rollouts_train_with_the_cached_generator(device: str, precision: str, gap: float) -> None:
    module = make_module("grpo", generator=None, seed=1, sampling={"max_new_tokens": 24}, train_batch_size=4)
    trainer: dict[str, Any] = {"accelerator": ACCELERATORS[device], "precision": precision, "limit_train_batches": 2}
    outcome = fit(module, InMemoryData("grpo"), **trainer)
    assert outcome["steps"] == 2
    for values in outcome["logged"]:
        assert all(math.isfinite(value) for value in values.values())
        assert values["policy/sampler_gap"] < gap
        assert values["policy/ratio"] == 1.0


@pytest.mark.gpu
@pytest.mark.skipif(importlib.util.find_spec("flash_attn") is None, reason="flash-attn is not installed")
def test_flash_attention_agrees_with_sdpa() -> None:
    flash, sdpa = (on("cuda", "bfloat16", attention=name) for name in ("flash_attention_2", "sdpa"))
    difference = (scores(flash) - scores(sdpa)).abs()
    assert float(difference.mean()) < 0.02
    assert float(difference.max()) < 0.2


@pytest.mark.gpu
def test_scores_are_the_cpus_in_float32() -> None:
    # The patch embedding may run in TF32, which keeps ten bits.
    torch.testing.assert_close(scores(on("cuda", "float32")), scores(on("cpu", "float32")), atol=2e-2, rtol=0)
