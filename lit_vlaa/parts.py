"""The three parts of a vision-language model, which are frozen, adapted and trained each by its own settings."""

from __future__ import annotations

from typing import Literal

Part = Literal["vision", "merger", "language"]


def part_of(name: str) -> Part:
    """The part that a parameter or a module of a Qwen2.5-VL or Qwen2-VL belongs to.

    Args:
        name: As in the model's state dict, with whatever prefix.
    """
    if "visual.merger." in name:
        return "merger"
    return "vision" if "visual." in name else "language"
