"""Scripts that run a study on a SLURM cluster: an array for each level of jobs, one after the other."""

from __future__ import annotations

import re
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from lit_vlaa.checks import UsageError
from lit_vlaa.study.inputs import hash_data
from lit_vlaa.study.runner import PREPARE, REPORT, Prepared

FOLDER = "slurm"

_OPTION = re.compile(r"[a-z][a-z-]*(=[^\s#]+)?")


def write_scripts(prepared: Prepared, *, options: Sequence[str], command: Sequence[str]) -> Path:
    """Writes `slurm/job.sbatch`, a list of jobs for each level, and `slurm/submit.sh` below the study's folder.

    Args:
        prepared: The study.
        options: Of sbatch, without leading dashes.
        command: Words after `lit-vlaa` that run the study.

    Returns:
        The script to submit with.

    Raises:
        UsageError: If an option is none.
    """
    for option in options:
        if not _OPTION.fullmatch(option):
            raise UsageError([f"--sbatch {option!r}: expected an option such as time=12:00:00, without leading dashes"])
        if option.partition("=")[0] in {"array", "dependency", "parsable", "chdir", "output"}:
            raise UsageError([f"--sbatch {option}: the script sets it itself; leave it out"])
    study = prepared.study
    folder = study.output_dir / FOLDER
    (folder / "logs").mkdir(parents=True, exist_ok=True)
    levels = [[job.id for job in level] for level in prepared.plan(hash_data(prepared.variants, study)).levels()]
    lists = [[PREPARE], *levels, [REPORT]]
    for number, names in enumerate(lists):
        (folder / f"level_{number}.txt").write_text("".join(f"{name}\n" for name in names), encoding="utf-8")
    for number in range(len(lists), len(list(folder.glob("level_*.txt"))) + len(lists)):
        (folder / f"level_{number}.txt").unlink(missing_ok=True)
    script = folder / "job.sbatch"
    script.write_text(_job(study.name, options, command), encoding="utf-8")
    driver = folder / "submit.sh"
    driver.write_text(_driver(folder, [len(names) for names in lists]), encoding="utf-8")
    driver.chmod(0o755)
    return driver


def _job(name: str, options: Sequence[str], command: Sequence[str]) -> str:
    program = shlex.join([sys.executable, "-m", "lit_vlaa", *command])
    return "\n".join(
        [
            "#!/usr/bin/env bash",
            "# One job of a study: the line of the list $1 that the array's index names.",
            f"#SBATCH --job-name={re.sub(r'[^A-Za-z0-9_.-]', '-', name)}",
            "#SBATCH --nodes=1",
            "#SBATCH --ntasks=1",
            "#SBATCH --signal=B:TERM@120",
            *(f"#SBATCH --{option}" for option in options),
            "set -euo pipefail",
            f"cd {shlex.quote(str(Path.cwd()))}",
            'job=$(sed -n "$((SLURM_ARRAY_TASK_ID + 1))p" "$1")',
            "# The signal before the time limit must reach the program, which then saves a checkpoint.",
            f'exec {program} --job "$job"',
            "",
        ]
    )


def _driver(folder: Path, sizes: Sequence[int]) -> str:
    place = shlex.quote(str(folder.resolve()))
    return "\n".join(
        [
            "#!/usr/bin/env bash",
            "# Submits a study: first the data, then its jobs level by level, last the report. Jobs that have ended",
            "# return at once, so that submitting again goes on with what is left.",
            "set -euo pipefail",
            f"folder={place}",
            "after=",
            f"for level in {' '.join(f'{number}:{size - 1}' for number, size in enumerate(sizes))}; do",
            "  number=${level%%:*}",
            '  options=(--parsable "--array=0-${level##*:}" "--output=$folder/logs/%A_%a.txt")',
            '  if [ -n "$after" ]; then options+=("--dependency=afterok:$after" --kill-on-invalid-dep=yes); fi',
            '  after=$(sbatch "${options[@]}" "$folder/job.sbatch" "$folder/level_$number.txt")',
            "  after=${after%%;*}",
            '  echo "level $number: job $after"',
            "done",
            "",
        ]
    )
