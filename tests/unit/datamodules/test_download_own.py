"""Pictures of COCO and VisualGenome, which users bring themselves to `lit-vlaa data download`."""

from __future__ import annotations

import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from helpers.hub_server import HubServer, serving
from helpers.released import ALL, connect, download, packed, png, repo, tree
from lit_vlaa.checks import UsageError


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[HubServer]:
    with serving(repo(), storage=True) as server:
        connect(server, monkeypatch)
        yield server


@pytest.fixture
def own(tmp_path: Path) -> Path:
    """A zip of COCO's, a tar with VisualGenome's first folder, and its second folder."""
    with zipfile.ZipFile(tmp_path / "train2017.zip", "w") as out:
        out.writestr("train2017/1.jpg", png(4))
    (tmp_path / "vg1.tar.gz").write_bytes(packed({"VG_100K/1.jpg": png(5)}))
    (tmp_path / "VG_100K_2").mkdir()
    (tmp_path / "VG_100K_2" / "2.jpg").write_bytes(png(6))
    return tmp_path


@pytest.mark.parametrize("folders", ["link", "copy"])
def test_coco_and_vg_come_from_the_user(folders: str, own: Path, hub: HubServer, tmp_path: Path) -> None:
    words: list[str | Path] = [
        "--coco",
        own / "train2017.zip",
        "--vg",
        own / "vg1.tar.gz",
        own / "VG_100K_2",
        f"--folders={folders}",
    ]
    assert download(tmp_path / "data", *words, sources=(*ALL, "coco", "vg")) == 0
    found = tree(tmp_path / "data")
    assert found["images/coco/train2017/1.jpg"] == png(4)
    assert found["images/vg/VG_100K/1.jpg"] == png(5)
    place = tmp_path / "data" / "images" / "vg" / "VG_100K_2" / "2.jpg"
    assert place.read_bytes() == png(6)
    assert place.samefile(own / "VG_100K_2" / "2.jpg") == (folders == "link")
    before = inodes(tmp_path / "data")
    assert download(tmp_path / "data", *words, sources=(*ALL, "coco", "vg")) == 0
    assert inodes(tmp_path / "data") == before, "what is there is not written twice"


def inodes(folder: Path) -> dict[str, int]:
    return {name: (folder / name).stat().st_ino for name in tree(folder) if name.endswith("jpg")}


@pytest.mark.parametrize("form", ["zip", "tar", "folder"])
def test_only_pictures_that_rows_ask_for_come_here(
    form: str, hub: HubServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    # VG's 2.jpg is in the folder that no row has it in; the second file has no place; the third has a size that is
    # refused where it is unpacked.
    files = {f"vg/VG_100K/{n}.jpg": png(n) for n in (1, 2, 3)} | {"vg/other/2.jpg": b"x", "vg/objects.json": b"{}"}
    own = tmp_path / "own"
    if form == "folder":
        for name, content in files.items():
            (own / name).parent.mkdir(parents=True, exist_ok=True)
            (own / name).write_bytes(content)
        (own / "vg" / "VG_100K" / "round").symlink_to(own / "vg")
    elif form == "zip":
        with zipfile.ZipFile(own, "w") as out:
            for name, content in files.items():
                out.writestr(name, content)
    else:
        own.write_bytes(packed(files))
    assert download(tmp_path / "data", "--vg", own, sources=("vg",)) == 1
    assert {name for name in tree(tmp_path / "data") if name.startswith("images")} == {"images/vg/VG_100K/1.jpg"}
    output = capsys.readouterr()
    assert f"{own}: 1 of the 2 images that were lacking" in output.err
    assert f"{3 if form == 'folder' else 4} other" in output.err
    assert "vg: 1 images missing: vg/VG_100K_2/2.jpg; give --vg PATH with them" in output.out
    # A second archive brings the rest; what the first one brought stays.
    more = tmp_path / "more.tar"
    more.write_bytes(packed({"VG_100K/1.jpg": b"another", "VG_100K_2/2.jpg": png(7)}))
    assert download(tmp_path / "data", "--vg", own, more, sources=("vg",)) == 0
    found = tree(tmp_path / "data")
    assert found["images/vg/VG_100K/1.jpg"] == png(1)
    assert found["images/vg/VG_100K_2/2.jpg"] == png(7)
    assert download(tmp_path / "data", "--vg", own, more, sources=("vg",)) == 0
    assert capsys.readouterr().err.count("not needed, all 2 images of vg are there") == 2


def test_a_refused_archive_of_the_user_s_leaves_nothing(hub: HubServer, tmp_path: Path) -> None:
    own = tmp_path / "coco.tar.gz"
    own.write_bytes(packed({"train2017/1.jpg": png(1), "train2017/../../x.jpg": b"x"}))
    with pytest.raises(UsageError, match=r"x\.jpg': a path that leads upwards"):
        download(tmp_path / "data", "--coco", own, sources=("coco",))
    assert not [path for path in (tmp_path / "data").rglob("*") if path.suffix == ".jpg"]


def test_what_archives_of_the_user_s_take_is_no_more_than_rows_ask_for(
    hub: HubServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    own = tmp_path / "train2017.tar"
    own.write_bytes(packed({"train2017/1.jpg": b"x"}))
    with own.open("ab") as stream:
        stream.truncate(19 * 10**9)
    # 2000 RL rows of COCO, 200 kB each.
    assert download(tmp_path / "data", "--split=grpo", "--coco", own, "--dry-run", sources=("coco",)) == 0
    assert "disk: about 0.40 GB needed" in capsys.readouterr().err
    own.write_bytes(packed({"train2017/1.jpg": b"x"}))
    assert download(tmp_path / "data", "--split=grpo", "--coco", own, "--dry-run", sources=("coco",)) == 0
    assert "disk: about 0.00 GB needed" in capsys.readouterr().err
    words = ("--split=grpo", "--dry-run", "--folders=copy", "--coco", tmp_path)
    assert download(tmp_path / "data", *words, sources=("coco",)) == 0
    assert "disk: about 0.40 GB needed" in capsys.readouterr().err
