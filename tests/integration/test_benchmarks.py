"""`lit-vlaa test` on benchmark files in their own schemas, and what goes wrong with them."""

from __future__ import annotations

import json
import signal
from pathlib import Path
from typing import Any

import pytest

from helpers import evaluated
from helpers.benchmark_files import benchmark_rows, write_benchmark, write_tsv
from helpers.commands import lit, lit_in_ranks, started
from helpers.evaluated import answered, toy, verdicts

SIX = ("mathvista", "mathvision", "mathverse", "dynamath", "wemath", "logicvista")
ROWS = {"mathvista": 6, "mathvision": 6, "mathverse": 6, "dynamath": 18, "wemath": 20, "logicvista": 6}
STRATEGIES = ("ddp", "fsdp2")


def command(root: Path, data: Path, names: tuple[str, ...] = SIX, **options: Any) -> list[str]:
    named = {"eval__benchmarks": json.dumps(list(names)), "eval__data_dir": data, "eval__custom": "null"}
    return evaluated.command("test", root, [], **{**named, **options})


def summary(root: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((root / "benchmarks" / "summary.json").read_text())["test"]
    return content


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file of each benchmark; the last row of one of them has a broken image."""
    folder = tmp_path_factory.mktemp("LMUData")
    for name in SIX:
        write_benchmark(folder, name, broken=name == "wemath")
    return folder


@pytest.fixture(scope="module")
def roots(data: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Root folders of runs under each strategy."""
    roots = {name: tmp_path_factory.mktemp(name) for name in ("auto", *STRATEGIES)}
    assert lit(*command(roots["auto"], data)) == 0
    lit_in_ranks(
        *(command(roots[name], data, trainer__strategy=name, trainer__devices=2) for name in STRATEGIES), timeout=300
    )
    return roots


@pytest.mark.parametrize("name", SIX)
def test_every_benchmark_runs_in_its_own_schema(name: str, roots: dict[str, Path]) -> None:
    found = summary(roots["auto"])["benchmarks"][name]
    broken = name == "wemath"
    # The sixth problem of WeMath has three steps, so that four rows go with the broken one.
    assert found["numbers"]["n"] == ROWS[name] - 4 * broken
    assert found["numbers"]["failed"] == int(broken)
    assert 0 <= found["headline"] <= 100
    assert found["comparable"] is (name not in {"mathverse", "logicvista"})
    rows = verdicts(roots["auto"] / "benchmarks", benchmark=name)
    assert [row["id"] for row in rows] == [str(number) for number in range(ROWS[name] - 4 * broken)]


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_two_ranks_find_what_one_device_finds(strategy: str, roots: dict[str, Path]) -> None:
    assert summary(roots[strategy]) == summary(roots["auto"])
    for name in SIX:
        folders = [roots[key] / "benchmarks" for key in (strategy, "auto")]
        assert verdicts(folders[0], benchmark=name) == verdicts(folders[1], benchmark=name)


def test_numbers_are_logged(roots: dict[str, Path]) -> None:
    header = (roots["auto"] / "version_0" / "metrics.csv").read_text().splitlines()[0].split(",")
    assert {"eval/average", *(f"eval/{name}" for name in SIX)} <= set(header)


@pytest.mark.parametrize("ranks", [1, 2])
def test_a_killed_run_goes_on_and_repeats_no_answer(ranks: int, tmp_path: Path) -> None:
    straight, killed = tmp_path / "straight", tmp_path / "killed"
    marker = tmp_path / "marker"
    fatal = {"class_path": "helpers.evaluated.FatalBenchmark", "init_args": {"at": 7, "marker": str(marker)}}
    marker.touch()
    assert lit(*evaluated.command("test", straight, [fatal])) == 0
    marker.unlink()
    process = started(evaluated.command("test", killed, [fatal]), tmp_path / "log", cwd=tmp_path)
    assert process.wait() == -signal.SIGKILL, (tmp_path / "log").read_text()[-2000:]
    # Two rows a batch; the fourth batch is prepared while the third is answered.
    (before,) = answered(killed / "benchmarks").values()
    assert before[:4] == ["row0", "row1", "row2", "row3"]
    assert len(before) < 7
    words = evaluated.command("test", killed, [fatal], trainer__devices=ranks)
    if ranks == 1:
        assert lit(*words) == 0
    else:
        lit_in_ranks([*words, "--trainer.strategy=ddp"], ranks=ranks)
    assert summary(killed) == summary(straight)
    assert verdicts(killed / "benchmarks") == verdicts(straight / "benchmarks")
    after = answered(killed / "benchmarks")
    assert sorted(name for names in after.values() for name in names) == sorted(f"row{n}" for n in range(10))
    assert next(names for name, names in after.items() if name.endswith("rank0"))[: len(before)] == before


def test_a_missing_file_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert lit(*command(tmp_path, tmp_path / "nowhere", ("mathvista",))) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("lit-vlaa: error: MathVista: ")
    assert str(tmp_path / "nowhere") in error


def test_a_file_of_another_version_is_told(data: Path, tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match=r"MathVista.*\.tsv: MD5 is [0-9a-f]{32}, expected f199b98e"):
        assert lit(*command(tmp_path, data, ("mathvista",))) == 0


def test_a_malformed_row_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = benchmark_rows("dynamath")
    for row in rows:
        del row["answer_type"]
    path = write_benchmark(tmp_path, "dynamath")
    write_tsv(path, rows)
    assert lit(*command(tmp_path / "out", tmp_path, ("dynamath",))) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert "answer_type" in error
    assert f"{path.name}:1" in error


def test_a_dead_judge_is_one_line(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    judge: dict[str, Any] = {
        "eval__judge": "callbacks.benchmarks.judge.EndpointJudge",
        "eval__judge.base_url": "http://127.0.0.1:9/v1",
        "eval__judge.model": "none",
        "eval__judge.retries": 0,
    }
    assert lit(*command(tmp_path, data, ("logicvista",), **judge)) == 2
    assert "127.0.0.1:9" in capsys.readouterr().err.splitlines()[-1]
    assert not (tmp_path / "benchmarks").exists()


OWN = '''
from callbacks.benchmarks import Benchmark, EvalRecord, Score, mean_and_error


class Lengths(Benchmark):
    """Whether answers have an even number of characters."""

    name, title = "lengths", "Lengths"

    def __init__(self, *, rows: int, profile: str = "fixed") -> None:
        super().__init__(profile=profile)
        self.rows = rows

    def load(self, data_dir):
        return [self.record_from_row({"index": n}) for n in range(self.rows)]

    def record_from_row(self, row):
        return EvalRecord(id=str(row["index"]), images=(), prompt=f"Say {row['index']}.", question="", kind="free",
                          choices=(), answer="")

    def score(self, record, prediction, judge):
        return Score(len(prediction) % 2 == 0, prediction, "rule")

    def aggregate(self, records, scores):
        mean, error = mean_and_error([bool(score.hit) for score in scores])
        return {"score": mean, "stderr": error, "undecided_rate": 0.0, "n": float(len(records))}
'''


def test_a_benchmark_of_ones_own_is_one_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "my_lengths.py").write_text(OWN)
    monkeypatch.syspath_prepend(str(tmp_path))
    own = {"class_path": "my_lengths.Lengths", "init_args": {"rows": 3}}
    assert lit(*evaluated.command("test", tmp_path / "out", [own, toy(rows=2)])) == 0
    rows = verdicts(tmp_path / "out" / "benchmarks", benchmark="lengths")
    expected = 100 * sum(len(row["prediction"]) % 2 == 0 for row in rows) / 3
    assert summary(tmp_path / "out")["benchmarks"]["lengths"]["headline"] == expected


def test_questions_in_a_file(tmp_path: Path) -> None:
    lines = [{"question": "1 + 1?", "answer": 2}, {"question": "Which?", "answer": "A", "choices": ["x", "y"]}]
    (tmp_path / "mine.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    own = {"class_path": "callbacks.benchmarks.JSONLBenchmark", "init_args": {"path": str(tmp_path / "mine.jsonl")}}
    assert lit(*evaluated.command("test", tmp_path / "out", [own])) == 0
    assert summary(tmp_path / "out")["benchmarks"]["mine"]["numbers"]["n"] == 2
