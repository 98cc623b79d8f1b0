"""Runs a study: jobs one after the other, or one of them; goes on where it was interrupted."""

from __future__ import annotations

import shlex
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lit_vlaa.checks import RunStoppedError, UsageError
from lit_vlaa.study import manifest as manifests
from lit_vlaa.study.arms import RESOLVED, Resolve, Variants, build, resolve, write_resolved
from lit_vlaa.study.config import StudyFile
from lit_vlaa.study.inputs import absent, hash_data
from lit_vlaa.study.job_files import write_json
from lit_vlaa.study.launching import Interrupted, Launch, Processes
from lit_vlaa.study.locks import locked, share
from lit_vlaa.study.matching import check
from lit_vlaa.study.origins import note_begin, refuse_mixed
from lit_vlaa.study.outcome import finish, is_done, keep_seconds, log_end, seconds_of, seconds_so_far
from lit_vlaa.study.overlap import overlaps
from lit_vlaa.study.plan import Job, Plan, refuse_unknown
from lit_vlaa.study.plan import build as build_plan

PREPARE, REPORT = "prepare", "report"
"""Ids, beside those of jobs, that `--job` takes: making the data, and writing the report."""


@dataclass(frozen=True)
class Prepared:
    """A study that was read, resolved and found matched."""

    study: StudyFile
    variants: Variants
    matched: Mapping[str, Any]

    def plan(self, data: Mapping[str, Mapping[str, Any]]) -> Plan:
        """Its jobs."""
        return build_plan(self.study, self.variants, {path: entry["sha256"] for path, entry in data.items()})


def look(study: StudyFile, resolver: Resolve = resolve) -> Prepared:
    """Resolves a study's commands and compares them.

    Raises:
        UsageError: If one cannot work, or arms are not matched.
    """
    variants = build(study, resolver)
    return Prepared(study, variants, check(study, variants))


