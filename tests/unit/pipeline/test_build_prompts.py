"""Prompt files and images on their way into a request."""

from __future__ import annotations

import base64
import hashlib
from io import BytesIO
from pathlib import Path

import pytest
from PIL import Image

from helpers.builds import ASKING, PROMPTS
from lit_vlaa.checks import UsageError
from lit_vlaa.pipeline.pictures import picture, scaled
from lit_vlaa.pipeline.prompt_files import load_prompt


@pytest.mark.parametrize("step", ASKING)
def test_the_prompts_that_come_with_the_project(step: str) -> None:
    prompt = load_prompt(PROMPTS / f"{step}.txt", step)
    assert prompt.sha256 == hashlib.sha256((PROMPTS / f"{step}.txt").read_bytes()).hexdigest()


def test_values_are_put_in_once(tmp_path: Path) -> None:
    (tmp_path / "p").write_text(
        "[system]\nBe short.\n\n[user]\n${caption} ${question} $ $$ {x}\n[user] is no heading here\n"
    )
    prompt = load_prompt(tmp_path / "p", "distil")
    assert prompt.fill({"caption": "${question}", "question": "[system]\nQ \\1"}) == [
        {"role": "system", "content": "Be short."},
        {"role": "user", "content": "${question} [system]\nQ \\1 $ $$ {x}\n[user] is no heading here"},
    ]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("${data}", "must hold [user]"),
        ("x\n[user]\n${data}", "must hold [user]"),
        ("[user]\n", "must hold [user]"),
        ("[user]\n${data}\n[system]\nx", "must hold [user]"),
        ("[user]\nx", "lacks ${data} in its [user] part"),
        ("[system]\n${data}\n[user]\nx", "lacks ${data}"),
        ("[user]\n${data} ${truth}", "names 'truth'; this step has data"),
        ("[user]\n{data}", "marks data in a form that means nothing here; write ${data}"),
        ("[user]\n${data} {{ data }}", "marks data in a form"),
        ("[user]\n$data", "marks data in a form"),
        ("[system]\n<<data>>\n[user]\n${data}", "marks data in a form"),
        (b"\xff", "is not UTF-8"),
        (b"x" * 70000, "is longer than 65536 bytes"),
        (None, "cannot be read"),
    ],
    ids=range(14),
)
def test_a_prompt_that_cannot_work_is_refused(tmp_path: Path, text: str | bytes | None, said: str) -> None:
    file = tmp_path / "p.txt"
    if text is not None:
        file.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(UsageError) as caught:
        load_prompt(file, "verify")
    assert said in str(caught.value)
    assert str(caught.value).startswith(f"verify.prompt {file}: ")


@pytest.mark.parametrize(
    ("size", "budget", "expected"),
    [((100, 50), 5000, (100, 50)), ((100, 50), 4999, (99, 49)), ((200, 100), 5000, (100, 50)), ((10000, 1), 7, (7, 1))],
)
def test_images_keep_their_shape_within_the_budget(
    size: tuple[int, int], budget: int, expected: tuple[int, int]
) -> None:
    assert scaled(size, budget) == expected
    assert expected[0] * expected[1] <= budget


@pytest.mark.parametrize(("name", "kind"), [("a.png", "png"), ("a.jpg", "jpeg")])
def test_an_image_as_a_data_uri(tmp_path: Path, name: str, kind: str) -> None:
    Image.new("RGB", (40, 20), "red").save(tmp_path / name)
    root = tmp_path.resolve()
    small = picture(root, name, max_pixels=200, max_image_pixels=10_000)
    head, _, data = small.data_uri().partition(",")
    assert head == f"data:image/{kind};base64"
    with Image.open(BytesIO(base64.b64decode(data))) as sent:
        assert (sent.size, sent.format) == ((20, 10), kind.upper())
    # The digest stands for bytes and size: a larger budget, and other bytes under the name, make another.
    large = picture(root, name, max_pixels=800, max_image_pixels=10_000)
    assert large.size == (40, 20)
    Image.new("RGB", (40, 20), "blue").save(tmp_path / name)
    other = picture(root, name, max_pixels=200, max_image_pixels=10_000)
    assert len({small.digest, large.digest, other.digest}) == 3
