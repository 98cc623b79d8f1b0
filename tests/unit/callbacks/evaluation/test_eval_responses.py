"""Answers on disk: found again, whatever interrupted the run that wrote them."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest

from callbacks.evaluation.responses import (
    Answer,
    AnswerFile,
    read_answers,
    row_digest,
    settings_digest,
    write_rows,
    write_whole,
)
from helpers.evaluated import Picture, ToyBenchmark

RECORD = ToyBenchmark().load(None)[1]


def answer(name: str, text: str = "<answer>2</answer>") -> Answer:
    return Answer(row=f"digest of {name}", id=name, response=text, finish="stop", tokens=3)


def append(folder: Path, rank: int, *names: str) -> None:
    with AnswerFile(folder, rank) as file:
        file.append([answer(name) for name in names])


def test_answers_come_back_as_they_were(tmp_path: Path) -> None:
    hostile = 'line\nbreak\u2028 "quote" \ud83e half a pair \x00 \U0001f914'
    with AnswerFile(tmp_path / "a" / "b", 0) as file:
        file.append([answer("one", hostile)])
        file.append([answer("two")])
        # They are there before the file is closed.
        assert list(read_answers(tmp_path / "a" / "b", rank=0, ranks=1)) == ["digest of one", "digest of two"]
    found = read_answers(tmp_path / "a" / "b", rank=0, ranks=1)
    assert found["digest of one"] == answer("one", hostile)


def test_a_torn_line_is_dropped_and_written_over(tmp_path: Path) -> None:
    append(tmp_path, 0, "one", "two")
    path = tmp_path / "rank0.jsonl"
    path.write_bytes(path.read_bytes()[:-5])
    assert list(read_answers(tmp_path, rank=0, ranks=1)) == ["digest of one"]
    append(tmp_path, 0, "three")
    assert [json.loads(line)["id"] for line in path.read_text().splitlines()] == ["one", "three"]


def test_a_whole_line_without_its_end_is_written_over_too(tmp_path: Path) -> None:
    append(tmp_path, 0, "one", "two")
    path = tmp_path / "rank0.jsonl"
    path.write_bytes(path.read_bytes()[:-1])
    append(tmp_path, 0, "three")
    assert [json.loads(line)["id"] for line in path.read_text().splitlines()] == ["one", "three"]


@pytest.mark.parametrize(
    "line",
    [
        "",
        "[1, 2]",
        "7",
        '{"row": "a"}',
        '{"row": 1, "id": "a", "response": "x", "finish": "stop", "tokens": 3}',
        '{"row": "r", "id": "a", "response": "x", "finish": "broken", "tokens": 3}',
        '{"row": "r", "id": "a", "response": "x", "finish": ["stop"], "tokens": 3}',
        '{"row": "r", "id": "a", "response": "x", "finish": "stop", "tokens": "3"}',
        "[" * 100_000,
        "\x00\xff",
    ],
    ids=lambda line: line[:20] or "empty",
)
def test_lines_that_are_no_answers_are_passed_over(line: str, tmp_path: Path) -> None:
    append(tmp_path, 0, "one")
    with (tmp_path / "rank0.jsonl").open("ab") as file:
        file.write(line.encode("latin-1") + b"\n")
    append(tmp_path, 0, "two")
    assert list(read_answers(tmp_path, rank=0, ranks=1)) == ["digest of one", "digest of two"]


def test_files_are_shared_out_over_any_number_of_ranks(tmp_path: Path) -> None:
    for rank in range(3):
        append(tmp_path, rank, f"of {rank}")
    (tmp_path / "rankx.jsonl").write_text("other\n")
    both = [list(read_answers(tmp_path, rank=rank, ranks=2)) for rank in range(2)]
    assert both == [["digest of of 0", "digest of of 2"], ["digest of of 1"]]
    assert read_answers(tmp_path / "nothing", rank=0, ranks=1) == {}


def test_the_first_of_two_answers_counts(tmp_path: Path) -> None:
    append(tmp_path, 0, "one")
    with AnswerFile(tmp_path, 0) as file:
        file.append([answer("one", "other")])
    assert read_answers(tmp_path, rank=0, ranks=1)["digest of one"] == answer("one")


@pytest.mark.parametrize(
    "change",
    [
        {"id": "other"},
        {"prompt": "Why?"},
        {"images": ()},
        {"images": (Picture(1),) * 2},
        {"images": (Picture(2),)},
    ],
    ids=["id", "prompt", "no image", "two images", "another image"],
)
def test_a_row_is_known_by_what_is_asked(change: dict[str, object]) -> None:
    assert row_digest(dataclasses.replace(RECORD, **change)) != row_digest(RECORD)  # type: ignore[arg-type]


def test_a_row_is_not_known_by_its_truth() -> None:
    assert row_digest(dataclasses.replace(RECORD, answer="99", tags={}, origin="elsewhere")) == row_digest(RECORD)
    assert row_digest(dataclasses.replace(RECORD, prompt="half of a pair: \ud83e"))


def test_every_setting_counts() -> None:
    assert settings_digest(a=1, b="x") == settings_digest(b="x", a=1)
    assert len({settings_digest(a=1), settings_digest(a=2), settings_digest(b=1), settings_digest(a="1")}) == 4


def test_a_file_is_whole_or_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "new" / "rows.jsonl"
    write_rows(path, [{"id": "a\u2028"}, {"id": "b"}])
    assert [json.loads(line) for line in path.read_text().splitlines()] == [{"id": "a\u2028"}, {"id": "b"}]

    def crash(*_: object) -> None:
        raise OSError("no space left")

    monkeypatch.setattr("os.fsync", crash)
    with pytest.raises(OSError, match="no space"):
        write_whole(path, "half")
    assert len(path.read_text().splitlines()) == 2
