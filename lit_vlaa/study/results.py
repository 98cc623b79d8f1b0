"""A study's folder as plain objects: what was asked for, what is there, and what is missing.

Nothing is guessed: an evaluation that has not ended is missing and named, evaluations of different rows are refused.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lit_vlaa.study.job_files import Curve, config_value, read_curves, read_object, saved_config, typed
from lit_vlaa.study.origins import mixed
from lit_vlaa.study.responses import ScoredResponse, read_responses
from lit_vlaa.study.traces_tool import read_nll

MANIFEST = "manifest.json"
FORMAT = 1

_SHOWN = 3
_ASKED = {"truth": "truths", "question": "questions", "image": "pictures", "kind": "kinds", "source": "sources"}
"""What belongs to a row and not to an answer, in words."""

Key = tuple[str, str, int]
"""Of a row: set, id, and which one of the rows with this id (ids of data files need not be unique)."""


@dataclass(frozen=True, slots=True)
class Arm:
    """One way of training that the study compares."""

    name: str
    title: str
    steps: tuple[str, ...]
    """Stages, in order; none of the base model."""
    differs: Mapping[str, Any]
    """Declared differences from the other arms, with reasons."""


@dataclass(frozen=True, slots=True)
class Job:
    """One command of the study."""

    id: str
    kind: str
    """`train`, `evaluate` or `perplexity`."""
    stage: str
    arms: tuple[str, ...]
    seed: int
    command: tuple[str, ...]
    seconds: float | None
    """Wall-clock time; None of a job that has not ended."""
    ran: Mapping[str, Any] = field(default_factory=dict)
    """Of `circumstances.here`; empty where it was not noted."""


@dataclass(frozen=True, slots=True)
class Evaluation:
    """What one arm of one seed answered."""

    arm: str
    seed: int
    job: str
    rows: Mapping[Key, ScoredResponse]
    nll: Mapping[tuple[str, str], tuple[float, int]]
    """By set and id: minus the log-probability of the response under the base model in nats, and its tokens; empty
    where the study did not ask for it."""
    image_root: Path | None
    """Folder that the rows' images are below."""
    model: str | None
    """Path or name of the backbone; None where the job saved no configuration."""


@dataclass(frozen=True, slots=True)
class Study:
    """A study that may not have ended."""

    folder: Path
    manifest: Mapping[str, Any]
    arms: tuple[Arm, ...]
    seeds: tuple[int, ...]
    jobs: tuple[Job, ...]
    evaluations: Mapping[tuple[str, int], Evaluation]
    """By arm and seed."""
    curves: Mapping[str, Mapping[str, Curve]] = field(default_factory=dict)
    """By train job and name of the number."""
    missing: tuple[str, ...] = ()
    """One line for each thing that should be there."""

    @property
    def name(self) -> str:
        """The study's name."""
        return str(self.manifest.get("name") or self.folder.name)

    @property
    def config(self) -> Mapping[str, Any]:
        """The study file."""
        found = self.manifest.get("config")
        return found if isinstance(found, Mapping) else {}

    def seeds_of(self, *arms: str) -> tuple[int, ...]:
        """Seeds of which all of these arms were evaluated."""
        return tuple(seed for seed in self.seeds if all((arm, seed) in self.evaluations for arm in arms))

    def training(self, arm: Arm, stage: str, seed: int) -> Job | None:
        """The job that trained this stage of an arm."""
        for job in self.jobs:
            if job.kind == "train" and job.stage == stage and arm.name in job.arms and job.seed == seed:
                return job
        return None


def read_study(folder: Path) -> Study:
    """Reads what a study left.

    Raises:
        ValueError: If there is no study, a file cannot be read, or two evaluations are of different rows.
    """
    manifest = read_object(folder / MANIFEST, "the folder holds no study; give the output_dir of `lit-vlaa study run`")
    where = str(folder / MANIFEST)
    if manifest.get("format") != FORMAT:
        raise ValueError(
            f"{where}: 'format' is {manifest.get('format')!r}, this version reads {FORMAT}; use the version that wrote "
            "it"
        )
    arms = tuple(
        Arm(
            name=name,
            title=str(typed(arm, "title", str, where) or name),
            steps=tuple(map(str, typed(arm, "steps", list, where) or [])),
            differs=typed(arm, "differs", dict, where) or {},
        )
        for name, arm in (typed(manifest, "arms", dict, where, required=True) or {}).items()
    )
    if not arms:
        raise ValueError(f"{where}: 'arms' is empty; a study has at least one")
    seeds = tuple(int(seed) for seed in typed(manifest, "seeds", list, where, required=True) or [])
    missing: list[str] = []
    jobs = tuple(_jobs(folder, manifest, where, missing))
    by_id = {job.id: job for job in jobs}
    needs = {str(entry["id"]): tuple(map(str, entry.get("after") or ())) for entry in manifest["jobs"]}
    if problems := list(mixed(folder, needs)):
        raise ValueError("; ".join(problems))
    evaluations: dict[tuple[str, int], Evaluation] = {}
    for entry in typed(manifest, "evaluations", list, where, required=True) or []:
        arm, seed = str(typed(entry, "arm", str, where, required=True)), typed(entry, "seed", int, where)
        job = by_id.get(str(entry.get("job")))
        if job is None:
            raise ValueError(
                f"{where}: the evaluation of {arm}, seed {seed} names the unknown job {entry.get('job')!r}"
            )
        if job.seconds is not None:
            evaluations[arm, int(seed or 0)] = _evaluation(folder, arm, int(seed or 0), job)
    _same_rows(list(evaluations.values()))
    curves = {
        job.id: read_curves(folder / "jobs" / job.id) for job in jobs if job.kind == "train" and job.seconds is not None
    }
    return Study(folder, manifest, arms, seeds, jobs, evaluations, curves, tuple(missing))


