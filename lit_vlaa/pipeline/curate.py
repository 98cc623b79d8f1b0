"""Step 6: rows with an aha cue to the RL pool, the others to SFT, and nothing in both.

The rule for what is shared: rows that share an image (the same bytes, whatever its path) or a question (the same text
but for blanks and case) belong together, also by way of third rows. A group with a cue in any of its rows goes to RL
as a whole. So SFT holds no cue and nothing that RL shows, and no row is lost.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from lit_vlaa.pipeline.config import CurateConfig
from lit_vlaa.pipeline.rows import Row
from lit_vlaa.traces import count_cues

Split = Literal["sft", "grpo"]


@dataclass(frozen=True, slots=True)
class Placing:
    """Where a row goes."""

    split: Split
    cues: tuple[str, ...]
    """Those in its response."""

    @property
    def moved(self) -> bool:
        """Whether it has no cue and is in RL for a row that it belongs together with."""
        return self.split == "grpo" and not self.cues


def place(rows: Iterable[Row], config: CurateConfig) -> list[Placing]:
    """Decides on all rows.

    Args:
        rows: That passed all filters.
        config: Cues, and what splits may not share.

    Returns:
        One placing a row, in order. Memory: some bytes a row, and a key for each image and question.
    """
    parents: list[int] = []
    first: dict[str, int] = {}
    cues: list[tuple[str, ...]] = []
    for index, row in enumerate(rows):
        parents.append(index)
        counts = count_cues(row.response, config.cues, config.matching)
        cues.append(tuple(cue for cue in config.cues if counts[cue]))
        for key in keys(row, config):
            if key in first:
                parents[_root(parents, index)] = _root(parents, first[key])
            else:
                first[key] = index
    aha = {_root(parents, index) for index, found in enumerate(cues) if found}
    return [Placing("grpo" if _root(parents, index) in aha else "sft", found) for index, found in enumerate(cues)]


def keys(row: Row, config: CurateConfig) -> list[str]:
    """What a row must not share with one of the other split."""
    found = [f"image {digest}" for digest in row.digests] if "image" in config.disjoint_by else []
    if "question" in config.disjoint_by:
        found.append(f"question {' '.join(row.question.casefold().split())}")
    return found


def sft_line(row: Row) -> dict[str, Any]:
    """A row in the form of the released SFT file; beside its three keys those that a new source needs."""
    return {
        "id": row.id,
        "image": _image(row.images),
        "question": row.question,
        "answer": row.response,
        "gt": row.truth,
        "verifier_type": row.kind,
    }


def grpo_line(row: Row, models: Mapping[str, str]) -> dict[str, Any]:
    """A row in the form of the released GRPO file.

    Args:
        row: The row.
        models: By step, for `meta`.
    """
    return {
        "id": row.id,
        "image": _image(row.images),
        "question": row.question,
        "gt": row.truth,
        "caption": row.caption,
        "meta": {
            **{name.replace(" ", "_"): text for name, text in row.context.items()},
            "caption_model_id": models["caption"],
            "reasoning_model_id": models["distil"],
            "ds_answer": row.response,
        },
        "verifier_type": row.kind,
    }


def short_count(count: int) -> str:
    """A number of rows as the released files' names have it.

    Example:
        >>> short_count(126413), short_count(873)
        ('126K', '873')
    """
    return f"{count // 1000}K" if count >= 1000 else str(count)


def split_paths(folder: Path, counts: Mapping[Split, int]) -> dict[Split, Path]:
    """The two files."""
    return {
        "sft": folder / f"VLAA-Thinking-SFT-{short_count(counts['sft'])}.json",
        "grpo": folder / f"VLAA-Thinking-GRPO-{short_count(counts['grpo'])}.json",
    }


def _image(images: Sequence[str]) -> str | list[str]:
    return images[0] if len(images) == 1 else list(images)


def _root(parents: list[int], index: int) -> int:
    while parents[index] != index:
        parents[index] = parents[parents[index]]
        index = parents[index]
    return index
