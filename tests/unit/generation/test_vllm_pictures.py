"""Images made again from patches, against what went in."""

from __future__ import annotations

import base64
import dataclasses
from io import BytesIO

import numpy as np
import pytest
import torch
from PIL import Image

from helpers.samples import image, sample
from lit_vlaa.backbone.tiny import tiny_processor
from lit_vlaa.generation.vllm.pictures import data_url, pictures
from lit_vlaa.types import Prompt

PROCESSOR = tiny_processor(min_pixels=56 * 56, max_pixels=112 * 112)


def noise(width: int, height: int) -> Image.Image:
    """Every level in every channel."""
    levels = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    levels[:2, :1] = [[[0, 0, 0]], [[255, 255, 255]]]
    return Image.fromarray(levels)


def encoded(*images: Image.Image) -> Prompt:
    return PROCESSOR.encode(sample("row", "What?", images))


def test_an_image_of_whole_patches_comes_back_exactly() -> None:
    first, second = noise(112, 56), noise(84, 84)
    back = pictures(encoded(first, second), PROCESSOR.image_processor)
    assert [picture.size for picture in back] == [(112, 56), (84, 84)]
    assert np.array_equal(np.asarray(back[0]), np.asarray(first))
    assert np.array_equal(np.asarray(back[1]), np.asarray(second))


@pytest.mark.parametrize("size", [(300, 200), (31, 30), (85, 57)], ids=["reduced", "enlarged", "rounded"])
def test_what_was_resized_gives_the_same_patches_when_it_is_cut_up_again(size: tuple[int, int]) -> None:
    prompt = encoded(image(*size, seed=1))
    (back,) = pictures(prompt, PROCESSOR.image_processor)
    assert back.size == prompt.image_sizes[0]
    again = encoded(back)
    assert prompt.pixel_values is not None
    assert again.pixel_values is not None
    assert torch.equal(again.pixel_values, prompt.pixel_values)


def test_a_data_url_is_lossless() -> None:
    picture = noise(56, 84)
    head, _, code = data_url(picture).partition(",")
    assert head == "data:image/png;base64"
    assert np.array_equal(np.asarray(Image.open(BytesIO(base64.b64decode(code)))), np.asarray(picture))


def test_text_alone_has_no_pictures() -> None:
    assert pictures(encoded(), PROCESSOR.image_processor) == []


@pytest.mark.parametrize("shift", [0.01, 9.0], ids=["between levels", "beyond white"])
def test_pixels_of_no_image_are_refused(shift: float) -> None:
    prompt = encoded(noise(84, 84))
    assert prompt.pixel_values is not None
    moved = dataclasses.replace(prompt, pixel_values=prompt.pixel_values + shift)
    with pytest.raises(ValueError, match=r"test:row: its pixel values come from no image of 8 bits"):
        pictures(moved, PROCESSOR.image_processor)
