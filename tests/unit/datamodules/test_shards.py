"""Parquet shards: the same rows and pictures as from the JSON, and what is wrong with broken ones."""

from __future__ import annotations

import hashlib
import io
import json
import math
import os
import pickle
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from datamodules import VLAAThinkingDataModule, convert
from datamodules.boxes import _size
from datamodules.dataset import open_images
from datamodules.images import ImageError
from datamodules.records import RecordReader
from datamodules.rows import BadRecord
from datamodules.shards import embedded_images, is_shards
from datamodules.synthetic import SyntheticPaths, write_dataset
from datamodules.table import RecordTable
from lit_vlaa.types import Record

OPTIONS = {"on_bad_record": "error", "cache_dir": None}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> SyntheticPaths:
    root = tmp_path_factory.mktemp("vlaa") / "data"
    return write_dataset(root, sft_count=50, grpo_count=40, test_count=3, seed=0, progress=False)


def converted(folder: Path, file: Path, root: Path | None, **options: Any) -> Path:
    assert convert.run(output_dir=folder, data_file=file, image_root=root, **({"workers": 1} | options)) == 0
    return folder


def records(path: Path, split: str, root: Path, **options: Any) -> list[Record]:
    return list(RecordReader(path, split=split, image_root=root, **({"on_bad_record": "error"} | options)))  # type: ignore[arg-type]


def without_origin(found: list[Record]) -> list[Record]:
    return [replace(record, origin="") for record in found]


def manifest(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "manifest.json").read_text(encoding="utf-8"))


@pytest.mark.parametrize("images", ["embed", "link"])
@pytest.mark.parametrize("split", ["sft", "grpo"])
def test_the_same_records_and_pictures(split: Any, images: Any, data: SyntheticPaths, tmp_path: Path) -> None:
    file, root = data.data_file(split), data.image_root
    folder = converted(tmp_path / "shards", file, root, images=images, shard_mb=0.005)
    expected, found = records(file, split, root), records(folder, split, root)
    assert without_origin(found) == without_origin(expected)
    facts = manifest(folder)
    assert len(facts["shards"]) > 2
    assert found[-1].origin == f"{folder / facts['shards'][-1]['file']}:{facts['shards'][-1]['rows']}"
    elsewhere = tmp_path if images == "embed" else root
    for ours, theirs in zip(found, expected, strict=True):
        (first,) = open_images(ours, image_root=elsewhere.resolve(), max_pixels=10**6)
        (second,) = open_images(theirs, image_root=root.resolve(), max_pixels=10**6)
        assert first.mode == "RGB"
        assert first.tobytes() == second.tobytes()
        assert _size(ours, elsewhere.resolve(), 10**6) == second.size
        content = (root / theirs.images[0]).read_bytes()
        assert embedded_images(ours) == ((content,) if images == "embed" else None)


def test_rows_are_kept_as_they_stand(tmp_path: Path) -> None:
    rows = [
        {
            "question": "½ £ 😀",
            "answer": "<answer>1</answer>",
            "gt": [0.1, 1e-300, 2**70],
            "meta": {"b": None, "a": [True]},
        },
        {"image": [], "question": "\ud800", "gt": math.inf, "odd": "", "ID": 1},
        {"meta": "{'a': 1}", "": {}},
    ]
    file = tmp_path / "rows.json"
    file.write_text(json.dumps(rows), encoding="utf-8")
    folder = converted(tmp_path / "shards", file, None, images="link")
    table = pq.read_table(folder / "rows-00000.parquet")
    assert [json.loads(text) for text in table.column("row").to_pylist()] == rows
    assert [json.dumps(json.loads(text)) for text in table.column("row").to_pylist()] == [
        json.dumps(row) for row in rows
    ]
    assert table.column("number").to_pylist() == [1, 2, 3]


def test_bytes_do_not_depend_on_the_processes(data: SyntheticPaths, tmp_path: Path) -> None:
    file = data.data_file("sft")
    one = converted(tmp_path / "one", file, data.image_root, shard_mb=0.01)
    two = converted(tmp_path / "two", file, data.image_root, shard_mb=0.01, workers=2)
    assert {path.name: path.read_bytes() for path in one.iterdir() if path.is_file()} == {
        path.name: path.read_bytes() for path in two.iterdir() if path.is_file()
    }
    facts = manifest(one)
    assert facts["source"]["sha256"] == hashlib.sha256(file.read_bytes()).hexdigest()
    for shard in facts["shards"]:
        content = (one / shard["file"]).read_bytes()
        assert (shard["bytes"], shard["sha256"]) == (len(content), hashlib.sha256(content).hexdigest())
    firsts = np.cumsum([1, *(shard["rows"] for shard in facts["shards"])]).tolist()
    assert [shard["first"] for shard in facts["shards"]] == firsts[:-1]
    assert firsts[-1] - 1 == facts["rows"] == 50


