from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from lit_vlaa.study import markdown
from lit_vlaa.study.document import Badge, Code, Document, Paragraph, Table, pieces, visible
from lit_vlaa.study.examples import picture
from lit_vlaa.study.palette import colours, marks
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


def test_markdown_of_each_block() -> None:
    blocks = (Paragraph("1. a_b*c* @d #1 w|x"), Code("``` $x"), Table(("a", "b"), (("c|d", Badge("e", "good")),)))
    text = markdown.page(Document("t", "l", blocks, ()))
    assert "1&#46;" not in text
    assert "&#49;&#46; a\\_b\\*c\\* &#64;d &#35;1 w\\|x" in text
    assert "````\n``` $x\n````" in text
    assert "| a | b |\n| --- | ---: |\n| c\\|d | **e** |" in text


def test_times_are_easy_to_read() -> None:
    assert [duration(value) for value in (3.4, 119.4, 130, 7300)] == ["3 s", "119 s", "2 min", "2.0 h"]
