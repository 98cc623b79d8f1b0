"""Continuous batching: nothing but speed and memory depends on slots, refills, moves, widths and copies of weights."""

from __future__ import annotations

import gc
import logging
import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from helpers.adapted import LORA
from helpers.peak import PeakBytes
from helpers.samples import mixed_prompts, tiny_backbone
from lit_vlaa.backbone import Backbone
from lit_vlaa.backbone.config import LoRAConfig
from lit_vlaa.generation import CachedGenerator, RolloutKey, engine
from lit_vlaa.generation.decoder import Extent, decode_step, read_prompts
from lit_vlaa.generation.graphs import StepGraphs, rounded
from lit_vlaa.generation.weights import decoder_weights
from lit_vlaa.sequences import assemble
from lit_vlaa.types import Completion, SamplingParams

KEY = RolloutKey(seed=7, step=3)
PARAMS = SamplingParams(max_new_tokens=40, temperature=1.0)


class Ending(nn.Module):
    """A head with a taste for ending, so that completions end at lengths from one token to the limit."""

    def __init__(self, head: nn.Module, stops: tuple[int, ...]) -> None:
        super().__init__()
        self.head, self.stops = head, list(stops)

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.head(hidden)
        logits[:, self.stops] += 3.0
        return logits


@pytest.fixture(scope="module")
def backbone() -> Backbone:
    model = tiny_backbone()
    model.model.lm_head = Ending(model.lm_head, model.processor.stop_token_ids)
    return model.eval()


def run(backbone: Backbone, prompts: Any = None, *, params: SamplingParams = PARAMS, **options: Any) -> Any:
    prompts = prompts or mixed_prompts(backbone)
    return CachedGenerator(**options).generate(backbone, prompts, group_size=6, params=params, key=KEY)


def same(one: list[list[Completion]], other: list[list[Completion]], atol: float = 1e-4) -> None:
    """Equal tokens; log-probabilities up to rounding in other orders of summation, in float32."""
    for mine, theirs in zip(one, other, strict=True):
        for a, b in zip(mine, theirs, strict=True):
            assert a.token_ids.tolist() == b.token_ids.tolist()
            assert a.finish == b.finish
            torch.testing.assert_close(a.logprobs, b.logprobs, atol=atol, rtol=0)


@pytest.fixture(scope="module")
def expected(backbone: Backbone) -> list[list[Completion]]:
    groups: list[list[Completion]] = run(backbone)
    lengths = {completion.token_ids.numel() for group in groups for completion in group}
    assert len(lengths) > 5, "rows must end at different steps for the tests below to mean anything"
    return groups


@pytest.mark.parametrize("max_rows", [1, 4, 5, 13, 24])
def test_slots_change_nothing(max_rows: int, backbone: Backbone, expected: list[list[Completion]]) -> None:
    same(run(backbone, max_rows=max_rows), expected)


def test_memory_bounds_the_rows(
    backbone: Backbone, expected: list[list[Completion]], monkeypatch: pytest.MonkeyPatch
) -> None:
    rows: list[int] = []

    def counting(weights: Any, slots: Any, extent: Extent) -> None:
        rows.append(extent.rows)
        decode_step(weights, slots, extent)

    monkeypatch.setattr(engine, "decode_step", counting)
    longest = max(prompt.input_ids.numel() for prompt in mixed_prompts(backbone))
    # Two layers of keys and values of two heads of 32 numbers in float32; 5 rows and 3 prompts.
    memory = 2 * 2 * 2 * 32 * 4 * (5 * PARAMS.max_new_tokens + 3 * longest)
    same(run(backbone, memory_gb=memory / 2**30), expected)
    assert max(rows) == 5
    rows.clear()
    same(run(backbone, memory_gb=1.0), expected)
    assert max(rows) == 24


