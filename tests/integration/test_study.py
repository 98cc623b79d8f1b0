"""A whole study on a scale of seconds: planned, run, interrupted, refused."""

from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from helpers.commands import lit
from helpers.launch import ROOT
from lit_vlaa.study.config import read
from lit_vlaa.study.overview import overview
from lit_vlaa.study.runner import look

TEST_ROWS = 27
_NO_PROMPT = {"system_prompt": "", "instructions": dict.fromkeys(("digit", "mcq", "math", "iou", "open_ended"), "")}
DATA = "datamodules.VLAAThinkingDataModule"
_CHECKPOINT = "lightning.pytorch.callbacks.ModelCheckpoint"


def module(name: str, **arguments: Any) -> dict[str, Any]:
    return {"class_path": f"lit_vlaa.{name.lower()}.{name}Module", "init_args": arguments}


@pytest.fixture(scope="module")
def study(dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A study file: base, sft, rl and sft+rl with one seed."""
    rows = {split: str(dataset / f"VLAA-Thinking-{split.upper()}") for split in ("sft", "grpo")}
    folder = tmp_path_factory.mktemp("study")
    common: dict[str, Any] = {
        "trainer": {
            "accelerator": "cpu",
            "max_epochs": 1,
            "num_sanity_val_steps": 0,
            "log_every_n_steps": 1,
            "enable_progress_bar": False,
            "enable_model_summary": False,
            "callbacks": [
                {
                    "class_path": _CHECKPOINT,
                    "init_args": {
                        "filename": "last",
                        "every_n_train_steps": every,
                        "save_on_train_epoch_end": every is None,
                        "enable_version_counter": False,
                    },
                }
                for every in (2, None)
            ]
            + [
                {"class_path": "callbacks.Preemption"},
                {
                    "class_path": "helpers.interruptions.HeldUp",
                    "init_args": {"path": str(folder / "hold"), "run": "seed1-rl-rl"},
                },
            ],
        },
        "model": {
            "init_args": {
                "backbone": {"path": "tiny", "max_pixels": 7056},
                "optim": {"lr": 1e-3, "min_lr": 1e-4},
                "sampling": {"max_new_tokens": 24, "temperature": 0.8},
            }
        },
        "data": {
            "init_args": {
                "image_root": str(dataset / "images"),
                "batch_size": 16,
                "eval_batch_size": TEST_ROWS,
                "num_workers": 0,
                "prompt": _NO_PROMPT,
            }
        },
    }
    scored = {"reward": {"math_workers": 1}, "group_size": 4, "train_batch_size": 8}
    parts = {
        "sft": (module("SFT"), {"split": "sft", "data_file": f"{rows['sft']}.json", "max_samples": 48}),
        "rl": (module("GRPO", **scored), {"split": "grpo", "data_file": f"{rows['grpo']}.json"}),
    }
    (folder / "common.yaml").write_text(yaml.safe_dump(common))
    for name, (model, data) in parts.items():
        (folder / f"{name}.yaml").write_text(
            yaml.safe_dump({"model": model, "data": {"class_path": DATA, "init_args": data}})
        )
    content = {
        "output_dir": str(folder / "out"),
        "seeds": [1],
        "start": {"config": "sft.yaml", "seed": 3},
        "common": {"config": "common.yaml"},
        "stages": {"sft": {"config": "sft.yaml"}, "rl": {"config": "rl.yaml"}},
        "stages_differ": {
            "model.class_path": "the two ways to train",
            "model.batching": "each module's default",
            **dict.fromkeys(("data.split", "data.data_file", "data.max_samples"), "two splits"),
        },
        "evaluation": {"config": "rl.yaml", "flags": {"data.test_file": f"{rows['grpo']}-test.json"}},
        "arms": {
            "base": {"steps": []},
            "sft": {"steps": ["sft"]},
            "rl": {"steps": ["rl"]},
            "sft+rl": {"steps": ["sft", "rl"]},
        },
    }
    path = folder / "study.yaml"
    path.write_text(yaml.safe_dump(content, sort_keys=False))
    return path


@pytest.fixture(scope="module")
def finished(study: Path) -> Path:
    """The folder of the study when it has ended."""
    assert lit("study", "run", f"--config={study}") == 0
    return study.parent / "out"


def logged(job: Path) -> dict[str, dict[str, float]]:
    """What a job logged by step, without times, later runs over earlier ones."""
    found: dict[str, dict[str, float]] = {}
    for path in sorted(job.glob("version_*/metrics.csv")):
        with path.open(newline="") as file:
            for row in csv.DictReader(file):
                values = {k: float(v) for k, v in row.items() if v and "time" not in k and "per_second" not in k}
                found[row["step"]] = values
    return found


def test_arms_are_trained_evaluated_and_reported(finished: Path) -> None:
    manifest = json.loads((finished / "manifest.json").read_text())
    jobs = {job["id"]: job for job in manifest["jobs"]}
    assert list(jobs) == [
        "start",
        "seed1-base-test",
        "seed1-sft-sft",
        "seed1-sft-test",
        "seed1-rl-rl",
        "seed1-rl-test",
        "seed1-sft+rl-rl",
        "seed1-sft+rl-test",
    ]
    assert {entry["rows"] for entry in manifest["data"].values()} == {480, 48, TEST_ROWS, None}
    (pictures,) = (entry for entry in manifest["data"].values() if entry["rows"] is None)
    assert pictures["files"] > 480 + 48 + TEST_ROWS
    texts = {}
    weights: dict[str, str | None] = {}
    for name, job in jobs.items():
        done = json.loads((finished / "jobs" / name / "done.json").read_text())
        assert done["config_sha256"] == job["config_sha256"]
        assert done["from"] == {before: weights[before] for before in job["after"]}
        weights[name] = done["weights_sha256"]
        if job["kind"] == "evaluate":
            lines = (finished / "jobs" / name / "responses.jsonl").read_text().splitlines()
            assert len(lines) == TEST_ROWS
            texts[name] = lines
    assert len(set(map(tuple, texts.values()))) == 4  # each arm answers in its own way
    assert len({weights[name] for name, job in jobs.items() if job["kind"] == "train"}) == 4
    assert (finished / "report" / "report.html").is_file()


def test_every_job_had_the_configuration_that_was_compared(finished: Path) -> None:
    """What a job saved of its configuration is the resolved one, apart from what the runner sets."""
    saved: Any = yaml.safe_load((finished / "jobs" / "seed1-sft+rl-rl" / "version_0" / "config.yaml").read_text())
    resolved = yaml.safe_load((finished / "resolved" / "rl.yaml").read_text())
    assert saved["seed_everything"] == saved["data"]["init_args"]["seed"] == 1
    assert saved["trainer"]["default_root_dir"] == str(finished / "jobs" / "seed1-sft+rl-rl")
    assert saved["model"]["init_args"]["init_from"] == str(finished / "jobs" / "seed1-sft-sft" / "final.ckpt")
    for config in (saved, resolved):
        config.pop("ckpt_path")
        config["trainer"].pop("default_root_dir")
        config["seed_everything"] = config["data"]["init_args"]["seed"] = config["model"]["init_args"]["init_from"] = (
            None
        )
    assert saved == resolved


def test_an_interrupted_study_goes_on_and_ends_alike(finished: Path, study: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    words = ["study", "run", f"--config={study}", f"--output-dir={other}", "--arms", "rl"]
    hold, held = study.parent / "hold", study.parent / "hold.held"
    hold.touch()
    runner = subprocess.Popen(
        [sys.executable, "-m", "lit_vlaa", *words],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'tests'}"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        while not held.exists() and runner.poll() is None:
            time.sleep(0.05)
        runner.send_signal(signal.SIGTERM)
        _, printed = runner.communicate(timeout=120)
    finally:
        for path in (hold, held):
            path.unlink(missing_ok=True)
    assert runner.returncode == 143, printed
    assert f"go on with: lit-vlaa study run --config={study} --output_dir={other}" in printed
    assert (other / "jobs" / "seed1-rl-rl" / "version_0" / "checkpoints" / "preempted.ckpt").is_file()
    assert lit(*words) == 0
    assert (other / "jobs" / "seed1-rl-rl" / "version_1").is_dir()
    for part in ("jobs/seed1-rl-rl", "jobs/start"):
        assert logged(other / part) == logged(finished / part)
        ends = [
            torch.load(folder / part / "final.ckpt", weights_only=True)["state_dict"] for folder in (other, finished)
        ]
        assert all(torch.equal(ends[0][name], ends[1][name]) for name in ends[1])
    ends = [(folder / "jobs" / "seed1-rl-test" / "responses.jsonl").read_bytes() for folder in (other, finished)]
    assert ends[0] == ends[1]
    text = (other / "manifest.json").read_text().replace(str(other), str(finished))
    assert json.loads(text) == json.loads((finished / "manifest.json").read_text())


def test_a_mismatched_arm_is_refused_before_anything_runs(
    study: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    content = yaml.safe_load(study.read_text())
    content["arms"]["sft+rl"]["flags"] = {"rl": {"model.kl.coefficient": 0.5}}
    path = study.with_name("mismatched.yaml")
    path.write_text(yaml.safe_dump(content))
    assert lit("study", "run", f"--config={path}", f"--output_dir={tmp_path / 'out'}") == 2
    error = capsys.readouterr().err
    assert error.count("lit-vlaa: error:") == 1
    assert "arm sft+rl, stage rl: model.init_args.kl.coefficient is 0.5, in stages.rl 0.0" in error
    assert not (tmp_path / "out").exists()


def test_options_that_are_none_are_named(study: Path, capsys: pytest.CaptureFixture[str]) -> None:
    content = yaml.safe_load(study.read_text())
    content["common"]["flags"] = {"model.optim.rate": 1}
    path = study.with_name("unknown.yaml")
    path.write_text(yaml.safe_dump(content))
    assert lit("study", "plan", f"--config={path}") == 2
    assert f"{path}: rl: --model.optim.rate: there is no such option; " in capsys.readouterr().err
    assert lit("study", "run", f"--config={study}", "--job=start", "--arms", "rl") == 2
    assert "--job is one job" in capsys.readouterr().err


def test_the_papers_study_is_matched(capsys: pytest.CaptureFixture[str]) -> None:
    prepared = look(read(ROOT / "configs" / "study" / "paper_3b.yaml"))
    text = overview(prepared)
    assert text.count(": absent") == 6
    # 13 arms and three seeds: 13 evaluations, 5 of SFT, one of RL, five of RL after SFT, one by rules alone.
    assert "75 of 75 jobs" in text
    assert not prepared.variants.one_process
    sft = prepared.variants.of("sft-25k+rl", "sft").flat
    assert (sft["trainer.max_steps"], sft["data.init_args.batch_size"], sft["trainer.devices"]) == (190, 128, 8)
    assert prepared.variants.of("rl-rules", "rl").flat["data.init_args.kinds"] == ["digit", "mcq", "math", "iou"]


def test_the_tiny_study_is_matched(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    prepared = look(read(ROOT / "configs" / "study" / "tiny.yaml"))
    # The base model, and for each of three seeds three runs of SFT, two of RL, six evaluations and six perplexities.
    assert "52 of 52 jobs" in overview(prepared)
    assert prepared.variants.one_process
    arms = {arm: prepared.variants.of(arm, "sft").flat for arm in ("sft", "sft-aha", "sft-plain")}
    differ = {key for flat in arms.values() for key in flat if flat[key] != arms["sft"][key]}
    assert differ == {"data.init_args.data_file"}
    frozen = "model.init_args.backbone.freeze"
    assert prepared.variants.start is not None
    assert (prepared.variants.start.flat[frozen], arms["sft"][frozen]) == ([], ["vision", "merger"])
