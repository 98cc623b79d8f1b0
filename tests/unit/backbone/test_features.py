"""Image features: the frozen part of the tower runs once a rollout, and no number knows of it."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import Qwen2_5_VLForConditionalGeneration, Qwen2VLConfig, Qwen2VLForConditionalGeneration
from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import Qwen2_5_VisionPatchEmbed

from helpers.adapted import with_adapters
from helpers.launch import run_ranks
from helpers.modules import FixedReward, InMemoryData, fit, make_module, training_samples
from helpers.samples import mixed_prompts, tiny_backbone
from lit_vlaa.backbone.features import ImageEncoder, ImageFeatures, merge, tower_states
from lit_vlaa.packing import pack
from lit_vlaa.sequences import assemble
from lit_vlaa.types import ModelInputs, RewardRequest, RewardResult

GRIDS = torch.tensor([[1, 4, 6], [1, 10, 12], [1, 2, 2]])
"""Patches; 10 by 12 are several windows of 8 by 8, not all of them whole."""

RUN: dict[str, Any] = {"generator": None, "seed": 5, "num_iterations": 2, "max_tokens_per_micro_batch": 120}
"""Rollouts of the module's own, the old policy's pass, the reference's, and two updates of several micro-batches."""


class ByLength(FixedReward):
    """Gives what an untrained policy writes rewards of some variance."""

    def __call__(self, requests: list[RewardRequest]) -> list[RewardResult]:
        return [RewardResult(len(one.response) % 5 / 4, one.kind, one.truth, "ok") for one in requests]


