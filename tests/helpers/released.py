"""A small data set laid out on the Hub as VLAA-Thinking is."""

from __future__ import annotations

import io
import json
import os
import tarfile
from collections.abc import Mapping
from pathlib import Path

import huggingface_hub.constants
import pytest

from datamodules.hub.places import REPOSITORY, SPLIT_FILES, archive_of
from helpers.benchmark_files import picture
from helpers.hub_server import HubServer, Repo

COMMIT = "e" * 40
ALL = ("clevr_math", "docvqa", "allava_laion")
"""Sources whose archives the repository has."""
LARGE = "images/clevr_math.tar.gz"
"""The archive that `noise` makes large enough to be cut."""


def png(number: int) -> bytes:
    """A small picture, each number another one."""
    buffer = io.BytesIO()
    picture(number).save(buffer, format="PNG")
    return buffer.getvalue()


def packed(files: Mapping[str, bytes]) -> bytes:
    """A tar in gzip."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as out:
        for name, content in files.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            out.addfile(entry, io.BytesIO(content))
    return buffer.getvalue()


IMAGES = {
    "clevr_math": {"clevr_math/a.png": png(0), "clevr_math/b.png": png(1)},
    # Packed without the folder of its name.
    "docvqa": {"c.png": png(2)},
    "allava_laion": {"allava_laion/images/1.png": png(3)},
}
"""Members of the archives on the Hub, by source."""

SFT = [
    {"image": "clevr_math/a.png", "question": "How many?", "answer": "<think>one</think><answer>1</answer>"},
    {"image": "/allava_laion/images/1.png", "question": "What?", "answer": "<think>a</think><answer>b</answer>"},
    {"image": "coco/train2017/1.jpg", "question": "Where?", "answer": "<think>a</think><answer>[0, 0, 1, 1]</answer>"},
    {"image": "vg/VG_100K/1.jpg", "question": "Where?", "answer": "<think>a</think><answer>[0, 0, 1, 1]</answer>"},
    {"image": "vg/VG_100K_2/2.jpg", "question": "Where?", "answer": "<think>a</think><answer>[0, 0, 1, 1]</answer>"},
]
GRPO = [
    {"id": "clevr_math-1", "image": "clevr_math/b.png", "question": "How many?", "gt": 1, "verifier_type": "digit"},
    {"id": "docvqa-1", "image": "docvqa/c.png", "question": "Which?", "gt": "x", "verifier_type": "open_ended"},
]


def repo(images: Mapping[str, bytes] | None = None) -> Repo:
    """The repository; `images` gives archives by source in place of the usual ones."""
    archives = {name: packed(files) for name, files in IMAGES.items()} | dict(images or {})
    files = {
        SPLIT_FILES["sft"]: "".join(json.dumps(row) + "\n" for row in SFT).encode(),
        SPLIT_FILES["grpo"]: json.dumps(GRPO).encode(),
        "images/chartqa.tar.gz": b"nobody asks for this",
        **{archive_of(name): content for name, content in archives.items()},
    }
    return Repo(REPOSITORY, {COMMIT: files}, {"main": COMMIT, "v1": COMMIT}, "datasets")


def tree(folder: Path) -> dict[str, bytes]:
    """Files below a folder, without those that the command keeps for itself."""
    found = {str(path.relative_to(folder)): path for path in sorted(folder.rglob("*")) if path.is_file()}
    return {name: path.read_bytes() for name, path in found.items() if not name.startswith(".")}


def noise() -> bytes:
    """An archive for `LARGE` that does not shrink, so that there is something to cut."""
    return packed({"clevr_math/a.png": os.urandom(200_000), "clevr_math/b.png": png(1)})


def connect(server: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """Has this process take a server for the Hub."""
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", server.url)
    template = server.url + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(huggingface_hub.constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    # The client keeps whole pieces only; its own are of 10 MB.
    monkeypatch.setattr(huggingface_hub.constants, "DOWNLOAD_CHUNK_SIZE", 10_000)
    monkeypatch.setattr("datamodules.hub.download._SPARE", 0)
    monkeypatch.setattr("time.sleep", lambda _: None)
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    monkeypatch.setenv("NO_PROXY", "127.0.0.1,127.0.0.2")


def download(folder: Path, *words: str | Path, sources: tuple[str, ...] = ALL) -> int:
    """Runs the command in this process; without `sources` for all."""
    from datamodules.hub.download import run  # noqa: PLC0415  (after the endpoint is set)

    return run([f"--output-dir={folder}", *map(str, words), *(("--sources", *sources) if sources else ())])
