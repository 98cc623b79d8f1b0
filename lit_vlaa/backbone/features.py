"""From pixels to the features that stand in images' places, the frozen part of the tower once for a whole rollout.

Prefill, the pass for old log-probabilities, the reference's pass and every pass of the update see the same images
through the same weights. An image is computed together with those of the pass that shows it first. On the CPU the
numbers do not depend on that company, so that they are the ones without the cache to the last bit; on GPUs up to
rounding.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from lit_vlaa.types import ImageKey, ModelInputs, Prompt

MOST_BYTES = 2**30
"""What the images of a rollout may take on one device; those beyond are computed at every pass."""

_log = logging.getLogger(__name__)


class ImageEncoder:
    """A model's vision tower and merger, and what is kept of their frozen part's work.

    Args:
        model: Qwen2.5-VL or Qwen2-VL with its frozen parts frozen and its adapters in place.
        cached: Whether to keep features for as long as `features.remembering` is open.
    """

    def __init__(self, model: nn.Module, *, cached: bool) -> None:
        self._model: Any = model
        merger = {id(parameter) for parameter in self._merger.parameters()}
        trained = {id(parameter) for parameter in self._visual.parameters() if parameter.requires_grad}
        self._tower_trains = bool(trained - merger)
        self.trains = bool(trained)
        """Whether anything of tower and merger does."""
        self.features = ImageFeatures(MOST_BYTES if cached else 0)

    @property
    def trained_unit(self) -> nn.Module:
        """The smallest module with all that trains here: the tower with its merger, or the merger alone."""
        unit: nn.Module = self._visual if self._tower_trains else self._merger
        return unit

    def __call__(self, inputs: ModelInputs) -> list[Tensor]:
        """`[tokens, H]` features of each distinct image."""
        pixels, grids = inputs.pixel_values, inputs.image_grid_thw
        if pixels is None or grids is None:
            raise ValueError("there are places for images, but no images")
        if self._tower_trains:
            self.features.say("nothing of images is kept from pass to pass, as the vision tower trains")
            return self._whole(pixels, grids)
        if self.trains:
            self.features.say(
                "the vision tower runs once for a rollout's images, the merger at every pass, as it trains"
            )

        @torch.no_grad()
        def compute(chosen: Sequence[int]) -> list[Tensor]:
            own, grid = (pixels, grids) if len(chosen) == len(grids) else _at(chosen, pixels, grids)
            return tower_states(self._visual, own, grid) if self.trains else self._whole(own, grid)

        states = self.features.of(inputs.image_keys, compute) if inputs.image_keys else compute(range(len(grids)))
        return merge(self._merger, states) if self.trains else states

    def blank(self, device: torch.device) -> Tensor:
        """`[1, H]` features of an image without content, through all that trains."""
        vision = self._model.config.vision_config
        if not self._tower_trains:
            width = getattr(vision, "embed_dim", None) or vision.hidden_size
            patches = torch.zeros(1, vision.spatial_merge_size**2, width, device=device, dtype=self._visual.dtype)
            return merge(self._merger, [patches])[0]
        values = vision.in_channels * vision.temporal_patch_size * vision.patch_size**2
        pixels = torch.zeros(vision.spatial_merge_size**2, values, device=device)
        return self._whole(pixels, torch.tensor([[1, 2, 2]], device=device))[0]

    def _whole(self, pixel_values: Tensor, grid_thw: Tensor) -> list[Tensor]:
        return list(self._model.model.get_image_features(pixel_values, grid_thw, return_dict=True).pooler_output)

    @property
    def _visual(self) -> Any:
        return self._model.model.visual

    @property
    def _merger(self) -> Any:
        return self._visual.merger


class ImageFeatures:
    """Features of the images of one rollout's prompts; a policy and its reference may share one.

    Args:
        most_bytes: Most bytes to keep; 0 keeps nothing.
    """

    def __init__(self, most_bytes: int = MOST_BYTES) -> None:
        self.most_bytes = most_bytes
        self._prompts: dict[int, Prompt] = {}
        self._kept: dict[ImageKey, Tensor] = {}
        self._bytes = 0
        self._said: set[str] = set()

    @contextmanager
    def remembering(self, prompts: Sequence[Prompt]) -> Iterator[None]:
        """While open, keeps the features of these prompts' images; at the end drops them.

        Args:
            prompts: The objects that will come again; equal ones are other prompts.
        """
        # A prompt is known by its address, which is nobody else's for as long as it is held here.
        self._prompts = {id(prompt): prompt for prompt in prompts}
        try:
            yield
        finally:
            self._prompts, self._kept, self._bytes = {}, {}, 0

    def say(self, message: str, level: int = logging.INFO) -> None:
        """Logs, once, what of a rollout's images is not kept and why; nothing where nothing is asked to be."""
        if self._prompts and self.most_bytes and message not in self._said:
            _log.log(level, "--model.backbone.cache_vision: %s", message)
            self._said.add(message)

    def of(self, keys: Sequence[ImageKey], compute: Callable[[list[int]], Sequence[Tensor]]) -> list[Tensor]:
        """The features of some images, those computed that are not there yet.

        Args:
            keys: One for each image.
            compute: Gives the features of the images at some places of `keys`.
        """
        found: list[Tensor | None] = [self._kept.get(key) for key in keys]
        missing = [place for place, value in enumerate(found) if value is None]
        if missing:
            for place, value in zip(missing, compute(missing), strict=True):
                found[place] = value
                self._keep(keys[place], value)
        return [value for value in found if value is not None]

    def _keep(self, key: ImageKey, value: Tensor) -> None:
        if key[0] not in self._prompts or not self.most_bytes:
            return
        size = value.numel() * value.element_size()
        if self._bytes + size > self.most_bytes:
            most = f"image features of a rollout take more than {self.most_bytes >> 20} MiB"
            self.say(f"{most}; the others are computed at every pass", logging.WARNING)
            return
        # A part of a larger tensor would keep all of it alive.
        self._kept[key] = value.clone()
        self._bytes += size


