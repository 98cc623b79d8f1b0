"""The nine sources of VLAA-Thinking (the paper's data table)."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

from lit_vlaa.types import Kind

OTHER = "other"
"""Source of rows that belong to none of the nine; such rows must name their verifier."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """One source of images and questions."""

    name: str
    """Also how the ids of the source's rows begin."""
    folders: tuple[str, ...]
    """Where its images lie below the image root."""
    kind: Kind
    """Verifier of its rows in the RL split."""
    sft_count: int
    """Rows of the released SFT split."""
    rl_count: int
    """Rows of the released RL split."""


_ALL = (
    Source(name="clevr_math", folders=("clevr_math",), kind="digit", sft_count=5923, rl_count=2000),
    Source(name="geoqa170k", folders=("geoqa170k",), kind="mcq", sft_count=0, rl_count=6499),
    Source(name="synthesis", folders=("synthesis",), kind="math", sft_count=19258, rl_count=6696),
    Source(name="arxivqa", folders=("arxivqa",), kind="mcq", sft_count=34604, rl_count=1000),
    Source(name="docvqa", folders=("docvqa",), kind="open_ended", sft_count=4897, rl_count=1000),
    Source(name="vizwiz", folders=("vizwiz",), kind="open_ended", sft_count=4266, rl_count=1000),
    Source(name="allava_laion", folders=("allava_laion",), kind="open_ended", sft_count=10496, rl_count=3000),
    Source(name="coco", folders=("coco/train2017",), kind="iou", sft_count=8727, rl_count=2000),
    Source(name="vg", folders=("vg/VG_100K", "vg/VG_100K_2"), kind="iou", sft_count=38242, rl_count=2000),
)

SOURCES: Mapping[str, Source] = MappingProxyType({source.name: source for source in _ALL})
"""The nine sources by name."""


SOURCE_NAMES = frozenset({*SOURCES, OTHER})
"""Every source that a row can have."""


def check_names(option: str, given: Iterable[str], known: Collection[str]) -> None:
    """Refuses names of a data option that are not known.

    Raises:
        ValueError: If there are any; the message names them and the option.
    """
    if unknown := sorted(set(given) - set(known)):
        raise ValueError(f"--data.{option} names {unknown}; known are {sorted(known)}")


def source_of(image: str, record_id: str = "") -> str:
    """Names the source of a row.

    Args:
        image: Path of its (first) image below the image root, with or without a leading slash; empty for none.
        record_id: Its id, looked at when the image's folder says nothing.

    Returns:
        A key of `SOURCES`, or `other`.
    """
    parts = [part for part in image.split("/") if part not in ("", ".")]
    if len(parts) > 1 and parts[0] == "images":
        parts = parts[1:]
    if len(parts) > 1 and parts[0] in SOURCES:
        return parts[0]
    prefix = record_id.partition("-")[0]
    return prefix if prefix in SOURCES else OTHER


def kind_of(source: str) -> Kind | None:
    """Returns the verifier of `source`'s rows; None for `other`."""
    return SOURCES[source].kind if source in SOURCES else None
