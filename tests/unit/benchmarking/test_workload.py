"""The same work for both sides: lengths from a file, rewards, rows, and the shape of the large model."""

from __future__ import annotations

import json

import pytest
import torch
from transformers import Qwen2_5_VLForConditionalGeneration

from benchmarks.models import Setup, config_3b
from benchmarks.workload import LENGTHS, SCALES, drawn_lengths, lengths, reward, samples


def test_file_of_lengths_is_what_the_seed_draws() -> None:
    assert json.loads(LENGTHS.read_text(encoding="utf-8"))["lengths"] == drawn_lengths(6)


def test_heavy_tail_has_short_and_long_completions() -> None:
    drawn = sorted(lengths("heavy", 512, 512))

    # Log-normal with sigma 0.9: a tenth lies below 96 * exp(-1.28 * 0.9) = 30, a tenth above 304.
    assert 25 <= drawn[51] <= 36
    assert 250 <= drawn[460] <= 360
    assert drawn[-1] == 512


def test_lengths_are_scaled_to_the_limit_and_reach_it() -> None:
    # The file begins 93, 79, 41, 16; a quarter of them, rounded to even, is 23, 20, 10, 4, and the longest is raised.
    assert lengths("heavy", 4, 128) == [128, 20, 10, 4]
    assert lengths("fixed", 3, 128) == [128, 128, 128]


def test_no_group_has_rewards_that_are_all_equal() -> None:
    for prompt in range(16):
        assert len({reward(prompt * 8 + sample, 8) for sample in range(8)}) > 1


@pytest.mark.parametrize("scale", SCALES.values(), ids=SCALES)
def test_rows_need_no_resizing_and_have_skewed_responses(scale: object) -> None:
    rows = samples(32, scale)  # type: ignore[arg-type]

    assert all(side % 28 == 0 for row in rows for image in row.images for side in image.size)
    sizes = sorted(len(row.record.response or "") for row in rows)
    assert sizes[-1] > 3 * sizes[16]


def test_row_can_have_several_images() -> None:
    row = samples(1, SCALES["tiny"], images=3)[0]
    prompt = Setup().processor().encode(row)

    assert prompt.image_grid_thw is not None
    assert len(prompt.image_grid_thw) == 3


def test_large_model_has_the_size_of_the_released_one() -> None:
    with torch.device("meta"):
        model = Qwen2_5_VLForConditionalGeneration(config_3b(Setup().processor()))

    # Of Qwen2.5-VL-3B-Instruct: 3,754,622,976 in all, of which 668,684,288 in the vision tower.
    assert sum(p.numel() for p in model.parameters()) == 3_754_622_976
    assert sum(p.numel() for p in model.model.visual.parameters()) == 668_684_288


def test_settings_of_the_large_model_are_bfloat16_with_frozen_vision() -> None:
    config = Setup("random-3b", "cuda").config

    assert (config.dtype, config.freeze) == ("bfloat16", ("vision",))
