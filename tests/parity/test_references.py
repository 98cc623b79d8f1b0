"""Whole optimiser steps of both modules against plain PyTorch: single rows, transformers' forward, full logits."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from helpers.modules import BATCH, OPTIM, FixedGenerator, FixedReward, train, training_samples
from helpers.samples import tiny_backbone
from lit_vlaa.backbone import Backbone
from lit_vlaa.optim import build_optimizer
from lit_vlaa.types import Completion, Prompt, RewardRequest, SamplingParams

TEMPERATURE = 0.8
GROUP = 4
BETA = 0.1


def logprobs_of(model: Backbone, prompt: Prompt, response: Tensor, temperature: float, ban: bool) -> Tensor:
    """`[C]` by transformers' own forward pass over one unpadded row."""
    ids = torch.cat([prompt.input_ids, response])[None]
    images: dict[str, Any] = {}
    if prompt.pixel_values is not None:
        images = {"pixel_values": prompt.pixel_values, "image_grid_thw": prompt.image_grid_thw}
    kinds = (ids == model.processor.image_token_id).int()
    logits = model.model(input_ids=ids, attention_mask=torch.ones_like(ids), mm_token_type_ids=kinds, **images).logits[
        0, -len(response) - 1 : -1
    ]
    logits = logits / temperature
    if ban:
        logits[:, list(model.processor.banned_token_ids)] = -torch.inf
    return logits.log_softmax(-1).gather(-1, response[:, None]).squeeze(-1)


def reference_step(model: Backbone, optimizer: torch.optim.Optimizer, loss: Tensor, factor: float) -> float:
    optimizer.zero_grad()
    loss.backward()
    norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 0.5)
    for group in optimizer.param_groups:
        group["lr"] = group["initial_lr"] * factor
    optimizer.step()
    return float(norm)


def start() -> tuple[Backbone, torch.optim.Optimizer, list[Prompt]]:
    model = tiny_backbone()
    optimizer = build_optimizer(model.named_parameters(), OPTIM)
    for group in optimizer.param_groups:
        group["initial_lr"] = group["lr"]
    prompts = [model.processor.encode(item) for item in training_samples()[:BATCH]]
    return model, optimizer, prompts


def compare_weights(model: Backbone, outcome: dict[str, Any]) -> None:
    for name, parameter in model.named_parameters():
        ours = torch.tensor(outcome["weights"][name])
        value = parameter.detach().double()
        # Adam's first steps divide gradients by their own size, so rounding in tiny gradients shows at the scale of
        # the learning rate (1e-3) times the relative error (about 1e-4), summed over a matrix.
        torch.testing.assert_close(ours[1], value.norm().float(), atol=2e-4, rtol=1e-5, msg=f"{name} differs")


def test_sft_step_equals_plain_pytorch() -> None:
    outcome = train("sft", limit_batches=1)
    model, optimizer, prompts = start()
    responses = [model.processor.encode_response(s.record.response or "") for s in training_samples()[:BATCH]]
    nll = torch.cat([-logprobs_of(model, p, r, 1.0, ban=False) for p, r in zip(prompts, responses, strict=True)])
    norm = reference_step(model, optimizer, nll.mean(), factor=outcome["logged"][0]["optim/lr"] / OPTIM.lr)
    assert outcome["logged"][0]["train/loss"] == pytest.approx(nll.mean().item(), rel=1e-5)
    assert outcome["logged"][0]["train/grad_norm"] == pytest.approx(norm, rel=1e-4)
    compare_weights(model, outcome)


@pytest.mark.parametrize("old_logprobs", ["learner", "sampler"])
def test_grpo_steps_equal_plain_pytorch(old_logprobs: str) -> None:
    """Two optimiser steps from one rollout: the second has ratios off one, so the clip and the KL term take part."""
    outcome = train("grpo", limit_batches=1, old_logprobs=old_logprobs, loss={"clip_high": 0.3})
    model, optimizer, prompts = start()
    frozen = tiny_backbone()
    params = SamplingParams(max_new_tokens=32)
    groups = FixedGenerator().generate(model, prompts, group_size=GROUP, params=params, key=None)

    def old_of(prompt: Prompt, completion: Completion) -> Tensor:
        if old_logprobs == "sampler":
            return completion.logprobs
        with torch.no_grad():
            return logprobs_of(frozen, prompt, completion.token_ids, TEMPERATURE, ban=True)

    losses: list[Tensor] = []
    norms: list[float] = []
    kls: list[Tensor] = []
    for first in (0, 2):
        per_sequence, kl_tokens = [], []
        judged = 0
        for prompt, group in zip(prompts[first : first + 2], groups[first : first + 2], strict=True):
            results = FixedReward()(
                [RewardRequest(model.processor.decode(c.token_ids), "digit", prompt.record.truth) for c in group]
            )
            values = torch.tensor([r.value for r in results if r.judged])
            for completion, result in zip(group, results, strict=True):
                if not result.judged:
                    continue
                judged += 1
                flat = len(values) < 2 or bool((values == values[0]).all())
                advantage = 0.0 if flat else (result.value - values.mean()) / (values.std() + 1e-4)
                new = logprobs_of(model, prompt, completion.token_ids, TEMPERATURE, ban=True)
                with torch.no_grad():
                    reference = logprobs_of(frozen, prompt, completion.token_ids, TEMPERATURE, ban=True)
                ratio = (new - old_of(prompt, completion)).exp()
                surrogate = torch.min(ratio * advantage, ratio.clamp(0.8, 1.3) * advantage)
                kl = (reference - new).exp() - (reference - new) - 1
                kl_tokens.append(kl.detach())
                per_sequence.append((-surrogate + BETA * kl).mean())
        losses.append(torch.stack(per_sequence).sum() / judged)
        kls.append(torch.cat(kl_tokens))
        step = len(norms)
        # The schedule: 20% of two steps rounds to no full warm-up step; the module's own rates are what it logged.
        norms.append(reference_step(model, optimizer, losses[-1], factor=outcome["rates"][step] / OPTIM.lr))

    logged = outcome["logged"][0]
    assert outcome["steps"] == 2
    assert logged["policy/loss"] == pytest.approx(sum(float(x) for x in losses) / 2, rel=1e-3, abs=1e-5)
    assert logged["policy/kl"] == pytest.approx(torch.cat(kls).mean().item(), rel=1e-3)
    assert logged["policy/grad_norm"] == pytest.approx(sum(norms) / 2, rel=1e-3)
    assert math.isfinite(logged["policy/ratio"])
    compare_weights(model, outcome)
