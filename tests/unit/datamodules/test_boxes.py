from __future__ import annotations

import logging
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from datamodules.boxes import (
    MOST_ROWS,
    Box,
    SeenBox,
    Size,
    TruthBoxes,
    contradictions,
    keeps_to_the_band,
    to_plain,
    warn_of_contradictions,
    with_plain_truth,
)
from lit_vlaa.types import Record


@pytest.mark.parametrize(
    ("size", "box", "expected"),
    [
        # 400 x 300 on a 400 square: 50 px above. y = 0.25 -> (100 - 50) / 300, 0.5 -> (200 - 50) / 300.
        ((400, 300), (0.25, 0.25, 0.75, 0.5), (0.25, 1 / 6, 0.75, 0.5)),
        # 300 x 400: 50 px on the left; the same with the axes swapped.
        ((300, 400), (0.25, 0.25, 0.5, 0.75), (1 / 6, 0.25, 0.5, 0.75)),
        # A square needs no padding.
        ((336, 336), (0.1, 0.2, 0.3, 0.4), (0.1, 0.2, 0.3, 0.4)),
        # 5 x 2 on 5: (5 - 2) // 2 = 1 px above, 2 below. y = 0.4 is 2 px, so 1 of 2; 0.6 is 3 px, the lower edge.
        ((5, 2), (0.0, 0.4, 1.0, 0.6), (0.0, 0.5, 1.0, 1.0)),
        # 3 x 8 on 8: (8 - 3) // 2 = 2 px on the left. x = 0.25 is 2 px, the left edge; 0.5 is 4 px, 2 of 3.
        ((3, 8), (0.25, 0.125, 0.5, 1.0), (0.0, 0.125, 2 / 3, 1.0)),
        # The whole picture: 640 x 480 stands between 80 / 640 and 560 / 640.
        ((640, 480), (0.0, 0.125, 1.0, 0.875), (0.0, 0.0, 1.0, 1.0)),
    ],
)
def test_boxes_on_the_padded_square_by_hand(size: Size, box: Box, expected: Box) -> None:
    assert to_plain(box, size) == pytest.approx(expected, abs=1e-12)


def test_only_rounding_is_cut_off() -> None:
    # 640 x 480: the picture begins at 0.125. 0.12 is 0.005 of the square's side short of it, 0.1 is 0.025.
    assert to_plain((0.0, 0.12, 0.5, 0.5), (640, 480)) == pytest.approx((0.0, 0.0, 0.5, 0.5))
    # (0.1 * 640 - 80) / 480 = -16 / 480
    assert to_plain((0.0, 0.1, 0.5, 0.5), (640, 480)) == pytest.approx((0.0, -1 / 30, 0.5, 0.5))
    # Wholly in the padding: (0.9 * 640 - 80) / 480 = 496 / 480.
    assert to_plain((0.0, 0.9, 0.5, 1.0), (640, 480))[1] == pytest.approx(496 / 480)


def row(truth: str, **changes: Any) -> Record:
    fields: dict[str, Any] = {
        "id": "r",
        "source": "vg",
        "kind": "iou",
        "images": ("vg/VG_100K/1.png",),
        "question": "where?",
        "truth": truth,
        "response": None,
        "origin": "f.json:1",
    }
    return Record(**(fields | changes))


def test_records_get_a_plain_truth() -> None:
    given = row("[0.25, 0.25, 0.75, 0.5]")
    assert with_plain_truth(given, [(400, 200)], {"vg": "padded_square"}) == row("[0.25, 0.0, 0.75, 0.5]")
    for same in (
        with_plain_truth(given, [(400, 200)], {}),
        with_plain_truth(given, [(400, 200)], {"vg": "plain", "coco": "padded_square"}),
        with_plain_truth(given, [(400, 200)] * 2, {"vg": "padded_square"}),
    ):
        assert same is given
    for other in (row("C", kind="mcq"), row("")):
        assert with_plain_truth(other, [(400, 200)], {"vg": "padded_square"}) is other


def boxes(rng: random.Random, count: int, *, largest: float = 0.6, sizes: tuple[Size, ...] = ()) -> list[SeenBox]:
    """Plain boxes of any width and height up to `largest`, anywhere in images of any common shape."""
    found = []
    for number in range(count):
        size = rng.choice(sizes or ((640, 480), (480, 640), (500, 375), (800, 600), (600, 800), (500, 333)))
        spans = []
        for _ in range(2):
            length = rng.uniform(0.05, largest)
            low = rng.uniform(0, 1 - length)
            spans.append((low, low + length))
        (x1, x2), (y1, y2) = spans
        found.append(SeenBox(f"f.json:{number + 1}", (x1, y1, x2, y2), size))
    return found