def tiny_qwen2_vl() -> Qwen2VLForConditionalGeneration:
    text = {"vocab_size": 64, "hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 1}
    rope = {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [2, 3, 3]}
    vision = {"depth": 2, "embed_dim": 32, "hidden_size": 32, "num_heads": 2, "mlp_ratio": 2}
    torch.manual_seed(0)
    config = Qwen2VLConfig(text_config={**text, **heads, "rope_parameters": rope}, vision_config=vision)
    return Qwen2VLForConditionalGeneration(config)


def tiny_qwen2_5_vl() -> Qwen2_5_VLForConditionalGeneration:
    return tiny_backbone().model


def pixels() -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(int(GRIDS.prod(-1).sum()), 3 * 2 * 14 * 14, generator=generator)


@pytest.mark.parametrize("make", [tiny_qwen2_vl, tiny_qwen2_5_vl])
def test_tower_and_merger_apart_give_what_transformers_gives(make: Any) -> None:
    model = make()
    merger = model.model.visual.merger
    expected = model.model.get_image_features(pixels(), GRIDS, return_dict=True).pooler_output
    states = tower_states(model.model.visual, pixels(), GRIDS)
    assert [tuple(state.shape) for state in states] == [(6, 4, 32), (30, 4, 32), (1, 4, 32)]
    assert model.model.visual.merger is merger
    for ours, theirs in zip(merge(merger, states), expected, strict=True):
        # The merger sees the tokens in another order; a row of a product may be rounded by its place.
        torch.testing.assert_close(ours, theirs, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("make", [tiny_qwen2_vl, tiny_qwen2_5_vl])
def test_a_blank_image_reaches_all_that_trains(make: Any) -> None:
    model = make()
    model.requires_grad_(False)
    model.model.visual.merger.requires_grad_(True)
    for tower in (False, True):
        model.model.visual.blocks.requires_grad_(tower)
        model.zero_grad()
        encoder = ImageEncoder(model, cached=True)
        assert encoder.trained_unit is (model.model.visual if tower else model.model.visual.merger)
        encoder.blank(torch.device("cpu")).sum().backward()
        trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        assert all(parameter.grad is not None for parameter in trained)


@pytest.fixture
def encoded(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Patches of each call of any tower."""
    calls: list[int] = []
    plain = Qwen2_5_VisionPatchEmbed.forward

    def forward(self: Any, hidden_states: Tensor) -> Tensor:
        calls.append(hidden_states.shape[0])
        result: Tensor = plain(self, hidden_states)
        return result

    monkeypatch.setattr(Qwen2_5_VisionPatchEmbed, "forward", forward)
    return calls


def patches_of_all_rows() -> int:
    processor: Any = tiny_backbone().processor
    prompts = [processor.encode(item) for item in training_samples()]
    return sum(prompt.pixel_values.shape[0] for prompt in prompts if prompt.pixel_values is not None)


def run(kind: str, calls: list[int], *, cached: bool, lora: Any = None, **backbone: Any) -> tuple[Any, list[int]]:
    """What a run logs with the digests of its weights, and the patches that towers saw in it."""
    calls.clear()
    options = RUN if kind == "grpo" else {"max_tokens_per_micro_batch": 120}
    module = make_module(kind, **with_adapters(lora, {**options, "backbone": {**backbone, "cache_vision": cached}}))
    if kind == "grpo":
        module.reward = ByLength()  # type: ignore[assignment]
    outcome = fit(module, InMemoryData(kind))
    assert not module.backbone.images.features._kept  # nothing outlives its rollout
    return outcome, list(calls)


@pytest.mark.parametrize(
    ("freeze", "lora", "keeps"),
    [
        (("vision", "merger"), None, True),
        (("vision",), None, True),
        (("merger",), None, False),
        ((), {}, True),
        ((), {"parts": ["language", "merger"]}, True),
        ((), {"parts": ["vision"]}, False),
    ],
)
def test_a_rollout_is_the_same_bit_by_bit_and_encodes_each_image_once(
    freeze: tuple[str, ...], lora: Any, keeps: bool, encoded: list[int]
) -> None:
    expected, all_of_them = run("grpo", encoded, cached=False, freeze=freeze, lora=lora)
    outcome, ours = run("grpo", encoded, cached=True, freeze=freeze, lora=lora)
    assert outcome == expected
    assert expected["logged"][-1]["policy/kl"] > 0
    if keeps:
        assert sum(ours) == patches_of_all_rows()
        # Prefill, old policy, reference and two updates; more where a prompt's rows fall into several micro-batches.
        assert sum(all_of_them) >= 5 * sum(ours)
    else:
        assert ours == all_of_them


@pytest.mark.parametrize(
    ("kind", "freeze", "cached", "reasons"),
    [
        ("grpo", (), True, ["nothing of images is kept from pass to pass, as the vision tower trains"]),
        (
            "grpo",
            ("vision",),
            True,
            ["the vision tower runs once for a rollout's images, the merger at every pass, as it trains"],
        ),
        ("grpo", ("vision", "merger"), True, []),
        ("grpo", (), False, []),
        ("sft", (), True, []),  # It sees an image once and is not meant to keep anything.
    ],
)
def test_what_is_not_kept_is_logged_once_with_its_reason(
    kind: str,
    freeze: tuple[str, ...],
    cached: bool,
    reasons: list[str],
    encoded: list[int],
    caplog: pytest.LogCaptureFixture,
) -> None:
    with caplog.at_level(logging.INFO, logger="lit_vlaa"):
        run(kind, encoded, cached=cached, freeze=freeze)
    said = [record.getMessage() for record in caplog.records if "cache_vision" in record.getMessage()]
    assert said == [f"--model.backbone.cache_vision: {reason}" for reason in reasons]


@pytest.mark.parametrize("freeze", [(), ("vision",), ("vision", "merger")])
@pytest.mark.parametrize("share", [True, False])
def test_a_pass_takes_all_its_images_through_the_tower_at_once(
    freeze: tuple[str, ...], share: bool, encoded: list[int]
) -> None:
    backbone = tiny_backbone(freeze=freeze)
    prompts = mixed_prompts(backbone)
    rows = [(prompt, torch.tensor([7, 8])) for prompt in prompts for _ in range(2)]
    backbone(pack(rows, share_prompts=share)).logprobs.sum().backward()
    patches = [prompt.pixel_values.shape[0] for prompt in prompts if prompt.pixel_values is not None]
    assert len(patches) == 3
    assert encoded == [sum(patches)]


@pytest.mark.parametrize("freeze", [("vision",), ("vision", "merger")])
def test_sft_keeps_nothing(freeze: tuple[str, ...], encoded: list[int]) -> None:
    assert run("sft", encoded, cached=True, freeze=freeze) == run("sft", encoded, cached=False, freeze=freeze)


@pytest.mark.parametrize("freeze", [("vision",), ("vision", "merger")])
def test_gradients_are_those_of_a_pass_that_computes_everything(freeze: tuple[str, ...]) -> None:
    gradients = []
    for cached in (False, True):
        backbone = tiny_backbone(freeze=freeze, cache_vision=cached)
        prompts = mixed_prompts(backbone)
        rows = [(prompt, torch.tensor([7, 8, 9])) for prompt in prompts for _ in range(2)]
        with backbone.images.features.remembering(prompts):
            with torch.no_grad():
                backbone(assemble(rows[3:], pad_token_id=0))
            assert bool(backbone.images.features._kept) == cached
            for part in (rows[:5], rows[5:]):
                backbone(assemble(part, pad_token_id=0)).logprobs.sum().backward()
        gradients.append({name: p.grad for name, p in backbone.named_parameters() if p.grad is not None})
    assert gradients[0].keys() == gradients[1].keys()
    assert any("merger" in name for name in gradients[0]) == ("merger" not in freeze)
    assert all(value.equal(gradients[1][name]) for name, value in gradients[0].items())


STRATEGIES = ("ddp", "fsdp2")
FROZEN = (("vision",), ("vision", "merger"))


@pytest.fixture(scope="module")
def ranks() -> list[dict[str, Any]]:
    """What two ranks end with, by strategy, frozen parts, and whether features are kept; in one pair of processes."""
    runs = {
        f"{strategy} {freeze} {on}": {
            "kind": "grpo",
            "strategy": strategy,
            "devices": 2,
            **RUN,
            "backbone": {"freeze": list(freeze), "cache_vision": on},
        }
        for strategy in STRATEGIES
        for freeze in FROZEN
        for on in (True, False)
    }
    return run_ranks("helpers.modules:train_all", runs=runs, timeout=280)


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("freeze", FROZEN)
def test_ranks_keep_features_bit_by_bit(strategy: str, freeze: tuple[str, ...], ranks: list[dict[str, Any]]) -> None:
    for rank in ranks:
        kept, computed = (rank[f"{strategy} {freeze} {on}"] for on in (True, False))
        assert kept == computed
        assert kept["steps"] > 0


def three_images() -> tuple[Any, ModelInputs]:
    backbone = tiny_backbone(freeze=("vision", "merger"))
    prompts = mixed_prompts(backbone)
    return prompts, assemble([(prompt, torch.tensor([5])) for prompt in prompts], pad_token_id=0)


def test_only_the_rollouts_own_prompts_are_kept_and_only_while_it_lasts() -> None:
    prompts, inputs = three_images()
    features = ImageFeatures()
    asked: list[list[int]] = []

    def compute(places: Sequence[int]) -> list[Tensor]:
        asked.append(list(places))
        return [torch.full((2, 3), float(place)) for place in places]

    assert len(inputs.image_keys) == 4  # one, two, and the large one
    features.of(inputs.image_keys, compute)
    with features.remembering([prompts[1]]):
        features.of(inputs.image_keys, compute)
        again = features.of(inputs.image_keys, compute)
    features.of(inputs.image_keys, compute)
    assert asked == [[0, 1, 2, 3], [0, 1, 2, 3], [0, 3], [0, 1, 2, 3]]
    assert [value[0, 0].item() for value in again] == [0, 1, 2, 3]


def test_memory_is_bounded(caplog: pytest.LogCaptureFixture) -> None:
    prompts, inputs = three_images()
    features = ImageFeatures(most_bytes=2 * 6 * 4)
    asked: list[list[int]] = []

    def compute(places: Sequence[int]) -> list[Tensor]:
        asked.append(list(places))
        return [torch.zeros(2, 3) for _ in places]

    with caplog.at_level(logging.WARNING, logger="lit_vlaa"), features.remembering(prompts):
        for _ in range(3):
            features.of(inputs.image_keys, compute)
    assert asked == [[0, 1, 2, 3], [2, 3], [2, 3]]
    assert caplog.text.count("computed at every pass") == 1
