"""`lit-vlaa data download` against a server that speaks the Hub's protocol, in this process."""

from __future__ import annotations

import errno
import fcntl
import io
import json
import os
import shutil
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import huggingface_hub.constants
import pytest

from datamodules.hub import archives, filling
from datamodules.hub.places import SPLIT_FILES
from datamodules.hub.remote import RemoteFile, Repository
from helpers.hub_server import HubServer, serving
from helpers.released import ALL, COMMIT, GRPO, IMAGES, LARGE, connect, download, noise, packed, png, repo, tree
from lit_vlaa.checks import UsageError


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[HubServer]:
    with serving(repo({"clevr_math": noise()}), storage=True) as server:
        connect(server, monkeypatch)
        yield server


def test_everything_in_its_place(hub: HubServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert download(tmp_path / "data") == 0
    found = tree(tmp_path / "data")
    assert sorted(found) == [
        "VLAA-Thinking-GRPO-25K.json",
        "VLAA-Thinking-SFT-126K.json",
        "download.json",
        "images/allava_laion/images/1.png",
        "images/clevr_math/a.png",
        "images/clevr_math/b.png",
        "images/docvqa/c.png",
    ]
    assert json.loads(found["VLAA-Thinking-GRPO-25K.json"]) == GRPO
    assert found["images/docvqa/c.png"] == IMAGES["docvqa"]["c.png"]
    assert json.loads(found["download.json"])["commit"] == COMMIT
    table = capsys.readouterr().out.splitlines()
    assert table[0].split() == ["source", "sft", "rows", "paper", "grpo", "rows", "paper", "images", "found", "missing"]
    assert table[1].split() == ["clevr_math", "1", "5,923", "1", "2,000", "2", "2", "0"]
    assert "clevr_math: 1 sft rows, 5923 in the paper" in table
    assert not any("chartqa" in line for line in hub.seen)


def test_what_is_done_is_not_done_again(hub: HubServer, tmp_path: Path) -> None:
    download(tmp_path / "data")
    before, asked = tree(tmp_path / "data"), len(hub.asked)
    assert download(tmp_path / "data") == 0
    assert not any("/resolve/" in line or "/storage/" in line for line in hub.seen[asked:])
    assert tree(tmp_path / "data") == before
    shutil.rmtree(tmp_path / "data" / "images" / "docvqa")
    assert download(tmp_path / "data") == 0
    assert tree(tmp_path / "data") == before


def test_the_token_goes_to_the_hub_alone(hub: HubServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    hub.token = "hf_secret"  # noqa: S105
    assert download(tmp_path / "data") == 0
    assert all("authorization" not in asked.headers for asked in hub.asked if asked.path.startswith("/storage/"))
    hub.token = "hf_other"  # noqa: S105
    with pytest.raises(UsageError, match=r"--repo .*401") as caught:
        download(tmp_path / "data")
    output = capsys.readouterr()
    assert "hf_secret" not in str(caught.value) + output.out + output.err
    assert not any(b"hf_secret" in path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())


def test_a_mirror_below_a_path_that_redirects_late(
    hub: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.prefix, hub.redirects_late = "/hub", True
    connect(hub, monkeypatch)
    hub.token = "hf_secret"  # noqa: S105
    assert download(tmp_path / "data") == 0
    stored = [asked for asked in hub.asked if asked.path.startswith("/storage/")]
    assert len(stored) == 5
    assert all("authorization" not in asked.headers for asked in stored)


def test_what_is_no_hub_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for listed in ([{"type": "file"}], [{"type": "file", "path": "a", "size": "b", "oid": "c"}]):
        with serving(repo()) as server, monkeypatch.context() as patched:
            connect(server, monkeypatch)
            patched.setattr("helpers.hub_server._tree", lambda *_, listed=listed, **__: listed)
            with pytest.raises(UsageError, match=rf"{server.url} (does not answer as the Hub does|states the)"):
                download(tmp_path / "data")


def test_a_folder_that_cannot_be_written_to(hub: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UsageError, match=r"--output-dir .*n: a name of at most 231 bytes is needed, not of 300"):
        download(tmp_path / ("n" * 300))

    def full(path: Path, **_: object) -> None:
        raise OSError(errno.EDQUOT, os.strerror(errno.EDQUOT), str(path))

    monkeypatch.setattr(Path, "mkdir", full)
    with pytest.raises(UsageError, match=r"--output-dir .*: Disk quota exceeded; give a folder that"):
        download(tmp_path / "data")


def test_a_cut_is_resumed_where_it_was(hub: HubServer, tmp_path: Path) -> None:
    hub.faults.cuts[LARGE] = [50_000, 30_000]
    assert download(tmp_path / "data") == 0
    assert hub.ranges(LARGE) == ["", "bytes=50000-", "bytes=80000-"]


def test_another_command_goes_on_after_a_cut(hub: HubServer, tmp_path: Path) -> None:
    hub.faults.cuts[LARGE] = [70_000]
    hub.faults.down_after_cut = 503
    with pytest.raises(UsageError, match=r"clevr_math\.tar\.gz: .*503.*run the same command again") as caught:
        download(tmp_path / "data")
    assert "signed" not in str(caught.value)
    assert not (tmp_path / "data" / "images").exists()
    hub.faults.down_after_cut = None
    asked = len(hub.asked)
    assert download(tmp_path / "data") == 0
    del hub.asked[:asked]
    assert hub.ranges(LARGE) == ["bytes=70000-"]


def test_a_server_without_ranges_starts_anew(hub: HubServer, tmp_path: Path) -> None:
    hub.faults.cuts[LARGE] = [50_000]
    hub.faults.no_ranges.add(LARGE)
    assert download(tmp_path / "data") == 0


def test_a_wrong_checksum_is_refused_and_removed(hub: HubServer, tmp_path: Path) -> None:
    name = SPLIT_FILES["grpo"]
    right = json.dumps(GRPO).encode()
    hub.faults.wrong[name] = right.replace(b"How many", b"How much")
    with pytest.raises(UsageError, match=rf"{name}: the checksum of the {len(right)} bytes .*removed.*HF_ENDPOINT"):
        download(tmp_path / "data")
    assert not (tmp_path / "data" / name).exists()
    assert list((tmp_path / "data" / ".lit_vlaa_download" / "parts").iterdir()) == []
    hub.faults.wrong.clear()
    assert download(tmp_path / "data") == 0


def test_more_than_was_promised_is_not_taken(hub: HubServer, tmp_path: Path) -> None:
    name = SPLIT_FILES["grpo"]
    hub.faults.wrong[name] = json.dumps(GRPO).encode() + b" " * 100_000
    hub.faults.chunked.add(name)
    with pytest.raises(UsageError, match="more bytes come than"):
        download(tmp_path / "data")


def test_a_missing_file_is_named(hub: HubServer, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"has no file images/vizwiz.tar.gz at eeee"):
        download(tmp_path / "data", sources=("vizwiz",))
    with pytest.raises(UsageError, match=r"--revision v2: .*404"):
        download(tmp_path / "data", "--revision=v2")
    with pytest.raises(UsageError, match=r"--repo who/else: .*404"):
        download(tmp_path / "data", "--repo=who/else")
    assert not (tmp_path / "data").exists()
    assert download(tmp_path / "data", "--revision=v1", "--split=grpo", sources=("docvqa",)) == 0
    assert not (tmp_path / "data" / SPLIT_FILES["sft"]).exists()


def test_missing_images_are_counted_and_named(
    hub: HubServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "data" / "images" / "docvqa"
    folder.mkdir(parents=True)
    (folder / "C.png").write_bytes(png(2))
    assert download(tmp_path / "data", "--split=all", sources=("docvqa", "coco")) == 1
    output = capsys.readouterr()
    assert "docvqa: 1 images missing: docvqa/c.png (there is 'C.png'); remove images/docvqa" in output.out
    assert "coco: 1 images missing: coco/train2017/1.jpg; give --coco PATH" in output.out
    assert "images/docvqa was not unpacked here and stays as it is" in output.err


def test_a_dry_run_only_tells(hub: HubServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert download(tmp_path / "data", "--dry-run") == 0
    assert not (tmp_path / "data").exists()
    text = capsys.readouterr().err
    assert "images/clevr_math.tar.gz: 0.2 MB to download" in text
    assert "GB free" in text


def test_too_little_disk_is_told_before_the_first_byte(
    hub: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("datamodules.hub.download._SPARE", 1 << 60)
    with pytest.raises(UsageError, match=r"--output-dir .*GB are needed \(.* of them to spare\) and .*GB are free"):
        download(tmp_path / "data")
    assert hub.ranges(LARGE) == []


def test_a_disk_that_fills_up(hub: HubServer, tmp_path: Path) -> None:
    parts = tmp_path / "data" / ".lit_vlaa_download" / "parts"
    parts.mkdir(parents=True)
    checksum = Repository.find("UCSC-VLAA/VLAA-Thinking", None).files[LARGE].checksum
    (parts / checksum).symlink_to("/dev/full")
    with pytest.raises(UsageError, match=r"no space left on the disk of --output-dir .*goes on where it stopped"):
        download(tmp_path / "data")
    (parts / checksum).unlink()
    assert download(tmp_path / "data") == 0


def test_a_disk_that_fills_up_while_unpacking(hub: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written = archives._write

    def full(*args: Any) -> int:
        if "b.png" in args[2].name:
            with Path("/dev/full").open("wb") as stream:
                stream.write(b"x")
        return written(*args)

    monkeypatch.setattr(archives, "_write", full)
    with pytest.raises(UsageError, match="no space left"):
        download(tmp_path / "data")
    assert not any((tmp_path / "data").rglob("*.png"))
    monkeypatch.setattr(archives, "_write", written)
    asked = len(hub.asked)
    assert download(tmp_path / "data") == 0
    del hub.asked[:asked]
    assert hub.ranges(LARGE) == [], "the archive was here already"


def test_interrupted_while_unpacking(
    hub: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def stop(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(filling, "put_in_place", stop)
        # A kill leaves the staging folder too.
        patched.setattr(filling, "remove", lambda _: None)
        assert download(tmp_path / "data") == 130
    assert "run the same command again" in capsys.readouterr().err
    assert [path.name for path in (tmp_path / "data" / "images").iterdir()] == [".clevr_math-clevr_math.tar.gz.part"]
    assert download(tmp_path / "data") == 0
    assert sorted(path.name for path in (tmp_path / "data" / "images").iterdir()) == sorted(ALL)


def hostile() -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as out:
        entry = tarfile.TarInfo("docvqa/good.png")
        out.addfile(entry)
        entry = tarfile.TarInfo("docvqa/../../../evil.png")
        out.addfile(entry)
    return buffer.getvalue()


def test_a_hostile_archive_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with serving(repo({"docvqa": hostile()})) as server:
        connect(server, monkeypatch)
        with pytest.raises(UsageError, match=r"docvqa\.tar\.gz: 'docvqa/\.\./\.\./\.\./evil\.png': a path that leads"):
            download(tmp_path / "a" / "b" / "data", sources=("docvqa",))
    assert list(tmp_path.rglob("*.png")) == []


def test_options_reach_the_unpacking(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    odd = packed({"docvqa/c.png": png(2), "docvqa/readme.txt": b"x"})
    with serving(repo({"docvqa": odd})) as server:
        connect(server, monkeypatch)
        with pytest.raises(UsageError, match=r"readme\.txt.*--other-files skip"):
            download(tmp_path / "data", sources=("docvqa",))
        with pytest.raises(UsageError, match="max-unpacked-gb"):
            download(tmp_path / "data", "--other-files=skip", "--max-unpacked-gb=1e-9", sources=("docvqa",))
        assert download(tmp_path / "data", "--other_files=skip", "--keep-archives", sources=("docvqa",)) == 0
        assert (tmp_path / "data" / "archives" / "docvqa.tar.gz").read_bytes() == odd


def test_names_of_rows_cannot_command_a_terminal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    made = repo()
    rows = [{"image": "docvqa/\x1b[31m.png"}, {"image": f"docvqa/{'x' * 300}.png"}]
    files = dict(made.commits[COMMIT])
    files[SPLIT_FILES["grpo"]] = json.dumps(rows).encode()
    made.commits = {COMMIT: files}
    with serving(made) as server:
        connect(server, monkeypatch)
        assert download(tmp_path / "data", "--split=grpo", sources=("docvqa",)) == 1
    output = capsys.readouterr().out
    assert "docvqa: 2 images missing: docvqa/\\x1b[31m.png, docvqa/xxx" in output
    assert "\x1b" not in output


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (["--sources", "chartqa"], "no row of VLAA-Thinking uses these images"),
        (["--sources", "mnist"], "--sources names"),
        (["--coco", "nowhere"], "--coco nowhere does not exist"),
        (["--coco", __file__], "neither a folder nor a zip"),
        (["--sources", "docvqa", "--vg", "."], "while --sources leaves vg out"),
        (["--split", "test"], "--split: invalid choice"),
        (["--nothing"], "unrecognized arguments"),
        (["--max-unpacked-gb", "nan"], "--max-unpacked-gb: expected a number above 0, got nan"),
        (["--vg", "/dev/null"], "--vg /dev/null is neither a folder nor"),
    ],
    ids=["chartqa", "unknown", "nowhere", "no-archive", "left-out", "split", "flag", "nan", "device"],
)
def test_what_cannot_work_is_told_at_once(words: list[str], reason: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=reason):
        download(tmp_path / "data", *words, sources=())
    assert not (tmp_path / "data").exists()


def test_one_command_at_a_time(hub: HubServer, tmp_path: Path) -> None:
    state = tmp_path / "data" / ".lit_vlaa_download"
    state.mkdir(parents=True)
    with (state / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(UsageError, match="another `lit-vlaa data download`"):
            download(tmp_path / "data")


def test_without_a_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with serving(repo()) as server:
        connect(server, monkeypatch)
    with pytest.raises(UsageError, match=rf"--repo UCSC-VLAA/VLAA-Thinking: .*seen at {server.url}"):
        download(tmp_path / "data")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(UsageError, match="offline"):
        download(tmp_path / "data")


def test_small_files_have_git_s_checksum(tmp_path: Path) -> None:
    # echo 'hello' | git hash-object --stdin
    path = tmp_path / "hello"
    path.write_bytes(b"hello\n")
    assert RemoteFile("hello", 6, "ce013625030ba8dba906f756967f9e9ca394464a").matches(path)
    assert not RemoteFile("hello", 6, "ce013625030ba8dba906f756967f9e9ca394464b").matches(path)
    assert not RemoteFile("hello", 7, "ce013625030ba8dba906f756967f9e9ca394464a").matches(path)
