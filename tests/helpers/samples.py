"""Small prompts of every shape that occurs: one image, several, none, of different sizes."""

from __future__ import annotations

import torch
from PIL import Image, ImageDraw

from lit_vlaa.backbone import Backbone, BackboneConfig, build_backbone
from lit_vlaa.types import Message, Prompt, Record, Sample


def tiny_backbone(**options: object) -> Backbone:
    """The embedded model with images of at most 9 tokens."""
    return build_backbone(BackboneConfig(max_pixels=84 * 84, **options))  # type: ignore[arg-type]


def image(width: int, height: int, seed: int) -> Image.Image:
    """A picture of a few coloured discs."""
    picture = Image.new("RGB", (width, height), "white")
    draw = ImageDraw.Draw(picture)
    generator = torch.Generator().manual_seed(seed)
    for colour in ("red", "green", "blue"):
        x, y = (int(torch.randint(0, side - 20, (), generator=generator)) for side in (width, height))
        draw.ellipse([x, y, x + 16, y + 16], fill=colour)
    return picture


def sample(name: str, question: str, images: tuple[Image.Image, ...] = (), truth: str = "2") -> Sample:
    """A sample of kind digit with `images` ahead of the question."""
    record = Record(
        id=name,
        source="clevr_math",
        kind="digit",
        images=tuple(f"{name}-{index}.png" for index in range(len(images))),
        question=question,
        truth=truth,
        response=f"<think> there are {truth} </think><answer>{truth}</answer>",
        origin=f"test:{name}",
    )
    system: Message = {"role": "system", "content": [{"type": "text", "text": "think step by step"}]}
    user: Message = {
        "role": "user",
        "content": [*({"type": "image"} for _ in images), {"type": "text", "text": question}],  # type: ignore[list-item]
    }
    return Sample(record=record, messages=(system, user), images=images, box_space="normalized")


def mixed_samples() -> list[Sample]:
    """Rows with one image, with two, with none, and with a large one."""
    return [
        sample("one", "How many red circles?", (image(84, 84, 0),)),
        sample(
            "two", "Which image has more green circles, the first or the second?", (image(84, 56, 1), image(56, 84, 2))
        ),
        sample("none", "What is 1 + 1?"),
        sample("large", "Count.", (image(300, 200, 3),), truth="3"),
    ]


def mixed_prompts(backbone: Backbone) -> list[Prompt]:
    """`mixed_samples`, encoded."""
    return [backbone.processor.encode(item) for item in mixed_samples()]
