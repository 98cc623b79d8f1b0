from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import lit_vlaa.study.report
from helpers.fake_study import FakeLaunch, load, manifest, resolve
from lit_vlaa.checks import RunStoppedError, UsageError
from lit_vlaa.study.locks import locked
from lit_vlaa.study.origins import weights_sha256
from lit_vlaa.study.runner import Runner, StudyInterruptedError, _Times, look

Change = Callable[[dict[str, Any]], Any]

ONE_SEED = ["base-test", "sft-sft", "sft-test", "rl-rl", "rl-test", "sft+rl-rl", "sft+rl-test"]
ORDER = ["start", *(f"seed{seed}-{name}" for seed in (1, 2) for name in ONE_SEED)]


@pytest.fixture(autouse=True)
def reports(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Folders that a report was asked of."""
    asked: list[Path] = []

    def write_report(folder: Path) -> Path:
        asked.append(folder)
        return folder / "report" / "report.html"

    monkeypatch.setattr(lit_vlaa.study.report, "write_report", write_report)
    return asked


def nothing(_: Any) -> None:
    pass


def runner(folder: Path, launch: FakeLaunch, change: Change = nothing, **options: Any) -> Runner:
    prepared = look(load(folder, change), resolve)
    return Runner(prepared, launch=launch, command=["study", "run", "--config=study.yaml"], **options)


def done(folder: Path, job: str) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((folder / "out" / "jobs" / job / "done.json").read_text())
    return content


def test_all_jobs_run_in_order_and_a_report_follows(
    tmp_path: Path, reports: list[Path], capsys: pytest.CaptureFixture[str]
) -> None:
    launch = FakeLaunch(tmp_path)
    runner(tmp_path, launch).all()
    assert launch.words[0] == ("data", "make", "here")
    assert launch.ran == ORDER
    assert reports == [tmp_path / "out"]
    printed = capsys.readouterr().out
    assert re.search(r"^\[1/15\] start, seed 5 \(base, sft, rl, sft\+rl\); \d+ s so far$", printed, re.MULTILINE)
    assert re.search(
        r"^\[15/15\] evaluation, seed 2 \(sft\+rl\); \d+ s so far, about \d+ s left$", printed, re.MULTILINE
    )
    assert f"report: {tmp_path / 'out' / 'report' / 'report.html'}" in printed
    assert all(f"lit-vlaa {words[0]} " in printed for words in launch.words)


def test_what_a_job_leaves(tmp_path: Path) -> None:
    runner(tmp_path, FakeLaunch(tmp_path)).all()
    found = done(tmp_path, "seed1-rl-rl")
    assert found.pop("seconds") >= 0
    assert set(found.pop("ran")) == {"code", "packages", "machine", "environment"}
    started = done(tmp_path, "start")
    assert started["from"] == {}
    assert found == {
        "checkpoint": "jobs/seed1-rl-rl/version_0/checkpoints/last.ckpt",
        "metrics": "jobs/seed1-rl-rl/version_0/metrics.csv",
        "config_sha256": next(j["config_sha256"] for j in manifest(tmp_path)["jobs"] if j["id"] == "seed1-rl-rl"),
        "from": {"start": started["weights_sha256"]},
        "weights_sha256": weights_sha256(tmp_path / "out" / found["checkpoint"]),
    }
    link = tmp_path / "out" / "jobs" / "seed1-rl-rl" / "final.ckpt"
    assert torch.load(link, weights_only=True)["global_step"] == 4
    assert not link.readlink().is_absolute()  # the folder may be moved
    assert done(tmp_path, "seed1-rl-test")["checkpoint"] is None


def test_finished_jobs_are_not_run_again(
    tmp_path: Path, reports: list[Path], capsys: pytest.CaptureFixture[str]
) -> None:
    runner(tmp_path, FakeLaunch(tmp_path)).all()
    launch = FakeLaunch(tmp_path)
    runner(tmp_path, launch).all()
    assert launch.words == []
    assert len(reports) == 2
    assert "15 of 15 jobs are done already" in capsys.readouterr().out


@pytest.mark.parametrize("job", ["start", "seed1-rl-rl", "seed1-sft-test"])
def test_an_interrupted_study_ends_alike(job: str, tmp_path: Path, reports: list[Path]) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    runner(tmp_path / "a", FakeLaunch(tmp_path / "a")).all()
    launch = FakeLaunch(tmp_path / "b", interrupt=job)
    with pytest.raises(
        StudyInterruptedError, match=r"signal 15; go on with: lit-vlaa study run --config=study\.yaml"
    ) as caught:
        runner(tmp_path / "b", launch).all()
    assert caught.value.code == 143
    assert launch.ran[-1] == job
    assert reports == [tmp_path / "a" / "out"]
    runner(tmp_path / "b", launch).all()
    assert launch.ran == [*ORDER[: ORDER.index(job) + 1], *ORDER[ORDER.index(job) :]]
    assert reports == [tmp_path / "a" / "out", tmp_path / "b" / "out"]
    kept = manifest(tmp_path / "b")
    text = json.dumps(manifest(tmp_path / "a"), default=str).replace(str(tmp_path / "a"), str(tmp_path / "b"))
    assert {k: v for k, v in json.loads(text).items() if k != "jobs"} == {k: v for k, v in kept.items() if k != "jobs"}
    # A train job went on in a second folder, and the link stands for the checkpoint of its end.
    if not job.endswith("-test"):
        place = tmp_path / "b" / "out" / "jobs" / job
        assert torch.load(place / "final.ckpt", weights_only=True)["global_step"] == 4
        assert done(tmp_path / "b", job)["metrics"] == f"jobs/{job}/version_1/metrics.csv"
        assert not (place / ".seconds.json").exists()


def test_a_failing_job_stops_the_study(tmp_path: Path, reports: list[Path]) -> None:
    launch = FakeLaunch(tmp_path, fail="seed1-rl-rl")
    with pytest.raises(RunStoppedError) as caught:
        runner(tmp_path, launch).all()
    lines = str(caught.value).splitlines()
    log = tmp_path / "out" / "jobs" / "seed1-rl-rl" / "log.txt"
    assert lines[0] == f"job seed1-rl-rl ended with code 3; the end of {log}:"
    start = tmp_path / "out" / "jobs" / "start" / "final.ckpt"
    repeated = (
        f"repeat it alone with: lit-vlaa fit --config={tmp_path / 'rl.yaml'} --seed_everything=1 "
        f"--data.init_args.seed=1 --trainer.default_root_dir={log.parent} --model.init_args.init_from={start} "
        "--ckpt_path=last"
    )
    assert lines[1:4] == ["  | one", "  | it broke", repeated]
    assert lines[4] == "go on with the study with: lit-vlaa study run --config=study.yaml"
    assert launch.ran == ORDER[: ORDER.index("seed1-rl-rl") + 1]
    assert reports == []
    launch.fail = ""
    runner(tmp_path, launch).all()
    assert launch.ran[-len(ORDER[ORDER.index("seed1-rl-rl") :]) :] == ORDER[ORDER.index("seed1-rl-rl") :]


def test_parts_of_a_study(tmp_path: Path, reports: list[Path], capsys: pytest.CaptureFixture[str]) -> None:
    launch = FakeLaunch(tmp_path)
    runner(tmp_path, launch).all(seeds=[2], arms=["rl"])
    assert launch.ran == ["start", "seed2-rl-rl", "seed2-rl-test"]
    assert reports == []
    assert "12 jobs of other arms and seeds are left; the report comes after the last" in capsys.readouterr().out
    assert len(manifest(tmp_path)["jobs"]) == 15
    runner(tmp_path, launch).all()
    assert sorted(launch.ran) == sorted(ORDER)
    assert reports == [tmp_path / "out"]


@pytest.mark.parametrize(
    ("choice", "expected"),
    [
        ({"seeds": [-3]}, "--seeds -3: the study has seeds 1, 2"),
        ({"arms": ["rll"]}, "--arms rll: .* did you mean 'rl'"),
    ],
    ids=["seed", "arm"],
)
def test_what_is_not_in_the_study_is_refused_before_any_work(
    choice: dict[str, Any], expected: str, tmp_path: Path
) -> None:
    launch = FakeLaunch(tmp_path)
    with pytest.raises(UsageError, match=expected):
        runner(tmp_path, launch).all(**choice)
    assert not launch.ran
    assert not (tmp_path / "out").exists()


def test_jobs_one_by_one(tmp_path: Path, reports: list[Path], capsys: pytest.CaptureFixture[str]) -> None:
    launch = FakeLaunch(tmp_path)
    one = runner(tmp_path, launch)
    with pytest.raises(
        UsageError, match=r"data are not there: .*run `lit-vlaa study run --config=study.yaml --job prepare`"
    ):
        one.one("start")
    one.one("prepare")
    assert launch.words == [("data", "make", "here")]
    with pytest.raises(UsageError, match="--job seed1-rl-rl needs jobs that have not ended: start; run them first"):
        one.one("seed1-rl-rl")
    one.one("start")
    one.one("seed1-rl-rl")
    one.one("seed1-rl-rl")
    assert "seed1-rl-rl is done already" in capsys.readouterr().out
    assert launch.ran == ["start", "seed1-rl-rl"]
    with pytest.raises(UsageError, match="the report needs jobs that have not ended: seed1-base-test, "):
        one.one("report")
    for name in ORDER:
        one.one(name)
    assert reports == []
    one.one("report")
    assert reports == [tmp_path / "out"]


def test_data_that_stay_away(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"data are not there: .*sft\.json, .*; put them there"):
        runner(tmp_path, FakeLaunch(tmp_path), lambda c: c.pop("prepare")).all()


def test_data_that_were_removed_are_made_again(tmp_path: Path) -> None:
    runner(tmp_path, FakeLaunch(tmp_path)).all(seeds=[1])
    (tmp_path / "rl.json").unlink()
    launch = FakeLaunch(tmp_path)
    runner(tmp_path, launch).all()
    assert launch.words[0] == ("data", "make", "here")
    assert launch.ran == [name for name in ORDER if name.startswith("seed2")]


def test_the_time_that_is_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])
    prepared = look(load(tmp_path), resolve)
    plan = prepared.plan({str(tmp_path / f"{name}.json"): {"sha256": "0"} for name in ("sft", "rl", "test")})
    job, times = plan.job, _Times()
    left = [job("seed2-rl-rl"), job("seed2-rl-test"), job("seed2-sft-sft")]
    now[0] = 59.6
    assert times.line(left) == "1 min 00 s so far"
    times.note(job("seed1-rl-rl"), 100.0)
    times.note(job("seed1-sft+rl-rl"), 200.0)
    assert times.line(left) == "1 min 00 s so far, about 2 min 30 s left for all but 2 jobs"
    times.note(job("seed1-rl-test"), 20.0)
    times.note(job("seed1-sft-sft"), 7200.0)
    # 150 + 20 + 7200 seconds.
    assert times.line(left) == "1 min 00 s so far, about 2 h 02 min left"


class Sparing(FakeLaunch):
    """Leaves less than a job should."""

    def __init__(self, folder: Path, leave_out: str) -> None:
        super().__init__(folder)
        self.leave_out = leave_out

    def __call__(self, words: Any, *, log: Path, lock: Path | None, handle: int | None) -> int:
        code = super().__call__(words, log=log, lock=lock, handle=handle)
        for path in log.parent.rglob(self.leave_out):
            if path.suffix == ".csv":
                path.write_text("step,loss\n9,1.0\n")
            else:
                path.unlink()
        return code


@pytest.mark.parametrize(
    ("leave_out", "expected"),
    [
        ("*.ckpt", r"job start left no checkpoint of its end .*\(none\); give its stage a ModelCheckpoint"),
        ("metrics.csv", r"job start left no checkpoint of its end .*last\.ckpt, of an earlier step than 9"),
        ("responses.jsonl", "job seed1-base-test has ended, but left neither responses.jsonl nor benchmarks"),
    ],
)
def test_jobs_must_leave_what_others_need(leave_out: str, expected: str, tmp_path: Path) -> None:
    with pytest.raises(RunStoppedError, match=expected):
        runner(tmp_path, Sparing(tmp_path, leave_out)).all()


def test_a_report_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_: Path) -> Path:
        raise ValueError("row 3 is odd")

    monkeypatch.setattr(lit_vlaa.study.report, "write_report", fail)
    with pytest.raises(RunStoppedError, match="all jobs have ended, but there is no report: row 3 is odd"):
        runner(tmp_path, FakeLaunch(tmp_path)).all()


def test_one_runner_in_a_folder(tmp_path: Path) -> None:
    one, lock = runner(tmp_path, FakeLaunch(tmp_path)), tmp_path / "out" / ".study.lock"
    with (
        locked(lock, "it"),
        pytest.raises(UsageError, match=rf"is being run by process {os.getpid()} on .*stop it first"),
    ):
        one.all()
    one.one("prepare")
    with locked(lock, "it", shared=True):  # as by another --job
        for alone in (one.all, lambda: one.one("prepare")):
            with pytest.raises(UsageError, match="is being run by"):
                alone()
        one.one("start")
        with locked(tmp_path / "out" / "jobs" / "seed1-rl-rl" / ".lock", "it"):
            with pytest.raises(UsageError, match="job seed1-rl-rl is being run by"):
                one.one("seed1-rl-rl")
            one.one("seed1-sft-sft")


def test_a_dead_process_holds_no_lock(tmp_path: Path) -> None:
    lock = tmp_path / "x.lock"
    code = (
        "import sys; from pathlib import Path; from lit_vlaa.study.locks import locked\n"
        f"with locked(Path({str(lock)!r}), 'it'): print('held', flush=True); sys.stdin.read()"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": str(Path.cwd())},
    )
    assert process.stdout is not None
    assert process.stdout.readline() == b"held\n"
    with pytest.raises(UsageError, match=f"is being run by process {process.pid} on"), locked(lock, "it"):
        pass
    process.kill()
    process.wait()
    with locked(lock, "it"):
        assert lock.read_text().startswith(f"process {os.getpid()} on ")
