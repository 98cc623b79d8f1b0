"""What a job left: whether it has ended, how long it took, and the checkpoint that the next one starts from."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import yaml

from lit_vlaa.checks import RunStoppedError
from lit_vlaa.study import circumstances
from lit_vlaa.study.arms import OWN, Variant, flatten
from lit_vlaa.study.job_files import versions, write_json
from lit_vlaa.study.matching import ABSENT, differing, shown
from lit_vlaa.study.origins import FROM, WEIGHTS, done, origins, weights_sha256
from lit_vlaa.study.plan import EVALUATE, FINAL, TRAIN, Job

DONE = "done.json"

_SECONDS = ".seconds.json"
_LOG_LINES = 15
_SHOWN = 3
_LOG_BYTES = 1 << 16


def is_done(folder: Path, job: Job) -> bool:
    """Whether a job has ended with the configuration and the data that the study has now."""
    return done(folder / "jobs" / job.id).get("config_sha256") == job.config_sha256


def seconds_of(folder: Path, job: Job) -> float:
    """How long a job took that has ended."""
    return float(done(folder / "jobs" / job.id).get("seconds", 0.0))


def seconds_so_far(place: Path) -> float:
    """What runs of a job that were interrupted have taken."""
    try:
        return float(json.loads((place / _SECONDS).read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return 0.0


def keep_seconds(place: Path, seconds: float) -> None:
    """Notes for the run that goes on how long the job has taken."""
    write_json(place / _SECONDS, seconds)


def finish(folder: Path, job: Job, variant: Variant, seconds: float) -> None:
    """Notes that a job has ended and what it left.

    Args:
        folder: The study's.
        job: The job.
        variant: The configuration that was compared with the others.
        seconds: How long it took.

    Raises:
        RunStoppedError: If it left less than it should, or a run of it had another configuration.
    """
    place = folder / "jobs" / job.id
    if job.kind in {TRAIN, EVALUATE}:
        _refuse_other_configuration(place, job, variant)
    module = str(variant.flat["model.class_path"]).rpartition(".")[2]
    logs = [run / "metrics.csv" for run in versions(place) if (run / "metrics.csv").is_file()]
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
            FROM: origins(folder, job),
            WEIGHTS: None if checkpoint is None else weights_sha256(checkpoint),
            "ran": circumstances.here(),
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


def _refuse_other_configuration(place: Path, job: Job, variant: Variant) -> None:
    """Holds what each run of a job saved of its configuration against the one that was compared before anything ran.

    A run that was killed before it left anything may have left half of its configuration, and is no part of the result.

    Raises:
        RunStoppedError: If a run had another one, such as one that was repeated by hand with another flag; or if none
            saved its own.
    """
    files = [version / "config.yaml" for version in _counting(place, job) if (version / "config.yaml").is_file()]
    if not files:
        raise RunStoppedError(f"job {job.id} left no version_*/config.yaml in {place} to be held against its study")
    for file in files:
        saved = flatten(yaml.safe_load(file.read_text(encoding="utf-8")))
        expected = {**variant.flat, "seed_everything": job.seed, "model.init_args.seed": None}
        if variant.seeded_data:
            expected["data.init_args.seed"] = job.seed
        own = {key: value for key, value in saved.items() if key not in OWN or key in expected}
        differ = differing(_settled(expected), _settled(own))
        began = saved.get("model.init_args.init_from")
        needs = {name for name in job.after if began is None or Path(began).parts[-2:] != (name, FINAL)}
        if needs or (began is not None and not job.after):
            differ["model.init_args.init_from"] = (", ".join(job.after) or None, began)
        if differ:
            found = "; ".join(
                f"{key} was {'not there' if value is ABSENT else shown(value)}, compared was {shown(known)}"
                for key, (known, value) in list(differ.items())[:_SHOWN]
            )
            raise RunStoppedError(
                f"job {job.id} ran with another configuration than the one that was compared ({file}: {found}); remove "
                f"{place} and run the study again"
            )


def _counting(place: Path, job: Job) -> list[Path]:
    """Log folders of the runs that made a job's result: the last of an evaluation, all of training that left any."""
    runs = versions(place)
    if job.kind == EVALUATE:
        return runs[-1:]
    return [run for run in runs if (run / "metrics.csv").is_file() or any(run.glob("checkpoints/*"))]


def _settled(flat: dict[str, Any]) -> dict[str, Any]:
    """A configuration with the strategy's name as a run maps it."""
    from lit_vlaa.strategies import map_strategy_name  # noqa: PLC0415  # imports torch

    strategy = flat.get("trainer.strategy")
    return {**flat, "trainer.strategy": map_strategy_name(strategy)} if isinstance(strategy, str) else flat


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
