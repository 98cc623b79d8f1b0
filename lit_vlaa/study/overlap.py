"""Whether rows that arms are tested on are among those that they are trained on."""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from lit_vlaa.study.arms import Variants
from lit_vlaa.study.config import StudyFile

Overlap = dict[str, dict[str, dict[str, int]]]
"""By test file and training file: `rows` of the test file; `seen`, those whose picture and question the training file
has; `pictures`, those whose picture it has."""


def overlaps(
    variants: Variants, study: StudyFile, data: Mapping[str, Any], earlier: Mapping[str, Any] | None
) -> Overlap:
    """Counts rows that test and training files share, pictures told by their paths.

    Args:
        variants: The study's commands.
        study: The study file.
        data: What identifies the content of each file.
        earlier: The study's manifest; what it says of the same files is not counted again.
    """
    training = dict.fromkeys(
        path for variant in variants.used(study) if variant.words[0] == "fit" for path in variant.data_files()
    )
    found: Overlap = {}
    for test in variants.evaluation.data_files():
        found[test] = {}
        for path in training:
            known = _known(earlier, data, test, path)
            found[test][path] = _count(Path(test), Path(path)) if known is None else known
    return found


def lines(overlap: Any) -> Iterator[str]:
    """What is shared, in words; nothing where nothing is."""
    for test, files in overlap.items() if isinstance(overlap, Mapping) else ():
        for path, counts in files.items():
            if counts["seen"] or counts["pictures"]:
                yield (
                    f"Of {counts['rows']} rows of {test}, on which arms are tested, {counts['seen']} have a picture "
                    f"and question that {path} trains on, and {counts['pictures']} a picture of it."
                )


def _known(earlier: Mapping[str, Any] | None, data: Mapping[str, Any], *paths: str) -> dict[str, int] | None:
    if earlier is None or any(earlier.get("data", {}).get(path) != data.get(path) for path in paths):
        return None
    test, path = paths
    known: dict[str, int] | None = earlier.get("overlap", {}).get(test, {}).get(path)
    return known


def _count(test: Path, training: Path) -> dict[str, int]:
    rows, pictures = set(), set()
    for picture, question in _rows(training):
        rows.add((picture, question))
        pictures.add(picture)
    tested = list(_rows(test))
    return {
        "rows": len(tested),
        "seen": sum(row in rows for row in tested),
        "pictures": sum(picture in pictures for picture, _ in tested),
    }


def _rows(path: Path) -> Iterator[tuple[int, int]]:
    """Hashes of picture and question of each row that names a picture; hashes, since large sets hold many rows."""
    # By name, since the library does not depend on the data modules.
    rows = importlib.import_module("datamodules.rows")
    try:
        for _, row in rows.iter_rows(path):
            if isinstance(row, Mapping) and isinstance(picture := row.get("image"), str) and picture:
                yield hash(picture.lstrip("/")), hash(str(row.get("question")).strip())
    except rows.BadRecord:
        return
