"""From a checkpoint to tables: responses on one process and on two, their perplexity, and what is said of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from helpers.commands import command, lit, lit_in_ranks, version
from helpers.samples import tiny_backbone
from integration.conftest import TEST_ROWS

WRITER = "--trainer.callbacks=callbacks.ResponseWriter"


@pytest.fixture(scope="module")
def evaluated(dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Log folder of a test on one process."""
    root = tmp_path_factory.mktemp("evaluated")
    assert lit(*command("test", "grpo", dataset, root), WRITER) == 0
    return version(root)


@pytest.fixture(scope="module")
def config(dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same settings as a file."""
    file = tmp_path_factory.mktemp("config") / "stage.yaml"
    words = command("test", "grpo", dataset, file.parent)
    settings: dict[str, Any] = {"model": {"class_path": words[2]}, "data": {"class_path": words[4]}}
    for word in words[5:]:
        path, _, value = word[2:].partition("=")
        first, *rest = path.split(".")
        place = settings.setdefault(first, {})
        for name in (["init_args"] if first in {"model", "data"} else []) + rest[:-1]:
            place = place.setdefault(name, {})
        place[rest[-1]] = json.loads(value.lower()) if value.lower() in {"true", "false"} else value
        if value.lstrip("-").isdecimal():
            place[rest[-1]] = int(value)
    file.write_text(json.dumps(settings))
    return file


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def perplexity(evaluated: Path, config: Path, output: Path, *more: str) -> int:
    responses = f"--responses={evaluated / 'responses.jsonl'}"
    return lit("study", "perplexity", responses, f"--output={output}", f"--config={config}", *more)


def test_every_test_row_in_order_on_any_number_of_processes(evaluated: Path, dataset: Path, tmp_path: Path) -> None:
    rows = lines(evaluated / "responses.jsonl")
    data = json.loads((dataset / "VLAA-Thinking-GRPO-test.json").read_text())
    assert len(rows) == TEST_ROWS
    assert [row["id"] for row in rows] == [row["id"] for row in data]
    assert [row["kind"] for row in rows] == [row["verifier_type"] for row in data]
    assert [row["image"] for row in rows] == [row["image"].lstrip("/") for row in data]
    assert {row["set"] for row in rows} == {"test"}
    options = {"trainer__devices": 2, "trainer__strategy": "ddp", "data__eval_batch_size": 4}
    lit_in_ranks([*command("test", "grpo", dataset, tmp_path, **options), WRITER])
    assert lines(version(tmp_path) / "responses.jsonl") == rows
    assert not list(version(tmp_path).glob(".*"))


def test_perplexity_goes_on_where_it_stopped(
    evaluated: Path, config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "new" / "p.jsonl"
    assert perplexity(evaluated, config, output) == 0
    found = lines(output)
    responses = lines(evaluated / "responses.jsonl")
    assert [(row["set"], row["id"]) for row in found] == [("test", row["id"]) for row in responses]
    # A random model is about as good as guessing one of some 800 tokens: ln(800) = 6.7 nats.
    assert all(5.5 < row["nll"] / row["tokens"] < 8.5 for row in found)
    text = capsys.readouterr().out
    assert f"{TEST_ROWS} rows in {output}\n" in text
    mean = sum(row["nll"] for row in found) / sum(row["tokens"] for row in found)
    assert f"{mean:.4f} nats a token" in text
    # Killed amid the fifth line.
    whole = output.read_bytes()
    output.write_bytes(b"".join(whole.splitlines(keepends=True)[:4]) + b'{"set": "te')
    assert perplexity(evaluated, config, output, "--batch-size=5") == 0
    assert f"{TEST_ROWS} rows in {output}, 4 of them from before\n" in capsys.readouterr().out
    again = lines(output)
    assert [row["id"] for row in again] == [row["id"] for row in found]
    assert [row["nll"] for row in again] == pytest.approx([row["nll"] for row in found], rel=1e-5)


def test_other_settings_do_not_go_on(
    evaluated: Path, config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.save({"state_dict": shaken()}, tmp_path / "w.ckpt")
    output = tmp_path / "p.jsonl"
    assert perplexity(evaluated, config, output) == 0
    for flag, name in (("--part=thinking", "part"), (f"--init_from={tmp_path / 'w.ckpt'}", "init_from")):
        assert perplexity(evaluated, config, output, flag) == 2
        assert f"p.jsonl holds perplexities made with other {name}; delete it" in capsys.readouterr().err
    other = tmp_path / "q.jsonl"
    assert perplexity(evaluated, config, other, f"--init_from={tmp_path / 'w.ckpt'}") == 0
    assert [row["tokens"] for row in lines(other)] == [row["tokens"] for row in lines(output)]
    assert [row["nll"] for row in lines(other)] != pytest.approx([row["nll"] for row in lines(output)], rel=1e-3)


def shaken() -> dict[str, torch.Tensor]:
    """Weights of a policy that are not the ones it starts from."""
    return {f"backbone.{name}": 1.5 * value for name, value in tiny_backbone().state_dict().items()}


def test_what_cannot_be_scored_is_counted(
    evaluated: Path, config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first, second, third, *_ = lines(evaluated / "responses.jsonl")
    thought = {**first, "response": "<think>one two</think><answer>4</answer>"}
    rows = [
        thought,
        {**thought, "response": "again"},
        {**second, "question": "another?"},
        {**third, "response": "no tags"},
        {**third, "id": "gone"},
        {"benchmark": "toy", "id": "1", "hit": True, "response": "x"},
    ]
    (tmp_path / "responses.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert perplexity(tmp_path, config, tmp_path / "p.jsonl", "--part=thinking") == 0
    (found,) = lines(tmp_path / "p.jsonl")
    assert found["id"] == first["id"]
    said = capsys.readouterr().out
    for reason in (
        "there is another response to the same row before",
        "the test row of their id asks another question",
        "they have no token of the thinking",
        "their id is not among the test rows, or the row's image cannot be read",
        "they are no responses to the test rows, but of another set",
    ):
        assert f"1 left out: {reason}\n" in said
    assert perplexity(tmp_path, config, tmp_path / "whole.jsonl") == 0
    assert len(lines(tmp_path / "whole.jsonl")) == 2


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--batch_size=0"], "eval_batch_size must be at least 1, got 0"),
        (["--part=answer"], "--part: invalid choice: 'answer'"),
        (["--data.init_args.test_file=none.json"], "test_file=none.json does not exist"),
        (["--no_such_flag=1"], "no_such_flag"),
        (["--init_from=none.ckpt"], "--model.init_from none.ckpt"),
    ],
    ids=["batch", "part", "file", "flag", "weights"],
)
def test_arguments_of_perplexity_that_cannot_work(
    flags: list[str], message: str, evaluated: Path, config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert perplexity(evaluated, config, tmp_path / "p.jsonl", *flags) == 2
    said = [line for line in capsys.readouterr().err.splitlines() if line.startswith("lit-vlaa: error:")]
    assert len(said) == 1
    assert message in said[0]


def traces(*words: object) -> int:
    return lit("study", "traces", *map(str, words))


def test_traces_of_several_arms(evaluated: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bare = tmp_path / "bare.jsonl"
    bare.write_text(json.dumps({"response": "<think>Wait</think><answer>1</answer>"}) + "\n")
    assert traces(evaluated, bare, "--names", "base", "mine", "--output-dir", tmp_path / "out") == 0
    said = capsys.readouterr().out
    assert "|  | base | mine |" in said
    assert f"| rows | {TEST_ROWS} | 1 |" in said
    assert "- mine: 1 of 1 rows have no score" in said
    found = json.loads((tmp_path / "out" / "traces.json").read_text())
    assert found["correct_from"] == 0.5
    assert found["arms"]["mine"]["flags"]["aha"] == {"mean": 1.0, "n": 1}
    assert found["arms"]["base"]["numbers"]["tokens"]["n"] == TEST_ROWS
    assert (tmp_path / "out" / "traces.md").read_text() in said
    assert "<mark>Wait</mark>" in (tmp_path / "out" / "cases.md").read_text()
    assert (tmp_path / "out" / "traces.png").read_bytes().startswith(b"\x89PNG")


def test_perplexity_and_threshold_in_traces(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "a.jsonl"
    file.write_text("".join(json.dumps({"id": str(n), "response": "x", "score": n / 10}) + "\n" for n in range(10)))
    nll = tmp_path / "p.jsonl"
    nll.write_text(json.dumps({"set": "test", "id": "3", "nll": 4.0, "tokens": 2}) + "\n")
    assert traces(file, "--perplexity", nll) == 0
    said = capsys.readouterr().out
    assert "| perplexity | 7.39 (1) |" in said
    assert "- a: 9 of 10 rows have no perplexity" in said
    assert "| wrong | 50.0% (10) |" in said
    assert traces(file, "--correct-from", 0.8) == 0
    assert "| wrong | 80.0% (10) |" in capsys.readouterr().out


def test_names_of_arms(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files = [tmp_path / arm / "responses.jsonl" for arm in ("sft", "v1.5")]
    for file in files:
        file.parent.mkdir()
        file.write_text('{"response": "x"}\n')
    assert traces(*files) == 0
    assert "|  | sft | v1.5 |" in capsys.readouterr().out
    assert traces(files[0].parent, files[1].parent) == 0
    assert "|  | sft | v1.5 |" in capsys.readouterr().out
    assert traces(files[0], files[0].parent) == 0
    assert "|  | sft/responses.jsonl | sft |" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["none.jsonl"], "none.jsonl does not exist; seen from"),
        (["FILE", "--names", "a", "b"], "--names gives 2 name(s) for 1 file(s)"),
        (["FILE", "FILE", "--names", "a", "a"], "are not all different"),
        (["FILE", "--perplexity", "FILE", "FILE"], "--perplexity gives 2 file(s) for 1 of responses"),
        (["FILE", "--perplexity", "FILE"], "FILE:1: not a line of perplexities; write the file anew"),
        (["FILE", "--perplexity", "none"], "none does not exist; seen from"),
        (["FILE", "--correct-from", "nan"], "--correct-from must be a positive number, got nan"),
        (["FILE", "--correct-from=-1"], "--correct-from must be a positive number, got -1"),
        ([], "needed: RESPONSES"),
    ],
    ids=range(9),
)
def test_arguments_of_traces_that_cannot_work(
    words: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "a.jsonl"
    file.write_text('{"response": "x"}\n')
    assert traces(*(str(file) if word == "FILE" else word for word in words)) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert message.replace("FILE", str(file)) in said
