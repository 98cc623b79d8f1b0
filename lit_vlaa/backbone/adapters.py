"""Low-rank adapters through peft, beside whole weights (LoRA) or weights of 4 bits (QLoRA, by bitsandbytes).

The adapted layer computes W x + (alpha / rank) B A x (Hu et al., 2021, section 4.1). B starts at zero, so that a run
starts from exactly the weights that were loaded, and the policy without its adapters is the reference policy.
"""

from __future__ import annotations

import importlib
import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from lit_vlaa.backbone.config import BackboneConfig, LoRAConfig
from lit_vlaa.parts import Part, part_of

_ADAPTER = "default"
"""peft's name for the only adapter of a model."""

_IS_ADAPTER = ".lora_"
"""In the names of an adapter's parameters and in no other."""

_SEED = 0
"""Every rank must draw the same adapters, and so must a run that is resumed."""


def is_adapter(name: str) -> bool:
    """Whether a parameter's name is that of an adapter."""
    return _IS_ADAPTER in name


def linear_layers(model: nn.Module, parts: Sequence[Part]) -> list[str]:
    """Names of the linear layers in some parts of a Qwen2.5-VL or Qwen2-VL, without the head."""
    return [
        name
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and name != "lm_head" and part_of(name) in parts
    ]


def adapt(model: nn.Module, config: BackboneConfig) -> None:
    """Freezes a model, quantises its language model where `config` says so, and gives it adapters.

    Args:
        model: With the weights to start from, on the CPU (or on the meta device, without quantisation).
        config: With `lora`.

    Raises:
        ModuleNotFoundError: If peft or bitsandbytes is missing.
        ValueError: If a target is no linear layer of the chosen parts.
    """
    lora = config.adapters
    if lora is None:
        return
    targets = _targets(model, lora)
    if config.quantize is not None:
        for name in linear_layers(model, ("language",)):
            model.set_submodule(name, _in_four_bits(model.get_submodule(name)))
    peft = _library("peft", "--model.backbone.lora")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(_SEED)
        peft.inject_adapter_in_model(
            peft.LoraConfig(r=lora.rank, lora_alpha=lora.alpha, lora_dropout=lora.dropout, target_modules=targets),
            model,
            adapter_name=_ADAPTER,
        )
    for name, parameter in model.named_parameters():
        if is_adapter(name):
            parameter.data = parameter.data.float()


@contextmanager
def adapters_off(model: nn.Module) -> Iterator[None]:
    """Runs a model without its adapters, as the weights that they were put beside."""
    layers: list[Any] = [module for module in model.modules() if _adapted(module)]
    # peft's own switch also turns `requires_grad` off; FSDP2 takes that over for good when it gathers them first.
    for layer in layers:
        layer._disable_adapters = True
    try:
        yield
    finally:
        for layer in layers:
            layer._disable_adapters = False


def merged_weights(model: nn.Module) -> dict[str, Tensor]:
    """A model's parameters under their names without adapters, the adapters added to the weights.

    Args:
        model: Unsharded, adapted or not.
    """
    return dict(each_merged_weight(model))


def each_merged_weight(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """`merged_weights` one at a time: what is added up or dequantised exists for one parameter only.

    Args:
        model: Unsharded, adapted or not.
    """
    for name, parameter in model.named_parameters(remove_duplicate=False):
        if is_adapter(name):
            continue
        path, _, kind = name.rpartition(".")
        plain = path.removesuffix(".base_layer")
        layer: Any = model.get_submodule(plain)
        own: Any = model.get_submodule(path)
        value = parameter.detach()
        if kind == "weight" and _quantised(own):
            functional = _library("bitsandbytes", "--model.backbone.quantize").functional
            value = functional.dequantize_4bit(own.weight.data, own.weight.quant_state)
        if kind == "weight" and _adapted(layer):
            down, up = (getattr(layer, part)[_ADAPTER].weight.detach() for part in ("lora_A", "lora_B"))
            value = plus_adapter(value, down, up, layer.scaling[_ADAPTER])
        yield name.replace(".base_layer.", "."), value


def adapter_scales(model: nn.Module) -> Iterator[tuple[str, float]]:
    """Names of the adapted layers, and alpha / rank of each, which no parameter tells."""
    for name, module in model.named_modules():
        if _adapted(module):
            layer: Any = module
            yield name, layer.scaling[_ADAPTER]


def plus_adapter(weight: Tensor, down: Tensor, up: Tensor, scale: float) -> Tensor:
    """W + scale B A in the type of W, computed in float32.

    Args:
        weight: `[out, in]`, W.
        down: `[rank, in]`, A.
        up: `[out, rank]`, B.
        scale: alpha / rank.
    """
    return (weight.float() + scale * (up.float() @ down.float())).to(weight.dtype)


def through_four_bits(weight: Tensor) -> Tensor:
    """The numbers that are left of a matrix after quantisation to nf4, in its own type."""
    functional = _library("bitsandbytes", "--model.init_from").functional
    four_bits, state = functional.quantize_4bit(weight.contiguous(), quant_type="nf4", compress_statistics=True)
    result: Tensor = functional.dequantize_4bit(four_bits, state)
    return result


def _targets(model: nn.Module, lora: LoRAConfig) -> list[str]:
    layers = linear_layers(model, lora.parts)
    leaves = {name.rpartition(".")[2] for name in layers}
    if unknown := [target for target in lora.targets if target not in leaves]:
        raise ValueError(
            f"--model.backbone.lora.targets {unknown[0]}: no such linear layer in {', '.join(lora.parts)}; "
            f"there are {', '.join(sorted(leaves))}"
        )
    return [name for name in layers if not lora.targets or name.rpartition(".")[2] in lora.targets]


def _in_four_bits(layer: nn.Module) -> nn.Module:
    assert isinstance(layer, nn.Linear)  # noqa: S101  # `linear_layers` gives nothing else
    library = _library("bitsandbytes", "--model.backbone.quantize")
    half = layer.weight.dtype == torch.bfloat16
    result: Any = library.nn.Linear4bit(
        layer.in_features,
        layer.out_features,
        bias=layer.bias is not None,
        quant_type="nf4",
        compress_statistics=True,
        compute_dtype=torch.bfloat16 if half else None,
        device="meta",
    )
    result.weight = library.nn.Params4bit(
        layer.weight.detach(), requires_grad=False, quant_type="nf4", compress_statistics=True, module=result
    )
    result.bias = layer.bias
    # On the CPU a pass in evaluation mode would repack the weights, for a kernel that is in a library of its own.
    result.support_avx512bf16_for_cpu = False
    return result.to("cpu")  # type: ignore[no-any-return]  # quantises


def _adapted(module: nn.Module) -> bool:
    return hasattr(module, "lora_A") and hasattr(module, "base_layer")


def _quantised(module: nn.Module) -> bool:
    return getattr(getattr(module, "weight", None), "quant_state", None) is not None and not _adapted(module)


def _library(name: str, flag: str) -> Any:
    # It warns of a kernel for some CPUs that it could have loaded from the Hub.
    logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(f"{flag} needs {name}: run `pip install {name}`") from error
