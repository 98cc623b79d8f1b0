"""The SLURM script, with an `srun` that starts its tasks on this machine."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from helpers.commands import command, version
from helpers.launch import ROOT, _free_port

SCRIPT = ROOT / "configs" / "cluster" / "train.sbatch"
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
        cwd=ROOT,
        env={
            **os.environ,
            "PATH": f"{programs}{os.pathsep}{os.environ['PATH']}",
            "OMP_NUM_THREADS": "1",
            "SLURM_JOB_ID": "7",
            "SLURM_JOB_NAME": "lit-vlaa",
            "SLURM_NNODES": "2",
            "SLURM_NTASKS": "2",
            "SLURM_NTASKS_PER_NODE": "1",
            "SLURM_NODELIST": "127.0.0.1",
            "MASTER_PORT": str(_free_port()),
        },
        capture_output=True,
        text=True,
        check=False,
        timeout=200,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert "MEMBER: 2/2" in done.stderr
    assert len(list((version(tmp_path / "run") / "checkpoints").iterdir())) == 1
