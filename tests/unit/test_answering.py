"""What evaluation asks of a module: sampling of its own, many calls in one rollout mode, settings known again."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch

from helpers.modules import make_module, training_samples
from lit_vlaa.backbone import BackboneConfig
from lit_vlaa.backbone.processor import load_processor
from lit_vlaa.generation import CachedGenerator
from lit_vlaa.policy import PolicyModule
from lit_vlaa.types import Prompt, SamplingParams

GREEDY = SamplingParams(max_new_tokens=5, temperature=0.0)


@pytest.fixture
def module() -> PolicyModule:
    made = make_module(
        "grpo", generator=CachedGenerator(), seed=1, kl={"coefficient": 0.0}, sampling={"max_new_tokens": 9}
    )
    made.configure_model()
    return made


def prompts(module: PolicyModule) -> list[Prompt]:
    return [module.processor.encode(item) for item in training_samples()[:3]]


def tokens(groups: list[list[Any]]) -> list[list[int]]:
    return [group[0].token_ids.tolist() for group in groups]


def test_sampling_of_ones_own(module: PolicyModule) -> None:
    greedy = tokens(module.complete(prompts(module), group_size=1, step=0, params=GREEDY))
    assert max(map(len, greedy)) == 5
    assert greedy == tokens(module.complete(prompts(module), group_size=1, step=8, params=GREEDY))
    longer = dataclasses.replace(GREEDY, max_new_tokens=7)
    assert max(map(len, tokens(module.complete(prompts(module), group_size=1, step=0, params=longer)))) == 7
    own = tokens(module.complete(prompts(module), group_size=1, step=0))
    assert max(map(len, own)) == 9
    assert [row[:5] for row in own] != greedy


def test_rollout_mode_within_itself(module: PolicyModule) -> None:
    expected = tokens(module.complete(prompts(module), group_size=1, step=0, params=GREEDY))
    module.backbone.train()
    with module.rollout_mode():
        for prompt, row in zip(prompts(module), expected, strict=True):
            assert tokens(module.complete([prompt], group_size=1, step=0, params=GREEDY)) == [row]
            assert not module.backbone.training
            assert not torch.is_grad_enabled()
    assert module.backbone.training
    assert torch.is_grad_enabled()
    with pytest.raises(RuntimeError, match="amid"), module.rollout_mode():
        raise RuntimeError("amid")
    assert module.backbone.training
    with module.rollout_mode():
        assert not module.backbone.training


@pytest.mark.parametrize("change", [{"max_pixels": 56 * 56}, {"min_pixels": 84 * 84}])
def test_settings_tell_pixel_limits_apart(change: dict[str, int]) -> None:
    def settings(**limits: int) -> str:
        return load_processor(dataclasses.replace(BackboneConfig(max_pixels=84 * 84), **limits)).settings  # type: ignore[arg-type]

    assert settings() == settings()
    assert settings(**change) != settings()


def test_settings_tell_templates_and_vocabularies_apart() -> None:
    processor = load_processor(BackboneConfig())
    before = processor.settings
    processor.tokenizer.chat_template += " "
    templated = processor.settings
    processor.tokenizer.add_tokens(["<new>"])
    assert len({before, templated, processor.settings}) == 3
