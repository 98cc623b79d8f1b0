"""Choosing rows: order, averages, likelihoods on disk, copies to the byte."""

from __future__ import annotations

import json
import math
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from datamodules.rows import iter_rows, iter_texts
from lit_vlaa.checks import UsageError
from lit_vlaa.selection import tool
from lit_vlaa.selection.choice import averaged, drawn, ranked
from lit_vlaa.selection.report import markdown, sentences
from lit_vlaa.selection.rows import write_subsets
from lit_vlaa.selection.scores import ScoreFolder

LN2 = math.log(2)


def test_average_over_two_models() -> None:
    # Perplexities 2 and 8 for the first row, 4 and 4 for the second.
    nll = np.array([[3 * LN2, 4 * LN2], [6 * LN2, 2 * LN2]])
    tokens = np.array([[3, 2], [2, 1]])
    assert np.exp(averaged(nll, tokens)) == pytest.approx([5, 4])
    # Their geometric means are equal.
    assert np.exp(averaged(nll, tokens, "log-perplexity")) == pytest.approx([4, 4])


def test_average_of_what_no_float_holds() -> None:
    found = averaged(np.array([[2000.0], [1000.0]]), np.array([[1], [1]]))
    assert found == pytest.approx([2000 - LN2])  # (e^2000 + e^1000) / 2


def test_average_refuses() -> None:
    one = np.ones((1, 1))
    with pytest.raises(ValueError, match="mean must be perplexity or log-perplexity, got 'median'"):
        averaged(one, one.astype(int), "median")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="tokens"):
        averaged(one, np.zeros((1, 1), int))


def test_ties_go_by_row() -> None:
    scores = np.array([1.0, 3.0, 1.0, 3.0, 2.0])
    assert ranked(scores).tolist() == [1, 3, 4, 0, 2]
    assert ranked(scores, "lowest").tolist() == [0, 2, 4, 1, 3]
    with pytest.raises(ValueError, match="order must be"):
        ranked(scores, "middle")  # type: ignore[arg-type]


def test_drawn_by_seed() -> None:
    assert drawn(50, 1).tolist() == drawn(50, 1).tolist() != drawn(50, 2).tolist()
    assert sorted(drawn(50, 1).tolist()) == list(range(50))


def line(row: int, nll: float = 1.0, tokens: int = 1) -> dict[str, Any]:
    return {"row": row, "nll": nll, "tokens": tokens}


def test_likelihoods_on_disk(tmp_path: Path) -> None:
    folder = ScoreFolder(tmp_path, "Qwen/Qwen2-VL-2B", {"part": "response"})
    with folder.open("1-of-1-rank0") as file:
        file.append([line(7, 2.5, 5), line(2)])
        file.append([{"row": 4, "unscored": "broken"}])
    with folder.open("1-of-1-rank1") as file:
        file.append([line(9, 4.0, 2)])
    (path,) = folder.path.glob("*rank1.jsonl")
    with path.open("ab") as torn:
        torn.write(b'{"row": 5, "nll": 1.0, "tok')
    found = folder.read(np.array([2, 4, 5, 7, 9]))
    assert found.tokens.tolist() == [1, 0, 0, 5, 2]
    assert found.nll[[0, 3, 4]].tolist() == [1.0, 2.5, 4.0]
    assert found.done().tolist() == [True, True, False, True, True]
    assert found.done(again=["broken"]).tolist() == [True, False, False, True, True]
    # Whoever goes on with the file cuts off what is unfinished.
    with folder.open("1-of-1-rank1") as file:
        file.append([line(5, 8.0, 4)])
    assert folder.read(np.array([5])).nll.tolist() == [8.0]
    assert path.read_bytes().count(b"\n") == 2
    # Other settings have another folder.
    assert ScoreFolder(tmp_path, "Qwen/Qwen2-VL-2B", {"part": "thinking"}).path != folder.path
    assert folder.path.parent == tmp_path
    assert ScoreFolder(tmp_path, "../..", {}).path.parent == tmp_path


def test_processes_that_write_at_one_time(tmp_path: Path) -> None:
    folder = ScoreFolder(tmp_path, "tiny", {"part": "response"})
    with folder.open("a") as first, folder.open("a") as second, folder.open("b") as third:
        for row in range(1, 100):
            for file in (first, second, third):
                file.append([line(row, float(row))])
    assert folder.read(np.arange(1, 100)).nll.tolist() == list(range(1, 100))
    with ThreadPoolExecutor(8) as pool:  # all find no settings yet
        other = ScoreFolder(tmp_path, "tiny", {"part": "thinking"})
        for file in pool.map(lambda number: other.open(str(number)), range(32)):
            file.__exit__()
    assert json.loads((other.path / "settings.json").read_text(encoding="utf-8")) == {"part": "thinking"}
    assert not list(other.path.glob(".*"))


@pytest.mark.parametrize(
    "bad",
    ["[1]", "{}", '{"row": 1, "nll": NaN, "tokens": 3}', '{"row": 1, "nll": 2, "tokens": 0}', "no json"],
    ids=["list", "empty", "nan", "no_tokens", "text"],
)
def test_other_lines_are_refused(bad: str, tmp_path: Path) -> None:
    folder = ScoreFolder(tmp_path, "tiny", {})
    with folder.open("1-of-1-rank0") as file:
        file.append([line(1)])
    with (folder.path / "1-of-1-rank0.jsonl").open("a") as stream:
        stream.write(f"{bad}\n")
    with pytest.raises(ValueError, match=r"rank0\.jsonl:2: not a line of likelihoods; delete the file"):
        folder.read(np.array([1]))


