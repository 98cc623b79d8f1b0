from __future__ import annotations

import json
import time

import pytest

from helpers.fuzz import CPU_LIMIT_S
from lit_vlaa.rewards.errors import UnparsableTruthError
from lit_vlaa.rewards.iou import Box, find_boxes, intersection_over_union, score

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
        ("[-5, -5, 7, 7]", 0.16 / 144),  # what lies outside the image counts
        ("[0.2, 0.2, 0.6, 1000]", 0.16 / 399.92),
        ("[0, 0, 100, 100]", 0.16 / 10_000),
        ("[0.01, 0.01, 0.99, 0.99]", 0.16 / 0.9604),
        ("[-0.0, 0, 1, 1]", 0.16),
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
        # The same box in other words.
        ("[0.2, 0.2], [0.6, 0.6]", 1.0),
        ("[[0.2, 0.2], [0.6, 0.6]]", 1.0),
        ("[0.2 0.2 0.6 0.6]", 1.0),
        ("`0.2, 0.2, 0.6, 0.6`", 1.0),
        ('["0.2", "0.2", "0.6", "0.6"]', 1.0),
        ("x1=0.2, y1=0.2, x2=0.6, y2=0.6", 1.0),
        ('{"xmin": 0.2, "ymin": 0.2, "xmax": 0.6, "ymax": 0.6}', 1.0),
        ("<|box_start|>(0.2,0.2),(0.6,0.6)<|box_end|>", 1.0),
        ('```json\n[{"bbox_2d": [0.2, 0.2, 0.6, 0.6], "label": "dog", "score": 0.9, "id": [1]}]\n```', 1.0),
        (r"\left[0.2,\, 0.2,\, 0.6,\, 0.6\right]", 1.0),
        ("［０.２，０.２，０.６，０.６］", 1.0),
        ("[٠.٢, ٠.٢, ٠.٦, ٠.٦]", 1.0),
        ("[0.2, 0.2, 0.6, 0.6]\u200b", 1.0),
        ("not [0.1, 0.1, 0.2, 0.2] but [0.2, 0.2, 0.6, 0.6]", 1.0),
        # Several, denied, or no box of the declared convention.
        (json.dumps([{"bbox_2d": [0.2, 0.2, 0.6, 0.6]}, {"bbox_2d": [0.1, 0.1, 0.5, 0.5]}]), 0.0),
        ('{"bbox_2d": [0.2, 0.2, 0.6, 0.6], "x1": 0.1, "y1": 0.1, "x2": 0.5, "y2": 0.5}', 0.0),
        ("[0.2, 0.2, 0.6, 0.6] (0, 0, 1, 1)", 0.0),
        (f"[0.2, 0.2, 0.6, 0.6] [0, 0, {'9' * 400}, 1]", 0.0),
        ("not [0.2, 0.2, 0.6, 0.6]", 0.0),
        ("[20%, 20%, 60%, 60%]", 0.0),
        ("[1/5, 1/5, 3/5, 3/5]", 0.0),
        ("[0,2, 0,2, 0,6, 0,6]", 0.0),
        ("[0.2, 0.2, 0.4, 0.4] as x, y, width, height", 1 / 4),  # read as corners: 0.04 of 0.16
        ("x: 0.2, y: 0.2, width: 0.4, height: 0.4", 0.0),
        ("box: 0.2, 0.2, 0.6, 0.6", 0.0),
        ("[x1, y1, x2, y2]", 0.0),
        ("[0.2, 0.2, 0.6, 0.6", 0.0),
        ("[0.2, 0.2, 0.6, 0.6)", 0.0),
        ("[1e-300, 1e-300, 2e-300, 2e-300]", 0.0),
        ("[-1e300, -1e300, 1e300, 1e300]", 0.0),
        ("[0, 0, 1e99999, 1]", 0.0),
        ("[0.2, 0.2, 0.6, infinity]", 0.0),
        ("[0.2, nan, 0.6, 0.6]", 0.0),
        ("[--0.2, 0.2, 0.6, 0.6]", 0.0),
        ("[0x0, 0x0, 0x1, 0x1]", 0.0),
        ("\u202e[0.2, 0.2, 0.6, 0.6]", 0.0),
        ("[0.2, 0.2, 0.6, 0.6]" + " " * 4000, 0.0),
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
    "truth",
    [
        "",
        "box",
        "[0.1, 0.2, 0.3]",
        "[0.5, 0.1, 0.2, 0.9]",
        "[1, 2, 30, 40]",
        "[NaN, 0, 1, 1]",
        "3",
        "{}",
        "[0, 0, 0, 1]",
        "[0, 0, 1, 1e999]",
        "[-0.1, 0, 1, 1]",
        "[[0, 0, 1, 1], [0, 0, 1, 1]]",
        f"[0, 0, 1, 1{'0' * 400}]",
        "[" * 3000,
        "9" * 5000,
        "null",
        "[true, 0, 1, 1]",
        "0.1",
    ],
)
def test_unreadable_truth_is_no_verdict(truth: str) -> None:
    with pytest.raises(UnparsableTruthError, match="iou truth"):
        score("[0, 0, 1, 1]", truth)


@pytest.mark.parametrize(
    "truth",
    ["[0, 0, 0.5, 1]", "(0, 0, 0.5, 1)", "0, 0, 0.5, 1", "[[0, 0, 0.5, 1]]", "[0 0 0.5 1]", " [0,0,5e-1,1.0]\n"],
)
def test_truth_forms(truth: str) -> None:
    assert score("[0, 0, 0.5, 1]", truth) == 1


@pytest.mark.parametrize(
    ("a", "b", "expected"),
    [
        ((0, 0, 2, 1), (1, 0, 3, 1), 1 / 3),
        ((0, 0, 2, 2), (1, 1, 3, 3), 1 / 7),
        ((0, 0, 1, 1), (1, 0, 2, 1), 0),  # they touch
        ((0, 0, 4, 4), (1, 1, 2, 3), 1 / 8),
        ((0, 0, 1, 1), (0, 0, 1, 0), 0),
        ((1, 1, 0, 0), (0, 0, 1, 1), 0),
        ((-1e200, -1e200, 1e200, 1e200), (-1e200, -1e200, 1e200, 1e200), 0),  # its area is no number
        ((0, 0, float("nan"), 1), (0, 0, 1, 1), 0),
    ],
)
def test_intersection_over_union(a: Box, b: Box, expected: float) -> None:
    assert intersection_over_union(a, b) == intersection_over_union(b, a) == pytest.approx(expected, abs=1e-15)


@pytest.mark.parametrize(
    "piece",
    ["[0.1,", "[", "(0,0),", "1", " ", "[0, 0, 1, 1", "nan,", "1.1e1", "x1:1,", "x1: 1, y1: 1, ", "not ", "[0 0 "],
)
def test_hostile_text_is_quick(piece: str) -> None:
    start = time.process_time()
    find_boxes(piece * 20_000)
    find_boxes((piece * 4000)[:4000])
    assert time.process_time() - start < CPU_LIMIT_S
