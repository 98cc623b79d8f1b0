from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from helpers.fake_study import FakeLaunch, load, resolve
from lit_vlaa.checks import RunStoppedError, UsageError
from lit_vlaa.study import circumstances
from lit_vlaa.study.origins import weights_sha256
from lit_vlaa.study.runner import Runner, look


class Launch(FakeLaunch):
    """Trains to weights of one's choice, and may run with another flag than it was told."""

    weights = 1.0
    flag = ""

    def __call__(self, words: Sequence[str], *, log: Path, lock: Path | None, handle: int | None) -> int:
        code = super().__call__(words, log=log, lock=lock, handle=handle)
        for path in log.parent.glob("version_*/checkpoints/last.ckpt"):
            stored: dict[str, Any] = torch.load(path, weights_only=True)
            torch.save(stored | {"state_dict": {"w": torch.full((9,), self.weights)}}, path)
        if self.flag and words[0] != "data":
            plain = [word for word in words if not word.startswith("--trainer.callbacks.")]
            newest = max(log.parent.glob("version_*/config.yaml"))
            newest.write_text(yaml.safe_dump(resolve([*plain, self.flag])))
        return code


@pytest.fixture(autouse=True)
def _no_report(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Runner, "_report", lambda _: None)


def runner(folder: Path, launch: Launch) -> Runner:
    return Runner(look(load(folder), resolve), launch=launch, command=["study", "run"])


def test_a_base_model_that_was_trained_again_is_not_mixed_with_the_first(tmp_path: Path) -> None:
    launch = Launch(tmp_path)
    runner(tmp_path, launch).all(seeds=[1], arms=["rl"])
    shutil.rmtree(tmp_path / "out" / "jobs" / "start")
    launch.weights = 2.0
    with pytest.raises(UsageError) as caught:
        runner(tmp_path, launch).all()
    # At once, before an arm begins from the second one.
    assert launch.ran[-1] == "start"
    names = ["seed1-rl-rl"]
    assert [problem.split()[1] for problem in caught.value.problems] == names
    assert "began from other weights of start than are there now" in caught.value.problems[0]
    assert caught.value.problems[0].endswith(f"remove {tmp_path / 'out' / 'jobs' / names[0]} and run the study again")
    with pytest.raises(UsageError, match="began from other weights"):
        runner(tmp_path, launch).all()


def test_the_same_weights_again_are_welcome(tmp_path: Path) -> None:
    launch = Launch(tmp_path)
    runner(tmp_path, launch).all(seeds=[1])
    shutil.rmtree(tmp_path / "out" / "jobs" / "start")
    runner(tmp_path, launch).all(seeds=[1])
    assert launch.ran.count("start") == 2


def test_an_interrupted_job_does_not_go_on_from_another_base_model(tmp_path: Path) -> None:
    launch = Launch(tmp_path, fail="seed1-rl-rl")
    with pytest.raises(RunStoppedError):
        runner(tmp_path, launch).all(arms=["rl"])
    shutil.rmtree(tmp_path / "out" / "jobs" / "start")
    launch.weights, launch.fail = 2.0, ""
    place = tmp_path / "out" / "jobs" / "seed1-rl-rl"
    with pytest.raises(UsageError, match=f"was begun from another result of start; remove {place} to run it"):
        runner(tmp_path, launch).all(arms=["rl"])
    shutil.rmtree(place)
    runner(tmp_path, launch).all(arms=["rl"])


def test_weights_are_told_by_their_numbers(tmp_path: Path) -> None:
    path = tmp_path / "a.ckpt"

    def seen(**content: Any) -> str:
        torch.save({"state_dict": content}, path)
        return weights_sha256(path)

    tensor = torch.arange(10_000, dtype=torch.bfloat16)
    first = seen(a=tensor, b=torch.tensor(True))
    assert seen(b=torch.tensor(True), a=tensor) == first
    others = [seen(a=tensor + 1, b=torch.tensor(True)), seen(a=tensor, b=torch.tensor(False)), seen(c=tensor)]
    others.append(seen(a=tensor.view(100, 100), b=torch.tensor(True)))
    assert len({first, *others}) == 5


