"""What evaluation asks of a module: sampling of its own, many calls in one rollout mode, settings known again."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from helpers.modules import make_module, training_samples
from lit_vlaa.backbone import BackboneConfig
from lit_vlaa.backbone.processor import load_processor
from lit_vlaa.generation import CachedGenerator, TransformersGenerator
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


class Conversions(TorchDispatchMode):
    """Counts how often some tensors are converted."""

    def __init__(self, tensors: Iterable[torch.Tensor]) -> None:
        super().__init__()
        self.places = {tensor.data_ptr() for tensor in tensors}
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += func is torch.ops.aten._to_copy.default and args[0].data_ptr() in self.places
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("engine", [CachedGenerator, TransformersGenerator])
def test_mixed_precision_converts_weights_once_a_rollout(engine: Any, module: PolicyModule) -> None:
    module.engine = engine()

    def converted(new_tokens: int) -> int:
        params = SamplingParams(max_new_tokens=new_tokens, temperature=1.0)
        # As Lightning's precision plugin sets it about a training step.
        with torch.autocast("cpu", dtype=torch.bfloat16, cache_enabled=False), Conversions(weights) as conversions:
            groups = module.complete(prompts(module), group_size=1, step=0, params=params)
        assert max(map(len, tokens(groups))) == new_tokens
        return conversions.count

    weights = list(module.backbone.parameters())
    assert 0 < converted(12) == converted(3) <= len(weights)


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
