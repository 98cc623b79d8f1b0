from __future__ import annotations

import json
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from datamodules.records import RecordReader
from datamodules.rows import BadRecord
from datamodules.table import RecordTable


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Five rows, the last two of which share an image that is missing."""
    root = tmp_path / "images" / "clevr_math"
    root.mkdir(parents=True)
    rows: list[dict[str, Any]] = []
    for n in range(5):
        image = f"clevr_math/{min(n, 3)}.png"
        rows.append({"id": f"r{n}", "image": image, "question": f"q{n} £", "gt": n})
        if n < 3:
            Image.new("RGB", (1, 1)).save(root / f"{n}.png")
    path = tmp_path / "rows.json"
    path.write_text(json.dumps(rows), encoding="utf-8")
    return path


def options(data: Path, **changes: Any) -> dict[str, Any]:
    return {
        "split": "grpo", "image_root": data.parent / "images", "on_bad_record": "skip", "cache_dir": None
    } | changes  # fmt: skip


def test_a_table_returns_what_was_read(data: Path) -> None:
    table = RecordTable.prepare(data, **options(data))
    reader = RecordReader(data, split="grpo", image_root=data.parent / "images", on_bad_record="skip")
    assert list(table) == list(reader)
    assert table[1:3] == [table[1], table[2]]
    assert table[2].images == ("clevr_math/2.png",)
    assert table[2].response is None
    assert table.skipped == {"image: no such file below the image root": 2}
    assert table.column("kind").tolist() == ["digit"] * 3
    assert table.text_bytes().tolist() == [5, 5, 5]  # "q0 £", whose last character is two bytes; no response
    assert [path.suffix for path in sorted((data.parent / ".lit_vlaa_cache").iterdir())] == [".arrow", ".json"]


def test_open_reads_only_what_prepare_wrote(data: Path) -> None:
    with pytest.raises(FileNotFoundError, match="prepare_data"):
        RecordTable.open(data, **options(data))
    RecordTable.prepare(data, **options(data))
    assert len(RecordTable.open(data, **options(data))) == 3
    with pytest.raises(FileNotFoundError):
        RecordTable.open(data, **options(data, image_root=data.parent))
    text = data.read_text(encoding="utf-8")
    data.write_text(text + "\n", encoding="utf-8")
    with pytest.raises(FileNotFoundError):
        RecordTable.open(data, **options(data))


def test_a_whole_table_is_not_written_again_but_one_without_its_images_is(data: Path, tmp_path: Path) -> None:
    image = Image.new("RGB", (1, 1))
    RecordTable.prepare(data, **options(data))
    image.save(tmp_path / "images" / "clevr_math" / "3.png")
    table = RecordTable.prepare(data, **options(data))
    assert (len(table), table.skipped) == (5, {})
    (arrow,) = (tmp_path / ".lit_vlaa_cache").glob("*.arrow")
    before = arrow.stat().st_mtime_ns
    RecordTable.prepare(data, **options(data))
    assert arrow.stat().st_mtime_ns == before


def test_an_error_leaves_no_table(data: Path) -> None:
    with pytest.raises(BadRecord, match=r"rows\.json:4: image: no such file"):
        RecordTable.prepare(data, **options(data, on_bad_record="error"))
    assert list((data.parent / ".lit_vlaa_cache").iterdir()) == []


def test_no_usable_row_is_an_error(data: Path) -> None:
    with pytest.raises(ValueError, match=r"no usable row for split sft.*answer.*5"):
        RecordTable.prepare(data, **options(data, split="sft"))
    data.write_text("[]", encoding="utf-8")
    with pytest.raises(ValueError, match="it is empty"):
        RecordTable.prepare(data, **options(data))


def test_many_at_once(data: Path) -> None:
    with ThreadPoolExecutor(4) as pool:
        tables = list(pool.map(lambda _: RecordTable.prepare(data, **options(data)), range(8)))
    assert {len(table) for table in tables} == {3}
    assert len(list((data.parent / ".lit_vlaa_cache").iterdir())) == 2


def test_the_cache_may_lie_elsewhere(data: Path, tmp_path: Path) -> None:
    RecordTable.prepare(data, **options(data, cache_dir=tmp_path / "cache"))
    assert len(list((tmp_path / "cache").iterdir())) == 2
    assert not (tmp_path / ".lit_vlaa_cache").exists()


def test_a_folder_that_cannot_be_written_to_gives_way_to_the_user_s_cache(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A plain file in the folder's place stops root too, whom permissions would not.
    (tmp_path / ".lit_vlaa_cache").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    RecordTable.prepare(data, **options(data))
    assert len(os.listdir(tmp_path / "home" / "lit_vlaa")) == 2  # noqa: PTH208
    assert len(RecordTable.open(data, **options(data))) == 3
    with pytest.raises(OSError, match="cache_dir"):
        RecordTable.prepare(data, **options(data, cache_dir=tmp_path / ".lit_vlaa_cache"))