@pytest.mark.parametrize(("refill", "keep"), [(0.0, 1.0), (1.0, 0.0)])
def test_refills_and_moves_change_nothing(
    refill: float, keep: float, backbone: Backbone, expected: list[list[Completion]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine, "_REFILL_SHARE", refill)
    monkeypatch.setattr(engine, "_KEEP_SHARE", keep)
    same(run(backbone, max_rows=9), expected)


def test_prompts_read_one_by_one(
    backbone: Backbone, expected: list[list[Completion]], monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[int] = []

    def counting(weights: Any, slots: Any, embeds: torch.Tensor, **options: Any) -> None:
        read.append(embeds.shape[0])
        read_prompts(weights, slots, embeds, **options)

    monkeypatch.setattr(engine, "read_prompts", counting)
    same(run(backbone), expected)
    assert read == [4], "each prompt once for all its completions"
    read.clear()
    monkeypatch.setattr(engine, "PROMPT_TOKENS_AT_ONCE", 1)
    same(run(backbone, max_rows=5), expected)
    assert read == [1, 1, 1, 1]


class Eagerly(StepGraphs):
    """Stands for graphs where there is no GPU: the same rounded extents, one operation at a time."""

    def __init__(self) -> None:
        super().__init__()
        self.extents: set[Any] = set()

    def step(self, weights: Any, slots: Any, extent: Any) -> None:
        self.extents.add(extent)
        decode_step(weights, slots, extent)


@pytest.mark.parametrize("look_every", [1, 7])
def test_rounded_extents_and_rare_looks_change_nothing(
    look_every: int, backbone: Backbone, expected: list[list[Completion]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine, "_look_every", lambda _: look_every)
    generator = CachedGenerator(max_rows=11)
    generator._graphs = Eagerly()
    monkeypatch.setattr(generator, "_may_capture", lambda *_: True)
    same(generator.generate(backbone, mixed_prompts(backbone), group_size=6, params=PARAMS, key=KEY), expected)
    assert {extent.rows for extent in generator._graphs.extents} <= {1, 2, 4, 8, 11}
    assert {extent.members for extent in generator._graphs.extents} == {6}
    assert {extent.prompts for extent in generator._graphs.extents} <= {1, 2, 4}


def test_no_tensor_survives(backbone: Backbone) -> None:
    prompts = mixed_prompts(backbone)
    generator = CachedGenerator(max_rows=7)
    with PeakBytes() as memory:
        groups = generator.generate(backbone, prompts, group_size=6, params=PARAMS, key=KEY)
        gc.collect()
        # Token ids of 8 bytes and log-probabilities of 4, nothing else.
        assert memory.now == sum(12 * completion.token_ids.numel() for group in groups for completion in group)


def adapted(**options: Any) -> Backbone:
    """A backbone whose adapters do something."""
    model = tiny_backbone(lora=LoRAConfig(**LORA), **options)  # type: ignore[arg-type]
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if ".lora_B." in name:
                parameter.normal_(std=0.05, generator=generator)
    return model.eval()


@pytest.mark.parametrize(
    ("backbone_options", "options", "projections"),
    [
        ({}, {"merge_adapters": True}, 7),
        ({"quantize": "nf4"}, {"dequantize": True}, 0),
        ({"quantize": "nf4"}, {"merge_adapters": True}, 7),
    ],
)
def test_copies_of_weights_change_nothing_in_float32(
    backbone_options: dict[str, Any], options: dict[str, Any], projections: int
) -> None:
    model = adapted(**backbone_options)
    plain = decoder_weights(model.language_model, merge_adapters=False, dequantize=False)
    copied = decoder_weights(model.language_model, **{"merge_adapters": False, "dequantize": False, **options})
    assert plain.packed == bool(backbone_options)
    assert not copied.packed
    assert all(projection.down is not None for projection in plain.layers[0].projections())
    assert sum(projection.down is None for projection in copied.layers[0].projections()) == projections
    same(run(model, **options), run(model))
    with model.without_adapters():
        without = run(model)
    assert [c.token_ids.tolist() for c in without[0]] != [c.token_ids.tolist() for c in run(model)[0]]


def test_weights_are_not_copied_where_they_serve(backbone: Backbone) -> None:
    own = {parameter.data_ptr() for parameter in backbone.parameters()}
    weights = decoder_weights(backbone.language_model, merge_adapters=True, dequantize=True)
    assert {tensor.data_ptr() for tensor in weights.tensors()} <= own


@pytest.mark.parametrize("make", [tiny_backbone, adapted, lambda: adapted(quantize="nf4")])
@pytest.mark.parametrize("mixed", [False, True])
def test_half_precision_samples_from_what_training_computes(make: Callable[[], Backbone], mixed: bool) -> None:
    """Log-probabilities agree with a teacher-forced pass to bfloat16's precision, on average much closer."""
    model = make().eval()
    if not mixed:
        model = model.to(torch.bfloat16) if make is tiny_backbone else model
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=mixed):
        groups = run(model, params=SamplingParams(max_new_tokens=16, temperature=1.0), max_rows=10)
        rows = [(p, c.token_ids) for p, group in zip(mixed_prompts(model), groups, strict=True) for c in group]
        with torch.no_grad():
            scored = model(assemble(rows, pad_token_id=0), ban=True).logprobs
    difference = (torch.cat([c.logprobs for group in groups for c in group]) - scored).abs()
    assert float(difference.max()) < 0.1
    assert float(difference.mean()) < 0.015


def test_no_prompts(backbone: Backbone) -> None:
    assert CachedGenerator().generate(backbone, [], group_size=2, params=PARAMS, key=KEY) == []


@pytest.mark.parametrize(("option", "value"), [("max_rows", 0), ("memory_gb", 0.0), ("memory_gb", float("nan"))])
def test_limits_out_of_range_name_their_flag(option: str, value: float) -> None:
    with pytest.raises(ValueError, match=rf"--model\.generator\.{option} must be"):
        CachedGenerator(**{option: value})  # type: ignore[arg-type]


def test_weights_of_four_bits_are_no_part_of_a_graph(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    model = adapted(quantize="nf4")
    weights = decoder_weights(model.language_model, merge_adapters=False, dequantize=False)
    slots: Any = type("OnGPU", (), {"token": type("T", (), {"device": torch.device("cuda")})()})()
    generator = CachedGenerator()
    with caplog.at_level(logging.INFO):
        assert [generator._may_capture(weights, slots) for _ in range(2)] == [False, False]
    assert [record.message for record in caplog.records] == [
        "no CUDA graphs: weights of 4 bits are dequantised at every step; see dequantize"
    ]
    assert not CachedGenerator(cuda_graphs=False)._may_capture(weights, slots)


def test_extents_are_rounded_to_few() -> None:
    slots: Any = type("S", (), {"prompt_bias": torch.zeros(6, 300), "noise": torch.zeros(20, 200)})()
    assert rounded(Extent(9, 3, 2, 129, 1), slots, 4) == (16, 4, 4, 256, 128)
    assert rounded(Extent(17, 5, 2, 257, 130), slots, 4) == (20, 6, 4, 300, 200)


@pytest.mark.parametrize("max_rows", [256, 7])
def test_groups_are_announced_once_whole_and_while_others_go_on(
    max_rows: int, backbone: Backbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps: list[int] = []
    heard: dict[int, tuple[int, list[Completion]]] = {}
    own = threading.get_ident()

    def counted(*args: Any) -> None:
        steps.append(0)
        decode_step(*args)

    def on_group(index: int, completions: list[Completion]) -> None:
        assert index not in heard
        assert threading.get_ident() == own
        heard[index] = len(steps), completions

    monkeypatch.setattr(engine, "decode_step", counted)
    prompts = mixed_prompts(backbone)
    groups = CachedGenerator(max_rows=max_rows).generate(
        backbone, prompts, group_size=6, params=PARAMS, key=KEY, on_group=on_group
    )
    same([heard[index][1] for index in range(len(prompts))], groups, atol=0)
    # Each as soon as its longest completion ended, the first one well before the last.
    assert min(step for step, _ in heard.values()) < len(steps) - 1
    if max_rows == 256:
        longest = [max(completion.token_ids.numel() for completion in group) for group in groups]
        assert [heard[index][0] for index in range(len(prompts))] == [length - 1 for length in longest]
