"""Where the parts of the released data set lie on the Hub and on the disk."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from datamodules.hub.archives import IMAGE_SUFFIXES
from datamodules.sources import Source

Split = Literal["sft", "grpo"]

REPOSITORY = "UCSC-VLAA/VLAA-Thinking"
SPLIT_FILES: Mapping[Split, str] = {"sft": "VLAA-Thinking-SFT-126K.json", "grpo": "VLAA-Thinking-GRPO-25K.json"}
OWN_SITES = ("coco", "vg")
"""Sources whose images the Hub does not have."""
UNUSED = "chartqa"
"""An archive on the Hub that no row uses."""


def archive_of(source: str) -> str:
    """The path on the Hub of a source's images."""
    return f"images/{source}.tar.gz"


def used_by(split: Split, source: Source) -> int:
    """Rows of a source in the released file of a split, by the paper's table."""
    return source.sft_count if split == "sft" else source.rl_count


def placing(source: Source) -> Callable[[tuple[str, ...]], str]:
    """Tells where a member of a source's archive goes below the image root.

    Archives are packed with more or fewer folders above the images: what counts is the source's own folder, wherever it
    stands in the name (for COCO `train2017`, for VisualGenome `VG_100K` and `VG_100K_2`). An archive of a source with a
    folder of its name need not have it.

    Args:
        source: Whose archive it is.

    Returns:
        A function of the parts of a member's name, which raises ValueError where the place cannot be told.
    """

    def place(parts: tuple[str, ...]) -> str:
        for folder in source.folders:
            anchor = folder.rpartition("/")[2]
            if anchor in parts[:-1]:
                return "/".join((folder, *parts[parts.index(anchor) + 1 :]))
        if source.folders == (source.name,) or (len(source.folders) == 1 and len(parts) == 1):
            return "/".join((source.folders[0], *parts))
        anchors = " or ".join(folder.rpartition("/")[2] for folder in source.folders)
        raise ValueError(f"not below a folder {anchors}, so its place is unknown")

    return place


def image_files(folder: Path, source: Source) -> Iterator[tuple[Path, str]]:
    """The images of a folder that the user pointed to, each with its place below the image root.

    Folders behind symbolic links count, each once. The place is empty where it cannot be told.
    """
    place = placing(source)
    top = folder.resolve()
    anchors = {name.rpartition("/")[2] for name in source.folders}
    seen: set[tuple[int, int]] = set()
    for at, inner, names in os.walk(top, followlinks=True):
        stat = Path(at).stat()
        if (stat.st_dev, stat.st_ino) in seen:
            inner.clear()
            continue
        seen.add((stat.st_dev, stat.st_ino))
        inner.sort()
        for name in sorted(names):
            if Path(name).suffix.lower() not in IMAGE_SUFFIXES or name.startswith("._"):
                continue
            path = Path(at, name)
            # The folder's own name counts too: it may be the source's.
            parts = (top.parent.name, top.name, *path.relative_to(top).parts)
            try:
                yield path, place(parts if anchors & set(parts[:-1]) else parts[2:])
            except ValueError:
                yield path, ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Marker:
    """What was unpacked from one archive of the Hub; written when all of it is in place."""

    archive: str
    sha256: str
    folders: tuple[str, ...]
    """Below the image root."""
    files: int
    unpacked_bytes: int

    def write(self, path: Path) -> None:
        """Writes it whole."""
        path.parent.mkdir(parents=True, exist_ok=True)
        draft = path.with_suffix(".part")
        draft.write_text(json.dumps({name: getattr(self, name) for name in self.__slots__}), encoding="utf-8")
        draft.replace(path)

    @classmethod
    def read(cls, path: Path) -> Marker | None:
        """Reads one; None where there is none that can be read."""
        try:
            values = json.loads(path.read_text(encoding="utf-8"))
            return cls(**{**values, "folders": tuple(values["folders"])})
        except (OSError, ValueError, TypeError, KeyError):
            return None
