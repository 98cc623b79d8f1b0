"""The formula against operations that PyTorch counts as it computes, forward and backward."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoModelForImageTextToText, DynamicCache

from helpers.samples import tiny_backbone
from lit_vlaa.backbone import Backbone, BackboneConfig
from lit_vlaa.backbone.config import LoRAConfig
from lit_vlaa.backbone.released import RELEASED, released_config
from lit_vlaa.flops import Cost, Work

GRIDS = torch.tensor([[1, 4, 6], [1, 10, 12], [1, 24, 16]])
"""Patches; within one window of 8 by 8, in several with parts of them, and in whole ones."""


def counted(run: Callable[[], Any]) -> int:
    with FlopCounterMode(display=False) as counter:
        run()
    return int(counter.get_total_flops())


def counting_backbone(**settings: Any) -> Backbone:
    """The tiny model with attention by products of matrices; PyTorch does not count its CPU kernel's."""
    return tiny_backbone(attention="eager", **settings)


def all_pairs(tokens: int) -> Work:
    """A row as the counter sees it: with the masked half of attention."""
    return Work(tokens=tokens, pairs=tokens**2)


@pytest.fixture(scope="module")
def released() -> dict[str, Any]:
    models = {}
    for name in RELEASED:
        config = released_config(name)
        assert config is not None
        with torch.device("meta"):
            models[name] = AutoModelForImageTextToText.from_config(config, dtype=torch.bfloat16)
    return models


@pytest.mark.parametrize("name", RELEASED)
def test_a_released_language_model(name: str, released: dict[str, Any]) -> None:
    model = released[name]
    embeds = torch.zeros(2, 100, model.config.get_text_config().hidden_size, dtype=torch.bfloat16, device="meta")
    positions = torch.zeros(3, 2, 100, dtype=torch.long, device="meta")

    def run() -> None:
        states = model.model.language_model(inputs_embeds=embeds, position_ids=positions, use_cache=False)
        model.lm_head(states.last_hidden_state[:, -30:])

    work = all_pairs(100) * 2 + Work(targets=60)
    assert Cost.forward(model.config).of(work) == counted(run)


