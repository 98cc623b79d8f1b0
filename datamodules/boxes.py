"""Truth boxes: the frame that a source gives them in, and whether its data agree with what the user says of it.

Records hold boxes as their file does. Prompts hold them as fractions of the image, whatever the source: a box on the
padded square (the image pasted in the middle of a square as wide as its longer side) is converted here.
"""

from __future__ import annotations

import json
import logging
import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, get_args

import numpy as np

from datamodules.images import ImageError, read_size
from datamodules.shards import embedded_images
from datamodules.sources import OTHER, SOURCES
from datamodules.table import RecordTable
from lit_vlaa.types import Record

_LOG = logging.getLogger(__name__)

TruthBoxes = Literal["plain", "padded_square"]
"""Fractions of the image, or of the image padded to a centred square."""

Box = tuple[float, float, float, float]
Size = tuple[int, int]

MOST_ROWS = 64
"""Rows of a source that `warn_of_contradictions` looks at."""

_ROUNDING = 0.01
"""Share of the square's side that a box may stick out by: two decimals, and the pixel that annotators are off."""
_CLEARLY_OBLONG = 1.2
_FEWEST_IMAGES = 20
_CHANCE = 1e-3


def check_frames(truth_boxes: Mapping[str, TruthBoxes]) -> None:
    """Looks at what the user says of the sources' boxes.

    Raises:
        ValueError: If a source or a frame is unknown.
    """
    for what, given, known in (
        ("names", set(truth_boxes), {*SOURCES, OTHER}),
        ("says", set(truth_boxes.values()), set(get_args(TruthBoxes))),
    ):
        if unknown := sorted(given - known):
            raise ValueError(f"truth_boxes {what} {unknown}; known are {sorted(known)}")


def _margins(size: Size) -> tuple[int, int, int]:
    """Side of the padded square, and where the image's left and top edges lie on it, in pixels."""
    width, height = size
    side = max(size)
    return side, (side - width) // 2, (side - height) // 2


def to_plain(box: Box, size: Size) -> Box:
    """Converts a box on the padded square to fractions of the image.

    What sticks out of the image by no more than rounding explains is cut off. A box that reaches further into the
    padding cannot be what the annotator saw; it is left as it comes out, outside of [0, 1], so that its row counts as
    one with an unreadable truth and gives no reward.

    Args:
        box: x1, y1, x2, y2 as fractions of the square's side.
        size: (width, height) of the image in pixels, as it was opened.
    """
    side, left, top = _margins(size)
    plain = []
    for value, start, length in zip(box, (left, top) * 2, size * 2, strict=True):
        fraction = (value * side - start) / length
        nearest = min(max(fraction, 0.0), 1.0)
        plain.append(nearest if abs(fraction - nearest) * length <= _ROUNDING * side else fraction)
    x1, y1, x2, y2 = plain
    return x1, y1, x2, y2


def with_plain_truth(record: Record, sizes: Sequence[Size], truth_boxes: Mapping[str, TruthBoxes]) -> Record:
    """Returns the record with its box, if it has one, as fractions of the image.

    Args:
        record: Any row.
        sizes: (width, height) of its images as they were opened.
        truth_boxes: Frame of the boxes by source; a source that is left out gives fractions of the image.
    """
    if record.kind != "iou" or truth_boxes.get(record.source, "plain") == "plain" or len(sizes) != 1:
        return record
    box = _read(record.truth)
    return record if box is None else replace(record, truth=str([float(value) for value in to_plain(box, sizes[0])]))


def _read(truth: str) -> Box | None:
    """The four numbers of a record's truth; None for a record without one."""
    try:
        x1, y1, x2, y2 = (float(value) for value in json.loads(truth))
    except (ValueError, TypeError):
        return None
    return x1, y1, x2, y2


def _ordered(box: Box) -> bool:
    return 0 <= box[0] < box[2] <= 1 and 0 <= box[1] < box[3] <= 1


@dataclass(frozen=True, slots=True)
class SeenBox:
    """A truth box as its file gives it, with the image it belongs to."""

    origin: str
    """`file:row`."""
    box: Box
    size: Size | None
    """(width, height) of the image in pixels; None when it cannot be opened."""