@pytest.mark.parametrize(
    ("flag", "expected"),
    [
        ("--model.init_args.optim.lr=0.5", "model.init_args.optim.lr was 0.5, compared was 0.001"),
        ("--seed_everything=9", "seed_everything was 9, compared was 5"),
        ("--data.init_args.seed=9", "data.init_args.seed was 9, compared was 5"),
        ("--model.init_args.seed=3", "model.init_args.seed was 3, compared was null"),
        ("--model.init_args.init_from=x/final.ckpt", 'model.init_args.init_from was "x/final.ckpt", compared was null'),
        ("--trainer.extra=1", "trainer.extra was 1, compared was absent"),
    ],
    ids=["setting", "seed", "data-seed", "model-seed", "start", "more"],
)
def test_a_run_with_another_configuration_than_the_compared_one_is_refused(
    flag: str, expected: str, tmp_path: Path
) -> None:
    launch = Launch(tmp_path)
    launch.flag = flag
    with pytest.raises(RunStoppedError) as caught:
        runner(tmp_path, launch).all()
    assert "job start ran with another configuration than the one that was compared (" in str(caught.value)
    assert expected in str(caught.value)
    assert not (tmp_path / "out" / "jobs" / "start" / "done.json").exists()


def test_what_a_run_left_that_was_killed_at_its_start_is_no_part_of_the_result(tmp_path: Path) -> None:
    launch = Launch(tmp_path, fail="start")
    with pytest.raises(RunStoppedError):
        runner(tmp_path, launch).all(arms=["base"])
    for job in ("start", "seed1-base-test"):
        version = tmp_path / "out" / "jobs" / job / "version_0"
        version.mkdir(parents=True)
        (version / "config.yaml").write_text("seed_everything: 1\ntrainer: {acc")
    launch.fail = ""
    runner(tmp_path, launch).all(arms=["base"])
    assert (tmp_path / "out" / "jobs" / "seed1-base-test" / "done.json").is_file()


def test_a_stage_that_began_from_nothing_is_refused(tmp_path: Path) -> None:
    launch = Launch(tmp_path)
    runner(tmp_path, launch).all(arms=["base"])
    launch.flag = "--model.init_args.init_from=null"
    with pytest.raises(RunStoppedError, match=r'init_from was null, compared was "start"'):
        runner(tmp_path, launch).all()


def test_sources_that_change_during_a_run_stop_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    known = circumstances.code()

    class Editing(Launch):
        def __call__(self, words: Sequence[str], *, log: Path, lock: Path | None, handle: int | None) -> int:
            if log.parent.name == "start":
                monkeypatch.setattr(circumstances, "code", lambda: {**known, "sources_sha256": "0"})
            return super().__call__(words, log=log, lock=lock, handle=handle)

    launch = Editing(tmp_path)
    with pytest.raises(UsageError, match="this program has changed"):
        runner(tmp_path, launch).all()
    assert launch.ran == ["start"]


def test_what_jobs_ran_with(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"OMP_NUM_THREADS": "3", "LIT_VLAA_API_KEY": "x", "HOME": "/h", "TORCH_A": "b"}.items():
        monkeypatch.setenv(name, value)
    found = circumstances.here()
    chosen = {k: v for k, v in found["environment"].items() if k in {"OMP_NUM_THREADS", "TORCH_A"}}
    assert chosen == {"OMP_NUM_THREADS": "3", "TORCH_A": "b"}
    assert {"LIT_VLAA_API_KEY", "HOME"}.isdisjoint(found["environment"])
    assert "memory_bytes" not in found["machine"]
    assert json.loads(json.dumps(found)) == found


def test_differences_between_jobs_in_words() -> None:
    sources = {"sources_sha256": "1" * 64}
    same = {"code": sources | {"git_commit": "a"}, "packages": {"torch": "2"}, "machine": {"gpus": []}}
    other = {
        "code": sources | {"git_commit": "b"},
        "packages": {"torch": "3"},
        "machine": {"gpus": ["H100", "H100"]},
        "environment": {"OMP_NUM_THREADS": "1"},
    }
    jobs = {f"job{n}": same | {"environment": {}} for n in range(7)} | {"late": other, "unknown": {}}
    most = "in job0, job1, job2, job3, job4 and 2 more"
    assert list(circumstances.differences(jobs)) == [
        f"Not all jobs ran with the same packages: torch 2 {most}; torch 3 in late.",
        f"Not all jobs ran with the same hardware: gpus none {most}; gpus H100, H100 in late.",
        f"Not all jobs ran with the same environment variables: OMP_NUM_THREADS unset {most}; "  # noqa: ISC004
        "OMP_NUM_THREADS 1 in late.",
    ]
    assert list(circumstances.differences({"a": same, "b": same, "c": {}})) == []