def tower_states(visual: nn.Module, pixel_values: Tensor, grid_thw: Tensor) -> list[Tensor]:
    """What the merger reads: the output of the last block, in the order of the merged tokens.

    Args:
        visual: Vision tower of a Qwen2.5-VL or Qwen2-VL.
        pixel_values: `[patches, D]`.
        grid_thw: `[I, 3]`.

    Returns:
        For each image `[tokens, m, H]`, the m patches that the merger will join to a token.
    """
    tower: Any = visual
    merged = tower.spatial_merge_size**2
    # The tower calls its merger itself and puts the tokens in order after it. Where the merger trains and is sharded
    # apart, calling it here would be a collective operation that other ranks do not take part in.
    merger = tower.merger
    tower.merger = _Together(merged)
    try:
        output = tower(pixel_values.type(tower.dtype), grid_thw=grid_thw, return_dict=True)
    finally:
        tower.merger = merger
    sizes = (grid_thw.prod(-1) // merged).tolist()
    return list(output.pooler_output.split(sizes))


def merge(merger: nn.Module, states: Sequence[Tensor]) -> list[Tensor]:
    """For each image `[tokens, out]` features from `tower_states`."""
    joined = torch.cat(list(states))
    return list(merger(joined.flatten(0, 1)).split([len(state) for state in states]))


def _at(places: Sequence[int], pixel_values: Tensor, grid_thw: Tensor) -> tuple[Tensor, Tensor]:
    """Patches and grids of some of the images."""
    patches = torch.split(pixel_values, grid_thw.prod(-1).tolist())
    return torch.cat([patches[place] for place in places]), grid_thw[list(places)]


class _Together(nn.Module):
    """Stands in the merger's place and only puts the patches of a token beside each other."""

    def __init__(self, merged: int) -> None:
        super().__init__()
        self.merged = merged

    def forward(self, states: Tensor) -> Tensor:
        return states.view(-1, self.merged, states.shape[-1])
