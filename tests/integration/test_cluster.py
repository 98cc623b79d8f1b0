"""The SLURM script, with an `srun` that starts its tasks on this machine."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from helpers.commands import command, version
from helpers.launch import ROOT, free_port

SCRIPT = ROOT / "configs" / "cluster" / "train.sbatch"
TORCHRUN = ROOT / "configs" / "cluster" / "torchrun.sh"
SRUN = """#!/usr/bin/env bash
set -e
[ "$1" = --kill-on-bad-exit=1 ] && shift
pids=()
for rank in $(seq 0 $((SLURM_NTASKS - 1))); do
  SLURM_PROCID=$rank SLURM_LOCALID=0 SLURM_NODEID=$rank "$@" &
  pids+=($!)
done
for pid in "${pids[@]}"; do wait "$pid"; done
"""


def test_the_script_trains_on_two_nodes(dataset: Path, tmp_path: Path) -> None:
    programs = tmp_path / "bin"
    programs.mkdir()
    for name, text in (("srun", SRUN), ("lit-vlaa", f'#!/bin/sh\nexec {sys.executable} -m lit_vlaa "$@"\n')):
        (programs / name).write_text(text)
        (programs / name).chmod(0o755)
    options = {"trainer__max_steps": 2, "trainer__limit_val_batches": 0, "trainer__strategy": "fsdp2"}
    # The script's own flags come behind these and win.
    words = command("fit", "sft", dataset, tmp_path / "run", **options, trainer__devices=8)
    done = subprocess.run(
        [SCRIPT, *words],
        cwd=tmp_path,
        env={
            **os.environ,
            "PYTHONPATH": str(ROOT),
            "PATH": f"{programs}{os.pathsep}{os.environ['PATH']}",
            "OMP_NUM_THREADS": "1",
            "SLURM_JOB_ID": "7",
            "SLURM_JOB_NAME": "lit-vlaa",
            "SLURM_NNODES": "2",
            "SLURM_NTASKS": "2",
            "SLURM_NTASKS_PER_NODE": "1",
            "SLURM_NODELIST": "127.0.0.1",
            "MASTER_PORT": str(free_port()),
        },
        capture_output=True,
        text=True,
        check=False,
        timeout=200,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert "MEMBER: 2/2" in done.stderr
    assert not list(tmp_path.glob("lit-vlaa-7*"))  # what it keeps for a job that died
    assert len(list((version(tmp_path / "run") / "checkpoints").iterdir())) == 1


def test_torchrun_sh_hands_on_what_it_is_given(tmp_path: Path) -> None:
    (tmp_path / "python").write_text("#!/bin/sh\nprintf '%s|' \"$@\"\n")
    (tmp_path / "python").chmod(0o755)
    path = f"{tmp_path}{os.pathsep}{os.environ['PATH']}"
    given = {"NODES": "2", "NODE": "1", "DEVICES": "4", "HEAD": "a b", "PORT": "7", "RESTARTS": "5", "WAIT": "9"}
    seen = [
        subprocess.run(
            [TORCHRUN, "fit", "--a=b  c", ""], env={"PATH": path, **more}, capture_output=True, check=True
        ).stdout
        for more in (given, {})
    ]
    flags = b"--nodes|%s|--node|%s|--devices|%s|--head|%s|--port|%s|--restarts|%s|--wait|%s|--|fit|--a=b  c||"
    assert seen == [
        b"-m|lit_vlaa.hosts|" + flags % values
        for values in ((b"2", b"1", b"4", b"a b", b"7", b"5", b"9"), (b"1", b"", b"8", b"", b"29400", b"3", b"1800"))
    ]


STAND_INS = {
    "srun": """#!/usr/bin/env bash
case $(sed -n "$(($(cat starts | wc -l) + 1))p" script) in
  done) code=0; rm "$LIT_VLAA_ORIGIN_FILE";;
  own) code=137; rm "$LIT_VLAA_ORIGIN_FILE";;
  killed) code=137;;
  further) code=137; wc -l < starts > "$LIT_VLAA_ORIGIN_FILE";;
esac
echo >> starts
exit $code
""",
    "scontrol": """#!/usr/bin/env bash
[ "$*" = "requeue 7" ] && touch queued
""",
}


@pytest.mark.parametrize(
    ("script", "codes"),
    [
        ("done", [0]),
        # The run told why it ends, and srun killed the ranks that were slower.
        ("own", [137]),
        ("killed done", [137, 0]),
        ("killed killed killed done", [137, 137, 137]),
        ("further further further further done", [137, 137, 137, 137, 0]),
    ],
)
def test_a_job_whose_process_died_goes_back_into_the_queue(script: str, codes: list[int], tmp_path: Path) -> None:
    for name, text in STAND_INS.items():
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o755)
    (tmp_path / "starts").touch()
    (tmp_path / "script").write_text(script.replace(" ", "\n") + "\n")
    seen = []
    queued = True
    while queued:
        done = subprocess.run(
            [SCRIPT, "fit"],
            cwd=tmp_path,
            env={
                **os.environ,
                "PATH": f"{tmp_path}{os.pathsep}{os.environ['PATH']}",
                "SLURM_JOB_ID": "7",
                "SLURM_NNODES": "2",
                "RESTARTS": "2",
            },
            capture_output=True,
            text=True,
            check=False,
        )
        seen.append(done.returncode)
        queued = (tmp_path / "queued").exists()
        (tmp_path / "queued").unlink(missing_ok=True)
    assert seen == codes, done.stderr
    assert ("no requeue, as 3 starts have failed after starting at the beginning" in done.stderr) == (len(codes) == 3)
