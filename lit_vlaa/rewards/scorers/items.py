"""What scorers on other machines are asked: each answer once, with its row's images encoded once."""

from __future__ import annotations

import base64
import io
import threading
from collections import Counter
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from PIL.Image import Image

    from lit_vlaa.types import RewardRequest


@dataclass(frozen=True, slots=True)
class Item:
    """One answer to score."""

    request: RewardRequest
    answer: str
    row: Hashable
    """Equal for items with the same images."""


def distinct(requests: Sequence[RewardRequest], answers: Sequence[str]) -> tuple[list[Item], list[int]]:
    """Leaves out repetitions: a policy that converges repeats itself.

    Returns:
        The distinct items, and for each answer the position of its item.
    """
    items: list[Item] = []
    places: list[int] = []
    seen: dict[Hashable, int] = {}
    for request, answer in zip(requests, answers, strict=True):
        # Without an id only the same opener means the same images.
        row = (request.source, request.id) if request.id else id(request.images)
        key = (row, request.question, request.truth, answer)
        if key not in seen:
            seen[key] = len(items)
            items.append(Item(request, answer, row))
        places.append(seen[key])
    return items, places


class EncodedImages:
    """Opens and encodes the images of a batch's rows, each row once, in whatever thread asks first.

    Args:
        kind: Format to send.
        items: What will be sent; a row's images are dropped when its last item has had them.
        max_side: Longer images are made smaller, to this many pixels on the longer side.
    """

    def __init__(self, kind: Literal["PNG", "JPEG"], items: Iterable[Item], *, max_side: int) -> None:
        self.kind = kind
        self.max_side = max_side
        self._left = Counter(item.row for item in items)
        self._lock = threading.Lock()
        self._row_locks: dict[Hashable, threading.Lock] = {}
        self._rows: dict[Hashable, tuple[str, ...]] = {}

    def __call__(self, item: Item) -> tuple[str, ...]:
        """The images of an item's row as base64 text, none if it has none."""
        if item.request.images is None:
            return ()
        with self._lock:
            row_lock = self._row_locks.setdefault(item.row, threading.Lock())
        with row_lock:
            if item.row not in self._rows:
                self._rows[item.row] = tuple(map(self._encode, item.request.images()))
            self._left[item.row] -= 1
            # A repeated request finds them gone and opens them again.
            return self._rows[item.row] if self._left[item.row] > 0 else self._rows.pop(item.row)

    def _encode(self, image: Image) -> str:
        small = image.convert("RGB")
        if max(small.size) > self.max_side:
            small.thumbnail((self.max_side, self.max_side))
        file = io.BytesIO()
        small.save(file, self.kind, quality=95)
        return base64.b64encode(file.getvalue()).decode("ascii")
