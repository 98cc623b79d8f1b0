"""What to load as the backbone, and how."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Part = Literal["vision", "merger", "language"]


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
        gradient_checkpointing: Compute activations again in the backward pass, to save memory.
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
    gradient_checkpointing: bool = False
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
