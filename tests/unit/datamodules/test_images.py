from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from datamodules.images import ImageError, locate, open_rgb, relative_path

LIMIT = 10_000


def open_saved(tmp_path: Path, image: Image.Image, name: str = "a.png", **options: object) -> Image.Image:
    image.save(tmp_path / name, **options)  # type: ignore[arg-type]
    opened = open_rgb(tmp_path.resolve(), name, max_pixels=LIMIT)
    assert opened.mode == "RGB"
    return opened


def test_a_leading_slash_is_dropped() -> None:
    assert relative_path("/allava_laion/images/1.jpeg") == "allava_laion/images/1.jpeg"
    assert relative_path("//etc/passwd") == "etc/passwd"
    assert relative_path("a/./b.png") == "a/b.png"


@pytest.mark.parametrize("path", ["", "/", "..", "a/../b", "../a", "a\\b", "a\0b"])
def test_paths_that_lead_elsewhere_are_refused(path: str) -> None:
    with pytest.raises(ImageError):
        relative_path(path)


def test_transparency_is_laid_over_white(tmp_path: Path) -> None:
    image = Image.new("RGBA", (2, 1), (255, 0, 0, 0))
    image.putpixel((1, 0), (255, 0, 0, 51))
    opened = open_saved(tmp_path, image)
    assert opened.getpixel((0, 0)) == (255, 255, 255)
    # A fifth of red over white: 255 - 51 = 204 in green and blue.
    assert opened.getpixel((1, 0)) == (255, 204, 204)


def test_palette_with_a_transparent_entry(tmp_path: Path) -> None:
    image = Image.new("P", (1, 1), 0)
    image.putpalette([0, 0, 255, 0, 0, 0])
    assert open_saved(tmp_path, image).getpixel((0, 0)) == (0, 0, 255)
    assert open_saved(tmp_path, image, transparency=0).getpixel((0, 0)) == (255, 255, 255)


def test_grey_of_8_and_16_bits(tmp_path: Path) -> None:
    assert open_saved(tmp_path, Image.new("L", (1, 1), 77)).getpixel((0, 0)) == (77, 77, 77)
    deep = Image.fromarray(np.array([[0, 128 * 256 + 7, 65535]], dtype=np.uint16))
    opened = open_saved(tmp_path, deep)
    assert [opened.getpixel((x, 0)) for x in range(3)] == [(0, 0, 0), (128, 128, 128), (255, 255, 255)]
    dark = open_saved(tmp_path, Image.fromarray(np.array([[100]], dtype=np.uint16)))
    assert dark.getpixel((0, 0)) == (0, 0, 0)


def test_print_colours(tmp_path: Path) -> None:
    opened = open_saved(tmp_path, Image.new("CMYK", (8, 8), (0, 0, 0, 0)), "a.jpg")
    assert opened.getpixel((4, 4)) == (255, 255, 255)


def test_large_images_are_refused_before_decoding(tmp_path: Path) -> None:
    open_saved(tmp_path, Image.new("RGB", (100, 100)))
    with pytest.raises(ImageError, match="max_image_pixels") as caught:
        open_saved(tmp_path, Image.new("RGB", (101, 100)))
    assert "101x100" in str(caught.value)


@pytest.mark.parametrize("content", [b"", b"no image", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n"])
def test_what_is_no_known_image_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.png").write_bytes(content)
    with pytest.raises(ImageError, match=r"cannot be read: 'a\.png'"):
        open_rgb(tmp_path.resolve(), "a.png", max_pixels=LIMIT)


@pytest.mark.parametrize("keep", [20, 40, 60])
def test_cut_images_are_refused(tmp_path: Path, keep: int) -> None:
    Image.effect_noise((32, 32), 50).save(tmp_path / "a.png")
    (tmp_path / "a.png").write_bytes((tmp_path / "a.png").read_bytes()[:keep])
    with pytest.raises(ImageError, match="cannot be read"):
        open_rgb(tmp_path.resolve(), "a.png", max_pixels=LIMIT)


@pytest.mark.parametrize("name", [f"{'x' * 300}.png", f"{'x/' * 3000}a.png", "circle.png"])
def test_what_no_file_can_be_called_is_missing(tmp_path: Path, name: str) -> None:
    (tmp_path / "circle.png").symlink_to("circle.png")
    with pytest.raises(ImageError, match="no such file below the image root"):
        locate(tmp_path.resolve(), name)


def test_links_out_of_the_root_are_refused(tmp_path: Path) -> None:
    root = tmp_path / "root"
    root.mkdir()
    Image.new("RGB", (1, 1)).save(tmp_path / "a.png")
    (root / "a.png").symlink_to(tmp_path / "a.png")
    with pytest.raises(ImageError, match="link out of the image root"):
        open_rgb(root.resolve(), "a.png", max_pixels=LIMIT)
