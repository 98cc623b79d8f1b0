"""Rows made, and converted to shards."""

from __future__ import annotations

import io
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from PIL import Image

from datamodules import convert
from datamodules.records import RecordReader
from lit_vlaa.types import Record


def converted(folder: Path, file: Path, root: Path | None, **options: Any) -> Path:
    """Converts a file with one process."""
    assert convert.run(output_dir=folder, data_file=file, image_root=root, **({"workers": 1} | options)) == 0
    return folder


def records(path: Path, split: str, root: Path, **options: Any) -> list[Record]:
    """Reads the records of a file or of shards."""
    return list(RecordReader(path, split=split, image_root=root, **({"on_bad_record": "error"} | options)))  # type: ignore[arg-type]


def without_origin(found: list[Record]) -> list[Record]:
    """Records without where they stand."""
    return [replace(record, origin="") for record in found]


def manifest(folder: Path) -> dict[str, Any]:
    """Reads the manifest of a folder of shards."""
    return json.loads((folder / "manifest.json").read_text(encoding="utf-8"))


def picture(colour: str) -> bytes:
    """A small picture."""
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8), colour).save(buffer, format="PNG")
    return buffer.getvalue()


def write_rows(folder: Path, count: int, **changes: Any) -> tuple[Path, Path]:
    """Rows that share one image, of which `changes` replace keys of the last one."""
    image = folder / "clevr_math" / "a.png"
    image.parent.mkdir(exist_ok=True)
    image.write_bytes(picture("red"))
    row = {"id": "x", "image": "clevr_math/a.png", "question": "How many?", "gt": 1, "verifier_type": "digit"}
    rows = [row] * (count - 1) + [row | changes]
    (folder / "rows.json").write_text(json.dumps(rows), encoding="utf-8")
    return folder / "rows.json", image


def change_manifest(folder: Path, **changes: Any) -> None:
    """Changes what the manifest says of the first shard."""
    facts = manifest(folder)
    facts["shards"][0] |= changes
    (folder / "manifest.json").write_text(json.dumps(facts), encoding="utf-8")
