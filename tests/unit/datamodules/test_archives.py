"""Archives that mean harm, and those that only look odd."""

from __future__ import annotations

import tarfile
import unicodedata
import zipfile
from pathlib import Path

import pytest

from datamodules.hub.archives import Limits
from datamodules.hub.members import ArchiveError, is_archive
from datamodules.hub.places import placing
from datamodules.sources import SOURCES
from helpers.archives import Entry, info, opened, tar


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("mode", ["w", "w:gz"])
@pytest.mark.parametrize("form", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT, tarfile.USTAR_FORMAT], ids=str)
def test_images_come_out_as_they_are(mode: str, form: int, tmp_path: Path) -> None:
    long = f"docvqa/{'d' * 60}/{'f' * 90}.png"
    content = {"docvqa/a.png": b"A" * 1024, "docvqa/sub/b.JPEG": b"", long: b"C" * 513}
    archive = tar(tmp_path / "a", info("docvqa", tarfile.DIRTYPE), *content.items(), mode=mode, form=form)
    done = opened(archive, tmp_path / "out")
    assert files(tmp_path / "out") == content
    assert (done.files, done.total_bytes, done.skipped) == (3, 1024 + 513, 0)
    assert {path.stat().st_mode & 0o111 for path in (tmp_path / "out").rglob("*") if path.is_file()} == {0}


