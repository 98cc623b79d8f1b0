"""Tables, pictures and exponents say what was measured."""

from __future__ import annotations

import json
import logging
import os
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from benchmarks import __main__ as harness
from benchmarks import scaling, theirs
from benchmarks.cases import Case
from benchmarks.gates import Gate
from benchmarks.models import Setup
from benchmarks.peak import PeakBytes, peak_of
from benchmarks.report import Report, Row, table, write
from benchmarks.scaling import Point, exponent

STEP = {"prepare": 0.5, "rollout": 2.0, "reward": 0.0, "update": 1.5, "step": 4.0, "cpu": 6.0}


@pytest.fixture(autouse=True)
def as_before() -> Iterator[None]:
    """The harness silences libraries for the whole process, which other tests share."""
    loggers = [logging.getLogger(name) for name in ("lightning.pytorch", "transformers", "trl", "datasets")]
    levels, environment = [logger.level for logger in loggers], dict(os.environ)
    with warnings.catch_warnings():
        yield
    os.environ.clear()
    os.environ.update(environment)
    for logger, level in zip(loggers, levels, strict=True):
        logger.setLevel(level)


def report() -> Report:
    case = Case(Setup(), "grpo")
    slow = {name: 3 * seconds for name, seconds in STEP.items()}
    found = Report("python -m benchmarks", "a machine", 5, [Gate("greedy tokens", True, "all")])
    found.add(case, "best", {"ours": {}, "trl": {"micro_batch": 8}}, {"ours": [STEP] * 5, "trl": [slow] * 5})
    found.add_memory(case, "best", {"ours": 2**20, "trl": 3 * 2**20})
    return found


def test_ratios_are_larger_where_ours_is_better() -> None:
    assert Row("c", "w", "q", "s", {"ours": [1.0, 2.0, 9.0], "trl": [4.0]}).ratio == 2.0
    assert Row("c", "w", "q", "tokens/s", {"ours": [6.0], "trl": [4.0]}).ratio == 1.5


def test_table_has_rates_of_valid_tokens_and_phases() -> None:
    tokens = sum(Case(Setup(), "grpo").planned)
    text = table(report())

    assert f"{tokens / 2:.4g}" in next(line for line in text.splitlines() if "rollout | tokens/s" in line)
    assert "| whole step | s | 4 (4 to 4) | 12 (12 to 12) | **3.00x** |" in text
    assert "| processor time | s | 6 (6 to 6) | 18 (18 to 18) | **3.00x** |" in text
    assert "| peak memory | MiB | 1 | 3 | **3.00x** |" in text
    assert "| reward |" not in text
    assert "Gate passed, greedy tokens: all." in text


def test_results_are_written_in_three_forms(tmp_path: Path) -> None:
    write(report(), tmp_path / "tiny-cpu")

    values = json.loads((tmp_path / "tiny-cpu.json").read_text(encoding="utf-8"))
    rollout = next(row for row in values["rows"] if (row["quantity"], row["unit"]) == ("rollout", "s"))
    assert rollout["values"] == {"ours": [2.0] * 5, "trl": [6.0] * 5}
    assert "tiny-cpu.png" in (tmp_path / "tiny-cpu.md").read_text(encoding="utf-8")
    assert (tmp_path / "tiny-cpu.png").stat().st_size > 1000


def test_exponent_is_of_the_upper_half() -> None:
    sizes = [1, 2, 4, 8]

    assert exponent(sizes, [7.0, 7.0, 16.0, 64.0]) == pytest.approx(2.0)
    assert exponent(sizes, [2.0, 4.0, 8.0, 16.0]) == pytest.approx(1.0)
    # Of five points the last three: costs 1, 2, 4 for sizes 1, 4, 16.
    assert exponent([1, 1, 1, 4, 16], [9.0, 9.0, 1.0, 2.0, 4.0]) == pytest.approx(0.5)


def test_scaling_table_holds_both_exponents() -> None:
    points = [Point(size, [size**2 / 8], size * 2**20) for size in (1, 2, 4)]
    line = scaling.table({"prompts": points}, scaling.BASE["tiny"]).splitlines()[-1]

    assert line == "| prompts (else 4) | 1, 2, 4 | 0.125, 0.5, 2 | 2.00 | 1, 2, 4 | 1.00 |"


def test_scaling_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scaling, "AXES", {"length": (2, 8), "images": (1, 2)})
    threads = torch.get_num_threads()
    scaling.main(["--threads", "1", "--axes", "length", "images", "--output", str(tmp_path)])
    torch.set_num_threads(threads)

    values = json.loads((tmp_path / "scaling-tiny-cpu.json").read_text(encoding="utf-8"))["values"]
    assert [point["size"] for point in values["length"]] == [2, 8]
    assert values["images"][1]["peak"] > values["images"][0]["peak"] > 0
    assert (tmp_path / "scaling-tiny-cpu.png").stat().st_size > 1000


def test_peak_counts_what_is_alive_together() -> None:
    def work() -> None:
        first = torch.zeros(1000)  # 4,000 bytes
        second = first + 1
        del first
        second.mul_(2)
        torch.zeros(500)

    assert peak_of(work, "cpu") == 8000
    with PeakBytes() as counter:
        torch.zeros(10).add_(1)
    assert (counter.now, counter.peak) == (0, 40)


@pytest.mark.parametrize("program", [harness.main, scaling.main])
def test_too_few_repeats_are_refused(program: object, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        program(["--repeats", "2"])  # type: ignore[operator]

    assert "--repeats must be at least" in capsys.readouterr().err


def test_missing_peer_is_named(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(theirs, "missing", lambda: "torchvision is not installed here")
    with pytest.raises(SystemExit):
        harness.main([])

    assert "torchvision is not installed here" in capsys.readouterr().err


def test_failed_gate_stops_before_any_time_is_taken(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setattr(theirs, "missing", lambda: None)
    monkeypatch.setattr(harness, "all_gates", lambda _: iter([Gate("greedy tokens", False, "3 of 9")]))
    monkeypatch.setattr(harness, "measure", lambda *_: pytest.fail("was timed"))

    assert harness.main(["--output", str(tmp_path), "--threads", str(torch.get_num_threads())]) == 1
    assert "FAILED: greedy tokens: 3 of 9" in capsys.readouterr().out
    assert not list(tmp_path.iterdir())
