"""What a job left: whether it has ended, how long it took, and the checkpoint that the next one starts from."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

from lit_vlaa.checks import RunStoppedError
from lit_vlaa.study.manifest import write_json
from lit_vlaa.study.plan import EVALUATE, FINAL, TRAIN, Job

DONE = "done.json"

_SECONDS = ".seconds.json"
_LOG_LINES = 15
_LOG_BYTES = 1 << 16


def is_done(folder: Path, job: Job) -> bool:
    """Whether a job has ended with the configuration and the data that the study has now."""
    return _done(folder, job).get("config_sha256") == job.config_sha256


def seconds_of(folder: Path, job: Job) -> float:
    """How long a job took that has ended."""
    return float(_done(folder, job).get("seconds", 0.0))


def seconds_so_far(place: Path) -> float:
    """What runs of a job that were interrupted have taken."""
    try:
        return float(json.loads((place / _SECONDS).read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return 0.0


def keep_seconds(place: Path, seconds: float) -> None:
    """Notes for the run that goes on how long the job has taken."""
    write_json(place / _SECONDS, seconds)


def finish(folder: Path, job: Job, module: str, seconds: float) -> None:
    """Notes that a job has ended and what it left.

    Args:
        folder: The study's.
        job: The job.
        module: Name of the class that it trained.
        seconds: How long it took.

    Raises:
        RunStoppedError: If it left less than it should.
    """
    place = folder / "jobs" / job.id
    logs = sorted(place.glob("version_*/metrics.csv"), key=lambda path: int(path.parent.name.partition("_")[2]))
    checkpoint = _final_checkpoint(place, job, module, logs) if job.kind == TRAIN else None
    if job.kind == EVALUATE and not any((place / name).exists() for name in ("responses.jsonl", "benchmarks")):
        raise RunStoppedError(
            f"job {job.id} has ended, but left neither responses.jsonl nor benchmarks in {place}; give the evaluation "
            "a data.test_file, or callbacks.BenchmarkEvaluation"
        )
    write_json(
        place / DONE,
        {
            "seconds": round(seconds, 3),
            "checkpoint": None if checkpoint is None else checkpoint.relative_to(folder).as_posix(),
            "metrics": logs[-1].relative_to(folder).as_posix() if logs else None,
            "config_sha256": job.config_sha256,
        },
    )
    (place / _SECONDS).unlink(missing_ok=True)


def log_end(path: Path) -> list[str]:
    """The last lines of a job's log, of a progress bar the last state."""
    try:
        with path.open("rb") as file:
            file.seek(max(0, path.stat().st_size - _LOG_BYTES))
            text = file.read().decode("utf-8", errors="replace")
    except OSError:
        return []
    lines = [line.rstrip().rpartition("\r")[2] for line in text.split("\n")]
    return [line for line in lines if line][-_LOG_LINES:]


def _done(folder: Path, job: Job) -> dict[str, Any]:
    try:
        found = json.loads((folder / "jobs" / job.id / DONE).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def _final_checkpoint(place: Path, job: Job, module: str, logs: list[Path]) -> Path:
    """The checkpoint of the run's end; makes the link by which other jobs know it.

    Raises:
        RunStoppedError: If there is none.
    """
    from lit_vlaa.checkpoints import header, newest  # noqa: PLC0415  # imports torch

    link = place / FINAL
    link.unlink(missing_ok=True)
    path, faults = newest([place], module)
    last = max((_last_step(log) for log in logs), default=0.0)
    if path is None or header(path).get("global_step", 0) < last:
        found = (
            f"only {path}, of an earlier step than {last:.0f}" if path else "none" + "".join(f"; {f}" for f in faults)
        )
        raise RunStoppedError(
            f"job {job.id} left no checkpoint of its end below {place} ({found}); give its stage a ModelCheckpoint "
            "with filename last and save_on_train_epoch_end, and without dirpath"
        )
    link.symlink_to(path.relative_to(place))
    return path


def _last_step(log: Path) -> float:
    with log.open(newline="", encoding="utf-8") as file:
        return max((float(row["step"]) for row in csv.DictReader(file) if row.get("step")), default=0.0)
