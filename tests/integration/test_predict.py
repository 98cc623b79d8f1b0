"""`lit-vlaa predict MODEL`: one answer as it is written, and a file of them that goes on where it stopped."""

from __future__ import annotations

import json
import shutil
import unicodedata
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from helpers.commands import lit
from helpers.samples import image
from lit_vlaa.answers import extract_answer
from lit_vlaa.predict.policy import read_settings
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
    assert [row["id"] for row in found] == ["rows.jsonl:1", "text", "two"]
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
        ('{"question": "?", "image": "a.png", "images": []}', "rows.jsonl:2: has both `image` and `images`"),
        ('{"question": "?", "image": "notes.png"}', "rows.jsonl:2: cannot be read: 'notes.png': no PNG"),
        ('{"question": "?", "id": "first"}', "is that of line 1 too"),
        ('{"question": " "}', "rows.jsonl:2: there is no text in the question"),
        ('{"question": "?\\ud800"}', "rows.jsonl:2: holds half a surrogate pair"),
        ("[" * 100_000, "rows.jsonl:2: no JSON"),
    ],
)
def test_a_bad_row_is_named_before_a_model_is_loaded(
    line: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lit_vlaa.predict.policy.build_backbone", _never)
    rows = tmp_path / "rows.jsonl"
    (tmp_path / "notes.png").write_text("no image")
    rows.write_text(f'{{"id": "first", "question": "hi"}}\n{line}\n')
    words = [f"--rows={rows}", f"--image-root={tmp_path}", f"--output={tmp_path / 'out.jsonl'}", *GREEDY]
    assert lit("predict", "tiny", *words) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out.jsonl").exists()


def _no_room(*_: Any, **__: Any) -> None:
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")


@pytest.mark.parametrize("rows", [False, True])
def test_a_full_gpu_is_told_in_a_line(
    rows: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("lit_vlaa.predict.policy.build_backbone", _no_room)
    (tmp_path / "rows.jsonl").write_text('{"question": "hi"}\n')
    words = [f"--rows={tmp_path / 'rows.jsonl'}", f"--output={tmp_path / 'out.jsonl'}"] if rows else ["--question=hi"]
    assert lit("predict", "tiny", *words) == 2
    told = capsys.readouterr().err.splitlines()[-1]
    start = "lit-vlaa: error: CUDA out of memory. Tried to allocate 2.00 GiB; "
    assert told.startswith(
        f"{start}answers so far are kept; what takes less: " if rows else f"{start}what takes less: "
    )


def _never(*_: Any, **__: Any) -> None:
    raise AssertionError("a model was loaded before its rows were read")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "give either --question, or --rows"),
        (["--question=a", "--rows=b"], "give either --question, or --rows"),
        (["--rows=b"], "--rows needs --output"),
        (["--question=a", "--output=b"], "--output does nothing without --rows"),
        (["--rows=a", "--output=b", "--reasoning=hidden"], "are for one --question"),
        (["--question=a", "--batch-size=0"], "--batch-size must be at least 1"),
        (["--question=a", "--image=missing.png"], "--image missing.png does not exist; seen from "),
        (["--question=a", "--image=."], "--image . is a folder; name a picture"),
        (["--question=a", "--device=cuda:9"], "--device cuda:9"),
        (["--question= "], "--question: there is no text in the question"),
        (["--question=a", "--kind=numbers"], "--kind numbers: no line stands behind such questions; use digit, mcq"),
        (["--rows=no.jsonl", "--output=b"], "no.jsonl"),
    ],
)
def test_flags_that_cannot_work(words: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert lit("predict", "tiny", *words) == 2
    assert message in capsys.readouterr().err


def test_a_picture_above_the_limit_says_what_allows_more(
    picture: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    small = ["--data.max_image_pixels=100", "--device=cpu"]
    assert lit("predict", "tiny", "--question=a", f"--image={picture}", *small) == 2
    assert "more pixels than max_image_pixels; --data.max_image_pixels allows more" in capsys.readouterr().err
    rows = questions(tmp_path / "rows.jsonl", picture)
    words = [f"--rows={rows}", f"--image-root={picture.parent}", f"--output={tmp_path / 'out'}"]
    assert lit("predict", "tiny", *words, *small) == 2
    assert "84x84 > 100; --data.max_image_pixels allows more" in capsys.readouterr().err


def test_pictures_of_two_flags_are_both_shown(picture: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["predict", "tiny", "--question=a", "--device=cpu", "--model.sampling.max_new_tokens=20"]
    words += ["--model.sampling.temperature=1"]
    shown = []
    for images in ([f"--image={picture}"], [f"--image={picture}", f"--image={picture}"]):
        assert lit(*words, *images) in {0, 1}
        shown.append(capsys.readouterr().out)
    assert lit(*words, "--image", str(picture), str(picture)) in {0, 1}
    assert capsys.readouterr().out == shown[1] != shown[0]


def test_other_settings_do_not_go_on_in_the_same_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows, out = tmp_path / "rows.jsonl", tmp_path / "out.jsonl"
    asked = '{"id": "a", "question": "hi", "kind": "odd"}\n'
    rows.write_text(asked)
    words = ["predict", "tiny", "--model.sampling.max_new_tokens=3", "--device=cpu", f"--rows={rows}"]
    words += [f"--output={out}"]
    assert lit(*words) == 0
    assert "kind odd" in capsys.readouterr().err
    rows.write_text('{"id": "a", "question": "hi"}\n')
    assert lit(*words) == 2
    assert "was answered by another model" in capsys.readouterr().err
    rows.write_text(asked)
    content = out.read_bytes()
    others = (
        "--seed=1",
        "--model.sampling.temperature=1",
        "--data.prompt.system_prompt=x",
        "--model.backbone.dtype=bfloat16",
    )
    for other in others:
        assert lit(*words, other) == 2
        assert f"--output {out}:1: 'a' was answered by another model" in capsys.readouterr().err
    rows.write_text('{"id": "a", "question": "hello"}\n')
    assert lit(*words) == 2
    assert "or was another question; name another file" in capsys.readouterr().err
    assert out.read_bytes() == content


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ("no.ckpt", "MODEL no.ckpt does not exist; seen from "),
        ("rows.jsonl", "is a file, but no .ckpt"),
        (".", "is a folder without config.json"),
        ("./no/such/folder", "there is no such file or folder"),
        ("./gone", "there is no such file or folder"),
        ("../gone", "there is no such file or folder"),
        ("my-vlaa", "MODEL my-vlaa: there is no such file or folder, and it is no Hub id (OWNER/NAME)"),
    ],
)
def test_what_is_no_model_is_named(
    model: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "rows.jsonl").write_text("{}")
    assert lit("predict", model, "--question=hi") == 2
    assert message in capsys.readouterr().err


def test_adapters_behind_their_base_find_their_configuration(sft_checkpoint: Path) -> None:
    model = f"moved.ckpt::{sft_checkpoint}"
    settings = read_settings(model, [], [])
    assert settings.init_from == model
    assert settings.prompt.system_prompt == ""


def test_a_folder_of_a_stranger_runs_nothing(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    strange, ran = tmp_path / "strange", tmp_path / "ran"
    shutil.copytree(folder, strange)
    code = f"open({str(ran)!r}, 'w').close()\n"
    (strange / "own_code.py").write_text(code)
    (tmp_path / "own_class.py").write_text(code)
    monkeypatch.syspath_prepend(str(tmp_path))
    for name in ("config.json", "tokenizer_config.json"):
        settings = json.loads((strange / name).read_text())
        settings["auto_map"] = {"AutoConfig": "own_code.C", "AutoTokenizer": ["own_code.T", "own_code.T"]}
        (strange / name).write_text(json.dumps(settings))
    config = yaml.safe_load((strange / "lit_vlaa_config.yaml").read_text())
    config["model"]["class_path"] = "own_class.Module"
    config["model"]["init_args"]["backbone"]["trust_remote_code"] = True
    (strange / "lit_vlaa_config.yaml").write_text(yaml.safe_dump(config))
    words = [f"--question={QUESTION}"]
    assert ask(capsys, strange, *words) == ask(capsys, folder, *words)
    assert not ran.exists()
    several = "a: &a [1, 1]\nb: &b [*a, *a]\nmodel: {init_args: {sampling: {top_k: *b}}}\n"
    (strange / "lit_vlaa_config.yaml").write_text(several)
    assert lit("predict", str(strange), *words) == 2
    assert "has another form than" in capsys.readouterr().err


def test_a_terminal_is_given_no_orders(capsys: pytest.CaptureFixture[str]) -> None:
    # At this temperature the bytes of the tiny vocabulary are drawn alike, those that terminals obey among them.
    words = ["--model.sampling.temperature=50", "--model.sampling.max_new_tokens=300", "--device=cpu"]
    assert lit("predict", "tiny", "--question=hi", *words) in {0, 1}
    shown = capsys.readouterr().out
    assert "⟨U+00" in shown
    assert not [char for char in shown if unicodedata.category(char) == "Cc" and char not in "\n\t"]


def test_nobody_reads_on(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("sys.stdout.write", _closed)
    assert lit("predict", "tiny", "--question=hi", "--model.sampling.max_new_tokens=3", "--device=cpu") == 141
    monkeypatch.undo()
    assert "error" not in capsys.readouterr().err


def _closed(_: str) -> int:
    raise BrokenPipeError


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
        ("begun by the template</think><answer>7</answer>", "7"),
        ("<think>a<think>b</think></think><answer>7</answer>", "7"),
        ("<think>never closed<answer>7</answer>", "7"),
        ("<think>says <answer> here</think><answer>7</answer>", "7"),
        ("</think>", ""),
    ],
)
def test_the_answer_alone_in_pieces_of_any_size(response: str, shown: str, size: int) -> None:
    alone = AnswerAlone()
    pieces = [alone.feed(response[start : start + size]) for start in range(0, len(response), size)]
    assert "".join(pieces) + alone.end() == shown
    assert alone.thinking == (response == "<think>never ends")
