from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from helpers.fake_study import load, resolve
from lit_vlaa.checks import UsageError
from lit_vlaa.study.plan import Plan
from lit_vlaa.study.runner import look
from lit_vlaa.study.slurm import write_scripts

SBATCH = r"""#!/usr/bin/env bash
# Runs an array at once, task by task, and answers as `sbatch --parsable` does.
set -euo pipefail
number=$(($(cat "$FAKE/count") + 1)); echo "$number" > "$FAKE/count"; echo "$*" >> "$FAKE/calls"
while [[ $1 == --* ]]; do
  case $1 in --array=0-*) last=${1##*-};; esac
  shift
done
script=$1; shift
for ((task = 0; task <= last; task++)); do SLURM_ARRAY_TASK_ID=$task bash "$script" "$@" >> "$FAKE/output"; done
echo "$number;cluster"
"""


def written(folder: Path, monkeypatch: pytest.MonkeyPatch, *options: str) -> tuple[Path, Plan]:
    """Scripts of a study whose program only says what it was given."""
    program = folder / "python 3"
    program.write_text('#!/usr/bin/env bash\necho "$PWD: $*"\n')
    program.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(program))
    prepared = look(load(folder, lambda c: c.update(name="a study;", perplexity=True)), resolve)
    driver = write_scripts(prepared, options=options, command=["study", "run", f"--config={folder / 'study.yaml'}"])
    files = {path: {"sha256": None} for variant in prepared.variants.all() for path in variant.data_files()}
    return driver, prepared.plan(files)


def test_scripts_are_valid(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    driver, _ = written(tmp_path, monkeypatch, "gpus=8", "time=12:00:00", "exclusive")
    for script in (driver, driver.with_name("job.sbatch")):
        subprocess.run(["/usr/bin/env", "bash", "-n", str(script)], check=True)
    text = driver.with_name("job.sbatch").read_text()
    head = [line for line in text.splitlines() if line.startswith("#SBATCH ")]
    assert head == [
        "#SBATCH --job-name=a-study-",
        "#SBATCH --nodes=1",
        "#SBATCH --ntasks=1",
        "#SBATCH --signal=B:TERM@120",
        "#SBATCH --gpus=8",
        "#SBATCH --time=12:00:00",
        "#SBATCH --exclusive",
    ]


def test_jobs_are_submitted_level_by_level(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    driver, plan = written(tmp_path, monkeypatch)
    fake = tmp_path / "fake"
    fake.mkdir()
    (fake / "count").write_text("100")
    (fake / "sbatch").write_text(SBATCH)
    (fake / "sbatch").chmod(0o755)
    environment = {**os.environ, "PATH": f"{fake}:{os.environ['PATH']}", "FAKE": str(fake)}
    done = subprocess.run([str(driver)], env=environment, check=True, capture_output=True, text=True)
    levels = [["prepare"], *([job.id for job in level] for level in plan.levels()), ["report"]]
    words = f"{Path.cwd()}: -m lit_vlaa study run --config={tmp_path / 'study.yaml'} --job "
    assert (fake / "output").read_text().splitlines() == [words + name for level in levels for name in level]
    calls = (fake / "calls").read_text().splitlines()
    assert [re.findall(r"--array=0-(\d+)", call) for call in calls] == [[str(len(level) - 1)] for level in levels]
    # Each array waits for the one before to end well: numbers without the cluster's name.
    found = [re.findall(r"--dependency=(\S+) --kill-on-invalid-dep=yes", call) for call in calls]
    assert found == [[], *([f"afterok:{100 + number}"] for number in range(1, len(levels)))]
    assert done.stdout.splitlines()[0] == "level 0: job 101"
    assert (driver.parent / "logs").is_dir()


def test_a_smaller_study_leaves_no_lists_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    driver, _ = written(tmp_path, monkeypatch)
    (driver.parent / "level_9.txt").write_text("old\n")
    written(tmp_path, monkeypatch)
    assert sorted(path.name for path in driver.parent.glob("level_*")) == [f"level_{n}.txt" for n in range(7)]


@pytest.mark.parametrize("option", ["--gpus=8", "gpus=8\nrm", "array=1", "dependency=x", "output=x", "Gpus"])
def test_other_options_are_refused(option: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UsageError, match="--sbatch"):
        written(tmp_path, monkeypatch, option)
