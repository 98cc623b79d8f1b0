"""What `lit-vlaa doctor` says of a run's rows, devices and disk."""

from __future__ import annotations

import json
import re
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from callbacks.evaluation.preflight import run as look_at_benchmarks
from datamodules.synthetic import SyntheticPaths, write_dataset
from helpers.benchmark_files import benchmark_rows, write_benchmark
from lit_vlaa.backbone import BackboneConfig
from lit_vlaa.backbone.config import LoRAConfig
from lit_vlaa.cli import main
from lit_vlaa.memory import Tensor
from lit_vlaa.placement import batch_problems, checkpoint_bytes, disk_lines, free_bytes, kept_checkpoints
from lit_vlaa.preflight import look_at_callbacks, look_at_rows
from unit.test_memory import run

ROOT = Path(__file__).resolve().parents[2]
CONFIGS = ROOT / "configs" / "quickstart"


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> SyntheticPaths:
    return write_dataset(
        tmp_path_factory.mktemp("data") / "set", sft_count=40, grpo_count=40, test_count=9, progress=False
    )


@pytest.fixture(autouse=True)
def own_arguments(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["lit-vlaa"])


def doctor(split: Any, data: SyntheticPaths, *words: str) -> int:
    files = [f"--data.data_file={data.data_file(split)}", f"--data.val_file={data.data_file(split, 'val')}"]
    files += [f"--data.image_root={data.image_root}", "--data.test_file=null"]
    return main(["doctor", f"--config={CONFIGS / f'{split}.yaml'}", *files, *words])


def test_rows_are_looked_at(data: SyntheticPaths, capsys: pytest.CaptureFixture[str]) -> None:
    assert doctor("grpo", data, "--rows", "20") == 0
    printed = capsys.readouterr().out
    assert re.search(r"--data\.data_file \S+: 20 of 40 rows looked at\n", printed)
    assert re.search(r"--data\.val_file \S+: 9 rows looked at\n", printed)
    assert "without completions of up to 48: median" in printed
    assert re.search(r"tiny: 0\.\d\d M parameters, 0\.\d{3} M of them train; ", printed)
    assert re.search(r"truths scored against themselves, unparsable of all: .*digit 0 of \d", printed)
    assert re.search(r"checkpoints below runs/quickstart/grpo: [\d.]+ GiB each, 3 at one time", printed)


