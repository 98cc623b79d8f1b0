"""`lit-vlaa predict MODEL`: one answer as it is written, and a file of them that goes on where it stopped."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from helpers.commands import lit
from helpers.samples import image
from lit_vlaa.answers import extract_answer
from lit_vlaa.predict.streaming import AnswerAlone

GREEDY = ["--model.sampling.temperature=0", "--model.sampling.max_new_tokens=60", "--device=cpu"]
QUESTION = "How many red circles?"


@pytest.fixture(scope="module")
def folder(sft_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that knows the form of an answer, exported."""
    out = tmp_path_factory.mktemp("exported") / "model"
    assert lit("export", str(sft_checkpoint), f"--output-dir={out}") == 0
    return out


@pytest.fixture(scope="module")
def picture(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("pictures") / "a picture.png"
    image(84, 84, 0).save(path)
    return path


def ask(capsys: pytest.CaptureFixture[str], model: Path, *words: str) -> str:
    """The answer to a question; the model may have been cut off."""
    capsys.readouterr()
    assert lit("predict", str(model), *GREEDY, *words) in {0, 1}
    return capsys.readouterr().out


def test_a_checkpoint_answers_like_its_export(
    folder: Path, sft_checkpoint: Path, picture: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [f"--question={QUESTION}", f"--image={picture}"]
    shown = ask(capsys, folder, *words)
    assert shown.startswith("<think>")
    assert shown == ask(capsys, sft_checkpoint, *words)
    alone = AnswerAlone()
    assert ask(capsys, folder, *words, "--reasoning=hidden") == alone.feed(shown) + alone.end()


def test_the_picture_and_the_kind_reach_the_model(
    picture: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    # Drawn at temperature 1 from random weights, some of forty tokens differ whatever the model is shown.
    words = [f"--question={QUESTION}", "--model.sampling.temperature=1", "--model.sampling.max_new_tokens=40"]
    other = tmp_path / "other.png"
    image(84, 56, 9).save(other)
    answers = set()
    for shown in ([], [str(picture)], [str(picture), str(other)], [str(picture), "--kind=iou"], ["--seed=7"]):
        flags = ["--image", *shown] if shown and not shown[0].startswith("-") else shown
        capsys.readouterr()
        assert lit("predict", "tiny", *words, "--device=cpu", *flags) in {0, 1}
        answers.add(capsys.readouterr().out)
    assert len(answers) == 5


def test_an_answer_that_was_cut_off_says_so(folder: Path, picture: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = [f"--question={QUESTION}", f"--image={picture}", *GREEDY, "--model.sampling.max_new_tokens=4"]
    assert lit("predict", str(folder), *words) == 1
    assert "cut off after 4 tokens; --model.sampling.max_new_tokens allows more" in capsys.readouterr().err
    assert lit("predict", str(folder), *words, "--reasoning=hidden") == 1
    assert "cut off within its reasoning" in capsys.readouterr().err


def test_a_model_without_a_configuration_answers(capsys: pytest.CaptureFixture[str]) -> None:
    assert lit("predict", "tiny", "--question=hi", "--model.sampling.max_new_tokens=3", "--device=cpu") in {0, 1}
    assert capsys.readouterr().out.endswith("\n")


def questions(path: Path, picture: Path) -> Path:
    rows: list[dict[str, Any]] = [
        {"question": QUESTION, "image": picture.name, "kind": "digit"},
        {"id": "text", "question": "What is 1 + 1?"},
        {"id": "two", "question": "Which has more circles?", "images": [picture.name, picture.name]},
    ]
    path.write_text("\n".join(json.dumps(row) for row in rows) + "\n\n")
    return path


def test_a_file_of_questions(folder: Path, picture: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows, out = questions(tmp_path / "rows.jsonl", picture), tmp_path / "new" / "answers.jsonl"
    words = ["predict", str(folder), *GREEDY, f"--rows={rows}", f"--image-root={picture.parent}", f"--output={out}"]
    assert lit(*words) == 0
    content = out.read_bytes()
    found = [json.loads(line) for line in content.splitlines()]
    assert [row["id"] for row in found] == [f"{rows}:1", "text", "two"]
    alone = ask(capsys, folder, f"--question={QUESTION}", f"--image={picture}", "--kind=digit")
    assert found[0]["response"] == alone.strip()
    assert found[0]["thinking"] in found[0]["response"]
    assert all(row["answer"] == extract_answer(row["response"]) for row in found)
    # Killed within the second line: that line and those behind it are written again, and nothing else.
    cut = content.index(b"\n") + 20
    out.write_bytes(content[:cut])
    assert lit(*words, "--batch-size=1") == 0
    assert out.read_bytes() == content
    assert "2 answers in" in capsys.readouterr().out
    assert lit(*words) == 0
    assert "0 answers in" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("nothing", "rows.jsonl:2: no JSON"),
        ('{"image": "a.png"}', "rows.jsonl:2: has no text as `question`"),
        ('{"question": "?", "image": 3}', "rows.jsonl:2: `image` is no path"),
        ('{"question": "?", "image": "../a.png"}', "rows.jsonl:2: a path with '..'"),
        ('{"question": "?", "image": "missing.png"}', "rows.jsonl:2: no such file below the image root"),
        ('{"question": "?", "id": "first"}', "is that of line 1 too"),
    ],
)
def test_a_bad_row_is_named(line: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = tmp_path / "rows.jsonl"
    rows.write_text(f'{{"id": "first", "question": "hi"}}\n{line}\n')
    words = [f"--rows={rows}", f"--image-root={tmp_path}", f"--output={tmp_path / 'out.jsonl'}", *GREEDY]
    assert lit("predict", "tiny", *words) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "give either --question, or --rows"),
        (["--question=a", "--rows=b"], "give either --question, or --rows"),
        (["--rows=b"], "--rows needs --output"),
        (["--question=a", "--output=b"], "--output does nothing without --rows"),
        (["--rows=a", "--output=b", "--reasoning=hidden"], "are for one --question"),
        (["--question=a", "--batch-size=0"], "--batch-size must be at least 1"),
        (["--question=a", "--image=missing.png"], "--image missing.png: no such file"),
        (["--question=a", "--device=cuda:9"], "--device cuda:9"),
    ],
)
def test_flags_that_cannot_work(words: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert lit("predict", "tiny", *words) == 2
    assert message in capsys.readouterr().err


def test_another_programs_file_is_left_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows, out = tmp_path / "rows.jsonl", tmp_path / "notes.txt"
    rows.write_text('{"question": "hi"}\n')
    out.write_text("my notes\n")
    assert lit("predict", "tiny", *GREEDY, f"--rows={rows}", f"--output={out}") == 2
    assert "is no answer of this command" in capsys.readouterr().err
    assert out.read_text() == "my notes\n"


@pytest.mark.parametrize("size", [1, 2, 3, 7, 100])
@pytest.mark.parametrize(
    ("response", "shown"),
    [
        ("<think>1 < 2 </think><answer>a < b</answer>", "a < b"),
        ("<answer>7</answer>", "7"),
        ("no tags at all <", "no tags at all <"),
        ("<think>never ends", ""),
        ("a<think>b</think>c<think>d</think>e", "ace"),
        ("<thin", "<thin"),
    ],
)
def test_the_answer_alone_in_pieces_of_any_size(response: str, shown: str, size: int) -> None:
    alone = AnswerAlone()
    pieces = [alone.feed(response[start : start + size]) for start in range(0, len(response), size)]
    assert "".join(pieces) + alone.end() == shown
