"""From records to encoded prompts, in the data loader's workers."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from PIL.Image import Image
from torch import Tensor
from torch.utils.data import Dataset

from datamodules.boxes import TruthBoxes, with_plain_truth
from datamodules.images import ImageError, open_rgb
from datamodules.rows import BadRecord
from datamodules.shards import embedded_images
from lit_vlaa.prompts import PromptConfig, build_messages
from lit_vlaa.protocols import ChatProcessor
from lit_vlaa.types import Prompt, Record, Sample

_LOG = logging.getLogger(__name__)

_MOST_STAND_INS = 100
"""Rows tried in place of one that cannot be encoded; so many broken ones in a row mean a broken folder."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Encoder:
    """Makes a prompt of a record."""

    image_root: Path
    """Folder of the images, resolved."""
    max_image_pixels: int
    """Larger images are refused before they are decoded."""
    prompt: PromptConfig
    processor: ChatProcessor
    replace_unreadable: bool = False
    """Whether the next row stands in for one whose image turns out to be broken."""
    truth_boxes: Mapping[str, TruthBoxes] = field(default_factory=dict)
    """Frame of the truth boxes by source; a source that is left out gives fractions of the image."""

    def __call__(self, record: Record) -> Prompt:
        """Opens the record's images, writes its chat and encodes both.

        Raises:
            BadRecord: If an image cannot be read.
        """
        images = open_images(record, image_root=self.image_root, max_pixels=self.max_image_pixels)
        record = with_plain_truth(record, [image.size for image in images], self.truth_boxes)
        space = self.prompt.resolve_box_space(self.processor.box_space)
        messages = build_messages(record, self.prompt, box_space=space)
        return self.processor.encode(Sample(record, messages, images, space))


class _Rows:
    """Chosen rows of a table; places from `len(chosen)` on repeat the first ones as padding."""

    def __init__(self, records: Sequence[Record], chosen: np.ndarray[tuple[int], np.dtype[np.int64]], length: int):
        self.records, self.chosen, self.length = records, chosen, length

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, place: int) -> tuple[Record, bool]:
        if not 0 <= place < self.length:
            raise IndexError(f"row {place} of {self.length}")
        record: Record = self.records[int(self.chosen[place % len(self.chosen)])]
        return record, place >= len(self.chosen)


class PromptDataset(Dataset[Prompt]):
    """Encoded prompts, for rollouts and evaluation."""

    def __init__(
        self,
        records: Sequence[Record],
        chosen: np.ndarray[tuple[int], np.dtype[np.int64]],
        encoder: Encoder,
        *,
        length: int | None = None,
    ) -> None:
        """Encodes nothing yet.

        Args:
            records: All records of a file.
            chosen: Which of them to use, in order.
            encoder: Makes the prompts.
            length: Rows to pretend to have; those past the chosen ones repeat them with `Prompt.padding` set. None for
                no padding.
        """
        self._rows = _Rows(records, chosen, len(chosen) if length is None else length)
        self.encoder = encoder

    def __len__(self) -> int:
        """Number of rows, padding included."""
        return len(self._rows)

    def __getitem__(self, place: int) -> Prompt:
        """Encodes one row."""
        record, padding = self._rows[place]
        try:
            prompt = self.encoder(record)
        except ValueError as error:
            if not self.encoder.replace_unreadable:
                raise
            prompt = self._stand_in(place, error)
        return replace(prompt, padding=True) if padding else prompt

    def _stand_in(self, place: int, error: ValueError) -> Prompt:
        """The next row that can be encoded; evaluation leaves it out, training takes it twice."""
        for offset in range(1, min(_MOST_STAND_INS, len(self)) + 1):
            try:
                prompt = self.encoder(self._rows[(place + offset) % len(self)][0])
            except ValueError:
                continue
            _LOG.warning("%s; %s stands in for it", error, prompt.record.origin)
            return replace(prompt, padding=True)
        raise error


class SFTDataset(Dataset[tuple[Prompt, Tensor]]):
    """Encoded prompts with the tokens to learn."""

    def __init__(self, prompts: PromptDataset) -> None:
        self._prompts = prompts

    def __len__(self) -> int:
        """Number of rows, padding included."""
        return len(self._prompts)

    def __getitem__(self, place: int) -> tuple[Prompt, Tensor]:
        """Encodes one row.

        Raises:
            ValueError: If the row has no response, which a table of the sft split never lacks.
        """
        prompt = self._prompts[place]
        if prompt.record.response is None:
            raise ValueError(f"{prompt.record.origin}: no response to learn")
        return prompt, self._prompts.encoder.processor.encode_response(prompt.record.response)


def open_images(record: Record, *, image_root: Path, max_pixels: int) -> tuple[Image, ...]:
    """Opens a record's images as RGB.

    Args:
        record: The row whose images to open.
        image_root: Folder of the images, resolved.
        max_pixels: Width times height above which an image is refused.

    Raises:
        BadRecord: If one cannot be read; the message names file, row and image.
    """
    try:
        contents = embedded_images(record) or (None,) * len(record.images)
        return tuple(
            open_rgb(image_root, path, max_pixels=max_pixels, content=content)
            for path, content in zip(record.images, contents, strict=True)
        )
    except ImageError as error:
        file, _, row = record.origin.rpartition(":")
        raise BadRecord.at(file, int(row), "image", error.reason, error.detail) from error
