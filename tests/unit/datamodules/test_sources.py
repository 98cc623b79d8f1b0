from __future__ import annotations

import pytest

from datamodules.sources import SOURCES, kind_of, source_of


def test_counts_add_up_to_the_paper_s_totals() -> None:
    assert sum(source.sft_count for source in SOURCES.values()) == 126_413
    assert sum(source.rl_count for source in SOURCES.values()) == 25_195
    assert len(SOURCES) == 9


@pytest.mark.parametrize(
    ("image", "record_id", "source"),
    [
        ("clevr_math/CLEVR_train_027977.png", "", "clevr_math"),
        ("/allava_laion/images/1.jpeg", "allava-allava_laion_1", "allava_laion"),
        ("images/docvqa/1.png", "", "docvqa"),
        ("coco/train2017/000000000009.jpg", "", "coco"),
        ("vg/VG_100K_2/1.jpg", "", "vg"),
        ("1.png", "synthesis-2", "synthesis"),
        ("vg", "", "other"),
        ("vgx/1.png", "", "other"),
        ("mine/clevr_math/1.png", "", "other"),
        ("", "", "other"),
    ],
)
def test_source_comes_from_the_folder_then_from_the_id(image: str, record_id: str, source: str) -> None:
    assert source_of(image, record_id) == source


def test_default_kinds_are_those_of_the_data_table() -> None:
    assert {name: kind_of(name) for name in SOURCES} == {
        "clevr_math": "digit",
        "geoqa170k": "mcq",
        "synthesis": "math",
        "arxivqa": "mcq",
        "docvqa": "open_ended",
        "vizwiz": "open_ended",
        "allava_laion": "open_ended",
        "coco": "iou",
        "vg": "iou",
    }
    assert kind_of("other") is None
