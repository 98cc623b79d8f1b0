"""The meter: what passes needed, by the formula; frozen parts of the tower once for each image."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from helpers.samples import mixed_prompts, tiny_backbone
from lit_vlaa.backbone import Backbone, BackboneConfig
from lit_vlaa.flops import Cost, Work
from lit_vlaa.meter import Meter
from lit_vlaa.types import Completion


@pytest.fixture(scope="module")
def backbone() -> Backbone:
    return tiny_backbone()


def meter_of(backbone: Backbone, **settings: Any) -> tuple[Meter, Cost, Cost]:
    config = BackboneConfig(**settings)
    model = backbone.model.config
    return Meter(model, config), Cost.forward(model, config), Cost.training(model, config)


def test_rows_that_share_a_prompt(backbone: Backbone) -> None:
    prompt = mixed_prompts(backbone)[2]  # without images
    length = prompt.input_ids.numel()
    rows = [(prompt, torch.zeros(count, dtype=torch.long)) for count in (3, 5)]
    meter, forward, training = meter_of(backbone)
    meter.note_pass(rows, share_prompts=True, training=True)
    assert meter.read().tokens == 2 * length + 8  # as many as without sharing
    assert meter.read().flops == training.of(Work.of_branches(length, [3, 5]))
    meter.clear()
    meter.note_pass(rows, share_prompts=False, training=False)
    assert (meter.read().tokens, meter.read().rollout_tokens) == (0, 0)
    assert meter.read().flops == forward.of(Work.of_branches(length, [3]) + Work.of_branches(length, [5]))


def test_a_rollout(backbone: Backbone) -> None:
    prompt = mixed_prompts(backbone)[2]
    length = prompt.input_ids.numel()
    group = [Completion(torch.zeros(count, dtype=torch.long), torch.zeros(count), "stop") for count in (4, 1)]
    meter, forward, _ = meter_of(backbone)
    meter.note_rollout([prompt], [group])
    assert meter.read().rollout_tokens == 5
    assert meter.read().flops == forward.of(Work.of_branches(length) + Work.of_decoding([length] * 2, [4, 1]))


@pytest.mark.parametrize(
    ("freeze", "again"),
    [(("vision", "merger"), ()), (("vision",), ("merged",)), ((), ("patches", "merged", "patch_pairs"))],
)
def test_images_seen_again(freeze: tuple[str, ...], again: tuple[str, ...], backbone: Backbone) -> None:
    prompt = mixed_prompts(backbone)[1]  # with two images
    assert prompt.image_grid_thw is not None
    meter, _, training = meter_of(backbone, freeze=freeze)
    row = (prompt, torch.zeros(2, dtype=torch.long))
    text = training.of(Work.of_branches(prompt.input_ids.numel(), [2]))
    whole = Work.of_images(backbone.model.config, prompt.image_grid_thw.tolist())
    needed = []
    for _ in range(2):
        before = meter.read().flops
        meter.note_pass([row], share_prompts=False, training=True)
        needed.append(meter.read().flops - before - text)
    assert needed == [training.of(whole), training.of(Work(**{name: getattr(whole, name) for name in again}))]
    meter.clear()
    meter.note_pass([row], share_prompts=False, training=True)
    assert meter.read().flops == text + training.of(whole)
