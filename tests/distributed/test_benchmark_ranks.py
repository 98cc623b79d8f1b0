"""Benchmarks give the same numbers on one device and on several, and interrupted ones go on with any number of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from helpers.commands import lit, lit_in_ranks
from helpers.evaluated import answered, command, toy, verdicts
from helpers.launch import run_ranks

STRATEGIES = ("ddp", "fsdp2")
BROKEN = [toy(rows=11, broken=[4])]


def summary(root: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((root / "benchmarks" / "summary.json").read_text())["test"]
    return content


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Root folders of a run on one device and of runs on two ranks, the last of which go on with another's answers."""
    folders = {name: tmp_path_factory.mktemp(name) for name in ("auto", *STRATEGIES, "resumed")}
    assert lit(*command("test", folders["auto"], BROKEN)) == 0
    # The first third of a run on three ranks, one of which died amid a line.
    (settings,) = {Path(name).parent.name for name in answered(folders["auto"] / "benchmarks")}
    kept = folders["resumed"] / "benchmarks" / "toy" / settings
    kept.mkdir(parents=True)
    lines = (folders["auto"] / "benchmarks" / "toy" / settings / "rank0.jsonl").read_text().splitlines(keepends=True)
    (kept / "rank0.jsonl").write_text(lines[0] + lines[3])
    (kept / "rank2.jsonl").write_text(lines[2] + lines[5][:30])
    options = {"trainer__devices": 2}
    lit_in_ranks(
        *(command("test", folders[name], BROKEN, trainer__strategy=name, **options) for name in STRATEGIES),
        command("test", folders["resumed"], BROKEN, trainer__strategy="ddp", **options),
    )
    return folders


@pytest.mark.parametrize("name", [*STRATEGIES, "resumed"])
def test_numbers_and_verdicts_are_those_of_one_device(name: str, folders: dict[str, Path]) -> None:
    alone, other = folders["auto"], folders[name]
    assert summary(other) == summary(alone)
    assert verdicts(other / "benchmarks") == verdicts(alone / "benchmarks")
    assert summary(alone)["benchmarks"]["toy"]["numbers"]["failed"] == 1
    # Of eleven rows the broken one is left out with the other of its pair.
    assert [row["id"] for row in verdicts(alone / "benchmarks")] == [f"row{n}" for n in range(11) if n not in (4, 5)]


@pytest.mark.parametrize("name", STRATEGIES)
def test_rows_are_shared_out(name: str, folders: dict[str, Path]) -> None:
    (one, two) = answered(folders[name] / "benchmarks").values()
    assert one == [f"row{n}" for n in (0, 2, 6, 8, 10)]
    assert two == [f"row{n}" for n in (1, 3, 5, 7, 9)]


def test_weights_are_known_again_under_every_strategy(folders: dict[str, Path]) -> None:
    names = {Path(name).parent.name for root in folders.values() for name in answered(root / "benchmarks")}
    assert len(names) == 1


def test_no_answer_is_given_twice(folders: dict[str, Path]) -> None:
    lines = [name for names in answered(folders["resumed"] / "benchmarks").values() for name in names]
    assert sorted(lines) == sorted(f"row{n}" for n in range(11) if n != 4)


TRAININGS = [["sft", "ddp"], ["sft", "fsdp2"], ["grpo", "fsdp2"]]


@pytest.fixture(scope="module")
def trainings(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Any]]:
    """Trainings on two ranks, each without evaluations and with them."""
    folder = tmp_path_factory.mktemp("trainings")
    results = run_ranks("helpers.evaluated:trained_all", folder=str(folder), runs=TRAININGS, timeout=240)
    return folder, results


@pytest.mark.parametrize("place", range(len(TRAININGS)), ids=lambda place: "-".join(TRAININGS[place]))
def test_training_on_ranks_does_not_notice(place: int, trainings: tuple[Path, list[Any]]) -> None:
    folder, results = trainings
    for rank in results:
        alone, watched = rank[place]
        assert watched == alone
    kind, strategy = TRAININGS[place]
    written = json.loads((folder / f"{kind}-{strategy}" / "summary.json").read_text())
    last = {"sft": ["step_2"], "grpo": ["step_2", "step_4", "step_6"]}[kind]
    assert list(written) == ["step_0", *last, "final"]
    assert written["final"]["benchmarks"]["toy"]["numbers"]["n"] == 7
    assert written["final"]["benchmarks"]["other"]["numbers"]["n"] == 8
    assert len(list((folder / f"{kind}-{strategy}" / "best").iterdir())) == 1
