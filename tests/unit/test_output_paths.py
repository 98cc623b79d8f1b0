"""What keeps a path from being written to, told before anything is made."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from lit_vlaa.output_paths import output_fault, run_problems

LONG = "n" * 256
"""One byte more than Linux's file systems take."""
NEEDED = ": a name of at most 231 bytes is needed, not of"


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.chdir(tmp_path)
    Path("file").write_text("mine")
    Path("folder").mkdir()
    Path("gone").symlink_to("nowhere")
    Path("circle").symlink_to("round")
    Path("round").symlink_to("circle")
    yield
    made = {"file", "folder", "gone", "circle", "round"}
    assert {path.name for path in tmp_path.iterdir()} == made


@pytest.fixture
def closed() -> Iterator[Path]:
    """A folder that cannot be written to, by root either."""
    Path("folder").chmod(0o555)
    if root := os.geteuid() == 0:
        os.setreuid(65534, 0)  # who asks whether he may write is the real user
    yield Path("folder")
    if root:
        os.setreuid(0, 0)


@pytest.mark.parametrize(
    ("path", "fault"),
    [
        ("folder", ""),
        ("folder/new/deep", ""),
        (".", ""),
        ("new/../other", ""),
        ("n" * 231, ""),
        (LONG, f"{NEEDED} 256"),
        ("n" * 232, f"{NEEDED} 232"),  # .NAME.settings.json.part would not be made
        (f"new/{LONG}/below", ": a name of at most 255 bytes is needed, not of 256"),
        (f"new/{LONG[1:]}/below", ""),
        ("a\0b", " is no path; name another folder"),
        ("\u00e9" * 128, f"{NEEDED} 256"),  # two bytes each
        ("/".join(["p" * 200] * 30), ": File name too long; name another folder"),
        ("file", " is a file; name a folder"),
        ("file/below", ": file is a file; name a folder"),
        ("circle", ": Too many levels of symbolic links; name another folder"),
        ("circle/new", ": Too many levels of symbolic links; name another folder"),
        ("gone", " is a link to nowhere, which is not there; name another folder"),
        ("gone/new", ": gone is a link to nowhere, which is not there; name another folder"),
    ],
)
def test_a_folder(path: str, fault: str) -> None:
    assert output_fault(Path(path)) == fault


@pytest.mark.parametrize(
    ("path", "fault"),
    [
        ("file", ""),
        ("folder/new", ""),
        ("new/file", ""),
        ("gone", ""),  # it is made where the link points
        ("folder", " is a folder; name a file in it"),
        ("file/below", ": file is a file; name a folder"),
        (LONG, f"{NEEDED} 256"),
        ("circle", ": Too many levels of symbolic links; name another file"),
    ],
)
def test_a_file(path: str, fault: str) -> None:
    assert output_fault(Path(path), file=True) == fault


def test_what_may_not_be_written_to(closed: Path) -> None:
    where = "cannot be written to; name another folder"
    assert output_fault(closed) == f" {where}"
    assert output_fault(closed / "new" / "deep") == f": {closed} {where}"
    assert output_fault(closed / "new", file=True) == f": {closed} cannot be written to; name another file"
    assert output_fault(closed / "new", writes=False) == ""


def settings(**given: Any) -> dict[str, Any]:
    return {"default_root_dir": None, "callbacks": None, "logger": None} | given


def test_the_folders_of_a_run() -> None:
    saver = {"class_path": "ModelCheckpoint", "init_args": {"dirpath": "file/kept"}}
    logger = {"class_path": "CSVLogger", "init_args": {"save_dir": "circle"}}
    remote = {"class_path": "CSVLogger", "init_args": {"save_dir": "s3://bucket/runs"}}
    assert list(run_problems(settings())) == []
    assert list(run_problems(settings(logger=remote))) == []
    elsewhere = {"class_path": "CSVLogger", "init_args": {"save_dir": "folder"}}
    assert list(run_problems(settings(default_root_dir="file", logger=elsewhere))) == []
    for own in (None, True, False):
        assert list(run_problems(settings(default_root_dir=LONG, logger=own))) == [
            f"--trainer.default_root_dir {'n' * 60}...{'n' * 60}{NEEDED} 256"
        ]
    assert list(run_problems(settings(callbacks=[saver], logger=logger))) == [
        "--trainer.callbacks.dirpath file/kept: file is a file; name a folder",
        "--trainer.logger.save_dir circle: Too many levels of symbolic links; name another folder",
    ]


def test_one_rank_looks_for_all(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lightning_utilities.core.rank_zero.rank_zero_only.rank", 1, raising=False)
    assert list(run_problems(settings(default_root_dir="file"))) == []