def padded(rows: list[SeenBox]) -> list[SeenBox]:
    """The same boxes as fractions of the padded square, rounded to two decimals."""
    found = []
    for given in rows:
        assert given.size is not None
        width, height = given.size
        side = max(width, height)
        left, top = (side - width) // 2, (side - height) // 2
        x1, y1, x2, y2 = (
            round((value * length + start) / side, 2)
            for value, length, start in zip(given.box, (width, height) * 2, (left, top) * 2, strict=True)
        )
        found.append(SeenBox(given.origin, (x1, y1, x2, y2), given.size))
    return found


def pairs(rows: list[SeenBox]) -> list[tuple[Box, Size]]:
    return [(given.box, given.size) for given in rows if given.size is not None]


@pytest.mark.parametrize("count", [20, 64])
@pytest.mark.parametrize("largest", [0.1, 0.3, 0.6])
def test_plain_boxes_raise_no_false_alarm(count: int, largest: float) -> None:
    rng = random.Random(0)
    alarms = sum(
        keeps_to_the_band(pairs(boxes(rng, count, largest=largest, sizes=((640, 480),)))) is not None
        for _ in range(2000)
    )
    assert alarms <= 2  # one in a thousand


@pytest.mark.parametrize("largest", [0.3, 0.6])
def test_padded_boxes_are_noticed(largest: float) -> None:
    rng = random.Random(0)
    noticed = sum(keeps_to_the_band(pairs(padded(boxes(rng, 64, largest=largest)))) is not None for _ in range(500))
    assert noticed >= 490


def test_the_sign_test_by_hand() -> None:
    oblong: Size = (400, 300)  # margins of 1 / 8 above and below
    central: tuple[Box, Size] = ((0.4, 0.4, 0.6, 0.6), oblong)
    wide: tuple[Box, Size] = ((0.0, 0.4, 0.6, 0.6), oblong)
    high: tuple[Box, Size] = ((0.4, 0.0, 0.6, 0.6), oblong)
    # 10 wide and no high ones: 2 ** -10 = 0.00098; with 9 it is 0.00195.
    assert keeps_to_the_band([wide] * 10 + [central] * 10) == (20, 0, 10)
    assert keeps_to_the_band([wide] * 9 + [central] * 11) is None
    assert keeps_to_the_band([wide] * 10 + [central] * 9) is None  # 19 images are too few
    assert keeps_to_the_band([wide] * 19 + [(wide[0], (400, 334))]) is None  # 400 / 334 < 1.2 is not clearly oblong
    # One high of 20: (1 + 20) / 2 ** 20. Two of 39 are more than one in twenty.
    assert keeps_to_the_band([wide] * 19 + [high]) == (20, 1, 19)
    assert keeps_to_the_band([wide] * 37 + [high] * 2) is None
    assert keeps_to_the_band([((0.4, 0.0, 0.6, 0.6), (300, 400))] * 20) == (20, 0, 20)  # portraits the other way round
    # Rounding to two decimals may leave the picture by half a hundredth: its upper edge is at 0.125.
    assert keeps_to_the_band([((0.0, 0.12, 0.6, 0.6), oblong)] * 20) == (20, 0, 20)


def test_what_the_user_is_told() -> None:
    rng = random.Random(1)
    plain = boxes(rng, 64)
    square = padded(plain)
    assert contradictions("coco", "plain", plain) == []
    assert contradictions("vg", "padded_square", square) == []
    (line,) = contradictions("vg", "plain", square)
    assert "--data.truth_boxes '{vg: padded_square}'" in line
    assert "on 64 images" in line
    assert "0 boxes reach" in line
    # 640 x 480 stands between 0.125 and 0.875.
    inside, outside = (0.1, 0.2, 0.3, 0.8), (0.1, 0.05, 0.3, 0.8)
    rows = [SeenBox(f"f.json:{n}", box, (640, 480)) for n, box in enumerate([inside, outside, outside], 1)]
    (line,) = contradictions("vg", "padded_square", rows)
    assert "2 of 3" in line
    assert "first: f.json:2, [0.1, 0.05, 0.3, 0.8]" in line
    assert "--data.truth_boxes '{vg: padded_square}'" in line


