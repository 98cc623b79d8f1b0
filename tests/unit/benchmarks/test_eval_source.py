from __future__ import annotations

import base64
import hashlib
import pickle
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from callbacks.benchmarks import images as images_module
from callbacks.benchmarks import load_benchmark
from callbacks.benchmarks import table as table_module
from callbacks.benchmarks.interface import EvalRecord
from callbacks.benchmarks.logicvista import LogicVista
from callbacks.benchmarks.source import EncodedImage, load_records
from helpers.benchmark_files import BROKEN, benchmark_rows, encoded, picture, write_benchmark, write_tsv

pytestmark = pytest.mark.filterwarnings("ignore:.*MD5 is")


class Plain(LogicVista):
    """LogicVista without a checksum and without a Hub data set."""

    md5 = None  # type: ignore[assignment]
    hub = None  # type: ignore[assignment]


def row(**cells: Any) -> dict[str, Any]:
    return {
        "index": "0",
        "question": "Which?",
        "answer": "B",
        "skill": "spatial",
        "image": encoded(picture(0)),
        **cells,
    }


def load(tmp_path: Path, *rows: dict[str, Any]) -> list[EvalRecord]:
    write_tsv(tmp_path / "LogicVista.tsv", rows)
    return load_records(Plain(), tmp_path)


def pixels(image: Image.Image) -> bytes:
    assert image.mode == "RGB"
    return image.tobytes()


@pytest.mark.parametrize("name", ["mathvista", "mathvision", "mathverse", "dynamath", "wemath", "logicvista"])
def test_rows_and_images_of_a_file(tmp_path: Path, name: str) -> None:
    write_benchmark(tmp_path, name)
    records = load_benchmark(name).load(tmp_path)
    rows = benchmark_rows(name)
    assert [record.id for record in records] == [row["index"] for row in rows]
    assert [record.question for record in records] == [row.get("question_for_eval") or row["question"] for row in rows]
    # Transparency and palettes become RGB; row 4 holds a list, row 5 shares the first row's image.
    shown = [[0], [1], [2], [3, 4], [0], *([number] for number in range(5, len(rows)))]
    for record, numbers in zip(records, shown, strict=True):
        expected = [picture(n, {1: "RGBA", 2: "P"}.get(n, "RGB")).convert("RGB") for n in numbers]
        assert [pixels(image.open()) for image in record.images] == [pixels(image) for image in expected]
    assert records[2].origin == f"{tmp_path / load_benchmark(name).file}:3"


def test_images_survive_pickling_and_hold_no_pixels(tmp_path: Path) -> None:
    [record] = load(tmp_path, row(image=encoded(picture(3, side=400))))
    packed = pickle.dumps(record)
    assert len(packed) < 2000
    assert pixels(pickle.loads(packed).images[0].open()) == pixels(picture(3, side=400))  # noqa: S301  # our own


@pytest.mark.parametrize("ending", ["\n", "\r\n"])
@pytest.mark.parametrize("mark", ["", "\ufeff"])
def test_line_endings_marks_and_quoted_line_breaks_do_not_shift_offsets(tmp_path: Path, ending: str, mark: str) -> None:
    first, second = encoded(picture(1)), encoded(picture(2))
    lines = [
        f"{mark}index\timage\tquestion\tanswer\tskill",
        f'é\t{first}\t"Which ""disc""{ending}fits — 円盤?"\tA\tspatial',
        "",
        f"2\t{second}\tWhich?\tB\tspatial",
    ]
    (tmp_path / "LogicVista.tsv").write_bytes(ending.join(lines).encode())
    records = load_records(Plain(), tmp_path)
    assert [record.id for record in records] == ["é", "2"]
    assert records[0].question == f'Which "disc"{ending}fits — 円盤?'
    assert [pixels(record.images[0].open()) for record in records] == [pixels(picture(1)), pixels(picture(2))]


def test_a_wrong_checksum_warns_and_a_right_one_does_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, recwarn: pytest.WarningsRecorder
) -> None:
    file = write_tsv(tmp_path / "LogicVista.tsv", [row()])
    true = hashlib.md5(file.read_bytes()).hexdigest()  # noqa: S324
    monkeypatch.setattr(Plain, "md5", true)
    load_records(Plain(), tmp_path)
    assert not [warning for warning in recwarn if "MD5" in str(warning.message)]
    monkeypatch.setattr(Plain, "md5", "0" * 32)
    with pytest.warns(UserWarning, match=f"LogicVista.tsv: MD5 is {true}, expected 0{{32}}.*fetch the file again"):
        assert len(load_records(Plain(), tmp_path)) == 1


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([row(), row()], r":2: column 'index': '0' stands in .*:1 already"),
        ([row(), row(index="1", image="7")], r":2: column 'image': '7' is neither"),
        ([row(image="1"), row(index="1", image="0")], r":1: column 'image': '1' is neither"),
        ([row(image=f"['{encoded(picture(0))}', 1]")], r":1: column 'image' is not a list"),
        ([row(image="[" * 5000)], r":1: column 'image' is not a list"),
        ([row(image=f"[{'[' * 100}'{encoded(picture(0))}'{']' * 100}]")], r":1: column 'image' is not a list"),
        ([row(answer="")], r":1: column 'answer' is empty"),
        ([row(), row(index="")], r":2: column 'index' is empty"),
        ([row(question="x" * 200_000)], r":1: column 'question' has 200000 characters"),
        ([{"index": "0", "question": "Which?", "answer": "B"}], r"LogicVista.tsv: the header has 0 columns 'image'"),
        ([{"question": "Which?", "image": "x"}], r"LogicVista.tsv: the header has 0 columns 'index'"),
        ([{key: value for key, value in row().items() if key != "answer"}], r":1: column 'answer' is missing"),
    ],
)
def test_malformed_rows_are_named(tmp_path: Path, rows: list[dict[str, Any]], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        load(tmp_path, *rows)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "the header has 0 columns 'index'"),
        (b"index\timage\tquestion\tanswer\tskill\n", "LogicVista: no rows"),
        (b"index\timage\tquestion\n0\tx\n", r":1: 2 cells for 3 columns; column 'question' is missing"),
        (b"index\timage\n0\tx\ty\n", r":1: 3 cells for 2 columns"),
        (b"index\timage\n0\t\xff\n", r":1: not tab-separated UTF-8 text"),
        (b"\x89PNG\r\n\x1a\n\0\0", r":1: not tab-separated UTF-8 text"),
        (b'index\timage\n0\t"never closed\n1\tx\n', r":1: not tab-separated UTF-8 text: unexpected end"),
    ],
    ids=["empty", "header only", "short", "long", "latin-1", "binary", "open quote"],
)
def test_malformed_files_are_named(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "LogicVista.tsv").write_bytes(content)
    with pytest.raises(ValueError, match=message):
        load_records(Plain(), tmp_path)