def _jobs(folder: Path, manifest: Mapping[str, Any], where: str, missing: list[str]) -> Iterator[Job]:
    inside = (folder / "jobs").resolve()
    for entry in typed(manifest, "jobs", list, where, required=True) or []:
        name = str(typed(entry, "id", str, where, required=True))
        place = (inside / name).resolve()
        if place == inside or not place.is_relative_to(inside):
            raise ValueError(f"{where}: the job id {name!r} is no folder below {inside}")
        done = place / "done.json"
        seconds: float | None = None
        ran: Mapping[str, Any] = {}
        if done.is_file():
            left = read_object(done, "")
            # As the runner sees it: what another configuration left is no result of this study.
            if entry.get("config_sha256") in {None, left.get("config_sha256")}:
                seconds = float(typed(left, "seconds", (int, float), str(done)) or 0.0)
                ran = typed(left, "ran", dict, str(done)) or {}
        job = Job(
            id=name,
            kind=str(entry.get("kind", "")),
            stage=str(entry.get("stage") or ""),
            arms=tuple(map(str, typed(entry, "arms", list, where) or [])),
            seed=int(typed(entry, "seed", int, where) or 0),
            command=tuple(map(str, typed(entry, "command", list, where) or [])),
            seconds=seconds,
            ran=ran,
        )
        if seconds is None:
            missing.append(f"job {job.id} ({job.kind}, seed {job.seed}, of {', '.join(job.arms)}) has not ended")
        yield job


def _evaluation(folder: Path, arm: str, seed: int, job: Job) -> Evaluation:
    place = folder / "jobs" / job.id
    found = read_responses(place)
    counts: Counter[tuple[str, str]] = Counter()
    rows: dict[Key, ScoredResponse] = {}
    for response in found:
        name = response.set, response.id
        rows[*name, counts[name]] = response
        counts[name] += 1
    config, nll = saved_config(place), place / "perplexity.jsonl"
    path = config_value(config, "model.init_args.backbone.path")
    return Evaluation(
        arm=arm,
        seed=seed,
        job=job.id,
        rows=rows,
        nll=read_nll(nll) if nll.is_file() else {},
        image_root=_image_root(config, job),
        model=path if isinstance(path, str) else None,
    )


def _image_root(config: Any, job: Job) -> Path | None:
    """From the command's words, else from the configuration that the job saved."""
    flag = next((word for word in reversed(job.command) if "image_root=" in word and word.startswith("--data.")), None)
    root = config_value(config, "data.init_args.image_root") if flag is None else flag.partition("=")[2]
    return Path(root) if isinstance(root, str) and root else None


def _same_rows(evaluations: Sequence[Evaluation]) -> None:
    """Refuses evaluations that did not answer the same rows."""
    for other in evaluations[1:]:
        first = evaluations[0]
        for one, two in ((first, other), (other, first)):
            extra = [key for key in one.rows if key not in two.rows]
            if extra:
                shown = ", ".join(f"{key[0]}/{key[1]}"[:80] for key in extra[:_SHOWN])
                raise ValueError(
                    f"jobs {one.job} ({one.arm}, seed {one.seed}) and {two.job} ({two.arm}, seed {two.seed}) did not "
                    f"answer the same rows: {len(extra)} are only in the first ({shown!r}...); paired comparisons need "
                    "the same test rows in all arms: remove the done.json of both and run the study again"
                )
        for name, words in _ASKED.items():
            changed = [key for key, row in first.rows.items() if getattr(other.rows[key], name) != getattr(row, name)]
            if changed:
                raise ValueError(
                    f"jobs {first.job} and {other.job} have different {words} of the row {changed[0][1]!r}; the test "
                    "file changed between them: remove the done.json of both and run the study again"
                )