def test_values_that_are_no_fractions() -> None:
    bad = [(0.1, 0.1, 12.0, 0.4), (0.5, 0.1, 0.4, 0.4), (0.1, 0.4, 0.4, 0.4), (-0.1, 0.1, 0.4, 0.4)]
    rows = [SeenBox(f"f.json:{n}", box, (84, 84)) for n, box in enumerate([(0.0, 0.0, 1.0, 1.0), *bad], 1)]
    frames: tuple[TruthBoxes, ...] = ("plain", "padded_square")
    for frame in frames:
        (line,) = contradictions("coco", frame, rows)
        assert line.startswith("4 of 5 truth boxes of coco")
        assert "first: f.json:2, [0.1, 0.1, 12.0, 0.4]" in line
        assert "no reward" in line


class Table:
    """What the check reads of a table."""

    def __init__(self, records: list[Record]) -> None:
        self.records = records
        self.read: list[int] = []

    def column(self, name: str) -> np.ndarray[Any, Any]:
        return np.asarray([getattr(record, name) for record in self.records])

    def __getitem__(self, index: int) -> Record:
        self.read.append(index)
        return self.records[index]


@pytest.fixture
def check(caplog: pytest.LogCaptureFixture) -> Any:
    """Checks records and returns the warnings, and the table that was read."""

    def run(
        records: list[Record], root: Path, frame: dict[str, Any], max_pixels: int = 10**6
    ) -> tuple[list[str], Table]:
        table = Table(records)
        used: Any = [(table, np.arange(len(records)))]
        caplog.clear()
        with caplog.at_level(logging.WARNING):
            warn_of_contradictions(used, frame, image_root=root, max_pixels=max_pixels)
        return [record.getMessage() for record in caplog.records], table

    return run


def image(root: Path, name: str, size: Size) -> str:
    file = root / "vg" / "VG_100K" / name
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.new("1", size).save(file)
    return f"vg/VG_100K/{name}"


def test_rows_are_chosen_evenly(check: Any, tmp_path: Path) -> None:
    path = image(tmp_path, "1.png", (64, 48))
    records = [row("[0.1, 0.01, 0.2, 0.2]", images=(path,), origin=f"f.json:{n}") for n in range(1, 642)]
    lines, table = check(records, tmp_path, {"vg": "padded_square"})
    # 641 rows, 64 places from 0 to 640: a step of 640 / 63 = 10.16.
    assert table.read[:4] == [0, 10, 20, 30]
    assert len(set(table.read)) == MOST_ROWS == 64
    assert table.read[-1] == 640
    assert len(lines) == 1
    assert "64 of 64" in lines[0]


def test_headers_are_read_under_the_rules_for_images(check: Any, tmp_path: Path) -> None:
    root = tmp_path / "images"
    outside = image(tmp_path, "secret.png", (64, 48))
    large = image(root, "large.png", (64, 48))
    broken = root / "vg" / "VG_100K" / "broken.png"
    broken.write_bytes(b"no image")
    (root / "vg" / "VG_100K" / "link.png").symlink_to(tmp_path / outside)
    names = (large, "vg/VG_100K/broken.png", "vg/VG_100K/link.png", "vg/VG_100K/none.png")
    records = [row("[0.1, 0.01, 0.2, 0.2]", images=(name,)) for name in names]
    assert check(records, root, {"vg": "padded_square"}, max_pixels=64 * 48 - 1)[0] == []
    (line,) = check(records, root, {"vg": "padded_square"}, max_pixels=64 * 48)[0]
    assert "1 of 1" in line


def test_only_headers_are_read(check: Any, tmp_path: Path) -> None:
    path = image(tmp_path, "1.png", (640, 480))
    file = tmp_path / path
    file.write_bytes(file.read_bytes()[:60])  # the size stands in the first 24 bytes of a PNG file
    lines, _ = check([row("[0.1, 0.01, 0.2, 0.2]", images=(path,))], tmp_path, {"vg": "padded_square"})
    assert len(lines) == 1


def test_nothing_is_read_when_there_are_no_boxes(check: Any, tmp_path: Path) -> None:
    lines, table = check([row("C", kind="mcq")] * 5, tmp_path / "nowhere", {"vg": "padded_square"})
    assert not lines
    assert not table.read
