"""What to load as the backbone, and how."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from typing import Literal

from lit_vlaa.parts import Part


@dataclass(frozen=True, kw_only=True)
class LoRAConfig:
    """Low-rank adapters beside linear layers (Hu et al., 2021); they alone are trained.

    Attributes:
        rank: Width of an adapter; 0 for none, so that the weights train.
        alpha: What an adapter adds counts alpha / rank times.
        dropout: Share of an adapter's inputs that are set to zero in training. GRPO needs 0. Its draws are no part of a
            checkpoint, so that a resumed run equals an uninterrupted one only at 0.
        parts: Parts whose linear layers get adapters; the head never does.
        targets: Names of the linear layers, such as `q_proj`; empty for all of these parts.
    """

    rank: int = 0
    alpha: float = 32.0
    dropout: float = 0.0
    parts: tuple[Part, ...] = ("language",)
    targets: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for name, ok, wanted in (
            ("rank", self.rank >= 0, "0 (no adapters) or positive"),
            ("alpha", 0 < self.alpha < math.inf, "positive"),
            ("dropout", 0 <= self.dropout < 1, "in [0, 1)"),
            ("parts", bool(self.parts), "one or more of vision, merger, language"),
        ):
            if not ok:
                raise ValueError(f"--model.backbone.lora.{name} must be {wanted}, got {getattr(self, name)}")
        if not self.rank and (
            given := [option.name for option in fields(self) if getattr(self, option.name) != option.default]
        ):
            raise ValueError(
                f"--model.backbone.lora.{given[0]} does nothing without --model.backbone.lora.rank, of 16 say"
            )


@dataclass(frozen=True, kw_only=True)
class BackboneConfig:
    """The backbone and how it is loaded.

    Attributes:
        path: A Hub id such as `Qwen/Qwen2.5-VL-3B-Instruct`, a directory in the Hub's layout, or `tiny` for the
            embedded model with random weights.
        revision: Branch, tag or commit of a Hub id.
        dtype: Type of the parameters; `auto` takes the checkpoint's own. Keep float32 with `bf16-mixed` precision;
            bfloat16 with `32-true` precision halves the memory, but small updates are lost to rounding.
        attention: `auto` takes flash attention where it is installed and the parameters are in half precision on a
            GPU, and PyTorch's SDPA otherwise.
        freeze: Parts that are not trained: the vision tower, the merger behind it, the language model.
        lora: With a rank above 0, adapters train instead of the weights, all of which are then frozen. They stay in
            float32 whatever `dtype` is.
        quantize: `nf4` keeps the frozen matrices of the language model's layers in 4 bits (QLoRA); needs `lora` and
            bitsandbytes. Takes least memory and time with `dtype` bfloat16.
        gradient_checkpointing: Compute activations again in the backward pass, to save memory.
        cache_vision: In GRPO, keep what the frozen part of the vision tower gave for a rollout's images for all passes
            over them (up to 1 GiB a device), instead of computing it at every pass. What is not kept, as it trains or
            for want of room, is logged.
        compile: Compile the decoder layers (`torch.compile`) for passes over whole sequences. The first passes take
            minutes more; results change by rounding. Where it fails, the layers run as they are, with a warning.
        min_pixels: Smaller images are enlarged to this many pixels.
        max_pixels: Larger images are reduced to this many pixels (paper, evaluation: 256 * 32 * 32).
        logprob_chunk: Scored tokens whose logits are held at one time.
        trust_remote_code: Allow code from the model's repository to run. Only for sources that you trust.
    """

    path: str = "tiny"
    revision: str | None = None
    dtype: Literal["auto", "float32", "bfloat16"] = "float32"
    attention: Literal["auto", "sdpa", "flash_attention_2", "eager"] = "auto"
    freeze: tuple[Part, ...] = ()
    lora: LoRAConfig = LoRAConfig()
    quantize: Literal["nf4"] | None = None
    gradient_checkpointing: bool = False
    cache_vision: bool = True
    compile: bool = False
    min_pixels: int = 56 * 56
    max_pixels: int = 256 * 32 * 32
    logprob_chunk: int = 2048
    trust_remote_code: bool = False

    def __post_init__(self) -> None:
        if not 0 < self.min_pixels <= self.max_pixels:
            raise ValueError(
                f"--model.backbone.min_pixels ({self.min_pixels}) must be positive and at most "
                f"--model.backbone.max_pixels ({self.max_pixels})"
            )
        if self.logprob_chunk < 1:
            raise ValueError(f"--model.backbone.logprob_chunk must be at least 1, got {self.logprob_chunk}")
        if len(set(self.freeze)) == len(("vision", "merger", "language")):
            raise ValueError("--model.backbone.freeze names every part, so that nothing is left to train")
        if self.lora.rank and set(self.lora.parts) & set(self.freeze):
            both = sorted(set(self.lora.parts) & set(self.freeze))
            raise ValueError(
                f"--model.backbone.freeze and --model.backbone.lora.parts both name {', '.join(both)}; "
                "take it out of one of them"
            )
        if self.quantize is not None and not self.lora.rank:
            raise ValueError(
                f"--model.backbone.quantize {self.quantize}: weights of 4 bits cannot be trained; train adapters "
                "beside them with --model.backbone.lora.rank 16"
            )

    @property
    def adapters(self) -> LoRAConfig | None:
        """Settings of the adapters; None where the weights train."""
        return self.lora if self.lora.rank else None
