"""The file of answers: whatever a killed command left is gone on with, and nothing of anybody else's is touched."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from lit_vlaa.predict.answers import answers_in

ROWS = [
    {"id": name, "question": "\u6f22?", "response": "\u2028 caf\u00e9", "asked": "x"} for name in ("a", 'b"\u6f22', "c")
]


@pytest.fixture
def questions(tmp_path: Path) -> Path:
    path = tmp_path / "rows.jsonl"
    path.write_text('{"id": "a", "question": "?"}')
    return path


def whole(tmp_path: Path, questions: Path) -> bytes:
    with answers_in(tmp_path / "whole.jsonl", questions) as answers:
        answers.append(ROWS)
    content = (tmp_path / "whole.jsonl").read_bytes()
    assert [json.loads(line) for line in content.splitlines()] == ROWS
    return content


def test_killed_at_any_byte_the_rest_is_written_and_nothing_else(tmp_path: Path, questions: Path) -> None:
    content, out = whole(tmp_path, questions), tmp_path / "out.jsonl"
    for cut in range(len(content) + 1):
        out.write_bytes(content[:cut])
        with answers_in(out, questions) as answers:
            ends = [len(line) for line in content[:cut].splitlines()]
            assert len(answers.asked) in {content[:cut].count(b"\n"), len(ends)}
            answers.append(row for row in ROWS if row["id"] not in answers.asked)
        assert out.read_bytes() == content


@pytest.mark.parametrize(
    "content",
    [
        b"my notes",
        b"my notes\n",
        b'{"id": "a", "question": "?"}',
        b'{"id": "a", "question": "?"}\n',
        b'{"id": "a", "question": "cut o\n',
        b'["id"]',
        b"\xff\xfe",
        b"[" * 100_000,
    ],
)
def test_what_others_wrote_is_left_as_it_is(content: bytes, tmp_path: Path, questions: Path) -> None:
    out = tmp_path / "out.jsonl"
    for before in (b"", whole(tmp_path, questions)):
        out.write_bytes(before + content)
        number = before.count(b"\n") + 1
        with (
            pytest.raises(ValueError, match=f"out.jsonl:{number} is no answer of this command"),
            answers_in(out, questions),
        ):
            pass
        assert out.read_bytes() == before + content


def test_the_questions_are_never_taken_for_the_answers(tmp_path: Path, questions: Path) -> None:
    before = questions.read_bytes()
    (tmp_path / "link").symlink_to(questions)
    for same in (questions, tmp_path / "link"):
        with pytest.raises(ValueError, match="is the file of --rows"), answers_in(same, questions):
            pass
    assert questions.read_bytes() == before


def test_one_command_writes_at_a_time(tmp_path: Path, questions: Path) -> None:
    out = tmp_path / "new" / "out.jsonl"
    with answers_in(out, questions):
        with pytest.raises(ValueError, match="another command is writing to it"), answers_in(out, questions):
            pass
        assert out.read_bytes() == b""
    with answers_in(out, questions) as answers:
        answers.append(ROWS[:1])
    with pytest.raises(ValueError, match="no regular file"), answers_in(tmp_path / "new", questions):
        pass


def test_another_question_under_the_same_id_is_named_by_its_line(tmp_path: Path, questions: Path) -> None:
    whole(tmp_path, questions)
    with answers_in(tmp_path / "whole.jsonl", questions) as answers:
        answers.check({"a": "x", "d": "y"})
        with pytest.raises(ValueError, match=r"whole.jsonl:3: 'c' was answered by another model"):
            answers.check({"a": "x", "c": "y"})
