"""What answers depend on beside weights and prompts."""

from __future__ import annotations

import json

import pytest

from callbacks.evaluation.computation import computation
from helpers.samples import tiny_backbone
from lit_vlaa.backbone.config import LoRAConfig
from lit_vlaa.generation import CachedGenerator, TransformersGenerator

ENGINE = CachedGenerator(max_rows=8)


def described(engine: object = ENGINE, **options: object) -> str:
    return json.dumps(computation(tiny_backbone(**options), engine), sort_keys=True)


def test_the_same_model_and_engine_are_known_again() -> None:
    assert described() == described(CachedGenerator(max_rows=8))
    assert described() == described(attention="sdpa"), "what `auto` comes to on the CPU"


@pytest.mark.parametrize("engine", [CachedGenerator(max_rows=9), TransformersGenerator()])
def test_the_engine_counts(engine: object) -> None:
    assert described(engine) != described()


def test_the_attention_implementation_counts() -> None:
    assert described(attention="eager") != described()


def test_the_scaling_of_adapters_counts() -> None:
    adapted = [described(lora=LoRAConfig(rank=4, alpha=alpha)) for alpha in (8.0, 8.0, 16.0)]
    assert adapted[0] == adapted[1] != adapted[2]
    # alpha / rank
    factors = computation(tiny_backbone(lora=LoRAConfig(rank=4, alpha=8.0)), ENGINE)["scaling"]
    assert {factor for layer in factors.values() for factor in layer.values()} == {2.0}


def test_an_engine_of_ones_own_counts_by_its_plain_public_settings() -> None:
    class Engine:
        def __init__(self, depth: int, hidden: int, held: object) -> None:
            self.depth, self._hidden, self.held = depth, hidden, held

    first = described(Engine(1, 2, object()))
    assert described(Engine(1, 3, object())) == first
    assert described(Engine(2, 2, object())) != first
    assert described(object()) != first
