from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image

from helpers.studies import ARMS, edit_manifest, write_json, write_study
from lit_vlaa.study import markdown
from lit_vlaa.study.document import Badge, Code, Document, Paragraph, Table, pieces, visible
from lit_vlaa.study.examples import picture
from lit_vlaa.study.palette import colours, marks
from lit_vlaa.study.provenance import unlike
from lit_vlaa.study.report import write_report
from lit_vlaa.study.results import read_study
from lit_vlaa.study.sections import duration


def test_long_responses_are_cut_between_marks() -> None:
    assert pieces("so wait, yes", [(3, 7)]) == [("so ", False), ("wait", True), (", yes", False)]
    assert pieces("wait", [(0, 4)]) == [("wait", True)]
    assert pieces("abcdefgh", [(2, 6)], most=4) == [("ab", False), ("cd", True), ("… (4 more characters)", False)]
    assert pieces("abcdefgh", [(6, 7)], most=4) == [("abcd", False), ("… (4 more characters)", False)]


def test_characters_that_hide_are_written_out() -> None:
    assert visible("a\x07b\u2066c\ud800d\u2028e\r\nf\tg") == "a⟨U+0007⟩b⟨U+2066⟩c⟨U+D800⟩d\ne\nf\tg"
    assert visible("naïve 漢字 👩‍💻") == "naïve 漢字 👩‍💻"


def test_pictures_are_small_and_encoded_anew(tmp_path: Path) -> None:
    photo = Image.effect_noise((900, 600), 80).convert("RGB")
    photo.save(tmp_path / "photo.jpg", comment=b"secret")
    content, kind, _ = picture(tmp_path, "photo.jpg")
    assert content is not None
    assert (kind, b"secret" in content) == ("image/jpeg", False)
    (tmp_path / "small").write_bytes(content)
    assert Image.open(tmp_path / "small").size == (320, 213)
    Image.new("RGB", (900, 600), "white").save(tmp_path / "drawing.png")
    assert picture(tmp_path, "/drawing.png")[1] == "image/png"


@pytest.mark.parametrize(
    ("path", "reason"),
    [
        (None, "the row has none"),
        ("missing.png", "no such file below the image root"),
        ("../secret.png", "a path with '..' or a backslash"),
        ("broken.png", "cannot be read"),
        ("huge.png", "more pixels than max_image_pixels"),
    ],
    ids=["none", "missing", "outside", "broken", "huge"],
)
def test_pictures_that_cannot_be_shown(tmp_path: Path, path: str | None, reason: str) -> None:
    root = tmp_path / "images"
    root.mkdir()
    Image.new("RGB", (4, 4)).save(tmp_path / "secret.png")
    (root / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n rest")
    Image.new("1", (9000, 9000)).save(root / "huge.png")
    assert picture(root, path) == (None, "", reason)


def test_an_image_root_that_is_not_known() -> None:
    assert picture(None, "a.png") == (None, "", "the evaluation's image_root is not known")


def test_arms_keep_their_colours_and_marks() -> None:
    arms = [f"arm{place}" for place in range(12)]
    for dark in (False, True):
        assert len(set(colours(arms[:8], dark=dark).values())) == 8
    assert colours(arms, dark=False)["arm0"] == colours(arms, dark=False)["arm8"]
    both = [(colours(arms, dark=True)[arm], marks(arms)[arm]) for arm in arms]
    assert len(set(both)) == 12


def luminance(colour: str) -> float:
    """Relative luminance as WCAG 2 defines it."""
    parts = [int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)]
    linear = [part / 12.92 if part <= 0.03928 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


@pytest.mark.parametrize(("dark", "page"), [(False, "#ffffff"), (True, "#14181d")], ids=["light", "dark"])
def test_names_in_the_arms_colours_can_be_read(dark: bool, page: str) -> None:
    for colour in colours([f"arm{place}" for place in range(8)], dark=dark).values():
        light, low = sorted((luminance(colour), luminance(page)), reverse=True)
        assert (light + 0.05) / (low + 0.05) >= 4.5, colour


def test_markdown_of_each_block() -> None:
    blocks = (Paragraph("1. a_b*c* @d #1 w|x"), Code("``` $x"), Table(("a", "b"), (("c|d", Badge("e", "good")),)))
    text = markdown.page(Document("t", "l", blocks, ()))
    assert "1&#46;" not in text
    assert "&#49;&#46; a\\_b\\*c\\* &#64;d &#35;1 w\\|x" in text
    assert "````\n``` $x\n````" in text
    assert "| a | b |\n| --- | ---: |\n| c\\|d | **e** |" in text


def test_times_are_easy_to_read() -> None:
    assert [duration(value) for value in (3.4, 119.4, 130, 7300)] == ["3 s", "119 s", "2 min", "2.0 h"]


def test_jobs_that_did_not_run_alike(tmp_path: Path) -> None:
    made = write_study(tmp_path / "study", arms={"base": ARMS["base"], "rl": ARMS["rl"]}, seeds=(1,), rows=4)
    assert unlike(read_study(made)) == []
    for job, threads in (("seed1-base-test", "1"), ("seed1-rl-test", "2")):
        path = made / "jobs" / job / "done.json"
        ran = {"environment": {"OMP_NUM_THREADS": threads}}
        write_json(path, json.loads(path.read_text(encoding="utf-8")) | {"ran": ran})
    other = {"code": {"git_commit": "abc", "sources_sha256": "0123456789abcdef01"}, "first_job": "seed1-rl-test"}
    edit_manifest(made, other_code=[other])
    write_report(made)
    text = (made / "report" / "report.md").read_text(encoding="utf-8")
    for words in (
        "Mind, of the study as a whole:",
        "From job seed1-rl-test on another program was accepted (--other\\_code): commit abc, sources 0123456789abc",
        "environment variables: OMP\\_NUM\\_THREADS 1 in seed1-base-test; OMP\\_NUM\\_THREADS 2 in seed1-rl-test.",
    ):
        # Once ahead of the verdicts, and once where the arms are matched.
        assert text.count(words) == (1 if words.startswith("Mind") else 2), words