def test_a_zip_too(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.zip", "w", zipfile.ZIP_DEFLATED) as out:
        out.writestr("docvqa/", "")
        out.writestr("docvqa/a.png", bytes(range(256)) * 8)
    assert is_archive(tmp_path / "a.zip")
    assert opened(tmp_path / "a.zip", tmp_path / "out").files == 1
    assert files(tmp_path / "out") == {"docvqa/a.png": bytes(range(256)) * 8}


HOSTILE: dict[str, tuple[Entry, str]] = {
    "upwards": (("docvqa/../../evil.png", b"x"), "leads upwards"),
    "absolute": (("/tmp/evil.png", b"x"), "absolute path"),  # noqa: S108
    "drive": (("C:/evil.png", b"x"), "absolute path"),
    "backslash": (("docvqa\\..\\evil.png", b"x"), "backslash"),
    "control": (("docvqa/a\nb.png", b"x"), "control character"),
    "no-utf8": (("docvqa/\udcff.png", b"x"), "no UTF-8"),
    "symlink": (info("docvqa/evil.png", tarfile.SYMTYPE, "/etc/passwd"), "symbolic link"),
    "hardlink": (info("docvqa/evil.png", tarfile.LNKTYPE, "docvqa/good.png"), "hard link"),
    "device": (info("docvqa/evil.png", tarfile.CHRTYPE), "device"),
    "block-device": (info("docvqa/evil.png", tarfile.BLKTYPE), "device"),
    "pipe": (info("docvqa/evil.png", tarfile.FIFOTYPE), "pipe"),
    "sparse": (info("docvqa/evil.png", tarfile.GNUTYPE_SPARSE), "a sparse file"),
    "twice": (("docvqa/good.png", b"x"), "twice"),
    "case": (("docvqa/GOOD.png", b"x"), "by case or Unicode form"),
    "under-a-file": (("docvqa/good.png/evil.png", b"x"), "is a file already"),
    "no-image": (("docvqa/evil.sh", b"x"), "no image"),
    "large": (("docvqa/evil.png", b"x" * 5001), "5001 bytes are more than 5000"),
    "long": (("docvqa/" + "x" * 252 + ".png", b"x"), "too long"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_member_is_named(name: str, tmp_path: Path) -> None:
    entry, reason = HOSTILE[name]
    form = tarfile.GNU_FORMAT if name in {"no-utf8", "sparse"} else tarfile.PAX_FORMAT
    archive = tar(tmp_path / "a.tar.gz", ("docvqa/good.png", b"x"), entry, form=form)
    with pytest.raises(ArchiveError) as caught:
        opened(archive, tmp_path / "out")
    assert reason in str(caught.value)
    named = entry.name if isinstance(entry, tarfile.TarInfo) else entry[0]
    assert ascii(named)[1:-1][:150] in str(caught.value)
    assert str(archive) in str(caught.value)
    assert [path.name for path in tmp_path.rglob("*evil*")] == []
    assert set(files(tmp_path / "out")) <= {"docvqa/good.png"}


def test_names_that_differ_by_unicode_form(tmp_path: Path) -> None:
    names = [unicodedata.normalize(form, "docvqa/é.png") for form in ("NFC", "NFD")]
    archive = tar(tmp_path / "a", *((name, b"x") for name in names))
    with pytest.raises(ArchiveError, match="Unicode form"):
        opened(archive, tmp_path / "out")


def test_a_pax_name_that_hides_another(tmp_path: Path) -> None:
    hidden = tarfile.TarInfo("docvqa/good.png")
    hidden.pax_headers = {"path": "../evil.png"}
    with pytest.raises(ArchiveError, match="leads upwards"):
        opened(tar(tmp_path / "a", hidden), tmp_path / "out")


@pytest.mark.parametrize(
    ("limits", "reason"),
    [
        (Limits(files=4), "more than 4 entries"),
        (Limits(total_bytes=4999), r"\(--max-unpacked-gb\)"),
        (Limits(ratio=2, ratio_from=1000), "which no images do"),
    ],
    ids=["many", "total", "bomb"],
)
@pytest.mark.parametrize("form", ["tar", "zip"])
def test_what_unpacks_without_end(limits: Limits, reason: str, form: str, tmp_path: Path) -> None:
    entries = [(f"docvqa/{n}.png", bytes(1000)) for n in range(5)]
    archive = tmp_path / "a"
    if form == "tar":
        tar(archive, *entries)
    else:
        with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as out:
            for name, content in entries:
                out.writestr(name, content)
    assert opened(archive, tmp_path / "fine", limits=Limits(ratio_from=5000)).files == 5
    with pytest.raises(ArchiveError, match=reason):
        opened(archive, tmp_path / "out", limits=limits)


def test_files_left_out_count_for_the_limits(tmp_path: Path) -> None:
    archive = tar(tmp_path / "a", *((f"docvqa/{n}.bin", bytes(1000)) for n in range(5)))
    assert opened(archive, tmp_path / "fine", other_files="skip", limits=Limits()).skipped == 5
    with pytest.raises(ArchiveError, match="max-unpacked-gb"):
        opened(archive, tmp_path / "out", other_files="skip", limits=Limits(total_bytes=4999))


def test_other_files_may_be_skipped_and_those_of_desktops_always_are(tmp_path: Path) -> None:
    junk = ["docvqa/.DS_Store", "docvqa/._a.png", "__MACOSX/docvqa/a.png", "docvqa/Thumbs.db"]
    archive = tar(tmp_path / "a", *((name, b"x") for name in [*junk, "docvqa/a.png"]))
    assert opened(archive, tmp_path / "out").skipped == 4
    assert list(files(tmp_path / "out")) == ["docvqa/a.png"]
    archive = tar(tmp_path / "b", ("docvqa/notes.txt", b"x"), ("docvqa/a.png", b"x"))
    assert opened(archive, tmp_path / "skipping", other_files="skip").skipped == 1
    assert list(files(tmp_path / "skipping")) == ["docvqa/a.png"]


PLACES = [
    ("docvqa", "docvqa/a.png", "docvqa/a.png"),
    ("docvqa", "./a.png", "docvqa/a.png"),
    ("docvqa", "images/docvqa/a.png", "docvqa/a.png"),
    ("allava_laion", "images/1.jpeg", "allava_laion/images/1.jpeg"),
    ("allava_laion", "allava_laion/images/1.jpeg", "allava_laion/images/1.jpeg"),
    ("coco", "train2017/1.jpg", "coco/train2017/1.jpg"),
    ("coco", "1.jpg", "coco/train2017/1.jpg"),
    ("coco", "val2017/1.jpg", None),
    ("vg", "VG_100K/1.jpg", "vg/VG_100K/1.jpg"),
    ("vg", "images/VG_100K_2/1.jpg", "vg/VG_100K_2/1.jpg"),
    ("vg", "1.jpg", None),
]


@pytest.mark.parametrize(("source", "member", "place"), PLACES, ids=[f"{s}-{m}" for s, m, _ in PLACES])
def test_where_members_go(source: str, member: str, place: str | None, tmp_path: Path) -> None:
    archive = tar(tmp_path / "a", (member, b"x"))
    if place is None:
        with pytest.raises(ArchiveError, match="not below a folder"):
            opened(archive, tmp_path / "out", place=placing(SOURCES[source]))
    else:
        opened(archive, tmp_path / "out", place=placing(SOURCES[source]))
        assert list(files(tmp_path / "out")) == [place]
