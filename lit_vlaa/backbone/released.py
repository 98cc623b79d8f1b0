"""Shapes of Qwen's released models, to count their parameters before anything is downloaded."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from transformers import AutoConfig, PretrainedConfig

from lit_vlaa.backbone.config import BackboneConfig
from lit_vlaa.backbone.model import check_type
from lit_vlaa.backbone.processor import load_processor, naming_path


def _text(layers: int, hidden: int, intermediate: int, *, heads: tuple[int, int], vocabulary: int) -> dict[str, Any]:
    return {
        "num_hidden_layers": layers,
        "hidden_size": hidden,
        "intermediate_size": intermediate,
        "num_attention_heads": heads[0],
        "num_key_value_heads": heads[1],
        "vocab_size": vocabulary,
    }


_2B = _text(28, 1536, 8960, heads=(12, 2), vocabulary=151936)
_3B = _text(36, 2048, 11008, heads=(16, 2), vocabulary=151936)
_7B = _text(28, 3584, 18944, heads=(28, 4), vocabulary=152064)
_TOWER = {"depth": 32, "num_heads": 16, "patch_size": 14, "spatial_merge_size": 2, "temporal_patch_size": 2}
_NEW = {**_TOWER, "hidden_size": 1280, "intermediate_size": 3420, "fullatt_block_indexes": [7, 15, 23, 31]}
_OLD = {**_TOWER, "embed_dim": 1280, "mlp_ratio": 4}

RELEASED: dict[str, tuple[str, bool, dict[str, Any], dict[str, Any]]] = {
    "Qwen2.5-VL-3B": ("qwen2_5_vl", True, _3B, {**_NEW, "out_hidden_size": 2048}),
    "Qwen2.5-VL-7B": ("qwen2_5_vl", False, _7B, {**_NEW, "out_hidden_size": 3584}),
    "Qwen2-VL-2B": ("qwen2_vl", True, _2B, {**_OLD, "hidden_size": 1536}),
    "Qwen2-VL-7B": ("qwen2_vl", False, _7B, {**_OLD, "hidden_size": 3584}),
}
"""Model type, whether the head is the embedding, text and vision settings, by the model's name without `-Instruct`."""


def released_config(name: str) -> PretrainedConfig | None:
    """The configuration of a released model, by a Hub id or a folder's name that ends in the model's; else None."""
    found = RELEASED.get(name.rstrip("/").rpartition("/")[2].removesuffix("-Instruct"))
    if found is None:
        return None
    kind, tied, text, vision = found
    text = {**text, "bos_token_id": 151643, "eos_token_id": 151645}
    config: PretrainedConfig = AutoConfig.for_model(
        kind, text_config=text, vision_config=vision, tie_word_embeddings=tied
    )
    return config


def model_config(config: BackboneConfig) -> PretrainedConfig:
    """The configuration of any backbone: made here, of a folder, released, or from the Hub.

    Raises:
        ValueError: If there is none; the message names the flag.
    """
    if config.path == "tiny":
        from lit_vlaa.backbone.tiny import tiny_model  # noqa: PLC0415  # only this path needs it

        return tiny_model(load_processor(config)).config
    released = None if Path(config.path).is_dir() else released_config(config.path)
    if released is not None:
        return released
    with naming_path(config):
        found: PretrainedConfig = AutoConfig.from_pretrained(
            config.path, revision=config.revision, trust_remote_code=config.trust_remote_code
        )
        check_type(found.model_type)
    return found
