"""Sets that `datasets` reads: from the Hub, a mirror (HF_ENDPOINT), or a local folder."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from typing import Any

from PIL import Image

from datamodules.rows import BadRecord
from lit_vlaa.pipeline.adapters import RawRow
from lit_vlaa.pipeline.config import SourceConfig
from lit_vlaa.whole_files import replacing

_FORMATS = {"PNG": ".png", "JPEG": ".jpg", "WEBP": ".webp", "GIF": ".gif", "BMP": ".bmp"}
MAX_IMAGE_BYTES = 1 << 27
"""A larger embedded image is refused."""


def hub_rows(source: SourceConfig, path: str, image_root: Path) -> Iterator[RawRow]:
    """Reads a set row by row. Embedded images are written below the image root, named by the digest of their bytes.

    Args:
        source: Split, subset, revision and columns.
        path: The set's id, or a local folder.
        image_root: Folder of the images.

    Raises:
        ValueError: If the set cannot be read or lacks a column.
    """
    from datasets import Image as ImageFeature  # noqa: PLC0415 (seconds to import, and only needed here)
    from datasets import List, load_dataset  # noqa: PLC0415

    try:
        rows: Any = load_dataset(path, source.subset, split=source.split, revision=source.revision)
    except Exception as error:  # datasets and huggingface_hub raise many kinds
        raise ValueError(f"the hub set {path}, split {source.split}, cannot be read: {str(error)[:300]}") from error
    for name in ("image", "question", "answer"):
        column = source.columns.get(name, name)
        if column not in rows.column_names:
            raise ValueError(
                f"the hub set {path} has no column {column!r}; map it by columns: {{{name}: ...}}; "
                f"there are {', '.join(rows.column_names)}"
            )
    for name, feature in rows.features.items():
        if isinstance(feature, ImageFeature):
            rows = rows.cast_column(name, ImageFeature(decode=False))
        elif isinstance(feature, List) and isinstance(feature.feature, ImageFeature):
            rows = rows.cast_column(name, List(ImageFeature(decode=False)))
    folder = source.name or Path(path).resolve().name
    image = source.columns.get("image", "image")
    for number, row in enumerate(rows, 1):
        try:
            cell = row[image]
            several = isinstance(cell, list)
            kept = [_kept(one, image_root, folder) for one in (cell if several else [cell])]
        except ValueError as error:
            yield number, BadRecord.at(path, number, image, str(error))
            continue
        yield number, {**row, image: kept if several else kept[0]}


def _kept(cell: object, image_root: Path, folder: str) -> object:
    """The path below the image root of an image that a row embeds; another cell as it is."""
    if not isinstance(cell, dict):
        return cell
    raw = cell.get("bytes")
    if not isinstance(raw, bytes):
        raise ValueError("an image that is only linked; download it below image_root and name its path")  # noqa: TRY004
    if len(raw) > MAX_IMAGE_BYTES:
        raise ValueError(f"an image of more than {MAX_IMAGE_BYTES} bytes")
    try:
        with Image.open(BytesIO(raw), formats=list(_FORMATS)) as opened:
            suffix = _FORMATS[opened.format or ""]
    except Exception:  # noqa: BLE001  # broken files make decoders raise IndexError, struct.error and others
        raise ValueError("an embedded image that cannot be read") from None
    relative = f"{folder}/{hashlib.sha256(raw).hexdigest()}{suffix}"
    target = image_root / relative
    if not target.is_file():
        with replacing(target) as part:
            part.write_bytes(raw)
    return relative
