"""A benchmark's data set on the Hub: rows without their images, and the images when they are opened."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import datasets
import httpx
from datasets.exceptions import DatasetsError
from PIL import Image

from callbacks.benchmarks.images import decode, digest


@dataclass(frozen=True, slots=True)
class HubImage:
    """An image by its place in a data set."""

    column: datasets.Dataset = field(repr=False, compare=False)
    """A view of the column of images alone, not decoded."""
    row: int
    place: int | None
    """Which of the cell's images, from 0; None where the cell is the image."""
    origin: str
    """`repository[split]:row`, for messages."""

    @property
    def fingerprint(self) -> str:
        """Digest of the image's bytes. The data set's own fingerprint would differ from one machine to the next."""
        content = self._bytes()
        return digest(content) if content else ""

    def open(self) -> Image.Image:
        """Reads the image's bytes and decodes them.

        Raises:
            ValueError: If it is broken, or the data set holds a path in place of its bytes.
        """
        content = self._bytes()
        if not content:
            raise ValueError(f"{self.origin}: the data set holds no bytes of this image")
        return decode(content, self.origin)

    def _bytes(self) -> bytes | None:
        cell = _cell(self.column, self.row)
        item = (cell if self.place is None else cell.values[self.place]).as_py() or {}
        content: bytes | None = item.get("bytes")
        return content


def hub_rows(repository: str, configuration: str | None, split: str, *, advice: str) -> Iterator[dict[str, Any]]:
    """Loads one split and yields its rows as dictionaries; images become `HubImage`s, a list of images a tuple.

    Args:
        repository: Of the data set, such as `AI4Math/MathVista`.
        configuration: Name of its configuration; None for the default one.
        split: Name of one split.
        advice: Begins the message of an error: what else the user could provide.

    Raises:
        ValueError: If the data set cannot be loaded.
    """
    name = repository if configuration is None else f"{repository} ({configuration})"
    try:
        dataset = datasets.load_dataset(repository, configuration, split=split)
    except (OSError, ValueError, RuntimeError, DatasetsError, httpx.HTTPError) as error:
        reason = f"{type(error).__name__}: {str(error).rstrip('.')}"
        raise ValueError(
            f"{advice} the Hub data set {name}, split {split}, cannot be loaded: {reason}. "
            "Put the file there, or fetch the data set once with a network (and HF_TOKEN where it is gated)."
        ) from error
    lists = {column for column, feature in dataset.features.items() if isinstance(_inner(feature), datasets.Image)}
    pictures = [
        column for column, feature in dataset.features.items() if column in lists or isinstance(feature, datasets.Image)
    ]
    views = {column: dataset.select_columns([column]).with_format("arrow") for column in pictures}
    texts = dataset.remove_columns(pictures)
    for number in range(len(dataset)):
        row: dict[str, Any] = dict(texts[number]) if texts.column_names else {}
        for column, view in views.items():
            origin = f"{repository}[{split}]:{number + 1}"
            places = range(len(_cell(view, number).values or ())) if column in lists else (None,)
            row[column] = tuple(HubImage(view, number, place, origin) for place in places)
        yield row


def _inner(feature: Any) -> Any:
    """What a list's items are; None of what is no list."""
    return getattr(feature, "feature", None)


def _cell(view: datasets.Dataset, row: int) -> Any:
    """A cell in place, not copied."""
    return view[row].column(0)[0]
