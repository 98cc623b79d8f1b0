from __future__ import annotations

import json
import pickle
import tracemalloc
from pathlib import Path
from typing import Any

import pytest

from datamodules import rows
from datamodules.rows import BadRecord, iter_rows

ROWS: list[dict[str, Any]] = [
    {"q": 'quotes " and \\ and [brackets], {braces}', "n": [1, -2.5e3, None, True]},
    {"q": "£ü 漢字 😀 \u2028", "deep": {"a": [{"b": []}]}},
    {},
    {"q": "end"},
]


def read(path: Path) -> list[Any]:
    return [row for _, row in iter_rows(path)]


def write(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "rows.txt"
    path.write_text(text, encoding="utf-8")
    return path


@pytest.mark.parametrize("chunk", [1, 2, 3, 7, 64])
@pytest.mark.parametrize("ascii_only", [True, False])
@pytest.mark.parametrize("indent", [None, 2])
def test_arrays_survive_every_chunk_boundary(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, chunk: int, ascii_only: bool, indent: int | None
) -> None:
    monkeypatch.setattr(rows, "_CHUNK", chunk)
    path = write(tmp_path, json.dumps(ROWS, ensure_ascii=ascii_only, indent=indent) + "\n")
    assert read(path) == ROWS


@pytest.mark.parametrize("newline", ["\n", "\r\n", "\n\n"])
def test_lines_are_told_from_arrays_by_content(tmp_path: Path, newline: str) -> None:
    path = write(tmp_path, newline.join(json.dumps(row, ensure_ascii=False) for row in ROWS))
    assert read(path) == ROWS


def test_blank_start_and_byte_order_mark_are_passed_over(tmp_path: Path) -> None:
    assert read(write(tmp_path, '\ufeff \n [{"a": 1}]')) == [{"a": 1}]
    assert read(write(tmp_path, '\ufeff\n {"a": 1}\n{"a": 2}')) == [{"a": 1}, {"a": 2}]


@pytest.mark.parametrize("text", ["", " \n", "[]", " [ ] "])
def test_empty_files_have_no_rows(tmp_path: Path, text: str) -> None:
    assert read(write(tmp_path, text)) == []


def test_a_bad_line_is_reported_in_its_place_and_reading_goes_on(tmp_path: Path) -> None:
    found = list(iter_rows(write(tmp_path, '{"a": 1}\n{"a": \n[1]\n{"a": 4}')))
    assert [number for number, _ in found] == [1, 2, 3, 4]
    assert found[0][1] == {"a": 1}
    assert found[3][1] == {"a": 4}
    assert isinstance(found[1][1], BadRecord)
    assert found[1][1].reason == "no valid JSON"
    assert isinstance(found[2][1], BadRecord)
    assert str(found[2][1]).endswith("rows.txt:3: row: no object")


@pytest.mark.parametrize(
    ("text", "row", "reason"),
    [
        ('[{"a": 1}, {"a": ', 2, "no valid JSON"),
        ('[{"a": 1}', 2, "the file ends inside the array; is the download complete?"),
        ('[{"a": 1} {"a": 2}]', 2, "expected a comma between rows"),
        ('[{"a": 1}, 7]', 2, "expected an object"),
        ("[1]", 1, "expected an object"),
        ("id,image", 1, "neither a JSON array nor JSON Lines"),
    ],
)
def test_broken_files_say_where(tmp_path: Path, text: str, row: int, reason: str) -> None:
    with pytest.raises(BadRecord) as caught:
        read(write(tmp_path, text))
    assert (caught.value.row, caught.value.reason) == (row, reason)


def test_a_row_without_end_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rows, "MAX_ROW_CHARS", 100)
    monkeypatch.setattr(rows, "_CHUNK", 16)
    for start in ("[", ""):
        with pytest.raises(BadRecord):
            read(write(tmp_path, start + '{"a": "' + "x" * 1000))


def test_hostile_nesting_is_a_bad_row(tmp_path: Path) -> None:
    (row,) = read(write(tmp_path, '{"a": ' + "[" * 200_000))
    assert isinstance(row, BadRecord)
    with pytest.raises(BadRecord):
        read(write(tmp_path, '[{"a": ' + "[" * 200_000))


def test_bytes_that_are_no_utf8_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "latin.json"
    path.write_bytes('{"a": "\u00fc"}'.encode("latin-1"))
    with pytest.raises(BadRecord, match="not UTF-8"):
        read(path)


@pytest.mark.parametrize("form", ["array", "lines"])
def test_memory_does_not_grow_with_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, form: str) -> None:
    monkeypatch.setattr(rows, "_CHUNK", 2**17)
    row = json.dumps({"q": "x" * 4000, "n": list(range(100))})
    joined = (",\n" if form == "array" else "\n").join([row] * 4500)
    path = write(tmp_path, f"[{joined}]" if form == "array" else joined)
    del joined
    assert path.stat().st_size > 19_000_000
    tracemalloc.start()
    try:
        assert sum(1 for _ in iter_rows(path)) == 4500
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    # Some five times the chunk of 0.13 MB (as bytes, as text, and the rest of the one before), and far from 19 MB,
    # since what other threads take counts too.
    assert peak < 6_000_000


def test_bad_records_survive_a_worker_process() -> None:
    error = BadRecord.at("f.json", 3, "gt", "missing")
    assert (error.file, error.row, error.field, error.reason) == ("f.json", 3, "gt", "missing")
    assert str(BadRecord(str(error))) == str(pickle.loads(pickle.dumps(error))) == "f.json:3: gt: missing"  # noqa: S301
