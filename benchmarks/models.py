"""The two models of the comparison: the embedded tiny one, and Qwen2.5-VL-3B's shape with random weights."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from transformers import GenerationConfig, Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

from benchmarks.workload import SCALES, Scale
from lit_vlaa.backbone import Backbone, BackboneConfig, Processor, build_backbone, load_processor
from lit_vlaa.policy import PolicyModule

_TEXT_3B: dict[str, Any] = {
    "vocab_size": 151_936,
    "hidden_size": 2048,
    "intermediate_size": 11_008,
    "num_hidden_layers": 36,
    "num_attention_heads": 16,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128_000,
    "rms_norm_eps": 1e-6,
    "rope_parameters": {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [16, 24, 24]},
}
_VISION_3B: dict[str, Any] = {
    "depth": 32,
    "hidden_size": 1280,
    "intermediate_size": 3420,
    "num_heads": 16,
    "out_hidden_size": 2048,
    "fullatt_block_indexes": [7, 15, 23, 31],
    "patch_size": 14,
    "window_size": 112,
}


@dataclass(frozen=True)
class Setup:
    """Model, device and everything else that both sides must have alike."""

    model: str = "tiny"
    device: str = "cpu"
    threads: int = 2

    @property
    def scale(self) -> Scale:
        """Sizes of the workload."""
        return SCALES[self.model]

    @property
    def config(self) -> BackboneConfig:
        """The backbone's settings: float32 for the tiny model, bfloat16 weights for the large one."""
        dtype: Any = "float32" if self.model == "tiny" else "bfloat16"
        return BackboneConfig(max_pixels=self.scale.max_pixels, freeze=("vision",), dtype=dtype)

    def backbone(self, config: BackboneConfig | None = None) -> Backbone:
        """The model, with the same weights every time."""
        config = config or self.config
        if self.model == "tiny":
            backbone = build_backbone(config)
        else:
            processor = self.processor()
            # Made in float32: the backbone's own conversion leaves the rotary frequencies exact.
            backbone = Backbone(random_3b(processor, self.device), processor, config).to(torch.bfloat16)
        processor = backbone.processor
        backbone.model.generation_config = GenerationConfig(  # type: ignore[no-untyped-call]
            eos_token_id=list(processor.stop_token_ids), pad_token_id=processor.pad_token_id
        )
        return backbone

    def processor(self) -> Processor:
        """The tiny model's processor, which the large model gets too."""
        return load_processor(BackboneConfig(max_pixels=self.scale.max_pixels))

    def fit_out(self, module: PolicyModule) -> PolicyModule:
        """Gives `module` this model where it is not one that the module loads by itself."""
        if self.model != "tiny":
            module._processor = self.processor()
            module.build = lambda config, **_: self.backbone(config)  # type: ignore[method-assign]
        return module

    def synchronize(self) -> None:
        """Waits for the device."""
        if self.device == "cuda":
            torch.cuda.synchronize()


def config_3b(processor: Processor) -> Qwen2_5_VLConfig:
    """Qwen2.5-VL-3B-Instruct's shape with the control tokens of the tiny tokenizer.

    The tokenizer knows the first thousand of the 151,936 tokens; the others decode to nothing.
    """
    ids = processor.tokenizer.convert_tokens_to_ids
    control = {"eos_token_id": ids("<|im_end|>"), "pad_token_id": ids("<|endoftext|>")}
    return Qwen2_5_VLConfig(
        text_config={**_TEXT_3B, **control, "bos_token_id": ids("<|endoftext|>")},
        vision_config=_VISION_3B,
        image_token_id=ids("<|image_pad|>"),
        video_token_id=ids("<|video_pad|>"),
        vision_start_token_id=ids("<|vision_start|>"),
        vision_end_token_id=ids("<|vision_end|>"),
        tie_word_embeddings=True,
    )


def random_3b(processor: Processor, device: str) -> Qwen2_5_VLForConditionalGeneration:
    """The large model in float32, made on `device`; the same weights in every process on the same kind of device."""
    config = config_3b(processor)
    config._attn_implementation = "sdpa"
    with torch.device(device), torch.random.fork_rng():
        torch.manual_seed(0)
        return Qwen2_5_VLForConditionalGeneration(config)