class Runner:
    """One run of a study.

    Args:
        prepared: The study.
        launch: What runs commands; None takes processes.
        other_code: Go on though this program has changed.
        command: Words after `lit-vlaa` by which this run can be repeated.
    """

    def __init__(
        self, prepared: Prepared, *, launch: Launch | None = None, other_code: bool = False, command: Sequence[str] = ()
    ) -> None:
        self.study = prepared.study
        self.folder = prepared.study.output_dir
        self._prepared = prepared
        self._launch = launch or Processes(fork=prepared.variants.one_process)
        self._other_code = other_code
        self._command = command
        self._times = _Times()
        self._begun: dict[str, Any] = {}
        """The manifest."""
        self._plan = Plan((), ())
        self._variants = {variant.name: variant for variant in prepared.variants.all()}

    def all(self, *, seeds: Sequence[int] | None = None, arms: Sequence[str] | None = None) -> None:
        """Runs what is left of the study, or of some seeds and arms; writes the report after the last job.

        Raises:
            UsageError: If there is no such arm or seed, the folder holds another study, or another process runs it.
            RunStoppedError: If a job fails, or the run is told to stop.
        """
        refuse_unknown(seeds, arms, known_seeds=self.study.seeds, known_arms=tuple(self.study.arms))
        with locked(self.folder / ".study.lock", f"the study in {self.folder}"):
            manifests.read(self.folder)
            self._prepare(again=False)
            plan = self._begin()
            chosen = plan.select(seeds, arms)
            done = {job.id for job in plan.jobs if is_done(self.folder, job)}
            for job in plan.jobs:
                if job.id in done:
                    self._times.note(job, seconds_of(self.folder, job))
            left = [job for job in chosen if job.id not in done]
            if len(chosen) > len(left):
                _say(f"{len(chosen) - len(left)} of {len(chosen)} jobs are done already")
            for place, job in enumerate(left):
                number = len(chosen) - len(left) + place + 1
                _say(f"\n[{number}/{len(chosen)}] {_title(job)}; {self._times.line(left[place:])}")
                self._run(job)
            unfinished = [job for job in plan.jobs if not is_done(self.folder, job)]
            if unfinished:
                _say(f"{len(unfinished)} jobs of other arms and seeds are left; the report comes after the last")
            else:
                self._report()

    def one(self, name: str) -> None:
        """Runs one job, as a job array does.

        Raises:
            UsageError: If there is no such job, or jobs that it needs have not ended.
            RunStoppedError: If it fails, or is told to stop.
        """
        # Data must not be made anew below jobs that read them.
        with locked(self.folder / ".study.lock", f"the study in {self.folder}", shared=name != PREPARE):
            if name == PREPARE:
                self._prepare(again=True)
                self._begin()
                return
            plan = self._begin()
            if name == REPORT:
                self._refuse_unfinished("the report", plan, [job.id for job in plan.jobs])
                self._report()
                return
            job = plan.job(name)
            self._refuse_unfinished(f"--job {name}", plan, job.after)
            if is_done(self.folder, job):
                _say(f"{name} is done already")
                return
            _say(_title(job))
            self._run(job)

    def _prepare(self, *, again: bool) -> None:
        """Makes the data, unless they are there and the study has begun with the same commands."""
        earlier = manifests.read(self.folder)
        needed = again or earlier is None or earlier["config"].get("prepare") != self.study.text.get("prepare")
        if not needed:
            files = {path for variant in self._prepared.variants.used(self.study) for path in variant.data_files()}
            needed = not all(Path(path).is_file() for path in files)
        for words in self.study.prepare if needed else ():
            _say(f"\n[prepare] {_shown(words)}")
            log = self.folder / "prepare.log"
            if code := self._guarded(words, log, None, None):
                raise RunStoppedError(self._failure("a command of prepare", words, log, code))

    def _begin(self) -> Plan:
        """Hashes the data, holds the folder to its study, and writes the manifest."""
        data = hash_data(self._prepared.variants, self.study)
        if missing := absent(data):
            remedy = (
                f"run `{_shown([*self._command, '--job', PREPARE])}` first" if self.study.prepare else "put them there"
            )
            raise UsageError([f"data are not there: {', '.join(missing)}, seen from {Path.cwd()}; {remedy}"])
        plan = self._prepared.plan(data)
        earlier = manifests.read(self.folder)
        if earlier is not None:
            manifests.refuse_another(earlier, self.study, self._prepared.variants, data, plan)
            left = [job.id for job in plan.jobs if not is_done(self.folder, job)]
            manifests.refuse_other_code(earlier, accept=self._other_code, pending=left)
        for variant in self._prepared.variants.all():
            write_resolved(variant, self.folder / RESOLVED)
        shared = overlaps(self._prepared.variants, self.study, data, earlier)
        content = manifests.compose(self.study, self._prepared.matched, data, plan, overlap=shared, earlier=earlier)
        write_json(self.folder / manifests.NAME, content)
        self._begun, self._plan = content, plan
        refuse_mixed(self.folder, plan)
        return plan

    def _refuse_unfinished(self, what: str, plan: Plan, names: Sequence[str]) -> None:
        waiting = [name for name in names if not is_done(self.folder, plan.job(name))]
        if waiting:
            raise UsageError([f"{what} needs jobs that have not ended: {', '.join(waiting)}; run them first"])

    def _run(self, job: Job) -> None:
        place = self.folder / "jobs" / job.id
        lock = place / ".lock"
        _say(_shown(job.command))
        started = time.perf_counter()
        with locked(lock, f"job {job.id}") as handle:
            share(handle, lock, f"job {job.id}")
            # The program may have changed since this run began, if that was days ago.
            manifests.refuse_other_code(self._begun, accept=self._other_code, pending=[job.id])
            note_begin(self.folder, job)
            code = self._guarded(job.command, place / "log.txt", lock, handle)
            if code:
                raise RunStoppedError(self._failure(f"job {job.id}", job.command, place / "log.txt", code))
            seconds = time.perf_counter() - started + seconds_so_far(place)
            finish(self.folder, job, self._variants[job.variant], seconds)
        refuse_mixed(self.folder, self._plan)
        self._times.note(job, seconds)

    def _guarded(self, words: Sequence[str], log: Path, lock: Path | None, handle: int | None) -> int:
        started = time.perf_counter()
        try:
            return self._launch(words, log=log, lock=lock, handle=handle)
        except Interrupted as stop:
            if lock is not None:
                keep_seconds(lock.parent, time.perf_counter() - started + seconds_so_far(lock.parent))
            how = f"told to by signal {stop.number}; go on with: {_shown(self._command)}"
            raise StudyInterruptedError(how, 128 + stop.number) from stop

    def _failure(self, what: str, words: Sequence[str], log: Path, code: int) -> str:
        how = f"was ended by signal {-code}" if code < 0 else f"ended with code {code}"
        return "\n".join(
            [
                f"{what} {how}; the end of {log}:",
                *(f"  | {line}" for line in log_end(log)),
                f"repeat it alone with: {_shown(words)}",
                f"go on with the study with: {_shown(self._command)}",
            ]
        )

    def _report(self) -> None:
        from lit_vlaa.study.report import write_report  # noqa: PLC0415  # needs matplotlib, which a run does not

        try:
            page = write_report(self.folder)
        except (ValueError, OSError) as error:
            raise RunStoppedError(f"all jobs have ended, but there is no report: {error}") from error
        _say(f"\nreport: {page}")


class StudyInterruptedError(RunStoppedError):
    """The study was told to stop by a signal.

    Args:
        message: Says how to go on.
        code: The exit code.
    """

    def __init__(self, message: str, code: int) -> None:
        super().__init__(message)
        self.code = code


class _Times:
    """How long jobs took, and how long those that are left may take."""

    def __init__(self) -> None:
        self._began = time.perf_counter()
        self._known: dict[tuple[str, str], list[float]] = {}

    def note(self, job: Job, seconds: float) -> None:
        """A job has ended."""
        self._known.setdefault((job.kind, job.stage), []).append(seconds)

    def line(self, left: Sequence[Job]) -> str:
        """The time taken by this run and, once each kind of job has been seen, the time that is left."""
        elapsed = f"{_clock(time.perf_counter() - self._began)} so far"
        kinds = [self._known.get((job.kind, job.stage)) for job in left]
        means = [sum(seconds) / len(seconds) for seconds in kinds if seconds]
        if not means:
            return elapsed
        unknown = len(kinds) - len(means)
        return f"{elapsed}, about {_clock(sum(means))} left" + (f" for all but {unknown} jobs" if unknown else "")


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02} min" if hours else f"{minutes} min {rest:02} s" if minutes else f"{rest} s"


def _title(job: Job) -> str:
    what = {"train": job.stage, "evaluate": "evaluation", "perplexity": "perplexity"}[job.kind]
    return f"{what}, seed {job.seed} ({', '.join(job.arms)})"


def _shown(words: Sequence[str]) -> str:
    return shlex.join(["lit-vlaa", *words])


def _say(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()
