"""Reward of grounding questions: overlap of the answer's one box with the true box.

A box is four numbers x1, y1, x2, y2 (left, top, right, bottom). The space that the policy writes in is declared, never
guessed: a maximum over several readings of the same numbers could be gamed. The overlap is raw: what of a box lies
outside the image counts as a part of it, so that a huge box is worth less than the whole image, and pixels written
where fractions are due are worth next to nothing.
"""

from __future__ import annotations

import math
import re

from lit_vlaa.answers import bare, legible
from lit_vlaa.rewards.errors import UnparsableTruthError
from lit_vlaa.types import BoxSpace

Box = tuple[float, float, float, float]

# Possessive and bounded repeats only: hostile text is read once.
_N = r"[\"']?([-+]?(?:\d++(?:\.\d*+)?|\.\d++|nan|inf(?:inity)?)(?:e[-+]?\d{1,4})?)[\"']?"
_AND = r"(?:\s{0,9},\s{0,9}|\s{1,9})"
_FOUR = rf"\s{{0,9}}{_AND.join([_N] * 4)}\s{{0,9}}"
_TWO = rf"\s{{0,9}}{_N}{_AND}{_N}\s{{0,9}}"
_CORNERS = rf"\({_TWO}\)[\s,]{{0,9}}\({_TWO}\)|\[{_TWO}\][\s,]{{0,9}}\[{_TWO}\]"
_KEY = rf"[\"']?(?<![a-z0-9]){{}}[\"']?\s{{{{0,9}}}}[:=]\s{{{{0,9}}}}{_N.replace('{', '{{').replace('}', '}}')}"
_KEYED = "|".join(
    r"[,;\s]{1,9}".join(_KEY.format(name) for name in names)
    for names in (("x_?1", "y_?1", "x_?2", "y_?2"), ("x_?min", "y_?min", "x_?max", "y_?max"))
)
_BOXES = re.compile(rf"\[{_FOUR}\]|\({_FOUR}\)|{_CORNERS}|{_KEYED}", re.IGNORECASE)
_ALONE = re.compile(_FOUR, re.IGNORECASE)
_LATEX = re.compile(r"\\(?:left|right)(?![a-z])|\\[,;! ]")
_DENIED = re.compile(r"\b(?:not|isn't|never|except|instead\s+of|rather\s+than)\b[^\[(.;]{0,24}$", re.IGNORECASE)


def find_boxes(text: str) -> list[Box]:
    """Returns every group of four numbers written as a box, finite or not, except those that the text denies.

    Read are `[x1, y1, x2, y2]` (also inside `bbox_2d` JSON), `(x1, y1, x2, y2)`, `(x1, y1), (x2, y2)`,
    `[x1, y1], [x2, y2]`, `x1: ..., y1: ..., x2: ..., y2: ...` (also `xmin` ...) and four numbers that are the whole
    text, with commas or blanks between them. Numbers in prose are no box, and nothing is one in a text that
    `answers.legible` refuses.
    """
    text = bare(_LATEX.sub("", legible(text) or ""))
    alone = _ALONE.fullmatch(text)
    matches = [alone] if alone else list(_BOXES.finditer(text))
    boxes: list[Box] = []
    for match in matches:
        x1, y1, x2, y2 = (float(group) for group in match.groups() if group is not None)
        if not _DENIED.search(text, max(0, match.start() - 40), match.start()):
            boxes.append((x1, y1, x2, y2))
    return boxes


def parse_truth(truth: str) -> Box:
    """Reads the true box, fractions of the image's width and height.

    Raises:
        UnparsableTruthError: Not exactly one box, or one that is not ordered or not inside [0, 1].
    """
    boxes = find_boxes(truth)
    if len(boxes) != 1:
        raise UnparsableTruthError(f"iou truth {truth[:80]!r} is no list [x1, y1, x2, y2]")
    x1, y1, x2, y2 = boxes[0]
    if not (0 <= x1 < x2 <= 1 and 0 <= y1 < y2 <= 1):
        raise UnparsableTruthError(
            f"iou truth {truth[:80]!r} must hold fractions of the image with 0 <= x1 < x2 <= 1 and 0 <= y1 < y2 <= 1"
        )
    return x1, y1, x2, y2


def to_normalized(box: Box, box_space: BoxSpace, image_size: tuple[int, int] | None = None) -> Box:
    """Converts a box to fractions of the image.

    Args:
        box: x1, y1, x2, y2 in `box_space`.
        box_space: `normalized` (fractions), `qwen2_5_vl` (pixels of the image as fed) or `qwen2_vl` (thousandths).
        image_size: (width, height) in pixels of the image as fed to the model; needed by `qwen2_5_vl` alone.

    Raises:
        ValueError: `qwen2_5_vl` without a usable image size, or an unknown space.
    """
    if box_space == "normalized":
        return box
    if box_space == "qwen2_vl":
        width, height = 1000, 1000
    elif box_space == "qwen2_5_vl":
        if image_size is None or min(image_size) < 1:
            raise ValueError(
                f"box_space='qwen2_5_vl' needs image_size=(width, height) of the image as fed to the model, got "
                f"{image_size}; pass it with the request or choose another box_space"
            )
        width, height = image_size
    else:
        raise ValueError(f"box_space must be normalized, qwen2_5_vl or qwen2_vl, got {box_space!r}")
    return box[0] / width, box[1] / height, box[2] / width, box[3] / height


def intersection_over_union(a: Box, b: Box) -> float:
    """Returns the overlap of two boxes in [0, 1]: shared area divided by covered area.

    0 for a box that is flat or inverted, or whose area is no finite number.
    """
    area_a = max(a[2] - a[0], 0.0) * max(a[3] - a[1], 0.0)
    area_b = max(b[2] - b[0], 0.0) * max(b[3] - b[1], 0.0)
    if not (0 < area_a < math.inf and 0 < area_b < math.inf):
        return 0.0
    width = max(min(a[2], b[2]) - max(a[0], b[0]), 0.0)
    height = max(min(a[3], b[3]) - max(a[1], b[1]), 0.0)
    shared = width * height
    return shared / (area_a + (area_b - shared))


def score(
    answer: str, truth: str, *, box_space: BoxSpace = "normalized", image_size: tuple[int, int] | None = None
) -> float:
    """Returns the overlap in [0, 1] of the answer's box with the true box.

    No box, several boxes, an infinite, inverted or flat one: 0.

    Args:
        answer: The content of the answer block.
        truth: `[x1, y1, x2, y2]` in fractions of the image.
        box_space: How the policy writes boxes.
        image_size: (width, height) in pixels of the image as fed to the model.

    Raises:
        UnparsableTruthError: The truth is no box.
        ValueError: The box space needs an image size that is missing.
    """
    target = parse_truth(truth)
    to_normalized(target, box_space, image_size)
    boxes = find_boxes(answer)
    if len(boxes) != 1 or not all(math.isfinite(value) for value in boxes[0]):
        return 0.0
    return intersection_over_union(to_normalized(boxes[0], box_space, image_size), target)