def test_finished_shards_are_not_written_again(
    data: SyntheticPaths, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = (data.data_file("grpo"), data.image_root)
    folder = converted(tmp_path / "shards", *arguments, shard_mb=0.01)
    before = {path.name: (path.stat().st_mtime_ns, path.read_bytes()) for path in folder.glob("rows-*")}
    # One shard was lost, one was damaged, and the manifest had not been written.
    damaged, lost = sorted(before)[:2]
    (folder / damaged).write_bytes(before[damaged][1][::-1])
    (folder / lost).unlink()
    (folder / "manifest.json").unlink()
    assert not is_shards(folder)
    converted(folder, *arguments, shard_mb=0.01)
    after = {path.name: (path.stat().st_mtime_ns, path.read_bytes()) for path in folder.glob("rows-*")}
    assert {name: content for name, (_, content) in after.items()} == {n: content for n, (_, content) in before.items()}
    assert {name for name in after if after[name][0] != before[name][0]} == {damaged, lost}
    assert f"({len(before) - 2} were there)" in capsys.readouterr().out.splitlines()[-1]
    converted(folder, *arguments, shard_mb=1)
    assert [path.name for path in folder.glob("rows-*")] == ["rows-00000.parquet"]


def test_a_changed_image_is_read_again(tmp_path: Path) -> None:
    file, image = write_rows(tmp_path, 3)
    folder = converted(tmp_path / "shards", file, tmp_path)
    image.write_bytes(picture("blue"))
    os.utime(image, ns=(1, 1))
    converted(folder, file, tmp_path)
    (record, *_) = records(folder, "grpo", tmp_path)
    assert embedded_images(record) == (picture("blue"),)


def picture(colour: str) -> bytes:
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


@pytest.mark.parametrize(
    ("changes", "options", "reason"),
    [
        ({"image": "clevr_math/none.png"}, {}, r"rows\.json:3: image: no such file"),
        ({"image": "../a.png"}, {"images": "link"}, r"rows\.json:3: image: a path with '\.\.'"),
        ({"gt": ""}, {"split": "grpo"}, r"rows\.json:3: gt: missing or empty"),
    ],
    ids=["missing", "upwards", "split"],
)
def test_bad_rows(
    changes: dict[str, Any], options: dict[str, Any], reason: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file, _ = write_rows(tmp_path, 3, **changes)
    with pytest.raises(BadRecord, match=reason):
        converted(tmp_path / "shards", file, tmp_path, **options)
    assert not is_shards(tmp_path / "shards")
    converted(tmp_path / "shards", file, tmp_path, on_bad_record="skip", **options)
    assert "2 rows in 1 shards" in (text := capsys.readouterr().out)
    assert "left out 1 x " in text
    # What JSON calls its rows, shards do too: the second `x` is the file's second row.
    assert [record.id for record in records(tmp_path / "shards", "grpo", tmp_path)] == ["x", "x#2"]


def test_without_a_split_rows_may_lack_what_it_needs(tmp_path: Path) -> None:
    file, _ = write_rows(tmp_path, 3, gt="")
    folder = converted(tmp_path / "shards", file, tmp_path)
    with pytest.raises(BadRecord, match=r"rows-00000\.parquet:3: gt: missing or empty"):
        records(folder, "grpo", tmp_path)
    assert len(records(folder, "grpo", tmp_path, on_bad_record="skip")) == 2


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"data_file": Path("none.json")}, "--data-file none.json does not exist"),
        ({"image_root": None}, "--image-root None is no folder"),
        ({"shard_mb": 0.0}, "--shard-mb must be positive"),
        ({"workers": 0}, "--workers at least 1"),
    ],
    ids=["file", "root", "size", "workers"],
)
def test_what_cannot_work(options: dict[str, Any], reason: str, tmp_path: Path) -> None:
    file, _ = write_rows(tmp_path, 1)
    with pytest.raises((ValueError, OSError), match=reason):
        convert.run(**({"output_dir": tmp_path / "shards", "data_file": file, "image_root": tmp_path} | options))
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").touch()
    with pytest.raises(ValueError, match="is not empty and holds no shards"):
        convert.run(output_dir=tmp_path / "full", data_file=file, image_root=tmp_path)


def truncate(folder: Path) -> None:
    path = folder / "rows-00000.parquet"
    path.write_bytes(path.read_bytes()[:-1])


def other_columns(folder: Path) -> None:
    path = folder / "rows-00000.parquet"
    pq.write_table(pq.read_table(path).drop_columns(["source"]), path)
    change_manifest(folder, bytes=path.stat().st_size)


def change_manifest(folder: Path, **changes: Any) -> None:
    facts = manifest(folder)
    facts["shards"][0] |= changes
    (folder / "manifest.json").write_text(json.dumps(facts), encoding="utf-8")


