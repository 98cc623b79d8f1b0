"""Parquet shards: the same rows and pictures as from the JSON, and what is wrong with broken ones."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from datamodules import VLAAThinkingDataModule
from datamodules.boxes import _size
from datamodules.dataset import open_images
from datamodules.images import ImageError
from datamodules.rows import BadRecord
from datamodules.shards import ShardSet, embedded_images
from datamodules.synthetic import SyntheticPaths, write_dataset
from datamodules.table import RecordTable
from helpers.shards import change_manifest, converted, manifest, records, without_origin, write_rows

OPTIONS = {"on_bad_record": "error", "cache_dir": None}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> SyntheticPaths:
    root = tmp_path_factory.mktemp("vlaa") / "data"
    return write_dataset(root, sft_count=50, grpo_count=40, test_count=3, seed=0, progress=False)


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


def truncate(folder: Path) -> None:
    path = folder / "rows-00000.parquet"
    path.write_bytes(path.read_bytes()[:-1])


def other_columns(folder: Path) -> None:
    path = folder / "rows-00000.parquet"
    pq.write_table(pq.read_table(path).drop_columns(["source"]), path)
    change_manifest(folder, bytes=path.stat().st_size)


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


def damage(shard: Path) -> None:
    """Changes one byte of an image, and nothing that tells of it but the time of change."""
    content = bytearray(shard.read_bytes())
    at = content.index(b"IDAT")
    content[at + 8] ^= 1
    shard.write_bytes(content)


def test_checksums_are_verified_once_and_after_a_change(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file, _ = write_rows(tmp_path, 3)
    folder = converted(tmp_path / "shards", file, tmp_path)
    verified: list[Path] = []
    verify = ShardSet.verify

    def noted(shards: ShardSet) -> None:
        verified.append(shards.folder)
        verify(shards)

    monkeypatch.setattr(ShardSet, "verify", noted)
    options: dict[str, Any] = {"split": "grpo", "image_root": tmp_path, **OPTIONS}
    for _ in range(2):
        assert len(RecordTable.prepare(folder, **options)) == 3
    assert verified == [folder]
    damage(folder / "rows-00000.parquet")
    with pytest.raises(FileNotFoundError, match="no table for"):
        RecordTable.open(folder, **options)
    reason = r"rows-00000\.parquet:1: row: not the bytes that were written \(copy it again, or convert again\)"
    with pytest.raises(BadRecord, match=reason):
        RecordTable.prepare(folder, **options)
    converted(folder, file, tmp_path)
    assert len(RecordTable.prepare(folder, **options)) == 3
    change_manifest(folder, sha256=None)
    with pytest.raises(BadRecord, match="not the bytes that were written"):
        RecordTable.prepare(folder, **options)


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