def warn_of_contradictions(
    rows: Iterable[tuple[RecordTable, np.ndarray[tuple[int], np.dtype[np.int64]]]],
    truth_boxes: Mapping[str, TruthBoxes],
    *,
    image_root: Path,
    max_pixels: int,
) -> None:
    """Warns when truth boxes do not agree with what is said of their source.

    At most `MOST_ROWS` rows of a source are read, evenly spread, and of their images the headers only.

    Args:
        rows: Tables with the rows of each that are used.
        truth_boxes: Frame of the boxes by source; a source that is left out gives fractions of the image.
        image_root: Folder of the images, resolved.
        max_pixels: Larger images are left out.
    """
    found: dict[str, list[tuple[RecordTable, int]]] = defaultdict(list)
    for table, chosen in rows:
        with_box = chosen[table.column("kind")[chosen] == "iou"]
        for index, source in zip(with_box, table.column("source")[with_box], strict=True):
            found[str(source)].append((table, int(index)))
    for source, places in found.items():
        spread = np.linspace(0, len(places) - 1, min(len(places), MOST_ROWS)).round().astype(int)
        seen = []
        for table, index in (places[int(place)] for place in spread):
            record: Record = table[index]
            box = _read(record.truth)
            if box is not None:
                seen.append(SeenBox(record.origin, box, _size(record, image_root, max_pixels)))
        for contradiction in contradictions(source, truth_boxes.get(source, "plain"), seen):
            _LOG.warning("%s", contradiction)


def _size(record: Record, image_root: Path, max_pixels: int) -> Size | None:
    """Reads the header of the record's image; whoever encodes the row complains of one that cannot be opened."""
    try:
        content = (embedded_images(record) or (None,))[0]
        size = read_size(image_root, record.images[0], max_pixels=max_pixels, content=content)
    except (IndexError, ImageError):
        return None
    return size if min(size) > 0 else None


def contradictions(source: str, frame: TruthBoxes, seen: Sequence[SeenBox]) -> list[str]:
    """Compares the boxes of one source with the frame that they are said to be in.

    Args:
        source: Name of the source.
        frame: What the user says.
        seen: Boxes with their images.

    Returns:
        One line for each contradiction.
    """
    lines = []
    broken = [row for row in seen if not _ordered(row.box)]
    if broken:
        lines.append(
            f"{len(broken)} of {len(seen)} truth boxes of {source} looked at do not hold fractions with "
            f"0 <= x1 < x2 <= 1 and 0 <= y1 < y2 <= 1 (first: {broken[0].origin}, {list(broken[0].box)}); "
            "such rows give no reward"
        )
    sized = [(row, row.size) for row in seen if row.size is not None and _ordered(row.box)]
    if frame == "padded_square":
        outside = [row for row, size in sized if not _ordered(to_plain(row.box, size))]
        if outside:
            lines.append(
                f"--data.truth_boxes '{{{source}: padded_square}}' does not fit the data: {len(outside)} of "
                f"{len(sized)} truth boxes of {source} looked at reach into the padding (first: {outside[0].origin}, "
                f"{list(outside[0].box)}), and such rows give no reward; leave {source} out of the flag if its boxes "
                "are fractions of the image itself"
            )
    elif (counts := keeps_to_the_band([(row.box, size) for row, size in sized])) is not None:
        images, short, long = counts
        lines.append(
            f"truth boxes of {source} look like fractions of the image padded to a square: on {images} images that "
            f"are clearly not square, {short} boxes reach into the margins that padding would leave, but {long} reach "
            f"as far along the longer side; if so, set --data.truth_boxes '{{{source}: padded_square}}', or their "
            "rewards are wrong"
        )
    return lines


def keeps_to_the_band(rows: Sequence[tuple[Box, Size]]) -> tuple[int, int, int] | None:
    """Tells boxes on the padded square, taken for plain ones, by the band that they keep to.

    On the padded square no box reaches into the margins beside the image's shorter side. Plain boxes may keep out of
    them too, when they are small and central, so the longer side is the control: which boxes reach as far into margins
    of the same width there? A plain box that reaches into the margins along one side alone does so along either side
    with equal chance (in photographs along the shorter one rather more often, as objects fill more of it). The sign
    test on those boxes therefore bounds false alarms at one in a thousand. Besides, at most one box in twenty may reach
    into the margins of the shorter side: none, with an allowance for mistakes in the data.

    Args:
        rows: Boxes as given, with (width, height) of their images in pixels.

    Returns:
        Number of images clearly not square, boxes that reach into the margins of the shorter side alone, and those
        that do so on the longer side alone; None when the boxes may well be plain.
    """
    images = short = long = both = 0
    for box, size in rows:
        if max(size) < _CLEARLY_OBLONG * min(size):
            continue
        images += 1
        side, left, top = _margins(size)
        before = max(left, top) / side
        after = 1 - before - min(size) / side
        reach_x, reach_y = (
            low < before - _ROUNDING or high > 1 - after + _ROUNDING for low, high in (box[::2], box[1::2])
        )
        on_short, on_long = (reach_x, reach_y) if left else (reach_y, reach_x)
        both += on_short and on_long
        short += on_short and not on_long
        long += on_long and not on_short
    if images < _FEWEST_IMAGES or short + both > images // 20:
        return None
    chance = sum(math.comb(short + long, k) for k in range(short + 1)) / 2 ** (short + long)
    return (images, short + both, long + both) if chance <= _CHANCE else None