def test_a_row_that_stops_a_run_is_found(
    data: SyntheticPaths, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = data.data_file("sft").read_text(encoding="utf-8").splitlines()
    broken = json.loads(lines[0])
    lines[0] = json.dumps({**broken, "image": f"{broken['image']}.gone"})
    file = tmp_path / "rows.json"
    file.write_text("\n".join(lines), encoding="utf-8")
    own = f"--data.data_file={file}"
    assert doctor("sft", data, own) == 1
    printed = capsys.readouterr().out
    assert "  error: images that are not there: 1 (row 1) -> see --data.image_root" in printed
    assert doctor("sft", data, own, "--data.on_bad_record=skip") == 0
    assert "  warning: images that are not there: 1 (row 1)" in capsys.readouterr().out
    assert doctor("sft", data, own, "--rows=0") == 0
    assert "rows were not looked at: --rows 0" in capsys.readouterr().out


def test_too_few_rows_for_a_batch(data: SyntheticPaths, capsys: pytest.CaptureFixture[str]) -> None:
    assert doctor("sft", data, "--data.batch_size=41", "--rows=1") == 1
    assert "error: 40 row(s) for training make no batch -> --data.batch_size 40 or less" in capsys.readouterr().out
    assert doctor("sft", data, "--data.batch_size=40", "--rows=1") == 0
    assert doctor("sft", data, "--data.val_count=40", "--data.val_file=null", "--rows=1") == 1
    assert "error: --data.val_count 40 leaves none of 40 row(s) for training -> lower it" in capsys.readouterr().out


def test_files_that_are_not_there_yet_are_named(data: SyntheticPaths, capsys: pytest.CaptureFixture[str]) -> None:
    missing = ["--data.data_file=/nowhere/a.json", "--data.val_file=/nowhere/b.json"]
    assert doctor("sft", data, *missing) == 0
    printed = capsys.readouterr().out
    assert "--data.data_file /nowhere/a.json does not exist yet" in printed
    assert doctor("sft", data, "--rows=-1") == 2
    assert "--rows must not be negative, got -1" in capsys.readouterr().err


def test_devices_that_cannot_share_a_batch(data: SyntheticPaths, capsys: pytest.CaptureFixture[str]) -> None:
    assert doctor("sft", data, "--trainer.devices=3", "--rows=0") == 1
    printed = capsys.readouterr().out
    assert (
        "as it stands, fit would refuse: --data.batch_size 32 must be a multiple of the 3 device(s); use 30" in printed
    )
    assert "strategy ddp on 3 device(s) of 1 node(s)" in printed


class Anything:
    """A data module that looks at its rows by itself."""

    preflight = "unit.test_doctor_rows:told"


def told(config: Any, *, rows: int) -> tuple[list[str], bool]:
    return [f"{rows} of {config['data']['init_args']['file']}"], True


def test_a_data_module_is_known_by_its_class_path_alone() -> None:
    own = {"data": {"class_path": "unit.test_doctor_rows.Anything", "init_args": {"file": "mine"}}}
    assert look_at_rows(own, 7) == (["7 of mine"], True)
    none = {"data": {"class_path": "pathlib.Path", "init_args": {}}}
    (line,), stops = look_at_rows(none, 7)
    assert not stops
    assert "pathlib.Path names no function" in line


def benchmark(**options: Any) -> dict[str, Any]:
    return {"class_path": "callbacks.BenchmarkEvaluation", "init_args": options}


def own_benchmark(path: str) -> dict[str, Any]:
    return {"class_path": "callbacks.benchmarks.JSONLBenchmark", "init_args": {"path": path}}


def test_files_of_benchmarks_are_looked_at(
    data: SyntheticPaths, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_benchmark(tmp_path, "wemath")
    (tmp_path / "good.jsonl").write_text('{"question": "How many?", "answer": 3}\n')
    (tmp_path / "bad.jsonl").write_text('{"question": "How many?", "answer": 3}\n{"question": "Which?"}\n')
    custom = [own_benchmark(f"{name}.jsonl") for name in ("good", "bad", "gone")]
    callback = benchmark(benchmarks=["wemath", "mathvista"], custom=custom, data_dir=str(tmp_path))
    config = tmp_path / "own.yaml"
    config.write_text(json.dumps({"trainer": {"callbacks": [callback]}}))
    assert doctor("sft", data, f"--config={config}", "--rows=1") == 1
    printed = capsys.readouterr().out
    hub = "the Hub data set AI4Math/MathVista would be loaded"
    for line in (
        f"benchmark WeMath: {len(benchmark_rows('wemath', 6))} rows, from {tmp_path}/WeMath.tsv:1 on",
        f"  warning: {tmp_path}/WeMath.tsv: MD5 is ",  # of the released file another
        f"benchmark MathVista: there is no file {tmp_path}/MathVista_MINI.tsv; {hub}",
        f"benchmark good: 1 rows, from {tmp_path}/good.jsonl:1 on",
        f"benchmark bad: error: {tmp_path}/bad.jsonl:2: column 'answer' is missing",
        "benchmark gone: error: benchmark file gone.jsonl does not exist; seen from ",
    ):
        assert f"\n{line}" in printed
    assert doctor("sft", data, f"--config={config}", "--rows=0") == 0
    assert "benchmark" not in capsys.readouterr().out


def test_what_an_evaluation_refuses_or_leaves_out(tmp_path: Path) -> None:
    (tmp_path / "x.png").write_bytes(b"no picture")
    (tmp_path / "q.jsonl").write_text('{"question": "How many?", "answer": 3, "image": "x.png"}\n')
    lines, stops = look_at_benchmarks(benchmark(custom=[own_benchmark(str(tmp_path / "q.jsonl"))]))
    assert not stops
    assert lines[0] == f"benchmark q: 1 rows, from {tmp_path}/q.jsonl:1 on"
    assert re.fullmatch(rf"  warning: {tmp_path}/q.jsonl:1: x.png: .*; an evaluation leaves such rows out", lines[1])
    lines, stops = look_at_benchmarks(benchmark(benchmarks=["mathvista"], published="nobody"))
    assert stops
    assert lines[0].startswith("error: BenchmarkEvaluation: published 'nobody' is none of Qwen2.5-VL-3B")
    lines, stops = look_at_benchmarks(benchmark(benchmarks=["mathvista"]))
    assert lines == ["benchmark MathVista: no data_dir is given; the Hub data set AI4Math/MathVista would be loaded"]
    assert not stops


class Looked:
    """A callback that looks at its files by itself."""

    preflight = "unit.test_doctor_rows:looked"


def looked(callback: Any) -> tuple[list[str], bool]:
    return [callback["init_args"]["file"]], True


def test_a_callback_is_known_by_its_class_path_alone() -> None:
    own = {"class_path": "unit.test_doctor_rows.Looked", "init_args": {"file": "mine"}}
    other = {"class_path": "pathlib.Path", "init_args": {}}
    assert look_at_callbacks({"trainer": {"callbacks": [other, own]}}, 1) == (["mine"], True)
    assert look_at_callbacks({"trainer": {"callbacks": own}}, 1) == (["mine"], True)
    for callbacks, rows in ((None, 1), ([own], 0)):
        assert look_at_callbacks({"trainer": {"callbacks": callbacks}}, rows) == ([], False)


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--memory_gb=0"], "--memory-gb must be positive, got 0"),
        (["--prompt-tokens=-1"], "--prompt-tokens must be at least 1, got -1"),
        (["--rows=-1"], "--rows must not be negative, got -1"),
        (["--memory-gb=much"], "--memory-gb: invalid float value: 'much'"),
        (["--rowz=1"], "unrecognized arguments: --rowz=1; did you mean --rows?"),
        (["--model.backbone.paht=tiny"], "--model.backbone.paht: there is no such option; did you mean"),
        (["--model.backbone.path=./nowhere"], "--model.backbone.path ./nowhere does not exist; seen from "),
    ],
)
def test_wrong_flags_come_before_any_report(
    words: list[str], expected: str, data: SyntheticPaths, capsys: pytest.CaptureFixture[str]
) -> None:
    assert doctor("sft", data, *words) == 2
    captured = capsys.readouterr()
    assert not captured.out
    assert captured.err.count("\n") == 1
    assert expected in captured.err


