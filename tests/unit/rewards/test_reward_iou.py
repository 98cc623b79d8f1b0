from __future__ import annotations

import json
import time

import pytest

from lit_vlaa.rewards.errors import UnparsableTruthError
from lit_vlaa.rewards.iou import find_boxes, intersection_over_union, score

TRUTH = "[0.2, 0.2, 0.6, 0.6]"


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ("[0.2, 0.2, 0.6, 0.6]", 1.0),
        ("(0.2, 0.2, 0.6, 0.6)", 1.0),
        ("(0.2, 0.2), (0.6, 0.6)", 1.0),
        ("(0.2,0.2),(0.6,0.6)", 1.0),
        ("0.2, 0.2, 0.6, 0.6", 1.0),
        ("[[0.2, 0.2, 0.6, 0.6]]", 1.0),
        ("The dog is at [0.2, 0.2, 0.6, 0.6].", 1.0),
        (json.dumps([{"bbox_2d": [0.2, 0.2, 0.6, 0.6], "label": "dog"}]), 1.0),
        (r"\boxed{[.2, .2, .6, .6]}", 1.0),
        ("[2e-1, 2e-1, 6e-1, 6e-1]", 1.0),
        ("[0.2, 0.2, 0.4, 0.6]", 0.5),  # half of the truth: 0.08 / 0.16
        ("[0.4, 0.4, 0.8, 0.8]", 1 / 7),  # shared 0.04, covered 0.16 + 0.16 - 0.04
        ("[0, 0, 1, 1]", 0.16),
        ("[-5, -5, 7, 7]", 0.16),  # clipped to the image
        ("[0.7, 0.7, 0.9, 0.9]", 0.0),
        ("[0.2, 0.2, 0.6, 0.6] and [0.1, 0.1, 0.5, 0.5]", 0.0),
        ("[0.2, 0.2, 0.6, 0.6] [0.2, 0.2, 0.6, 0.6]", 0.0),
        ("[0.2, 0.2, 0.6, 0.6] [nan, 0, 1, 1]", 0.0),
        ("[0.6, 0.6, 0.2, 0.2]", 0.0),
        ("[0.6, 0.2, 0.2, 0.6]", 0.0),
        ("[0.2, 0.2, 0.2, 0.6]", 0.0),
        ("[nan, nan, nan, nan]", 0.0),
        ("[-inf, -inf, inf, inf]", 0.0),
        ("[0, 0, 1e999, 1e999]", 0.0),
        ("[0.2, 0.2, 0.6]", 0.0),
        ("[0.2, 0.2, 0.6, 0.6, 0.9]", 0.0),
        ("from 0.2 and 0.2 to 0.6 and 0.6", 0.0),
        ("in 2 of 3 pictures, 4, or 5", 0.0),
        ("[100, 100, 300, 300]", 0.0),  # pixels in a space of fractions
        ("", 0.0),
        ("no box", 0.0),
    ],
)
def test_score_normalized(answer: str, expected: float) -> None:
    assert score(answer, TRUTH) == pytest.approx(expected, abs=1e-12)


def test_pixels_of_the_fed_image() -> None:
    # A 480x640 image is fed as 420x588: the truth is [84, 117.6, 252, 352.8] there.
    assert score("[84, 117.6, 252, 352.8]", TRUTH, box_space="qwen2_5_vl", image_size=(420, 588)) == pytest.approx(1)
    # Pixels of the original, [96, 128, 288, 384]: shared 156 x 224.8, covered 168 x 235.2 + 192 x 256 - shared.
    shared = 156 * 224.8
    unscaled = score("[96, 128, 288, 384]", TRUTH, box_space="qwen2_5_vl", image_size=(420, 588))
    assert unscaled == pytest.approx(shared / (168 * 235.2 + 192 * 256 - shared))


def test_only_the_declared_space_counts() -> None:
    thousandths = "[200, 200, 600, 600]"
    assert score(thousandths, TRUTH, box_space="qwen2_vl") == pytest.approx(1)
    assert score(thousandths, TRUTH) == 0
    # Fractions read as thousandths are a tiny box in the corner.
    assert score("[0.2, 0.2, 0.6, 0.6]", TRUTH, box_space="qwen2_vl") == 0


@pytest.mark.parametrize("size", [None, (0, 5)])
def test_missing_image_size_names_the_flag(size: tuple[int, int] | None) -> None:
    with pytest.raises(ValueError, match="image_size"):
        score("none", TRUTH, box_space="qwen2_5_vl", image_size=size)


@pytest.mark.parametrize(
    "truth", ["", "box", "[0.1, 0.2, 0.3]", "[0.5, 0.1, 0.2, 0.9]", "[1, 2, 30, 40]", "[NaN, 0, 1, 1]", "3", "{}"]
)
def test_unreadable_truth_is_no_verdict(truth: str) -> None:
    with pytest.raises(UnparsableTruthError, match="iou truth"):
        score("[0, 0, 1, 1]", truth)


def test_iou_is_symmetric() -> None:
    a, b = (0.0, 0.0, 2.0, 1.0), (1.0, 0.0, 3.0, 1.0)
    assert intersection_over_union(a, b) == intersection_over_union(b, a) == pytest.approx(1 / 3)


@pytest.mark.parametrize("piece", ["[0.1,", "[", "(0,0),", "1", " ", "[0, 0, 1, 1", "nan,", "1.1e1"])
def test_hostile_text_is_quick(piece: str) -> None:
    start = time.perf_counter()
    find_boxes(piece * 20_000)
    assert time.perf_counter() - start < 2
