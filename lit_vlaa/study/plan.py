"""The jobs of a study: which there are, what each needs, and which arms share them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from lit_vlaa.checks import UsageError
from lit_vlaa.hints import meant
from lit_vlaa.study.arms import EVALUATION, RESOLVED, START, Variant, Variants
from lit_vlaa.study.config import StudyFile

TRAIN, EVALUATE, PERPLEXITY = "train", "evaluate", "perplexity"
FINAL = "final.ckpt"
"""Name of the link to the checkpoint that a train job ended with; so commands are known before it is there."""


@dataclass(frozen=True, slots=True)
class Job:
    """One command of the study."""

    id: str
    kind: str
    stage: str
    variant: str
    """Whose configuration it has."""
    arms: tuple[str, ...]
    """Arms that use it."""
    seed: int
    after: tuple[str, ...]
    """Jobs whose results it needs."""
    command: tuple[str, ...]
    """Words after `lit-vlaa`."""
    config_sha256: str
    """Of what decides its result: its configuration, seed, data, and the same of the jobs that it needs."""


def refuse_unknown(
    seeds: Sequence[int] | None, arms: Sequence[str] | None, *, known_seeds: Sequence[int], known_arms: Sequence[str]
) -> None:
    """Looks at what `--seeds` and `--arms` name.

    Raises:
        UsageError: If an arm or a seed is not in the study.
    """
    for seed in seeds or ():
        if seed not in known_seeds:
            raise UsageError([f"--seeds {seed}: the study has seeds {', '.join(map(str, known_seeds))}"])
    for arm in arms or ():
        if arm not in known_arms:
            raise UsageError([f"--arms {arm}: there is no such arm; {meant(arm, known_arms)}"])


@dataclass(frozen=True, slots=True)
class Plan:
    """All jobs, each after those that it needs."""

    jobs: tuple[Job, ...]
    evaluations: tuple[tuple[str, int, str], ...]
    """Arm, seed and job."""

    def job(self, name: str) -> Job:
        """The job of this id.

        Raises:
            UsageError: If there is none.
        """
        for job in self.jobs:
            if job.id == name:
                return job
        raise UsageError([f"--job {name}: there is no such job; {meant(name, [job.id for job in self.jobs])}"])

    def select(self, seeds: Sequence[int] | None, arms: Sequence[str] | None) -> tuple[Job, ...]:
        """The jobs that some arms and seeds need, with the start; None for all.

        Raises:
            UsageError: If an arm or a seed is not in the study.
        """
        known_seeds = list(dict.fromkeys(seed for _, seed, _ in self.evaluations))
        known_arms = list(dict.fromkeys(arm for arm, _, _ in self.evaluations))
        refuse_unknown(seeds, arms, known_seeds=known_seeds, known_arms=known_arms)
        return tuple(
            job
            for job in self.jobs
            if job.stage == START
            or ((seeds is None or job.seed in seeds) and (arms is None or not set(arms).isdisjoint(job.arms)))
        )

    def levels(self) -> list[list[Job]]:
        """Jobs by how many jobs must come one after the other before them."""
        depth: dict[str, int] = {}
        levels: list[list[Job]] = []
        for job in self.jobs:
            depth[job.id] = 1 + max((depth[name] for name in job.after), default=-1)
            levels += [[] for _ in range(depth[job.id] + 1 - len(levels))]
            levels[depth[job.id]].append(job)
        return levels


def build(study: StudyFile, variants: Variants, data: Mapping[str, Any]) -> Plan:
    """Lays out the jobs: seed by seed, arm by arm, so that whole comparisons come early.

    Args:
        study: The study file.
        variants: Its commands.
        data: What identifies the content of each data file, by path.

    Raises:
        UsageError: If two arms are the same, or two jobs would have one name.
    """
    return _Planner(study, variants, data).plan()


def digest(content: Any) -> str:
    """A SHA-256 of what JSON can hold."""
    text = json.dumps(content, sort_keys=True, ensure_ascii=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()


class _Planner:
    def __init__(self, study: StudyFile, variants: Variants, data: Mapping[str, Any]) -> None:
        self.study, self.variants, self.data = study, variants, data
        self.jobs: dict[str, Job] = {}
        """By what decides the result."""

    def plan(self) -> Plan:
        self._refuse_twins()
        start = None
        if self.variants.start is not None:
            start = self._train(START, self.variants.start, self.study.start_seed, None, tuple(self.study.arms))
        evaluations = [(arm, seed, self._arm(arm, seed, start)) for seed in self.study.seeds for arm in self.study.arms]
        jobs = tuple(self.jobs.values())
        names = [job.id for job in jobs]
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise UsageError(
                [f"{self.study.path}: arms: two jobs would be called {twice[0]}; rename an arm or a stage"]
            )
        return Plan(jobs, tuple(evaluations))

    def _refuse_twins(self) -> None:
        seen: dict[str, str] = {}
        for arm in self.study.arms.values():
            chain = digest([self.variants.of(arm.name, stage).flat for stage in arm.steps])
            if chain in seen:
                raise UsageError([f"{self.study.path}: arms {seen[chain]} and {arm.name} are the same; take one out"])
            seen[chain] = arm.name

    def _arm(self, arm: str, seed: int, start: Job | None) -> str:
        """Adds an arm's jobs, as far as no earlier arm has them; gives the one that evaluates it."""
        last = start
        steps = self.study.arms[arm].steps
        for place, stage in enumerate(steps):
            again = steps[:place].count(stage)
            name = f"seed{seed}-{arm}-{stage}" + (f"-{again + 1}" if again else "")
            last = self._train(name, self.variants.of(arm, stage), seed, last, (arm,))
        evaluation = self._add(
            Job(
                id=f"seed{seed}-{arm}-test",
                kind=EVALUATE,
                stage="test",
                variant=EVALUATION,
                arms=(arm,),
                seed=seed,
                after=() if last is None else (last.id,),
                command=self._evaluation_words(f"seed{seed}-{arm}-test", seed, last),
                config_sha256=self._identity(self.variants.evaluation, seed, last),
            )
        )
        if self.study.perplexity:
            self._perplexity(f"seed{seed}-{arm}-perplexity", arm, evaluation, start)
        return evaluation.id

    def _train(self, name: str, variant: Variant, seed: int, before: Job | None, arms: tuple[str, ...]) -> Job:
        return self._add(
            Job(
                id=name,
                kind=TRAIN,
                stage=variant.stage,
                variant=variant.name,
                arms=arms,
                seed=seed,
                after=() if before is None else (before.id,),
                command=(*self._words(variant, name, seed, before), "--ckpt_path=last"),
                config_sha256=self._identity(variant, seed, before),
            )
        )

    def _perplexity(self, name: str, arm: str, evaluation: Job, start: Job | None) -> None:
        folder = self._folder(evaluation.id)
        words = [
            "study",
            "perplexity",
            f"--config={self.study.output_dir / RESOLVED / EVALUATION}.yaml",
            *([] if start is None else [f"--init_from={self._folder(start.id) / FINAL}"]),
            f"--responses={folder / 'responses.jsonl'}",
            f"--output={folder / 'perplexity.jsonl'}",
        ]
        self._add(
            Job(
                id=name,
                kind=PERPLEXITY,
                stage=PERPLEXITY,
                variant=EVALUATION,
                arms=(arm,),
                seed=evaluation.seed,
                after=(evaluation.id, *([] if start is None else [start.id])),
                command=tuple(words),
                config_sha256=digest([PERPLEXITY, evaluation.config_sha256, start and start.config_sha256]),
            )
        )

    def _add(self, job: Job) -> Job:
        """Adds a job, or the arm to the job that does the same."""
        known = self.jobs.get(job.config_sha256)
        if known is not None:
            job = replace(known, arms=tuple(dict.fromkeys((*known.arms, *job.arms))))
        self.jobs[job.config_sha256] = job
        return job

    def _words(self, variant: Variant, name: str, seed: int, before: Job | None) -> tuple[str, ...]:
        return (
            *variant.words,
            f"--seed_everything={seed}",
            *([f"--data.init_args.seed={seed}"] if variant.seeded_data else []),
            f"--trainer.default_root_dir={self._folder(name)}",
            *([] if before is None else [f"--model.init_args.init_from={self._folder(before.id) / FINAL}"]),
        )

    def _evaluation_words(self, name: str, seed: int, before: Job | None) -> tuple[str, ...]:
        """Those of a test; the callback that writes responses is the last flag of the variant, if it is there."""
        words = self._words(self.variants.evaluation, name, seed, before)
        place = len(self.variants.evaluation.words)
        responses = f"--trainer.callbacks.path={self._folder(name) / 'responses.jsonl'}"
        return (*words[:place], *([responses] if self.variants.evaluation.data_files() else []), *words[place:])

    def _identity(self, variant: Variant, seed: int, before: Job | None) -> str:
        files = {path: self.data.get(path) for path in variant.data_files()}
        files |= {path: self.data[path] for path in variant.other_inputs() if path in self.data}
        return digest([variant.words[0], variant.flat, seed, files, before and before.config_sha256])

    def _folder(self, name: str) -> Path:
        return self.study.output_dir / "jobs" / name