@pytest.mark.parametrize(
    ("batch", "train", "ranks", "problems"),
    [
        (32, None, 4, 0),
        (32, None, 5, 1),
        (512, 256, 8, 0),
        (512, 100, 4, 1),  # 100 divides not 512
        (24, 12, 8, 1),  # 8 divides not 12
        (30, 30, 4, 2),
    ],
)
def test_batches_and_ranks(batch: int, train: int | None, ranks: int, problems: int) -> None:
    model = {} if train is None else {"group_size": 4, "train_batch_size": train}
    config = {"data": {"init_args": {"batch_size": batch}}, "model": {"init_args": model}}
    assert len(list(batch_problems(config, ranks))) == problems


TENSORS = [
    Tensor("a", (10, 10), 4, trains=True, four_bits=False),
    Tensor("b", (5,), 4, trains=False, four_bits=False),
]


def test_the_size_of_a_checkpoint() -> None:
    described = run(BackboneConfig())
    # Weights of 105 numbers; AdamW keeps two numbers of each that trains, and a step of four bytes.
    assert checkpoint_bytes(described, TENSORS) == 420 + 2 * 400 + 4
    assert checkpoint_bytes(described, TENSORS, weights_only=True) == 420
    # Adapters are stored without their base.
    adapted = replace(described, backbone=BackboneConfig(lora=LoRAConfig(rank=8)))
    assert checkpoint_bytes(adapted, TENSORS, weights_only=True) == 400


def saver(**options: Any) -> dict[str, Any]:
    given = {"dirpath": None, "filename": None, "save_top_k": 1, "save_last": None, "save_weights_only": False}
    return {"class_path": "lightning.pytorch.callbacks.ModelCheckpoint", "init_args": {**given, **options}}


ONE = 1224
SAME = {"filename": "last", "enable_version_counter": False}


@pytest.mark.parametrize(
    ("callbacks", "files"),
    [
        (None, 2),  # Lightning's own, and the one being written
        ([saver(), saver()], 3),
        ([saver(**SAME), saver(**SAME)], 2),  # both write one file
        ([saver(save_top_k=3, save_last=True)], 5),
        ([saver(save_top_k=0)], 1),
        ([saver(), {"class_path": "callbacks.Preemption"}], 3),
    ],
    ids=["default", "two", "same", "several", "none", "preemption"],
)
def test_checkpoints_that_are_kept(callbacks: Any, files: int) -> None:
    trainer = {"callbacks": callbacks, "enable_checkpointing": None, "default_root_dir": "here"}
    (kept,) = kept_checkpoints(trainer, run(BackboneConfig()), TENSORS)
    assert (kept.folder, kept.files, kept.size, kept.needed) == (Path("here"), files, ONE, files * ONE)
    assert not kept.grows


def test_checkpoints_that_are_all_kept_or_lie_elsewhere(tmp_path: Path) -> None:
    elsewhere = saver(dirpath=str(tmp_path), save_top_k=-1, save_weights_only=True)
    trainer = {"callbacks": [saver(), elsewhere], "enable_checkpointing": True, "default_root_dir": None}
    here, there = kept_checkpoints(trainer, run(BackboneConfig()), TENSORS)
    assert (here.folder, here.size, here.grows) == (Path(), ONE, False)
    assert (there.folder, there.size, there.grows) == (tmp_path, 420, True)
    off = {"callbacks": None, "enable_checkpointing": False, "default_root_dir": None}
    assert kept_checkpoints(off, run(BackboneConfig()), TENSORS) == []


def test_too_little_room_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = {"callbacks": [saver(save_top_k=-1)], "enable_checkpointing": None, "default_root_dir": "/"}
    kept = kept_checkpoints(trainer, run(BackboneConfig()), TENSORS)
    monkeypatch.setattr("lit_vlaa.placement.free_bytes", lambda _: 2 * ONE)
    (line,) = disk_lines(kept)
    assert "too little" not in line
    assert line.endswith("all are kept, so that there is room for 2")
    monkeypatch.setattr("lit_vlaa.placement.free_bytes", lambda _: 2 * ONE - 1)
    (line,) = disk_lines(kept)
    assert "<- too little: give another --trainer.default_root_dir" in line


def test_room_is_that_of_the_disk(tmp_path: Path) -> None:
    assert free_bytes(tmp_path / "not" / "there") > 0
