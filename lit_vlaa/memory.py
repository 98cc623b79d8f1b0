"""How much memory a run takes on each GPU, part by part, from the shapes of its model.

Weights, gradients and optimiser states are exact. For a tensor of n numbers of b bytes, s of them on this rank (all, or
under `fsdp2` a share of the first dimension):

- weights s b; in nf4 s / 2, and for each 64 of all n numbers a byte, for each 16384 four bytes, 1092 for tables;
- gradients s b of what trains; `ddp` keeps its buckets, a second copy, from step to step; under `fsdp2` those of the
  micro-batches before the last wait whole, in mixed precision in float32;
- states 2 s b + 4; in 8 bits, for 4096 numbers or more, 2 s and for each 256 of them 8 bytes, for fewer 8 s.

Activations are estimates (`lit_vlaa.activations`). What CUDA and its libraries take (`OVERHEAD`), and fragmentation,
vary.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple

import torch
from transformers import AutoModelForImageTextToText, PretrainedConfig

from lit_vlaa import activations
from lit_vlaa.activations import Decoder, decoder, image_tokens, tower
from lit_vlaa.backbone.adapters import adapt, is_adapter, linear_layers
from lit_vlaa.backbone.config import BackboneConfig
from lit_vlaa.parts import part_of
from lit_vlaa.rollout_memory import Rollouts, rollout_bytes

Phase = Literal["always", "update", "rollout", "reference", "reward"]
"""Parts of `always` lie beside those of one of the other phases."""

PHASES: tuple[Phase, ...] = ("update", "rollout", "reference", "reward")

OVERHEAD = 10**9
"""Bytes for CUDA's context, workspaces of kernels and NCCL's buffers; from experience, not measured here."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RewardModel:
    """A scorer in the trainer's process: how many bytes of what."""

    weights: int
    pinned: int
    """In page-locked memory, between calls with `offload`."""
    activations: int
    offload: bool
    """Whether its weights leave the GPU after each call."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """What of a run's settings decides its memory."""

    backbone: BackboneConfig
    optimizer: str
    strategy: Literal["single", "ddp", "fsdp2"]
    cpu_offload: bool
    ranks: int
    mixed: bool
    """Whether the precision is bf16-mixed."""
    tokens: int
    """Tokens of a micro-batch, padding included."""
    prompt_tokens: int
    """Of a typical row, its image included."""
    rollouts: Rollouts | None
    reference: Literal["none", "auto", "copy", "cpu", "adapter"]
    """As `--model.reference` has it; none where no divergence is measured."""
    reward: RewardModel | None

    @property
    def kept(self) -> Literal["none", "copy", "cpu", "adapter"]:
        """How the reference policy is kept in the end."""
        if self.reference == "auto":
            return "copy" if self.backbone.adapters is None else "adapter"
        return self.reference

    @property
    def kind(self) -> activations.Kind:
        """How it computes; FSDP2 gathers weights in the type that it computes in."""
        if self.backbone.dtype == "bfloat16" or (self.mixed and self.strategy == "fsdp2"):
            return "bfloat16"
        return "mixed" if self.mixed else "float32"


class Part(NamedTuple):
    """One thing that takes memory."""

    name: str
    size: int
    """Bytes for one process."""
    phase: Phase
    on_gpu: bool = True
    """False in main memory."""


class Tensor(NamedTuple):
    """Shape and role of one parameter."""

    name: str
    shape: tuple[int, ...]
    itemsize: int
    trains: bool
    four_bits: bool

    @property
    def numbers(self) -> int:
        """How many there are."""
        return math.prod(self.shape)


def tensors_of(config: PretrainedConfig, backbone: BackboneConfig) -> list[Tensor]:
    """The parameters of a backbone, adapters included, without making any.

    Args:
        config: The model's configuration.
        backbone: Its type, what is frozen, adapters, quantisation; `auto` is taken for bfloat16, as Qwen releases it.
    """
    same = replace(backbone, gradient_checkpointing=False, logprob_chunk=1)  # neither makes another tensor
    key = config.to_json_string(), same
    if key not in _known:
        _known[key] = tuple(_tensors(config, same))
    return list(_known[key])


_known: dict[tuple[str, BackboneConfig], tuple[Tensor, ...]] = {}
"""By model and backbone, since the doctor asks again and again, and each time takes tenths of a second."""


def _tensors(config: PretrainedConfig, backbone: BackboneConfig) -> list[Tensor]:
    dtype = torch.float32 if backbone.dtype == "float32" else torch.bfloat16
    with torch.device("meta"):
        model = AutoModelForImageTextToText.from_config(config, dtype=dtype)  # type: ignore[no-untyped-call]
        four_bits = {f"{name}.weight" for name in linear_layers(model, ("language",))} if backbone.quantize else set()
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(part_of(name) not in backbone.freeze)
        adapt(model, replace(backbone, quantize=None))
    return [
        Tensor(
            name=name,
            shape=tuple(parameter.shape),
            itemsize=parameter.element_size(),
            trains=parameter.requires_grad,
            four_bits=name.replace(".base_layer.", ".") in four_bits,
        )
        for name, parameter in model.named_parameters()
    ]


