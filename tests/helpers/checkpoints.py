"""Directories of models as they are found on the Hub."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from transformers import Qwen2VLConfig, Qwen2VLForConditionalGeneration

from lit_vlaa.backbone import Processor

RELEASED_LIMITS = {"min_pixels": 3136, "max_pixels": 12845056}
"""Pixel limits in the `preprocessor_config.json` of Qwen's releases."""


def as_released(folder: Path) -> None:
    """Rewrites a saved tiny backbone in the layout of Qwen's own repositories.

    Text settings stand at the top of `config.json`, the chat template in `chat_template.json` alone, and the pixel
    limits in `preprocessor_config.json` under their old names.
    """
    template = folder / "chat_template.jinja"
    (folder / "chat_template.json").write_text(json.dumps({"chat_template": template.read_text()}))
    template.unlink()

    images = json.loads((folder / "preprocessor_config.json").read_text())
    del images["size"]
    (folder / "preprocessor_config.json").write_text(
        json.dumps(images | RELEASED_LIMITS | {"processor_class": "Qwen2_5_VLProcessor"})
    )

    config: dict[str, Any] = json.loads((folder / "config.json").read_text())
    text = config.pop("text_config")
    rope = text.pop("rope_parameters")
    text.pop("layer_types", None)
    config["vision_config"].pop("rope_parameters", None)
    config["torch_dtype"] = config.pop("dtype")
    flat = {**text, "rope_theta": rope["rope_theta"]}
    flat["rope_scaling"] = {"type": "mrope", "mrope_section": rope["mrope_section"]}
    (folder / "config.json").write_text(json.dumps(flat | config))


def tiny_qwen2_vl(processor: Processor) -> Qwen2VLForConditionalGeneration:
    """The older model at the tiny one's size, with weights large enough for clear choices."""
    ids = processor.tokenizer.convert_tokens_to_ids
    config = Qwen2VLConfig(
        text_config={
            "vocab_size": len(processor.tokenizer),
            "hidden_size": 64,
            "intermediate_size": 128,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "rope_parameters": {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [2, 3, 3]},
        },
        vision_config={"depth": 2, "embed_dim": 32, "hidden_size": 64, "num_heads": 2, "mlp_ratio": 2},
        image_token_id=ids("<|image_pad|>"),
        video_token_id=ids("<|video_pad|>"),
        vision_start_token_id=ids("<|vision_start|>"),
        vision_end_token_id=ids("<|vision_end|>"),
        tie_word_embeddings=False,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        model = Qwen2VLForConditionalGeneration(config)
        for parameter in model.parameters():
            if parameter.ndim >= 2:
                torch.nn.init.normal_(parameter, std=0.15)
    return model