BROKEN: dict[str, tuple[Callable[[Path], Any], str]] = {
    "truncated": (truncate, r"rows-00000\.parquet:1: row: \d+ bytes instead of \d+ \(copy it again"),
    "columns": (other_columns, r"rows-00000\.parquet:1: row: the shard cannot be read \(its columns are not"),
    "rows": (lambda folder: change_manifest(folder, rows=4), r"3 rows instead of 4"),
    "name": (
        lambda folder: change_manifest(folder, file="../x.parquet"),
        r"manifest\.json:1: row: no manifest of format",
    ),
    "text": (lambda folder: (folder / "manifest.json").write_text("[]"), "no manifest that can be read"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_broken_shards_are_named(name: str, tmp_path: Path) -> None:
    file, _ = write_rows(tmp_path, 3)
    folder = converted(tmp_path / "shards", file, tmp_path)
    BROKEN[name][0](folder)
    with pytest.raises(BadRecord, match=BROKEN[name][1]):
        records(folder, "grpo", tmp_path)


def rewrite(folder: Path, path: str, content: bytes | None) -> None:
    """Puts other images into a shard, as its maker could."""
    shard = folder / "rows-00000.parquet"
    table = pq.read_table(shard)
    images = [[{"path": path, "bytes": content}]] * table.num_rows
    place = table.schema.get_field_index("images")
    field = table.schema.field("images")
    pq.write_table(table.set_column(place, field, pa.array(images, field.type)), shard)
    change_manifest(folder, bytes=shard.stat().st_size)


def test_embedded_images_have_the_limits_of_files(tmp_path: Path) -> None:
    file, _ = write_rows(tmp_path, 2)
    folder = converted(tmp_path / "shards", file, tmp_path)
    (record, _) = records(folder, "grpo", tmp_path)
    with pytest.raises(BadRecord, match=r"rows-00000\.parquet:1: image: more pixels than max_image_pixels"):
        open_images(record, image_root=tmp_path, max_pixels=63)
    broken = converted(tmp_path / "broken", file, tmp_path)
    rewrite(broken, "clevr_math/a.png", b"no image")
    (record, _) = records(broken, "grpo", tmp_path)
    with pytest.raises(BadRecord, match=r"rows-00000\.parquet:1: image: cannot be read"):
        open_images(record, image_root=tmp_path, max_pixels=64)
    for number, (path, content) in enumerate([("clevr_math/b.png", b""), ("clevr_math/a.png", None)]):
        other = converted(tmp_path / f"other{number}", file, tmp_path)
        rewrite(other, path, content)
        (record, _) = records(other, "grpo", tmp_path)
        with pytest.raises(ImageError, match="other images than the row asks for"):
            embedded_images(record)


def test_the_table_notices_a_new_conversion(tmp_path: Path) -> None:
    file, _ = write_rows(tmp_path, 2)
    folder = converted(tmp_path / "shards", file, tmp_path)
    assert len(RecordTable.prepare(folder, split="grpo", image_root=tmp_path, **OPTIONS)) == 2  # type: ignore[arg-type]
    file, _ = write_rows(tmp_path, 3)
    converted(folder, file, tmp_path)
    table = RecordTable.prepare(folder, split="grpo", image_root=tmp_path, **OPTIONS)  # type: ignore[arg-type]
    assert len(table) == 3
    assert pickle.loads(pickle.dumps(table[2])) == table[2]  # noqa: S301


def module(file: Path, root: Path, split: Any, cache: Path, **options: Any) -> VLAAThinkingDataModule:
    made = VLAAThinkingDataModule(
        split=split,
        data_file=str(file),
        image_root=str(root),
        cache_dir=str(cache),
        batch_size=2,
        num_workers=0,
        **options,
    )
    made.prepare_data()
    made.setup("fit")
    return made


@pytest.mark.parametrize("split", ["sft", "grpo"])
@pytest.mark.parametrize(
    "options",
    [{}, {"val_count": 7}, {"max_samples": 9}, {"sources": ["coco", "vg"]}, {"kinds": ["iou", "digit"]}],
    ids=["all", "val_count", "max_samples", "sources", "kinds"],
)
def test_the_data_module_chooses_the_same_rows(
    split: Any, options: dict[str, Any], data: SyntheticPaths, tmp_path: Path
) -> None:
    file = data.data_file(split)
    folder = converted(tmp_path / "shards", file, data.image_root)
    expected = module(file, data.image_root, split, tmp_path / "a", **options)
    found = module(folder, tmp_path / "nowhere", split, tmp_path / "b", **options)
    for part in ("train", "val") if "val_count" in options else ("train",):
        chosen = [[made._rows[part][0][int(at)] for at in made._rows[part][1]] for made in (found, expected)]
        assert without_origin(chosen[0]) == without_origin(chosen[1])
        assert found.open_images(chosen[0][0])[0].tobytes() == expected.open_images(chosen[1][0])[0].tobytes()


def test_linked_images_need_their_root(data: SyntheticPaths, tmp_path: Path) -> None:
    folder = converted(tmp_path / "shards", data.data_file("sft"), None, images="link")
    with pytest.raises(FileNotFoundError, match=r"image_root=.*nowhere is no folder"):
        module(folder, tmp_path / "nowhere", "sft", tmp_path / "cache")
    (folder / "manifest.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"data_file=.*shards is a folder without manifest\.json"):
        module(folder, data.image_root, "sft", tmp_path / "cache")