def test_an_endless_line_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(table_module, "MAX_CELL_CHARS", 5000)
    with pytest.raises(ValueError, match=r":1: .*more than 5000 bytes"):
        load(tmp_path, row(question="x" * 6000))


@pytest.mark.parametrize(
    ("cell", "message"),
    [
        (BROKEN, "the image is in none of the formats PNG"),
        ("é" * 100, "the image is not base64"),
        ("A" * 101, "the image is not base64"),
        ("", "the image cell holds '', too short"),
        (base64.b64encode(base64.b64decode(encoded(picture(0)))[:-60]).decode(), "the image cannot be read"),
    ],
    ids=["other", "letters", "padding", "empty", "truncated"],
)
def test_a_broken_image_fails_when_it_is_opened_and_names_its_row(tmp_path: Path, cell: str, message: str) -> None:
    records = load(tmp_path, row(), row(index="1", image=cell))
    assert records[0].images[0].open().size == (56, 56)
    with pytest.raises(ValueError, match=f"LogicVista.tsv:2: {message}"):
        records[1].images[0].open()


def test_a_decompression_bomb_is_refused_before_it_is_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    image = EncodedImage(encoded(Image.new("1", (3000, 3000))), "file:7")
    monkeypatch.setattr(images_module, "MAX_PIXELS", 8_999_999)
    with pytest.raises(ValueError, match="file:7: the image's 3000 x 3000 pixels exceed 8999999"):
        image.open()
    monkeypatch.setattr(images_module, "MAX_PIXELS", 9_000_000)
    assert image.open().size == (3000, 3000)
    monkeypatch.setattr(images_module, "MAX_BYTES", 300)
    with pytest.raises(ValueError, match=r"file:7: the image's .* exceed"):
        image.open()


def test_images_are_known_by_what_the_cell_holds(tmp_path: Path) -> None:
    def prints(*rows: dict[str, Any]) -> list[list[str]]:
        return [[image.fingerprint for image in record.images] for record in load(tmp_path, *rows)]

    one, two = encoded(picture(1)), encoded(picture(2))
    [[first], [pointer], [left, right]] = prints(
        row(image=one), row(index="1", image="0"), row(index="2", image=repr([one, two]))
    )
    assert pointer == first
    assert len({first, left, right}) == 3
    # Neither the row's place nor its other cells matter, nor who else is in the file.
    assert prints(row(index="5", question="Why?", image=two), row(image=one))[1] == [first]
    assert prints(row(image=two)) != [[first]]
    assert EncodedImage(one).fingerprint == EncodedImage(one, "file:7").fingerprint != EncodedImage(two).fingerprint


def test_a_file_that_changed_gives_an_error_not_another_image(tmp_path: Path) -> None:
    record = load(tmp_path, row(), row(index="1"))[1]
    (tmp_path / "LogicVista.tsv").write_text("index\timage\n0\tx\n")
    with pytest.raises(ValueError, match=r"LogicVista\.tsv:2: the row cannot be read again"):
        record.images[0].open()
    (tmp_path / "LogicVista.tsv").unlink()
    with pytest.raises(ValueError, match=r"LogicVista\.tsv:2: the row cannot be read again"):
        record.images[0].open()


def test_a_row_read_by_itself_keeps_its_images_as_text() -> None:
    record = Plain().record_from_row(row(image=repr([encoded(picture(1)), encoded(picture(2))])))
    assert [pixels(image.open()) for image in record.images] == [pixels(picture(1)), pixels(picture(2))]
    assert Plain().record_from_row({k: v for k, v in row().items() if k != "image"}).images == ()


def test_without_file_and_data_set_both_are_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=f"LogicVista: there is no file {tmp_path}/LogicVista.tsv"):
        load_records(Plain(), tmp_path)
    with pytest.raises(ValueError, match=r"LogicVista: the folder of benchmark data needs LogicVista.tsv"):
        load_records(Plain(), None)
