"""A study's plan as text."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from lit_vlaa.study.arms import EVALUATION
from lit_vlaa.study.inputs import hash_data
from lit_vlaa.study.matching import shown
from lit_vlaa.study.outcome import is_done
from lit_vlaa.study.plan import Job
from lit_vlaa.study.runner import Prepared


def overview(prepared: Prepared, *, seeds: Sequence[int] | None = None, arms: Sequence[str] | None = None) -> str:
    """Data, what differs, jobs and commands of a study.

    Args:
        prepared: The study.
        seeds: Only the jobs of these; None for all.
        arms: Only the jobs of these; None for all.

    Raises:
        UsageError: If an arm or a seed is not in the study.
    """
    study = prepared.study
    data = hash_data(prepared.variants, study)
    plan = prepared.plan(data)
    jobs = plan.select(seeds, arms)
    lines = [f"study {study.name}, in {study.output_dir}", "", "data:"]
    for path, entry in data.items():
        count = f"{entry['files']} files" if "files" in entry else f"{entry['rows']} rows"
        known = f"{count}, sha256 {str(entry['sha256'])[:12]}" if entry["sha256"] else "absent"
        lines.append(f"  {path}: {known}")
    lines += ["", "matched:", *(f"  {line}" for line in _matched(prepared.matched)), "", "jobs:"]
    lines += [f"  {line}" for line in _table(jobs, {job.id for job in jobs if is_done(study.output_dir, job)})]
    lines += ["", f"{len(jobs)} of {len(plan.jobs)} jobs", "", "commands:"]
    lines += [f"  prepare: {shlex.join(['lit-vlaa', *words])}" for words in study.prepare]
    lines += [f"  {job.id}: {shlex.join(['lit-vlaa', *job.command])}" for job in jobs]
    return "\n".join(lines) + "\n"


def _table(jobs: Sequence[Job], done: set[str]) -> list[str]:
    rows = [("job", "kind", "seed", "after", "arms", "")]
    rows += [
        (job.id, job.kind, str(job.seed), ", ".join(job.after) or "-", ", ".join(job.arms), "done" * (job.id in done))
        for job in jobs
    ]
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]


def _matched(matched: Mapping[str, Any]) -> Iterator[str]:
    """What was found equal and what differs as declared, one line a key."""
    for arm, stages in matched["arms"].items():
        for stage, record in stages.items():
            yield f"arm {arm}, {stage}: {record['equal']} keys as in the stage, {len(record['differs'])} declared"
            for row in record["differs"]:
                yield f"  {row['key']}: {shown(row['arm'])} instead of {shown(row['stage'])} ({row['reason']})"
    for record in matched["stages"]:
        first, second = record["stages"]
        yield f"{first} and {second}: {record['equal']} keys equal, {len(record['differs'])} declared"
        for row in record["differs"]:
            yield f"  {row['key']}: {shown(row[first])} and {shown(row[second])} ({row['reason']})"
    yield f"evaluation: {matched['evaluation']['same_for_all_arms']} keys the same for all arms"
    for stage, record in matched["evaluation"]["with_stages"].items():
        yield f"  as in {stage}: {record['equal']} of the keys of prompt, images, backbone and reward"
        for row in record["differs"]:
            yield f"  {row['key']}: {shown(row[stage])} in {stage}, {shown(row[EVALUATION])} here ({row['reason']})"
