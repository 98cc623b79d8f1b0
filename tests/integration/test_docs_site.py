"""The documentation site builds without a warning, and its pages fetch nothing from elsewhere."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from helpers.launch import ROOT

_FETCHED = re.compile(r"<(?:script|img|iframe|source)\b[^>]*\bsrc=[\"']?(?:https?:)?//[^>]*>")
_STYLES = re.compile(r"<link\b(?![^>]*rel=[\"']?canonical)[^>]*href=[\"']?(?:https?:)?//[^>]*>")
_IN_STYLES = re.compile(r"(?:@import|url\()\s*[\"']?(?:https?:)?//[^)]*")


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site") / "site"
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)],
        cwd=ROOT,
        env={**os.environ, "NO_MKDOCS_2_WARNING": "1", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
        timeout=250,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert "WARNING" not in done.stderr
    return folder


def test_every_page_is_there_and_searched(site: Path) -> None:
    pages = {path.relative_to(ROOT / "docs").with_suffix(".html") for path in (ROOT / "docs").rglob("*.md")}
    assert pages <= {path.relative_to(site) for path in site.rglob("*.html")}
    found = {
        entry["location"].partition("#")[0]
        for entry in json.loads((site / "search/search_index.json").read_text())["docs"]
    }
    assert {page.as_posix() for page in pages} <= found
    assert not (site / "hooks").exists()
    assert not (site / "scripts").exists()


def test_pages_fetch_nothing_from_elsewhere(site: Path) -> None:
    for path in site.rglob("*.html"):
        text = path.read_text(encoding="utf-8")
        assert not _FETCHED.findall(text), path
        assert not _STYLES.findall(text), path
    for path in site.rglob("*.css"):
        assert not _IN_STYLES.findall(path.read_text(encoding="utf-8")), path


def test_generated_parts_are_on_the_pages(site: Path) -> None:
    def text(name: str) -> str:
        return (site / name).read_text(encoding="utf-8")

    assert "<svg" in text("explanation/grpo_step.html")
    assert "configs/trainer/one_gpu.yaml" in text("reference/configs.html")
    assert "lit-vlaa data select" in text("reference/commands.html")
    assert "Completions a prompt (paper: 4)" in text("reference/training.html")
    assert "lit_vlaa.optim" in text("explanation/departures.html")
    assert not [path for path in site.rglob("*.html") if "<!-- made" in path.read_text(encoding="utf-8")]
