"""The page on metrics names what runs log, all of it and nothing else."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from helpers.commands import command, lit, logged, version
from helpers.launch import ROOT
from lit_vlaa.types import KINDS

PAGE = ROOT / "docs" / "explanation" / "metrics.md"
CALLBACK = "--trainer.callbacks"
BENCHMARK = f"{CALLBACK}.custom"

# Names that stand for several: what they are in these runs, at the least.
PLACES = {
    "kind": "|".join(KINDS),
    "status": "unparsable_gt|verifier_error|timeout",
    "phase": r"\w+",
    "cue": r"[\w -]+",
    "benchmark": "drawn_scenes",
    "number": r"[\w/ -]+",
    "name": r"\w+",
}
LIGHTNINGS = {"epoch", "step"}


def documented() -> list[str]:
    """Names in the first cells of the page's tables."""
    cells = re.findall(r"^\| (`[^|]+`) \|", PAGE.read_text(encoding="utf-8"), flags=re.MULTILINE)
    names = [name for cell in cells for name in re.findall(r"`([^`]+)`", cell)]
    assert all(re.fullmatch(r"[\w/<>]+", name) for name in names)
    return names


def pattern(name: str) -> str:
    parts = re.split(r"<(\w+)>", name)
    return "".join(f"(?:{PLACES[part]})" if place % 2 else re.escape(part) for place, part in enumerate(parts))


@pytest.fixture(scope="module")
def names(dataset: Path, sft_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> set[str]:
    """What a run of each stage logs with every callback, and a test of each."""
    root = tmp_path_factory.mktemp("metrics")
    watched = [
        f"{CALLBACK}+=callbacks.Throughput",
        f"{CALLBACK}.peak_flops=1e12",
        f"{CALLBACK}+=callbacks.TrainingGuards",
    ]
    short = {"trainer__max_steps": 2, "trainer__val_check_interval": 1, "trainer__check_val_every_n_epoch": "null"}
    sft = command("fit", "sft", dataset, root / "sft", **short)
    options = {
        **short,
        "model__init_from": sft_checkpoint,
        "model__advantage__resample": 1,
        "model__sampling__max_new_tokens": 24,
    }
    grpo = command("fit", "grpo", dataset, root / "grpo", **options)
    curves = [f"{CALLBACK}+=callbacks.TraceDiagnostics", f"{CALLBACK}.correct_from=0.01"]
    questions = f"path: {dataset / 'benchmark.jsonl'}, name: drawn_scenes"
    benchmark = f"{{class_path: callbacks.benchmarks.JSONLBenchmark, init_args: {{{questions}}}}}"
    evaluation = [
        f"{CALLBACK}+=callbacks.BenchmarkEvaluation",
        f"{BENCHMARK}=[{benchmark}]",
        f"{CALLBACK}.max_new_tokens=4",
        f"{CALLBACK}.at_end=true",
        f"{CALLBACK}.dirpath={root / 'benchmarks'}",
    ]
    assert lit(*sft, *watched) == 0
    assert lit(*grpo, *watched, *curves, *evaluation) == 0
    assert lit(*command("test", "grpo", dataset, root / "test", model__sampling__max_new_tokens=8)) == 0
    rows = [row for run in ("sft", "grpo", "test") for row in logged(root / run)]
    times = {
        column
        for run in ("sft", "grpo")
        for column in (version(root / run) / "metrics.csv").read_text().partition("\n")[0].split(",")
    }
    return {name for row in rows for name in row} | times


def test_whatever_is_logged_is_on_the_page(names: set[str]) -> None:
    known = [re.compile(pattern(name)) for name in documented()]
    assert len(names) > 60
    unknown = {
        name
        for name in names - LIGHTNINGS
        if not any(shape.fullmatch(re.sub(r"^test/", "val/", name)) for shape in known)
    }
    assert not unknown


def test_whatever_is_on_the_page_is_logged(names: set[str]) -> None:
    # Words of doubt, right answers and failures come as they come.
    rare = {"val/failed/<kind>", "trace/length_correct", "trace/aha_correct", "trace/length_wrong", "trace/aha_wrong"}
    missing = [
        name
        for name in documented()
        if name not in rare and not any(re.fullmatch(pattern(name), logged_name) for logged_name in names)
    ]
    assert not missing
