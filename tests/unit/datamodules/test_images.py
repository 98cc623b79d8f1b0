from __future__ import annotations

import pickle
import random
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from datamodules.images import MAX_FILE_BYTES, ImageError, locate, open_rgb, read_header, read_size, relative_path
from datamodules.jpeg import MAX_SCANS, count_scans
from helpers.hostile_images import BOMB, LARGER_FRAME, many_scans, png, saved
from helpers.image_memory import opened_alone

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


ROOT = Path("/nowhere")


def opened(content: bytes, limit: int = LIMIT) -> Image.Image:
    return open_rgb(ROOT, "a.png", max_pixels=limit, content=content)


def test_scans_are_counted_of_the_first_image_alone() -> None:
    """By hand: one of a plain JPEG, ten of Pillow's progressive ones in colour; not those of a thumbnail or trailer."""
    image = Image.new("RGB", (40, 40), "red")
    plain = saved(image, "JPEG")
    assert count_scans(plain) == 1
    assert count_scans(saved(image, "JPEG", progressive=True)) == 10
    thumbnail = b"\xff\xe1" + (len(plain) + 2).to_bytes(2, "big") + plain
    assert count_scans(plain[:2] + thumbnail + plain[2:] + b"\xff\xda" * 9) == 1
    assert count_scans(plain[:-2]) == 1
    assert count_scans(b"\xff" * 5000) == 0
    noise = saved(Image.effect_noise((300, 300), 200), "JPEG", quality=100)
    assert noise.count(b"\xff\x00") > 20
    assert count_scans(noise) == 1


def test_a_jpeg_of_scans_without_end_is_refused_before_decoding() -> None:
    """2000 of them in 165 kB held a core for 26 s at 4096 x 4096 pixels."""
    image = Image.new("RGB", (64, 64), "red")
    assert opened(many_scans(image, MAX_SCANS - 10)).size == (64, 64)
    with pytest.raises(ImageError, match=r"'a\.png': a JPEG of 201 scans, more than 200"):
        opened(many_scans(image, MAX_SCANS - 9))


MANY_TEXTS = [(b"zTXt", b"k%d\0\0" % number + zlib.compress(bytes(1 << 20))) for number in range(70)]


def test_bombs_beside_the_pixels_are_not_unpacked() -> None:
    """Pillow unpacks at most 1 MiB of a text, and 64 MiB of all of an image; 4 MiB more are left for its own work."""
    bombs = [png((b"zTXt", b"k\0\0" + BOMB)), png((b"iTXt", b"k\0\1\0\0\0" + BOMB)), png((b"iCCP", b"k\0\0" + BOMB))]
    *texts, frame, data, many = opened_alone([*bombs, LARGER_FRAME, png((b"IDAT", BOMB)), png(*MANY_TEXTS)])
    assert all("Decompressed data too large" in said and grown < 5 << 10 for said, grown in texts), texts
    assert "Too much memory used in text chunks" in many[0]
    assert many[1] < 68 << 10
    assert frame[0].startswith("more pixels than max_image_pixels")
    assert data[0] == "(1, 1)"  # which Pillow opens, but leaves what no pixel needs
    assert max(frame[1], data[1]) < 4 << 10


def test_nothing_beside_the_pixels_is_kept() -> None:
    content = png(*MANY_TEXTS[:60], (b"tRNS", bytes(6)))
    assert read_header(ROOT, "a.png", max_pixels=LIMIT, content=content).size == (1, 1)
    assert len(pickle.dumps(opened(content))) < 1000
    assert opened(content).getpixel((0, 0)) == (255, 255, 255)  # black is what the chunk makes transparent
    assert opened(saved(Image.new("RGB", (4, 4)), "JPEG", icc_profile=bytes(9000))).info == {}


@pytest.mark.parametrize("form", ["GIF", "WEBP", "PNG"])
def test_of_animations_only_the_first_frame_is_decoded(form: str, monkeypatch: pytest.MonkeyPatch) -> None:
    frames = [Image.new("RGB", (4, 4), (number, 99, 7 * number % 256)) for number in range(200)]
    content = saved(frames[0], form, save_all=True, append_images=frames[1:])
    assert read_header(ROOT, "a.png", max_pixels=LIMIT, content=content).animated
    monkeypatch.setattr(Image.Image, "seek", lambda *_: pytest.fail("another frame was asked for"))
    assert opened(content).getpixel((0, 0))[1] in range(90, 108)  # type: ignore[index]  # GIF has a palette


def test_huge_files_are_not_read(tmp_path: Path) -> None:
    with (tmp_path / "a.png").open("wb") as file:
        file.write(saved(Image.new("RGB", (2, 2)), "WEBP"))
        file.truncate(MAX_FILE_BYTES + 1)  # takes no room on the disk
    with pytest.raises(ImageError, match=r"its file is too large: 'a\.png': 268435457 > 268435456 bytes"):
        read_size(tmp_path.resolve(), "a.png", max_pixels=LIMIT)


def test_whatever_a_broken_file_makes_a_decoder_raise_names_the_image() -> None:
    """GIF readers raise IndexError and struct.error; a thousand broken files find both, and more."""
    dice = random.Random(5)
    image = Image.effect_noise((24, 20), 60).convert("RGB")
    other = image.rotate(90)
    whole = [
        saved(image.convert("P"), "GIF", save_all=True, append_images=[other.convert("P")]),
        saved(image, "PNG", save_all=True, append_images=[other]),
        saved(image, "WEBP", save_all=True, append_images=[other]),
        saved(image, "JPEG"),
        saved(image, "BMP"),
    ]
    told: list[ImageError] = []
    for number in range(1500):
        content = bytearray(whole[number % len(whole)])
        at = dice.randrange(len(content))
        if number % 3:
            content[at] = dice.randrange(256)
        else:
            del content[at:]
        for read in (read_header, open_rgb):
            try:
                read(ROOT, "a.png", max_pixels=LIMIT, content=bytes(content))
            except ImageError as error:
                told.append(error)
    assert all("'a.png'" in str(error) for error in told)
    assert IndexError in {type(error.__cause__) for error in told}