@pytest.mark.parametrize("name", RELEASED)
def test_a_released_tower(name: str, released: dict[str, Any]) -> None:
    model = released[name]
    visual, vision = model.model.visual, model.config.vision_config
    values = vision.in_channels * vision.temporal_patch_size * vision.patch_size**2
    width = getattr(vision, "embed_dim", None) or vision.hidden_size
    old = not hasattr(vision, "fullatt_block_indexes")

    def run() -> None:
        for _, height, width_ in GRIDS.tolist():
            patches = height * width_
            states = visual.patch_embed(torch.zeros(patches, values, dtype=torch.bfloat16, device="meta"))
            turns = (torch.zeros(patches, width // vision.num_heads, device="meta"),) * 2
            whole = torch.tensor([0, patches])
            for index, block in enumerate(visual.blocks):
                in_windows = not old and index not in vision.fullatt_block_indexes
                ends = windows(height, width_) if in_windows else whole
                states = block(states, cu_seqlens=ends, position_embeddings=turns)
            visual.merger(states)

    cost = Cost.forward(model.config)
    assert cost.of(Work.of_images(model.config, GRIDS.tolist())) == counted(run)


def windows(height: int, width: int) -> torch.Tensor:
    """Ends of windows of 8 by 8 patches, the last ones smaller."""
    sizes = [
        (min(8, height - top)) * (min(8, width - left)) for top in range(0, height, 8) for left in range(0, width, 8)
    ]
    return torch.tensor([0, *torch.tensor(sizes).cumsum(0).tolist()])


def test_the_tiny_model_encodes_images() -> None:
    backbone = counting_backbone()
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randn(int(GRIDS.prod(-1).sum()), 3 * 2 * 14 * 14, generator=generator)
    config = backbone.model.config
    expected = counted(lambda: backbone.model.model.get_image_features(pixels, GRIDS))
    assert Cost.forward(config).of(Work.of_images(config, GRIDS.tolist())) == expected


FREEZE = [
    (),
    ("vision",),
    ("vision", "merger"),
    ("merger",),
    ("language",),
    ("language", "vision"),
    ("language", "merger"),
]
LORA = [
    LoRAConfig(rank=3),
    LoRAConfig(rank=3, parts=("language", "merger")),
    LoRAConfig(rank=3, parts=("vision",)),
    LoRAConfig(rank=3, parts=("merger",)),
    LoRAConfig(rank=3, parts=("language", "vision", "merger")),
    LoRAConfig(rank=3, targets=("q_proj", "k_proj", "v_proj", "o_proj")),
]


@pytest.mark.parametrize(
    "settings", [*({"freeze": freeze} for freeze in FREEZE), *({"lora": lora} for lora in LORA)], ids=str
)
def test_training_of_the_tiny_model(settings: dict[str, Any]) -> None:
    backbone = counting_backbone(**settings)
    model = backbone.model
    config: Any = model.config
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randn(int(GRIDS.prod(-1).sum()), 3 * 2 * 14 * 14, generator=generator)
    images = Work.of_images(config, GRIDS.tolist())
    tokens, targets = images.merged + 40, 17

    def run() -> None:
        features = torch.cat(list(model.model.get_image_features(pixels, GRIDS, return_dict=True).pooler_output))
        embeds = model.model.language_model.embed_tokens(torch.arange(40))
        joined = torch.cat([features, embeds])[None]
        positions = torch.arange(tokens).expand(3, 1, -1)
        states = model.model.language_model(inputs_embeds=joined, position_ids=positions, use_cache=False)
        model.lm_head(states.last_hidden_state[:, -targets:]).sum().backward()

    cost = Cost.training(config, BackboneConfig(**settings))
    assert cost.of(images + all_pairs(tokens) + Work(targets=targets)) == counted(run)


def test_decoding_over_a_cache() -> None:
    backbone = counting_backbone()
    model: Any = backbone.model
    prompt, completion = 11, 6

    @torch.no_grad()
    def run() -> None:
        cache = DynamicCache()
        ids = torch.zeros(1, prompt, dtype=torch.long)
        states = model.model.language_model(input_ids=ids, past_key_values=cache, use_cache=True).last_hidden_state
        for left in range(completion, 0, -1):
            model.lm_head(states[:, -1])
            if left > 1:
                ids = torch.zeros(1, 1, dtype=torch.long)
                output = model.model.language_model(input_ids=ids, past_key_values=cache, use_cache=True)
                states = output.last_hidden_state

    work = all_pairs(prompt) + Work.of_decoding([prompt], [completion])
    assert Cost.forward(model.config).of(work) == counted(run)


def test_work_by_hand() -> None:
    # 1 + 2 + 3 pairs within the prompt; each completion's tokens see it, themselves, and those before them.
    assert Work.of_branches(3) == Work(tokens=3, pairs=6)
    assert Work.of_branches(3, [2, 1]) == Work(tokens=6, pairs=6 + (2 * 3 + 3) + (3 + 1), targets=3)
    # Four tokens after ten: three are read, and see 11, 12 and 13; the one after five is not read.
    assert Work.of_decoding([10, 5], [4, 1]) == Work(tokens=3, pairs=36, targets=5)
    assert Work.of_decoding([10], [0]) == Work()
    # Prefill and decoding of one completion see what one pass over its tokens but the last sees.
    assert (Work.of_branches(10) + Work.of_decoding([10], [4])).pairs == Work.of_branches(13).pairs
    config = tiny_backbone().model.config
    # One block in windows of 8 by 8 patches, (8 * 8)^2 + (2 * 8)^2 + (8 * 4)^2 + (2 * 4)^2, and one of 10 by 12.
    image = Work.of_images(config, [(1, 10, 12)])
    assert image == Work(patches=120, merged=30, patch_pairs=64**2 + 16**2 + 32**2 + 8**2 + 120**2)


def test_the_numbers_of_the_released_3b() -> None:
    config = released_config("Qwen2.5-VL-3B")
    assert config is not None
    cost = Cost.training(config, BackboneConfig(freeze=("vision",)))
    # 6 N with N = 3.086e9 parameters of the language model, its head among them; all of it counted for each token.
    assert cost.token + cost.target == pytest.approx(6 * 3.086e9, rel=1e-3)
    # Attention a token at a length of 1024: 3 * 4 * 36 * 2048 * 512.5 operations.
    assert cost.of(Work(pairs=Work.of_branches(1024).pairs)) / 1024 == 3 * 4 * 36 * 2048 * 512.5
