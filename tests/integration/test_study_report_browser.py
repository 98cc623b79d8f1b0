"""The report in a real browser: nothing loaded from outside, light and dark, wide and narrow."""

from __future__ import annotations

import html
import os
import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from helpers.studies import write_study
from lit_vlaa.study.html import POLICY
from lit_vlaa.study.report import write_report

CHROMIUM = os.environ.get("LIT_VLAA_CHROMIUM") or next(
    (path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))), None
)

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium: install one or name it by LIT_VLAA_CHROMIUM")


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = write_study(tmp_path_factory.mktemp("browser") / "study", seeds=(1, 2), rows=16, perplexity=True)
    return write_report(folder)


def chromium(page: Path, *flags: str, profile: Path) -> subprocess.CompletedProcess[str]:
    """Runs a headless Chromium that cannot reach any host."""
    assert CHROMIUM is not None
    words = [
        *(CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--disable-dev-shm-usage"),
        *(f"--user-data-dir={profile}", "--host-resolver-rules=MAP * ~NOTFOUND", "--enable-logging=stderr"),
        *flags,
        page.resolve().as_uri(),
    ]
    return subprocess.run(words, capture_output=True, text=True, timeout=120, check=True)


def screenshot(page: Path, folder: Path, scheme: int) -> np.ndarray:
    """`[height, width, 3]` picture of the page; scheme 0 is dark, 1 light."""
    target = folder / f"shot{scheme}.png"
    flags = (f"--blink-settings=preferredColorScheme={scheme}", f"--screenshot={target}", "--window-size=1280,4000")
    done = chromium(page, *flags, profile=folder / "profile")
    assert "CONSOLE" not in done.stderr, done.stderr
    return np.asarray(Image.open(target).convert("RGB"))


def test_light_and_dark(page: Path, tmp_path: Path) -> None:
    dark, light = (screenshot(page, tmp_path, scheme) for scheme in (0, 1))
    assert light.shape == dark.shape == (4000, 1280, 3)
    assert tuple(light[2, 2]) == (255, 255, 255)
    assert tuple(dark[2, 2]) == (20, 24, 29)
    for shot in (light, dark):
        # Text and pictures: many rows that are not the page's colour alone, and the arms' colours.
        used = (shot != shot[2, 2]).any(axis=2).any(axis=1).mean()
        assert used > 0.5
    blue = {1: (0x00, 0x72, 0xB2), 0: (0x56, 0xB4, 0xE9)}
    for scheme, shot in ((1, light), (0, dark)):
        assert (shot == blue[scheme]).all(axis=2).sum() > 100
        assert (shot == blue[1 - scheme]).all(axis=2).sum() < 10


def test_pictures_are_decoded_and_nothing_is_asked_of_the_network(page: Path, tmp_path: Path) -> None:
    done = chromium(page, "--dump-dom", profile=tmp_path)
    assert "Were the arms matched?" in done.stdout
    assert not re.search(r"https?://(?!www\.w3\.org/)", done.stdout.replace("data:image", ""))
    assert "Refused to" not in done.stderr
    assert "net::ERR" not in done.stderr


@pytest.mark.parametrize("width", [390, 800, 1280])
def test_no_horizontal_overflow(page: Path, tmp_path: Path, width: int) -> None:
    # The page itself allows no script: a copy without its policy is measured inside a frame of that width.
    measure = (
        "<script>addEventListener('load', () => { const d = document.documentElement; parent.document.title = "
        "[d.scrollWidth, d.clientWidth, [...document.images].filter(i => !i.naturalWidth).length].join(' ') })</script>"
    )
    content = page.read_text(encoding="utf-8")
    assert html.escape(POLICY) in content
    inner = re.sub(r'<meta http-equiv="Content-Security-Policy"[^>]*>', measure, content)
    frame = f'<iframe style="width:{width}px;height:900px;border:0" srcdoc="{html.escape(inner)}"></iframe>'
    outer = tmp_path / "frame.html"
    outer.write_text(f"<!doctype html><title>-</title>{frame}", encoding="utf-8")
    done = chromium(outer, "--dump-dom", "--window-size=1400,1000", profile=tmp_path / "profile")
    title = re.search(r"<title>(\d+) (\d+) (\d+)</title>", done.stdout)
    assert title is not None, done.stdout[:300]
    scrolled, visible, broken = map(int, title.groups())
    assert visible == width
    assert scrolled == width
    assert broken == 0


def test_scripts_in_the_page_would_not_run(page: Path, tmp_path: Path) -> None:
    # Were a script to get through the escaping, the policy would stop it.
    poisoned = tmp_path / "poisoned.html"
    content = page.read_text(encoding="utf-8")
    poisoned.write_text(
        content.replace("</main>", "<script>document.title = 'owned'</script></main>"), encoding="utf-8"
    )
    done = chromium(poisoned, "--dump-dom", profile=tmp_path / "profile")
    assert "<title>owned</title>" not in done.stdout
    assert "Content Security Policy" in done.stderr