ROWS = ['{"a": 1.50, "b":"caf\\u00e9"}', '{ "a":\t2 }', '{"a": "\u00e9 \U0001f600"}', '{"a":4,"a":5}']


@pytest.mark.parametrize("end", ["\n", "\r\n", "\n\n \n"], ids=["lf", "crlf", "blank_lines"])
@pytest.mark.parametrize("start", ["", "\ufeff"], ids=["plain", "bom"])
def test_lines_are_copied_to_the_byte(end: str, start: str, tmp_path: Path) -> None:
    file = tmp_path / "rows.json"
    file.write_bytes((start + end.join(ROWS) + end).encode())
    targets = {2: tmp_path / "two.json", 3: tmp_path / "three.json"}
    write_subsets(file, {4: 0, 1: 1, 3: 2}, targets)
    assert targets[2].read_bytes() == f"{ROWS[0]}\n{ROWS[3]}\n".encode()
    assert targets[3].read_bytes() == f"{ROWS[0]}\n{ROWS[2]}\n{ROWS[3]}\n".encode()


@pytest.mark.parametrize("between", [",", " ,\r\n\r\n  "], ids=["close", "wide"])
def test_an_array_stays_one(between: str, tmp_path: Path) -> None:
    file, target = tmp_path / "rows.json", tmp_path / "two.json"
    file.write_bytes(("\n [" + between.join([*ROWS, '{\r\n "deep": [{}]\r\n}']) + "] ").encode())
    write_subsets(file, {5: 0, 3: 1}, {2: target})
    assert target.read_bytes() == f'[\n{ROWS[2]},\n{{\r\n "deep": [{{}}]\r\n}}\n]\n'.encode()
    assert [row for row, _ in iter_rows(target)] == [1, 2]
    assert [text for _, text in iter_texts(file)][:4] == ROWS


def test_a_file_that_changed_is_told(tmp_path: Path) -> None:
    file, target = tmp_path / "rows.json", tmp_path / "two.json"
    file.write_text("\n".join(ROWS), encoding="utf-8")
    with pytest.raises(ValueError, match=r"rows\.json changed: 2 rows were chosen and 1 found; run again"):
        write_subsets(file, {1: 0, 9: 1}, {2: target})
    assert sorted(path.name for path in tmp_path.iterdir()) == ["rows.json"]


def test_the_report_escapes() -> None:
    report = {
        "data_file": "a|b<script>.json",
        "rows": 2,
        "eligible": 2,
        "left_out": {"answer: <b>": 1},
        "unscored": {},
        "sources": {"vg": {"rows": 2}},
        "kept": {"1": {"file": "x_1.json", "sources": {"vg": 1}}},
    }
    text = markdown(report)
    assert "a\\|b&lt;script&gt;.json" in text
    assert "&lt;b&gt;" in text
    assert "| vg | 2 | 1 (50%) |" in text
    assert "1 rows in x_1.json" in sentences(report, str)


NEEDED = ["--data-file", "x.json", "--image-root", ".", "--output-dir", "out"]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("", "nothing to choose by: give --models, --random or --aha"),
        ("--aha with --keep 3", "--keep does not say which rows: give --models, or --random"),
        ("--random --models tiny", "--random does not look at perplexities; leave out --models"),
        ("--random --order lowest", "--order does nothing without --models"),
        ("--random --shard 1/2", "--shard does nothing without --models"),
        ("--models tiny --seed 3", "--seed does nothing without --random"),
        ("--random --matching words", "--matching does nothing without --aha"),
        ("--models tiny tiny", "--models names tiny twice"),
        ("--random --keep 0", "--keep must be at least 1, got 0"),
        ("--models tiny --batch-size 0", "--batch-size must be at least 1, got 0"),
        ("--random --name ../x", "--name '../x' is no file name"),
        ("--models tiny --shard 3/2", "--shard: expected I/N with I from 1 to N, as in 2/4; got 3/2"),
        ("--random --sed 3", "unrecognized arguments: --sed; did you mean --seed?"),
    ],
)
def test_flags_that_cannot_work(flags: str, message: str) -> None:
    with pytest.raises(UsageError) as error:
        tool.run([*NEEDED, *flags.split()])
    assert error.value.problems == (message,)


def test_flags_of_the_trainer_are_handed_on() -> None:
    words = [
        "--data_file=x",
        "--models",
        "a",
        "b",
        "--model.backbone.max_pixels",
        "7056",
        "--keep",
        "2",
        "--data.x_y=1",
    ]
    given, rest = tool.flags().read_some([*NEEDED[2:], *words])
    assert (given.data_file, given.models, given.keep) == (Path("x"), ["a", "b"], [2])
    assert rest == ["--model.backbone.max_pixels", "7056", "--data.x_y=1"]


def test_lines_of_scores_are_json(tmp_path: Path) -> None:
    folder = ScoreFolder(tmp_path, "tiny", {"part": "response"})
    with folder.open("x") as file, pytest.raises(ValueError, match="JSON"):
        file.append([line(1, math.inf)])
    assert json.loads((folder.path / "settings.json").read_text()) == {"part": "response"}
