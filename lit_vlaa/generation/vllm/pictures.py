"""The images of a prompt, as fed, made again from their patches, for a server that cuts them up by itself.

Both processors resize an image to whole patches within the same limits; one that has such a size stays as it is. So
the server gets exactly the numbers that the learner has.
"""

from __future__ import annotations

import base64
from io import BytesIO
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from lit_vlaa.types import Prompt

_EXACT = 0.05
"""Of 255 levels: a number farther from a level than float32 can be comes from no image of 8 bits."""


def pictures(prompt: Prompt, image_processor: Any) -> list[Image.Image]:
    """The prompt's images as they were cut up, RGB of 8 bits.

    Args:
        prompt: With patches `[patches, D]`, ordered as transformers' processors of Qwen2(.5)-VL do.
        image_processor: Which made them.

    Raises:
        ValueError: If they are no images of 8 bits in the processor's scale.
    """
    if prompt.pixel_values is None or prompt.image_grid_thw is None:
        return []
    grids: list[list[int]] = prompt.image_grid_thw.tolist()
    parts = torch.split(prompt.pixel_values.detach().cpu().float(), [t * h * w for t, h, w in grids])
    return [
        Image.fromarray(_levels(_joined(part, grid, image_processor), image_processor, prompt.record.origin))
        for part, grid in zip(parts, grids, strict=True)
    ]


def data_url(picture: Image.Image) -> str:
    """A picture as a lossless PNG in a data URL."""
    buffer = BytesIO()
    picture.save(buffer, format="PNG", compress_level=1)
    return f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"


def _joined(patches: Tensor, grid: list[int], processor: Any) -> Tensor:
    """`[h, w, 3]` normalised pixels of one image; of a still image all frames of a patch are alike."""
    _, high, wide = grid
    merge, side = processor.merge_size, processor.patch_size
    # Row and column of merged patches, then within one; channel, frame, row and column within a patch.
    blocks = patches.view(high // merge, wide // merge, merge, merge, 3, processor.temporal_patch_size, side, side)
    return blocks[:, :, :, :, :, 0].permute(0, 2, 5, 1, 3, 6, 4).reshape(high * side, wide * side, 3)


def _levels(pixels: Tensor, processor: Any, origin: str) -> np.ndarray[Any, np.dtype[np.uint8]]:
    mean, std = (torch.tensor(values) for values in (processor.image_mean, processor.image_std))
    exact = (pixels * std + mean) / processor.rescale_factor
    levels = exact.round()
    if not bool(((exact - levels).abs() < _EXACT).all()) or levels.min() < 0 or levels.max() > 255:
        raise ValueError(f"{origin}: its pixel values come from no image of 8 bits and cannot be sent to a server")
    result: np.ndarray[Any, np.dtype[np.uint8]] = levels.to(torch.uint8).numpy()
    return result
