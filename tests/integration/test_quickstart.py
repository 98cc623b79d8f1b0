"""The quickstart on a scale of seconds: same stages, same files, fewer rows and steps."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from PIL import Image

from helpers.commands import lit
from lit_vlaa import quickstart
from lit_vlaa.types import KINDS

TEST_ROWS = 45
COUNTS = ("--sft-count=320", "--grpo-count=64", f"--test-count={TEST_ROWS}", "--seed=0")
SMALLER: dict[str, Any] = {
    "sft": {"trainer": {"max_steps": 10, "val_check_interval": 5}, "data": {"batch_size": 32, "eval_batch_size": 45}},
    "grpo": {
        "trainer": {"max_steps": 2, "val_check_interval": 2},
        "model": {"train_batch_size": 16, "reward": {"math_workers": 1}},
        "data": {"batch_size": 16, "eval_batch_size": 45},
    },
}


@pytest.fixture(scope="module")
def output(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, Path]]:
    """Folders of one quickstart: what it trained, and the data it made."""
    root = tmp_path_factory.mktemp("quickstart")
    (root / "configs").mkdir()
    for stage, changes in SMALLER.items():
        config = yaml.safe_load((quickstart.CONFIGS / f"{stage}.yaml").read_text())
        config["trainer"] |= {"enable_progress_bar": False, **changes["trainer"]}
        for part in ("model", "data"):
            config[part]["init_args"] |= changes.get(part, {})
        (root / "configs" / f"{stage}.yaml").write_text(yaml.safe_dump(config))
    shutil.copy(quickstart.CONFIGS / "eval.yaml", root / "configs")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(quickstart, "CONFIGS", root / "configs")
        patch.setattr(quickstart, "_COUNTS", COUNTS)
        yield root / "runs", root / "data"


@pytest.fixture(scope="module")
def printed(output: tuple[Path, Path]) -> str:
    """What the command says."""
    runs, data = output
    lines: list[str] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(quickstart, "_say", lines.append)
        assert lit("quickstart", f"--output-dir={runs}", f"--data-dir={data}", "--seed=7") == 0
    return "\n".join(lines)


@pytest.fixture
def summary(printed: str, output: tuple[Path, Path]) -> dict[str, Any]:
    values: dict[str, Any] = json.loads((output[0] / "summary.json").read_text())
    return values


def test_summary_tells_reward_error_rows_and_time(summary: dict[str, Any]) -> None:
    assert {"sft", "grpo", "seconds"} <= summary.keys()
    for arm in ("sft", "grpo"):
        assert {"reward", "stderr", "n"} <= summary[arm].keys()
        assert 0 <= summary[arm]["reward"] <= 1
        assert 0 <= summary[arm]["stderr"] < 0.5
        assert summary[arm]["n"] == TEST_ROWS
        assert set(summary[arm]["by_kind"]) == set(KINDS)
    assert summary["gain"] == pytest.approx(summary["grpo"]["reward"] - summary["sft"]["reward"])
    assert sum(summary["stages_seconds"].values()) <= summary["seconds"] + 1


def test_picture_is_a_png_of_some_size(printed: str, output: tuple[Path, Path]) -> None:
    with Image.open(output[0] / "curves.png") as picture:
        assert picture.format == "PNG"
        assert picture.width >= 1000
        assert picture.height >= 300
        # More than a blank canvas.
        assert len(picture.convert("RGB").getcolors(1 << 24) or []) > 50


def test_table_and_pointers_are_printed(printed: str, summary: dict[str, Any], output: tuple[Path, Path]) -> None:
    (total,) = re.findall(r"^all +(\d+) +([\d.]+) +([\d.]+) +([+-][\d.]+)$", printed, flags=re.MULTILINE)
    assert int(total[0]) == TEST_ROWS
    assert float(total[1]) == pytest.approx(summary["sft"]["reward"], abs=6e-4)
    assert float(total[2]) == pytest.approx(summary["grpo"]["reward"], abs=6e-4)
    assert f"tensorboard --logdir {output[0]}" in printed
    assert str(output[0] / "summary.json") in printed
    assert str(output[0] / "curves.png") in printed


def test_stages_are_commands_that_can_be_repeated(printed: str, tmp_path: Path) -> None:
    stages = re.findall(r"^\[\d/\d\] lit-vlaa (.*)$", printed, flags=re.MULTILINE)
    assert [line.split()[0] for line in stages] == ["data", "fit", "fit", "test", "test", "eval"]
    assert all("--seed_everything=7" in line for line in stages[1:-1])
    repeated = [word for word in stages[-2].split() if "default_root_dir" not in word]
    assert lit(*repeated, f"--trainer.default_root_dir={tmp_path}") == 0
    assert quickstart.newest_log(tmp_path).is_file()


def test_both_arms_are_compared_on_the_generated_benchmark(printed: str, output: tuple[Path, Path]) -> None:
    runs, data = output
    report = json.loads((runs / "compare" / "comparison.json").read_text())
    asked = sum(1 for _ in (data / "benchmark.jsonl").open())
    assert 0 < asked < TEST_ROWS  # questions for a box are left out
    for arm in ("sft", "grpo"):
        lines = (runs / f"eval_{arm}" / "benchmarks" / "drawn_scenes" / "test.jsonl").read_text().splitlines()
        assert len(lines) == asked
    arms = [runs / f"eval_{arm}" / "benchmarks" for arm in ("sft", "grpo")]
    assert (report["base"], report["new"]) == tuple(map(str, arms))
    before, after = (
        sum(json.loads(line)["hit"] is True for line in (arm / "drawn_scenes" / "test.jsonl").open()) for arm in arms
    )
    everything = next(part for part in report["comparisons"] if part["part"] == "all rows")
    assert everything["benchmark"] == "drawn_scenes"
    # The gain of the later stage: above 0 where it got more right.
    assert everything["difference"] == pytest.approx(100 * (after - before) / asked)
    assert (everything["base"], everything["new"]) == pytest.approx((100 * before / asked, 100 * after / asked))
    assert (runs / "compare" / "comparison.png").read_bytes().startswith(b"\x89PNG")


def test_a_stage_that_fails_is_named(
    output: tuple[Path, Path], printed: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "images").write_text("in the way")
    assert lit("quickstart", f"--output-dir={tmp_path}", f"--data-dir={tmp_path / 'data'}") == 2
    assert "stopped in its stage data" in capsys.readouterr().err
    assert lit("quickstart", f"--output-dir={tmp_path}", "--seed=-3") == 2
    captured = capsys.readouterr()
    assert "--seed must be from 0 to 4294967295, got -3" in captured.err
    assert not captured.out  # before any stage


def test_without_the_repository_it_says_so(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(quickstart, "CONFIGS", tmp_path / "none")
    assert lit("quickstart", f"--output-dir={tmp_path}") == 2
    assert "run the quickstart from a clone" in capsys.readouterr().err