def local_numbers(tensor: Tensor, ranks: int) -> int:
    """Numbers of a parameter on the first of `ranks` that share its first dimension."""
    first, *rest = tensor.shape
    return math.ceil(first / ranks) * math.prod(rest)


def weight_bytes(tensor: Tensor, ranks: int) -> int:
    """Bytes of a parameter on the first of `ranks`."""
    if not tensor.four_bits:
        return local_numbers(tensor, ranks) * tensor.itemsize
    blocks = math.ceil(tensor.numbers / 64)
    return math.ceil(math.ceil(tensor.numbers / 2) / ranks) + blocks + 4 * math.ceil(blocks / 256) + 4 * (16 + 256 + 1)


def state_bytes(tensor: Tensor, ranks: int, optimizer: str) -> int:
    """Bytes of an optimiser's state of a parameter on the first of `ranks`."""
    numbers = local_numbers(tensor, ranks)
    if optimizer == "adamw":
        return 2 * numbers * tensor.itemsize + 4
    return 2 * numbers + 2 * 4 * math.ceil(numbers / 256) if numbers >= 4096 else 2 * 4 * numbers


def pinned_bytes(sizes: Sequence[int], *, most: int = 2**31) -> int:
    """Bytes of the blocks that `lit_vlaa.backbone.offload.pack` lays tensors of these sizes into."""
    block = min(most, 1 << (sum(sizes) + 512 * len(sizes)).bit_length())
    total = room = used = 0
    for size in sizes:
        used = math.ceil(used / 512) * 512
        if used + size > room:
            room, used = max(block, size), 0
            total += room
        used += size
    return total


def estimate(run: Run, config: PretrainedConfig) -> list[Part]:
    """The parts of a run's memory for one of its processes.

    Args:
        run: The settings.
        config: The model's configuration.
    """
    tensors = tensors_of(config, run.backbone)
    trained = [tensor for tensor in tensors if tensor.trains]
    shards = run.ranks if run.strategy == "fsdp2" else 1
    on_gpu = not run.cpu_offload
    weights = sum(weight_bytes(tensor, shards) for tensor in tensors)
    gradients = sum(local_numbers(tensor, shards) * tensor.itemsize for tensor in trained)
    states = sum(state_bytes(tensor, shards, run.optimizer) for tensor in trained)
    waiting = sum(tensor.numbers * (4 if run.mixed else tensor.itemsize) for tensor in trained)
    shape = decoder(config)
    chunk = min(run.backbone.logprob_chunk, run.tokens)
    parts = [
        Part("weights", weights, "always", on_gpu),
        Part("optimiser states", states, "always", on_gpu),
        Part("gradient buckets of ddp", gradients, "always") if run.strategy == "ddp" else None,
        *_reference(run, config, tensors),
        *_reward(run.reward),
        Part("gradients", gradients, "update", on_gpu),
        Part("gradients of earlier micro-batches", waiting, "update") if shards > 1 else None,
        *_working_weights(run, tensors),
        Part("activations of a micro-batch", run.tokens * _token_bytes(run, shape, trained), "update"),
        Part("activations of the vision tower", _tower_bytes(run, config, trained), "update"),
        Part("logits of a chunk", activations.logits_bytes(shape, tokens=chunk, training=True), "update"),
        *_rollout(run, shape, tensors),
    ]
    return [part for part in parts if part is not None and part.size]


def phase_bytes(parts: list[Part], phase: Phase, *, on_gpu: bool = True) -> int:
    """Bytes of one phase with what is always there, without `OVERHEAD`."""
    return sum(part.size for part in parts if part.on_gpu == on_gpu and part.phase in {"always", phase})


def peak(parts: list[Part], *, on_gpu: bool = True) -> int:
    """The most bytes at one time: what is always there and the largest phase, and on a GPU `OVERHEAD`."""
    return max(phase_bytes(parts, phase, on_gpu=on_gpu) for phase in PHASES) + (OVERHEAD if on_gpu else 0)


def _token_bytes(run: Run, shape: Decoder, trained: list[Tensor]) -> int:
    language = [tensor.name for tensor in trained if part_of(tensor.name) == "language"]
    mode: activations.Mode = "lora" if any(map(is_adapter, language)) else "train" if language else "frozen"
    return activations.decoder_bytes(shape, kind=run.kind, mode=mode, checkpointing=run.backbone.gradient_checkpointing)


def _tower_bytes(run: Run, config: PretrainedConfig, trained: list[Tensor]) -> int:
    trains = any(part_of(tensor.name) == "vision" for tensor in trained)
    checkpointing = run.backbone.gradient_checkpointing
    patch = activations.tower_bytes(tower(config), kind=run.kind, trains=trains, checkpointing=checkpointing)
    return _patches(run, config) * patch


