"""Adapters: what they compute, what they train, and how they leave."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import bitsandbytes as bnb
import pytest
import torch
from torch import Tensor
from transformers import AutoModelForImageTextToText

from helpers.samples import mixed_prompts, mixed_samples, tiny_backbone
from lit_vlaa.backbone import Backbone, BackboneConfig, build_backbone
from lit_vlaa.backbone.adapters import is_adapter, merged_weights
from lit_vlaa.backbone.config import LoRAConfig
from lit_vlaa.generation import CachedGenerator, RolloutKey, TransformersGenerator
from lit_vlaa.sequences import assemble
from lit_vlaa.types import ModelInputs, SamplingParams

NF4: dict[str, Any] = {"quantize": "nf4"}


def adapted(lora: dict[str, Any] | None = None, *, trained: bool = True, **options: Any) -> Backbone:
    """A backbone with adapters; `trained` ones no longer start from zero."""
    backbone = tiny_backbone(lora=LoRAConfig(**{"rank": 4, "alpha": 8.0, **(lora or {})}), **options)
    if trained:
        generator = torch.Generator().manual_seed(5)
        for name, parameter in backbone.named_parameters():
            if ".lora_B." in name:
                parameter.data = torch.randn(parameter.shape, generator=generator) * 0.05
    return backbone


def inputs_of(backbone: Backbone) -> ModelInputs:
    responses = [backbone.processor.encode_response(item.record.response or "") for item in mixed_samples()]
    return assemble(list(zip(mixed_prompts(backbone), responses, strict=True)), pad_token_id=0)


@torch.no_grad()
def scores(backbone: Backbone) -> Tensor:
    return backbone.eval()(inputs_of(backbone)).logprobs


def layer(backbone: Backbone) -> Any:
    return backbone.model.get_submodule("model.language_model.layers.1.mlp.down_proj")


def test_a_layer_adds_alpha_over_rank_times_b_a_x() -> None:
    down_proj = layer(adapted({"rank": 4, "alpha": 6.0}))
    x = torch.randn(3, 256, generator=torch.Generator().manual_seed(0))
    weight, down, up = (
        down_proj.base_layer.weight,
        down_proj.lora_A["default"].weight,
        down_proj.lora_B["default"].weight,
    )
    assert (weight.shape, down.shape, up.shape) == ((128, 256), (4, 256), (128, 4))
    expected = x @ weight.T + 1.5 * (x @ down.T) @ up.T  # 6 / 4
    torch.testing.assert_close(down_proj(x), expected, atol=1e-5, rtol=1e-5)


def test_new_adapters_change_nothing_and_are_the_same_every_time() -> None:
    torch.manual_seed(1)
    one = adapted(trained=False)
    torch.manual_seed(2)
    other = adapted(trained=False)
    assert all(a.equal(b) for a, b in zip(one.parameters(), other.parameters(), strict=True))
    assert scores(one).equal(scores(tiny_backbone()))


def trained_names(backbone: Backbone) -> set[str]:
    return {name.partition(".lora_")[0] for name, p in backbone.named_parameters() if p.requires_grad}


def test_adapters_alone_train_on_every_linear_layer_of_the_language_model() -> None:
    backbone = adapted()
    names = [name for name, p in backbone.named_parameters() if p.requires_grad]
    assert names
    assert all(map(is_adapter, names))
    # 2 layers with q, k, v, o, gate, up and down.
    assert len(trained_names(backbone)) == 14
    assert all(".language_model.layers." in name for name in names)


def test_parts_and_targets_choose_the_layers() -> None:
    assert {name.rpartition(".")[2] for name in trained_names(adapted({"targets": ("q_proj", "v_proj")}))} == {
        "q_proj",
        "v_proj",
    }
    # The tower has 2 blocks of qkv, proj, gate, up and down; the merger has two layers.
    assert len(trained_names(adapted({"parts": ("vision", "merger")}))) == 12
    assert len(trained_names(adapted({"parts": ("merger",)}))) == 2


@pytest.mark.parametrize("options", [{"rank": 2}, {"alpha": 2.0}, {"targets": ("q_proj",)}, {"parts": ("vision",)}])
def test_every_option_changes_the_numbers(options: dict[str, Any]) -> None:
    assert not scores(adapted(options)).equal(scores(adapted()))


def test_dropout_acts_in_training_alone() -> None:
    backbone = adapted({"dropout": 0.5})
    inputs = inputs_of(backbone)
    with torch.no_grad():
        one, other = (backbone.train()(inputs).logprobs for _ in range(2))
    assert not one.equal(other)
    assert scores(backbone).equal(scores(adapted()))


@pytest.mark.parametrize("quantize", [None, "nf4"])
def test_gradient_checkpointing_changes_nothing(quantize: str | None) -> None:
    gradients = []
    variants: tuple[dict[str, Any], ...] = ({}, {"gradient_checkpointing": True, "logprob_chunk": 7})
    for options in variants:
        backbone = adapted(quantize=quantize, **options)
        backbone(inputs_of(backbone)).logprobs.sum().backward()
        gradients.append({name: p.grad for name, p in backbone.named_parameters() if p.requires_grad})
    for name, gradient in gradients[0].items():
        assert gradient is not None
        assert gradient.any()
        torch.testing.assert_close(gradient, gradients[1][name], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("engine", [CachedGenerator, TransformersGenerator])
def test_rollouts_see_the_adapters(engine: type[CachedGenerator | TransformersGenerator]) -> None:
    backbone = adapted().eval()
    params, key = SamplingParams(max_new_tokens=8), RolloutKey(seed=1, step=0)
    prompts = mixed_prompts(backbone)
    groups = engine().generate(backbone, prompts, group_size=2, params=params, key=key)
    rows = [(p, c.token_ids) for p, group in zip(prompts, groups, strict=True) for c in group]
    sampled = torch.cat([c.logprobs for group in groups for c in group])
    with torch.no_grad():
        inputs = assemble(rows, pad_token_id=0)
        scored = backbone(inputs, temperature=params.temperature, ban=True).logprobs
        with backbone.without_adapters():
            without = backbone(inputs, temperature=params.temperature, ban=True).logprobs
    torch.testing.assert_close(sampled, scored, atol=1e-4, rtol=0)
    assert float((sampled - without).abs().max()) > 0.1


@pytest.mark.parametrize("quantize", [None, "nf4"])
def test_switched_off_and_on_again(quantize: str | None) -> None:
    backbone = adapted(quantize=quantize)
    with_adapters = scores(backbone)
    with backbone.without_adapters():
        assert scores(backbone).equal(scores(adapted(trained=False, quantize=quantize)))
    assert scores(backbone).equal(with_adapters)
    assert {p.requires_grad for n, p in backbone.named_parameters() if is_adapter(n)} == {True}


@pytest.mark.parametrize("options", [{}, NF4])
def test_a_saved_model_has_the_adapters_in_its_weights(options: dict[str, Any], tmp_path: Path) -> None:
    backbone = adapted(**options).eval()
    backbone.save_pretrained(tmp_path)
    loaded = AutoModelForImageTextToText.from_pretrained(tmp_path).eval()
    ids = torch.arange(20, 60)[None]
    with torch.no_grad():
        ours, theirs = backbone.model(input_ids=ids).logits, loaded(input_ids=ids).logits
        with backbone.without_adapters():
            without = backbone.model(input_ids=ids).logits
    # One product of two summed matrices against a sum of two products, in float32.
    torch.testing.assert_close(theirs, ours, atol=2e-5, rtol=1e-4)
    assert float((ours - without).abs().max()) > 0.1
    again = build_backbone(BackboneConfig(path=str(tmp_path), max_pixels=84 * 84))
    torch.testing.assert_close(scores(again), scores(backbone), atol=2e-5, rtol=0)


def test_merged_names_are_those_of_a_plain_model() -> None:
    plain = dict(tiny_backbone().model.named_parameters(remove_duplicate=False))
    for options in ({}, NF4):
        merged = merged_weights(adapted(**options).model)
        assert {name: (v.shape, v.dtype) for name, v in merged.items()} == {
            name: (p.shape, p.dtype) for name, p in plain.items()
        }


def test_four_bits_take_an_eighth_and_a_little() -> None:
    weight = layer(adapted(**NF4)).base_layer.weight
    # 128 x 256 weights: half a byte each, a byte for each 64 of them.
    assert weight.data.numel() * weight.data.element_size() == 128 * 256 // 2
    assert weight.quant_state.absmax.numel() * weight.quant_state.absmax.element_size() == 128 * 256 // 64


def test_four_bits_are_bitsandbytes_own() -> None:
    original = tiny_backbone().model.get_parameter("model.language_model.layers.1.mlp.down_proj.weight").detach()
    down_proj = layer(adapted(**NF4, trained=False))
    four_bits, state = bnb.functional.quantize_4bit(original, quant_type="nf4", compress_statistics=True)
    dequantised = bnb.functional.dequantize_4bit(four_bits, state)
    # Nested scales of blocks; nf4's largest gap between levels is 0.3 of a block's largest number, half of it is the
    # most that rounding can cost.
    assert float((dequantised - original).abs().max()) < 0.16 * float(original.abs().max())
    x = torch.randn(3, 256, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(down_proj(x), x @ dequantised.T, atol=1e-5, rtol=1e-5)
    assert not scores(adapted(**NF4, trained=False)).equal(scores(adapted(trained=False)))


def test_the_head_the_tower_and_the_embeddings_keep_their_precision() -> None:
    kinds = {n: p.dtype for n, p in adapted(**NF4).named_parameters() if "layers" not in n}
    assert set(kinds.values()) == {torch.float32}


@pytest.mark.parametrize("options", [{}, NF4])
def test_adapters_stay_in_float32(options: dict[str, Any]) -> None:
    backbone = adapted(dtype="bfloat16", **options)
    assert {p.dtype for n, p in backbone.named_parameters() if is_adapter(n)} == {torch.float32}
    assert {p.dtype for n, p in backbone.named_parameters() if "norm" in n} == {torch.bfloat16}
    # bfloat16 keeps 8 bits; a weight that it rounds may fall on the next of the 16 levels of nf4.
    assert float((scores(backbone) - scores(adapted(**options))).abs().mean()) < 0.05


@pytest.mark.parametrize(
    ("options", "flag"),
    [
        ({"rank": -1}, r"lora\.rank must be 0"),
        ({"rank": 0}, r"lora\.alpha does nothing without --model\.backbone\.lora\.rank"),
        ({"alpha": 0.0}, r"lora\.alpha must be positive"),
        ({"dropout": 1.0}, r"lora\.dropout must be in"),
        ({"parts": ()}, r"lora\.parts must be one or more"),
        ({"targets": ("q_porj",)}, r"lora\.targets q_porj: no such linear layer in language; there are .*q_proj"),
    ],
)
def test_settings_that_cannot_be(options: dict[str, Any], flag: str) -> None:
    with pytest.raises(ValueError, match=rf"--model\.backbone\.{flag}"):
        adapted(options)


def test_settings_that_do_not_go_together() -> None:
    with pytest.raises(ValueError, match=r"freeze and --model\.backbone\.lora\.parts both name vision"):
        BackboneConfig(freeze=("vision",), lora=LoRAConfig(rank=2, parts=("vision", "language")))
    with pytest.raises(ValueError, match=r"quantize nf4: .* --model\.backbone\.lora\.rank 16"):
        BackboneConfig(quantize="nf4")


@pytest.mark.parametrize(("missing", "flag"), [("peft", "lora"), ("bitsandbytes", "quantize")])
def test_missing_libraries_are_named(missing: str, flag: str, monkeypatch: pytest.MonkeyPatch) -> None:
    original = importlib.import_module

    def without(name: str, package: str | None = None) -> Any:
        if name == missing:
            raise ModuleNotFoundError(name)
        return original(name, package)

    monkeypatch.setattr(importlib, "import_module", without)
    with pytest.raises(ModuleNotFoundError, match=rf"backbone\.{flag} needs {missing}: run `pip install {missing}`"):
        adapted(**NF4)
