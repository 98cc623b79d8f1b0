"""Some rows of a folder of shards as shards of their own."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from datamodules import convert
from datamodules.dataset import open_images
from datamodules.records import RecordReader
from datamodules.rows import BadRecord
from datamodules.shards import SCHEMA, ShardSet
from datamodules.subsets import copy_rows, numbers_of
from datamodules.synthetic import SyntheticPaths, write_dataset
from lit_vlaa.types import Record

ROWS = 30


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> SyntheticPaths:
    root = tmp_path_factory.mktemp("data") / "set"
    return write_dataset(root, sft_count=ROWS, grpo_count=0, test_count=0, seed=0, progress=False)


@pytest.fixture(scope="module")
def shards(data: SyntheticPaths, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("shards") / "all"
    file, root = data.data_file("sft"), data.image_root
    assert convert.run(output_dir=folder, data_file=file, image_root=root, shard_mb=0.005, workers=1) == 0
    assert len(ShardSet.read(folder).shards) == 4  # of eight rows, the last of six
    return folder


def records(path: Path, root: Path) -> list[Record]:
    return list(RecordReader(path, split="sft", image_root=root, on_bad_record="error"))


def test_rows_keep_number_name_and_picture(data: SyntheticPaths, shards: Path, tmp_path: Path) -> None:
    all_rows = records(shards, tmp_path)
    # Rows 1, 2, 3 and 30, and of them 2 and 30: of the second and later shards most have none.
    targets = {4: tmp_path / "four", 2: tmp_path / "two"}
    copy_rows(shards, {1: 3, 2: 1, 3: 2, ROWS: 0, 5: 4}, targets)
    for numbers, target in (([1, 2, 3, ROWS], targets[4]), ([2, ROWS], targets[2])):
        found = records(target, tmp_path)
        assert [replace(row, origin="") for row in found] == [replace(all_rows[at - 1], origin="") for at in numbers]
        assert numbers_of(target, (row.origin for row in found)).tolist() == numbers
        for row in found:
            (ours,) = open_images(row, image_root=tmp_path.resolve(), max_pixels=10**6)
            (theirs,) = open_images(replace(row, origin=""), image_root=data.image_root.resolve(), max_pixels=10**6)
            assert ours.tobytes() == theirs.tobytes()
        facts = json.loads((target / "manifest.json").read_text(encoding="utf-8"))
        assert (facts["rows"], facts["shards"][0]["first"]) == (len(numbers), numbers[0])
        for shard in facts["shards"]:
            content = (target / shard["file"]).read_bytes()
            assert (shard["bytes"], shard["sha256"]) == (len(content), hashlib.sha256(content).hexdigest())
    # A copy is as good as the whole: numbers stay those of the original file.
    copy_rows(targets[4], {ROWS: 0}, {1: tmp_path / "one"})
    assert [row.id for row in records(tmp_path / "one", tmp_path)] == [all_rows[-1].id]


def test_row_groups_stay_small(shards: Path, tmp_path: Path) -> None:
    ranks = {number: place for place, number in enumerate(range(1, ROWS + 1, 2))}
    copy_rows(shards, ranks, {len(ranks): tmp_path / "odd"})
    for path in (tmp_path / "odd").glob("*.parquet"):
        metadata = pq.ParquetFile(path).metadata
        groups = [metadata.row_group(at).num_rows for at in range(metadata.num_row_groups)]
        assert max(groups) <= 4
        assert groups.count(1) <= 2  # they are filled from several groups of the origin


def test_what_is_there_is_not_lost(shards: Path, tmp_path: Path) -> None:
    target = tmp_path / "out"
    target.mkdir()
    (target / "thesis.txt").write_text("mine", encoding="utf-8")
    with pytest.raises(ValueError, match="holds no shards; remove it, or give another --output-dir"):
        copy_rows(shards, {1: 0}, {1: target})
    assert (target / "thesis.txt").exists()
    (target / "thesis.txt").unlink()
    target.rmdir()
    for number in (1, 2):  # shards make room for those of another choice
        copy_rows(shards, {number: 0}, {1: target})
    (row,) = records(target, tmp_path)
    assert numbers_of(target, [row.origin]).tolist() == [2]
    with pytest.raises(ValueError, match="changed: 2 rows were chosen and 1 found; run again"):
        copy_rows(shards, {1: 0, ROWS + 1: 1}, {2: target})
    assert len(records(target, tmp_path)) == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out"]


@pytest.mark.parametrize(
    ("damage", "message"),
    [("cut", "bytes instead of"), ("garbage", "the shard cannot be"), ("numbers", "do not rise from row to row")],
)
def test_a_broken_shard_is_named(
    damage: Literal["cut", "garbage", "numbers"], message: str, shards: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "broken"
    copy_rows(shards, {number: number - 5 for number in range(5, 13)}, {8: folder})
    path = folder / "rows-00001.parquet"
    content = path.read_bytes()
    if damage == "cut":
        path.write_bytes(content[:-10])
    elif damage == "garbage":
        path.write_bytes(b"x" * len(content))
    else:
        table = pq.read_table(path)
        rows: list[dict[str, Any]] = [{**row, "number": 1} for row in table.to_pylist()]
        pq.write_table(pa.Table.from_pylist(rows, SCHEMA), path)
        facts = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
        facts["shards"][1]["bytes"] = path.stat().st_size
        (folder / "manifest.json").write_text(json.dumps(facts), encoding="utf-8")
    with pytest.raises(BadRecord, match=rf"rows-00001\.parquet:1: .*{message}"):
        numbers_of(folder, [])
    if damage != "numbers":
        with pytest.raises(BadRecord, match=rf"rows-00001\.parquet:1: .*{message}"):
            copy_rows(folder, {8: 0}, {1: tmp_path / "out"})
        assert not (tmp_path / "out").exists()