def _patches(run: Run, config: PretrainedConfig) -> int:
    """Patches of a micro-batch of typical rows with an image each; a group's completions share theirs."""
    completion, group = (run.rollouts.new_tokens, run.rollouts.group_size) if run.rollouts else (0, 1)
    prompts = max(1, run.tokens // (run.prompt_tokens + group * completion))
    merge: int = config.vision_config.spatial_merge_size
    return prompts * min(image_tokens(config, run.backbone.max_pixels), run.prompt_tokens) * merge**2


def _reference(run: Run, config: PretrainedConfig, tensors: Sequence[Tensor]) -> Iterator[Part]:
    """The reference policy; a copy of a model with adapters has them too, which are small."""
    if run.kept not in {"copy", "cpu"}:
        return
    sharded, visits = run.strategy == "fsdp2", run.kept == "cpu"
    sizes = [weight_bytes(tensor, run.ranks if sharded else 1) for tensor in tensors]
    away = visits or run.cpu_offload
    yield Part("reference policy", pinned_bytes(sizes) if visits and not sharded else sum(sizes), "always", not away)
    if visits and not sharded:
        yield Part("reference policy on its visit", sum(sizes), "reference")
    elif sharded and (run.ranks > 1 or away):
        yield Part("layers of the reference policy", _for_a_pass(*_gathered(run, tensors), ahead=2), "reference")
    shape = decoder(config)
    logits = activations.logits_bytes(shape, tokens=min(run.backbone.logprob_chunk, run.tokens), training=False)
    passing = run.tokens * activations.passing_bytes(shape, kind=run.kind)
    yield Part("activations of the reference's pass", passing + logits, "reference")


def _reward(model: RewardModel | None) -> Iterator[Part]:
    if model is None:
        return
    yield Part("reward model", model.weights, "reward" if model.offload else "always")
    yield Part("activations of the reward model", model.activations, "reward")
    if model.offload:
        yield Part("reward model between calls", model.pinned, "always", on_gpu=False)


def _gathered(run: Run, tensors: Sequence[Tensor]) -> tuple[int, dict[str, int]]:
    """Bytes of whole weights as FSDP2 gathers them, outside the layers and by layer."""
    layers: defaultdict[str, int] = defaultdict(int)
    for tensor in tensors:
        size = tensor.itemsize if not run.mixed or tensor.four_bits else 2
        layers[_layer(tensor.name)] += tensor.numbers * size // (2 * size if tensor.four_bits else 1)
    return layers.pop("", 0), layers


def _cast(tensors: Sequence[Tensor]) -> tuple[int, dict[str, int]]:
    """Bytes of weights as autocast keeps them, outside the layers and by layer."""
    layers: defaultdict[str, int] = defaultdict(int)
    tied = not any(tensor.name.startswith("lm_head") for tensor in tensors)
    for tensor in tensors:
        if _converted(tensor, tied=tied):
            layers[_layer(tensor.name)] += 2 * tensor.numbers
    return layers.pop("", 0), layers


def _working_weights(run: Run, tensors: Sequence[Tensor]) -> Iterator[Part]:
    """Weights that FSDP2 gathered or autocast converted, for as long as they are needed."""
    gathers = run.strategy == "fsdp2" and (run.ranks > 1 or run.cpu_offload)
    if not gathers and not run.mixed:
        return
    rest, layers = _gathered(run, tensors) if gathers else _cast(tensors)
    few = gathers or run.backbone.gradient_checkpointing
    name = "weights gathered" if gathers else "weights in bfloat16"
    whole = rest + sum(layers.values())
    yield Part(f"{name} for a pass", _for_a_pass(rest, layers, ahead=2 if gathers else 1) if few else whole, "update")
    if run.rollouts:
        yield Part(f"{name} for the rollout", whole, "rollout")


def _for_a_pass(rest: int, layers: dict[str, int], *, ahead: int) -> int:
    """Bytes held while layers come and go; FSDP2 gathers the next one ahead of time."""
    return rest + ahead * max(layers.values())


def _converted(tensor: Tensor, *, tied: bool) -> bool:
    """Whether autocast converts a parameter and its copy is kept; a frozen tower's go as soon as they are used."""
    matrix = tensor.itemsize == 4 and len(tensor.shape) == 2 and not tensor.four_bits
    kept = tensor.trains or part_of(tensor.name) == "language"
    return matrix and kept and (tied or "embed_tokens" not in tensor.name)


def _rollout(run: Run, shape: Decoder, tensors: Sequence[Tensor]) -> list[Part]:
    if run.rollouts is None:
        return []
    sizes = rollout_bytes(run.rollouts, shape, tensors, kind=run.kind, prompt_tokens=run.prompt_tokens)
    return [Part(name, size, "rollout") for name, size in sizes.items()]


def _layer(name: str) -> str:
    """The decoder layer or vision block that a parameter belongs to; empty for the rest."""
    pieces = name.split(".")
    for index, piece in enumerate(pieces):
        if piece in {"layers", "blocks"}:
            return ".".join(pieces[: index + 2])
    return ""
