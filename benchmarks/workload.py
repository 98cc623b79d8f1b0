"""What is measured: rows, images, completion lengths and rewards, the same for both sides."""

from __future__ import annotations

import json
import random
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from PIL import Image, ImageDraw

from lit_vlaa.prompts import PromptConfig, build_messages
from lit_vlaa.types import Record, Sample

Kind = Literal["fixed", "heavy"]
"""Completion lengths: all at the limit, or most of them short and a few at the limit."""

LENGTHS = Path(__file__).parent / "lengths.json"
SEED = 6
_DRAWN_LIMIT = 512
_DRAWN = 512


@dataclass(frozen=True)
class Scale:
    """Sizes of the workload."""

    sft_rows: int
    """Rows of one optimiser step of SFT."""
    sft_limit: int
    """Tokens of the longest response, about."""
    prompts: int
    """Prompts of a rollout."""
    group_size: int
    """Completions a prompt."""
    limit: int
    """Most tokens of a completion."""
    image_sides: tuple[tuple[int, int], ...]
    """(width, height) of the images in turn, multiples of 28, so that nobody resizes them."""
    learning_rate: float = 1e-6
    temperature: float = 0.8

    @property
    def max_pixels(self) -> int:
        """No image is larger."""
        return max(width * height for width, height in self.image_sides)


SCALES = {
    "tiny": Scale(32, 384, 8, 8, 128, ((168, 168), (112, 140), (224, 140), (84, 168))),
    "random-3b": Scale(64, 1024, 8, 8, 512, ((560, 448), (448, 336), (672, 448), (336, 336))),
}


def drawn_lengths(seed: int = SEED) -> list[int]:
    """The lengths in `lengths.json`: log-normal, median 96, cut at 512; about 3% of them reach the limit."""
    rng = random.Random(seed)
    return [min(_DRAWN_LIMIT, max(8, round(rng.lognormvariate(4.564, 0.9)))) for _ in range(_DRAWN)]


def lengths(kind: Kind, count: int, limit: int) -> list[int]:
    """Planned completion lengths in tokens, the end of turn included.

    Args:
        kind: Distribution.
        count: How many; the file is read in a circle.
        limit: The longest possible; the file's lengths are scaled to it, and one of them is made to reach it.
    """
    if kind == "fixed":
        return [limit] * count
    file = json.loads(LENGTHS.read_text(encoding="utf-8"))["lengths"]
    scaled = [max(2, round(file[index % len(file)] * limit / _DRAWN_LIMIT)) for index in range(count)]
    scaled[scaled.index(max(scaled))] = limit
    return scaled


def reward(index: int, group_size: int) -> float:
    """The reward of the i-th completion of a step; no group has only one value."""
    prompt, number = divmod(index, group_size)
    return (3 * number + prompt) % 7 / 6


def samples(count: int, scale: Scale, *, images: int = 1) -> list[Sample]:
    """Rows with images and with responses of skewed lengths."""
    rng = random.Random(SEED)
    targets = lengths("heavy", count, scale.sft_limit)
    rows = []
    for index, target in enumerate(targets):
        pictures = tuple(_picture(rng, scale.image_sides[(index + n) % len(scale.image_sides)]) for n in range(images))
        # A thought takes eleven tokens or so, the rest of a response a dozen.
        thoughts = " ".join(f"circle {n % 10} is red, wait, check again." for n in range(max(1, (target - 12) // 11)))
        record = Record(
            id=str(index),
            source="clevr_math",
            kind="digit",
            images=tuple(f"{index}-{n}.png" for n in range(images)),
            question="How many red circles are there?" + " Look closely." * rng.randrange(4),
            truth=str(index % 7),
            response=f"<think> {thoughts} </think><answer>{index % 7}</answer>",
            origin=f"benchmark:{index}",
        )
        rows.append(Sample(record, tuple(build_messages(record, PromptConfig())), pictures, "normalized"))
    return rows


def _picture(rng: random.Random, side: tuple[int, int]) -> Image.Image:
    picture = Image.new("RGB", side, "white")
    draw: Any = ImageDraw.Draw(picture)
    for _ in range(6):
        x, y = rng.randrange(side[0] - 40), rng.randrange(side[1] - 40)
        draw.ellipse([x, y, x + 36, y + 36], fill=rng.choice(["red", "green", "blue"]))
    return picture
