"""Floating-point operations that a model needs, by the shapes in its configuration: pure arithmetic.

A product of matrices counts two operations for each multiply and add; everything else counts nothing, as in the model
FLOPs of PaLM (Chowdhery et al., 2022, appendix B). What an implementation does beyond the need counts nothing either:
padding, the masked half of causal attention, activations computed again in the backward pass. A backward pass takes a
product once more for the gradient of a matrix that trains, and once more where a gradient has to pass through.

`tests/unit/test_flops.py` compares with counted passes.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import astuple, dataclass
from fractions import Fraction
from typing import Any, Self

from transformers import PretrainedConfig

from lit_vlaa.backbone.config import BackboneConfig, LoRAConfig
from lit_vlaa.parts import Part

_PIXELS, _HEAD = "patch_embed", "lm_head"
"""Matrices that never have adapters."""


@dataclass(frozen=True, slots=True)
class Work:
    """What a pass has to process; works add up."""

    tokens: int = 0
    """Through the decoder's layers."""
    pairs: int = 0
    """Of a token and one that it attends to, itself included."""
    targets: int = 0
    """Through the head."""
    patches: int = 0
    """Through the vision tower."""
    merged: int = 0
    """Tokens that the merger makes of them."""
    patch_pairs: int = 0
    """Of a patch and one that it attends to, over all blocks of the tower."""

    def __add__(self, other: Work) -> Work:
        return Work(*(mine + yours for mine, yours in zip(astuple(self), astuple(other), strict=True)))

    def __mul__(self, times: int) -> Work:
        return Work(*(times * mine for mine in astuple(self)))

    @classmethod
    def of_branches(cls, prompt: int, completions: Sequence[int] = ()) -> Work:
        """Of a prompt that is read once and completions that each go on from it; completion tokens are targets.

        Args:
            prompt: Its tokens.
            completions: Tokens of each.
        """
        return cls(
            tokens=prompt + sum(completions),
            pairs=_pairs(prompt) + sum(count * prompt + _pairs(count) for count in completions),
            targets=sum(completions),
        )

    @classmethod
    def of_decoding(cls, prompts: Iterable[int], completions: Iterable[int]) -> Work:
        """Of completions that are written token by token over a cache; reading the prompts is not counted.

        The first token comes of the prompt, and the last one is not read.

        Args:
            prompts: Prompt tokens of each completion.
            completions: Tokens of each completion.
        """
        rows = [(prompt, count - 1) for prompt, count in zip(prompts, completions, strict=True) if count]
        return cls(
            tokens=sum(read for _, read in rows),
            pairs=sum(read * prompt + _pairs(read) for prompt, read in rows),
            targets=sum(read + 1 for _, read in rows),
        )

    @classmethod
    def of_images(cls, config: PretrainedConfig, grids: Iterable[Sequence[int]]) -> Work:
        """Of images.

        Args:
            config: Of the whole model.
            grids: Time, height and width in patches of each image.
        """
        vision: Any = config.vision_config
        whole = getattr(vision, "fullatt_block_indexes", None)
        full = vision.depth if whole is None else len(set(whole))
        side = 0 if whole is None else vision.window_size // vision.patch_size // vision.spatial_merge_size
        side *= vision.spatial_merge_size
        total = cls()
        for time, height, width in grids:
            pairs = full * (height * width) ** 2
            if full < vision.depth:
                pairs += (vision.depth - full) * _squares(height, side) * _squares(width, side)
            patches = time * height * width
            total += cls(patches=patches, merged=patches // vision.spatial_merge_size**2, patch_pairs=time * pairs)
        return total


@dataclass(frozen=True, slots=True)
class Cost:
    """Floating-point operations of one unit of each kind of `Work`."""

    token: int
    pair: int
    target: int
    patch: int
    merged: int
    patch_pair: int

    @classmethod
    def forward(cls, config: PretrainedConfig, backbone: BackboneConfig | None = None) -> Self:
        """Of a forward pass.

        Args:
            config: Of the whole model.
            backbone: With its adapters; None for none.
        """
        return cls._of(config, backbone or BackboneConfig(), backward=False)

    @classmethod
    def training(cls, config: PretrainedConfig, backbone: BackboneConfig) -> Self:
        """Of a forward and a backward pass.

        Args:
            config: Of the whole model.
            backbone: What is frozen, and where adapters train.
        """
        return cls._of(config, backbone, backward=True)

    @classmethod
    def _of(cls, config: PretrainedConfig, backbone: BackboneConfig, *, backward: bool) -> Self:
        lora = backbone.adapters
        flow = _Flow.of(backbone)
        sums = dict.fromkeys(("token", "target", "patch", "merged"), 0)
        for matrix in _matrices(config):
            rank = lora.rank if lora is not None and matrix.adapted_by(lora) else 0
            product, down, up = (2 * matrix.count * size for size in matrix.sizes(rank))
            sums[matrix.unit] += product + down + up
            if backward and matrix.part in flow.inside:
                share = Fraction(matrix.count - (0 if matrix.part in flow.into else matrix.first), matrix.count)
                if matrix.name == _PIXELS:
                    share = Fraction(0)
                learns = lora is None and matrix.part not in backbone.freeze
                sums[matrix.unit] += int((share + learns) * product + (share + 1) * down + 2 * up)
        text: Any = config.get_text_config()
        passes = {part: 3 if backward and part in flow.inside else 1 for part in ("language", "vision")}
        return cls(
            pair=passes["language"] * 4 * text.num_hidden_layers * text.hidden_size,
            patch_pair=passes["vision"] * 4 * _width(config.vision_config),
            **sums,
        )

    def of(self, work: Work) -> int:
        """Operations of some work."""
        return (
            self.token * work.tokens
            + self.pair * work.pairs
            + self.target * work.targets
            + self.patch * work.patches
            + self.merged * work.merged
            + self.patch_pair * work.patch_pairs
        )


@dataclass(frozen=True, slots=True)
class _Flow:
    """Where gradients flow in a backward pass."""

    inside: frozenset[Part]
    """Parts that something trains in or before."""
    into: frozenset[Part]
    """Those of them whose first layer needs the gradient of what it reads; what stands before the first adapter does
    not."""

    @classmethod
    def of(cls, backbone: BackboneConfig) -> _Flow:
        lora = backbone.adapters
        order: tuple[Part, ...] = ("vision", "merger", "language")
        trained = {part for part in order if (part in lora.parts if lora else part not in backbone.freeze)}
        inside = {part for place, part in enumerate(order) if trained & set(order[: place + 1])}
        into = {part for place, part in enumerate(order) if trained & set(order[:place])}
        # The norms and embeddings ahead of a part's first matrix train with it, unless only adapters do.
        return cls(frozenset(inside), frozenset(into if lora else into | trained))


@dataclass(frozen=True, slots=True)
class _Matrix:
    """A matrix of every layer of a part."""

    part: Part
    unit: str
    """The field of `Cost` that its products count for."""
    name: str
    inner: int
    outer: int
    count: int = 1
    """Layers that have one."""
    first: int = 0
    """Of these, how many read what the part starts from."""

    def adapted_by(self, lora: LoRAConfig) -> bool:
        linear = self.name not in {_PIXELS, _HEAD}
        return linear and self.part in lora.parts and (not lora.targets or self.name in lora.targets)

    def sizes(self, rank: int) -> tuple[int, int, int]:
        """Numbers of the matrix and of its adapter's two."""
        return self.inner * self.outer, self.inner * rank, rank * self.outer


def _matrices(config: PretrainedConfig) -> list[_Matrix]:
    text: Any = config.get_text_config()
    vision: Any = config.vision_config
    hidden, layers = text.hidden_size, text.num_hidden_layers
    key_value = text.num_key_value_heads * hidden // text.num_attention_heads
    width, blocks = _width(vision), vision.depth
    joined = width * vision.spatial_merge_size**2
    values = vision.in_channels * vision.temporal_patch_size * vision.patch_size**2
    old = not hasattr(vision, "fullatt_block_indexes")
    inner = int(width * vision.mlp_ratio) if old else vision.intermediate_size
    return [
        _Matrix("language", "token", "q_proj", hidden, hidden, layers, 1),
        *(_Matrix("language", "token", name, hidden, key_value, layers, 1) for name in ("k_proj", "v_proj")),
        _Matrix("language", "token", "o_proj", hidden, hidden, layers),
        *(
            _Matrix("language", "token", name, hidden, text.intermediate_size, layers)
            for name in ("gate_proj", "up_proj")
        ),
        _Matrix("language", "token", "down_proj", text.intermediate_size, hidden, layers),
        _Matrix("language", "target", _HEAD, hidden, text.vocab_size),
        _Matrix("vision", "patch", _PIXELS, values, width),
        _Matrix("vision", "patch", "qkv", width, 3 * width, blocks, 1),
        _Matrix("vision", "patch", "proj", width, width, blocks),
        *(
            _Matrix("vision", "patch", name, width, inner, blocks)
            for name in (("fc1",) if old else ("gate_proj", "up_proj"))
        ),
        _Matrix("vision", "patch", "fc2" if old else "down_proj", inner, width, blocks),
        _Matrix("merger", "merged", "0", joined, joined, 1, 1),
        _Matrix("merger", "merged", "2", joined, hidden),
    ]


def _pairs(tokens: int) -> int:
    """Of a token with itself and each before it."""
    return tokens * (tokens + 1) // 2


def _width(vision: Any) -> int:
    """Qwen2-VL and Qwen2.5-VL name the tower's width differently."""
    return int(getattr(vision, "embed_dim", None) or vision.hidden_size)


def _squares(length: int, side: int) -> int:
    """The squares of the lengths of windows of `side` that cover `length`, added up."""
    return length // side * side**2 + (length % side) ** 2
