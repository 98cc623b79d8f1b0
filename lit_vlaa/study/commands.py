"""`lit-vlaa study run`, `study plan` and `study slurm`: their flags."""

from __future__ import annotations

import os
import sys
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path

from lit_vlaa.checks import PreemptedExit, UsageError
from lit_vlaa.flags import Flags, check_output
from lit_vlaa.study.config import StudyFile, read


def _flags(name: str, description: str) -> Flags:
    parser = Flags(prog=f"lit-vlaa study {name}", description=description)
    parser.add_argument(
        "--config", type=Path, required=True, metavar="FILE", help="the study file, such as configs/study/tiny.yaml"
    )
    parser.add_argument(
        "--output-dir", type=Path, metavar="FOLDER", help="folder of the study; default: the study file's"
    )
    return parser


def run(words: Sequence[str]) -> int:
    """Runs a study, or goes on with it.

    Args:
        words: The arguments of the command.

    Returns:
        0.

    Raises:
        UsageError: If the study cannot work, its arms are not matched, or its folder holds another one.
        RunStoppedError: If a job fails.
        PreemptedExit: If a signal ended the run.
    """
    parser = _flags(
        "run",
        "Runs a study: makes the data, trains and evaluates every arm with every seed, and writes a report. Refuses "
        "arms that differ in anything that the study file does not declare. Jobs that have ended are not run again; "
        "one that was interrupted goes on from its last checkpoint.",
    )
    _choice(parser)
    parser.add_argument("--job", metavar="ID", help="run this job alone (see `study plan`), or `prepare`, or `report`")
    parser.add_argument(
        "--other-code", action="store_true", help="go on though this program has changed since the study began"
    )
    given, study = _read(parser, words)
    if given.job is not None and (given.seeds is not None or given.arms is not None):
        raise UsageError(["--job is one job; leave --seeds and --arms out"])
    from lit_vlaa.study.runner import Runner, StudyInterruptedError, look  # noqa: PLC0415  # --help needs none of it

    runner = Runner(look(study), other_code=given.other_code, command=_again(study, given.output_dir))
    try:
        if given.job is not None:
            runner.one(given.job)
        else:
            runner.all(seeds=given.seeds, arms=given.arms)
    except StudyInterruptedError as stop:
        sys.stderr.write(f"lit-vlaa: stopped: {stop}\n")
        raise PreemptedExit(stop.code) from stop
    return 0


def plan(words: Sequence[str]) -> int:
    """Shows what a study would do; runs nothing.

    Args:
        words: The arguments of the command.

    Returns:
        0.

    Raises:
        UsageError: If the study cannot work, or its arms are not matched.
    """
    parser = _flags(
        "plan",
        "Shows a study's jobs, their commands, what differs between arms and how much was found equal. Runs nothing.",
    )
    _choice(parser)
    parser.writes = False
    given, study = _read(parser, words)
    from lit_vlaa.study.overview import overview  # noqa: PLC0415  # --help needs none of it
    from lit_vlaa.study.runner import look  # noqa: PLC0415

    try:
        sys.stdout.write(overview(look(study), seeds=given.seeds, arms=given.arms))
        sys.stdout.flush()
    except BrokenPipeError:  # `| head` has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 0


def slurm(words: Sequence[str]) -> int:
    """Writes scripts that run a study's jobs on a SLURM cluster.

    Args:
        words: The arguments of the command.

    Returns:
        0.

    Raises:
        UsageError: If the study cannot work, or its arms are not matched.
    """
    parser = _flags(
        "slurm",
        "Writes an array script and submit.sh below the study's folder. submit.sh submits the jobs level by level: "
        "those of a level run at the same time, each on one machine, and after those of the level before. Submitting "
        "again goes on with what is left.",
    )
    parser.add_argument(
        "--sbatch",
        nargs="*",
        default=[],
        metavar="OPTION",
        help="options of sbatch for each job, without the leading dashes, such as gpus=8 time=12:00:00 partition=big",
    )
    given, study = _read(parser, words)
    from lit_vlaa.study.runner import look  # noqa: PLC0415  # --help needs none of it
    from lit_vlaa.study.slurm import write_scripts  # noqa: PLC0415

    script = write_scripts(look(study), options=given.sbatch, command=_again(study, given.output_dir))
    sys.stdout.write(f"submit the study with: {script}\n")
    return 0


def _read(parser: Flags, words: Sequence[str]) -> tuple[Namespace, StudyFile]:
    given = parser.read(words)
    study = read(given.config, given.output_dir)
    if given.output_dir is None:
        check_output(f"{study.path}: output_dir", study.output_dir, writes=parser.writes)
    return given, study


def _choice(parser: Flags) -> None:
    parser.add_argument("--seeds", type=int, nargs="+", metavar="SEED", help="only these seeds; default: all")
    parser.add_argument("--arms", nargs="+", metavar="ARM", help="only these arms and what they need; default: all")


def _again(study: StudyFile, output_dir: Path | None) -> list[str]:
    """The command that goes on with the study."""
    more = [] if output_dir is None else [f"--output_dir={output_dir}"]
    return ["study", "run", f"--config={study.path}", *more]
