"""`lit-vlaa data convert`: what it writes, what it keeps, what it refuses."""

from __future__ import annotations

import fcntl
import hashlib
import json
import math
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from datamodules import convert
from datamodules.cutting import Cutter
from datamodules.rows import BadRecord
from datamodules.shards import embedded_images, is_shards
from datamodules.synthetic import SyntheticPaths, write_dataset
from helpers.shards import converted, manifest, picture, records, write_rows


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> SyntheticPaths:
    root = tmp_path_factory.mktemp("vlaa") / "data"
    return write_dataset(root, sft_count=50, grpo_count=40, test_count=3, seed=0, progress=False)


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
    for path in folder.glob("rows-*"):
        os.utime(path, (1, 1))  # what is written again has another time, however coarse a file system's are
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
        ({"image_root": None}, "--image-root is needed"),
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


def test_one_command_at_a_time(tmp_path: Path) -> None:
    file, _ = write_rows(tmp_path, 1)
    folder = converted(tmp_path / "shards", file, tmp_path)
    with (folder / ".convert" / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(ValueError, match="another `lit-vlaa data convert` is writing to"):
            converted(folder, file, tmp_path)
    assert is_shards(folder)


def test_a_disk_that_fills_up_shows_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file, _ = write_rows(tmp_path, 1)
    (tmp_path / "shards" / ".convert").mkdir(parents=True)
    (tmp_path / "shards" / ".rows-00000.parquet.part").symlink_to("/dev/full")
    cut: list[int] = []

    def jobs(cutter: Any) -> Iterator[Any]:
        (job,) = list(original(cutter))
        while len(cut) < 2400:  # two minutes
            cut.append(1)
            yield job
            time.sleep(0.05)

    original = Cutter.jobs
    monkeypatch.setattr(Cutter, "jobs", jobs)
    with pytest.raises(OSError, match=r"no space left on the disk of --output-dir .*shards; free some"):
        converted(tmp_path / "shards", file, tmp_path)
    assert len(cut) < 2400


def test_what_killed_processes_leave_goes(tmp_path: Path) -> None:
    file, _ = write_rows(tmp_path, 1)
    left = [tmp_path / "shards" / name for name in (".rows-00007.parquet.part", ".convert/00007.rows")]
    for path in left:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    converted(tmp_path / "shards", file, tmp_path)
    assert [path for path in left if path.exists()] == []
