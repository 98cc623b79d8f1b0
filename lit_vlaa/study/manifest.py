"""`manifest.json`: what a study is made of, so that its report can be checked and its folder is never mixed up."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from lit_vlaa.checks import UsageError
from lit_vlaa.study import circumstances
from lit_vlaa.study.arms import RESOLVED, Variants, flatten
from lit_vlaa.study.config import StudyFile
from lit_vlaa.study.matching import differing, shown
from lit_vlaa.study.plan import Plan

NAME = "manifest.json"
FORMAT = 1

_WORDING = ("name", "description", "claims", "output_dir", "prepare")
"""Parts of a study file that no job's result depends on."""

_OWN = {".study.lock", "prepare.log", RESOLVED, "slurm"}
"""What a study's folder may hold before it has a manifest."""

_SHOWN_KEYS = 8


def compose(
    study: StudyFile,
    matched: Mapping[str, Any],
    data: Mapping[str, Any],
    plan: Plan,
    *,
    overlap: Mapping[str, Any],
    earlier: Mapping[str, Any] | None,
) -> dict[str, Any]:
    """The manifest of a study; code, packages and machine are those that it was begun with."""
    here = earlier or {
        "code": circumstances.code(),
        "packages": circumstances.packages(),
        "machine": circumstances.machine(),
    }
    kept = {key: here[key] for key in ("code", "packages", "machine", "other_code") if key in here}
    return {
        "format": FORMAT,
        "name": study.name,
        "description": study.description,
        "config": dict(study.text),
        **kept,
        "data": dict(data),
        "overlap": dict(overlap),
        "seeds": list(study.seeds),
        "arms": {
            arm.name: {
                "steps": list(arm.steps),
                "title": arm.title,
                "differs": {
                    f"{stage}.{key}": difference.reason
                    for stage, declared in arm.differs.items()
                    for key, difference in declared.items()
                },
            }
            for arm in study.arms.values()
        },
        "matched": dict(matched),
        "jobs": [
            {
                "id": job.id,
                "kind": job.kind,
                "stage": job.stage,
                "arms": list(job.arms),
                "seed": job.seed,
                "after": list(job.after),
                "command": list(job.command),
                "config_sha256": job.config_sha256,
            }
            for job in plan.jobs
        ],
        "evaluations": [{"arm": arm, "seed": seed, "job": job} for arm, seed, job in plan.evaluations],
    }


def read(folder: Path) -> dict[str, Any] | None:
    """The manifest of a folder, None where there is none yet.

    Raises:
        UsageError: If there is something else.
    """
    path = folder / NAME
    if not path.exists():
        if folder.is_dir() and (strangers := sorted({entry.name for entry in folder.iterdir()} - _OWN)):
            raise UsageError([f"{folder} holds {strangers[0]} but no study; give another --output_dir"])
        return None
    try:
        found: Any = json.loads(path.read_text(encoding="utf-8"))
        if found["format"] != FORMAT:
            raise UsageError([f"{path} has format {found['format']}, not {FORMAT}; give another --output_dir"])
        known: dict[str, Any] = {**found, "jobs": [{**job, "id": job["id"]} for job in found["jobs"]]}
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise UsageError([f"{path} is no manifest of a study ({error!r}); give another --output_dir"]) from error
    return known


def refuse_another(
    earlier: Mapping[str, Any], study: StudyFile, variants: Variants, data: Mapping[str, Any], plan: Plan
) -> None:
    """Holds a folder to the study that it was begun with; more arms and seeds, and other words, are fine.

    Raises:
        UsageError: If a job of the folder would have another result now; names what has changed.
    """
    now = {job.id: job.config_sha256 for job in plan.jobs}
    if all(now.get(job["id"]) == job.get("config_sha256") for job in earlier["jobs"]):
        return
    remedy = f"undo this, or give another --output_dir than {study.output_dir}"
    changes = list(_changes(earlier, study, variants, data))
    gone = [job["id"] for job in earlier["jobs"] if job["id"] not in now]
    if gone:
        changes.append(f"jobs are gone: {', '.join(gone[:_SHOWN_KEYS])}")
    changes = changes or ["the jobs' configuration"]
    more = [f"and {len(changes) - _SHOWN_KEYS} more"] if len(changes) > _SHOWN_KEYS else []
    raise UsageError(
        [f"{study.output_dir} was begun with another study: {change}; {remedy}" for change in changes[:_SHOWN_KEYS]]
        + more
    )


def _changes(
    earlier: Mapping[str, Any], study: StudyFile, variants: Variants, data: Mapping[str, Any]
) -> Iterator[str]:
    for path, entry in earlier.get("data", {}).items():
        if path in data and data[path]["sha256"] != entry.get("sha256"):
            yield f"the content of {path} has changed"
    before, after = ({k: v for k, v in text.items() if k not in _WORDING} for text in (earlier["config"], study.text))
    for key, (one, two) in differing(flatten(before), flatten(dict(after))).items():
        if not key.endswith((".title", ".reason")):
            yield f"{key} was {shown(one)}, is {shown(two)}"
    for variant in variants.all():
        path = study.output_dir / RESOLVED / f"{variant.name}.yaml"
        if path.is_file():
            known = flatten(yaml.safe_load(path.read_text(encoding="utf-8")))
            for key, (one, two) in differing({k: known[k] for k in known if k in variant.flat}, variant.flat).items():
                yield f"{variant.name}: {key} was {shown(one)}, is {shown(two)}"


def refuse_other_code(earlier: dict[str, Any], *, accept: bool, pending: Iterable[str]) -> None:
    """Holds the jobs that are left to the code that the others ran with.

    Args:
        earlier: The manifest; what is accepted is added to it, under `other_code`.
        accept: Go on with other code.
        pending: Jobs that are left.

    Raises:
        UsageError: If sources or packages have changed, and jobs are left.
    """
    now = {"code": circumstances.code(), "packages": circumstances.packages()}
    known = [earlier, *earlier.get("other_code", [])]
    left = list(pending)
    if not left or any(
        entry["code"].get("sources_sha256") == now["code"]["sources_sha256"] and entry["packages"] == now["packages"]
        for entry in known
    ):
        return
    if not accept:
        packs = [f"{n} {v[0]} -> {v[1]}" for n, v in differing(earlier["packages"], now["packages"]).items()]
        what = ", ".join(packs) or "its sources"
        was = earlier["code"].get("git_commit") or earlier["code"].get("version")
        problem = (
            f"this program has changed ({what}) since the study was begun with {was}: arms would differ in their code"
        )
        remedy = (
            "go back to it, give another --output_dir, or accept it with --other_code, which the manifest then says"
        )
        raise UsageError([f"{problem}; {remedy}"])
    earlier["other_code"] = [*earlier.get("other_code", []), {**now, "first_job": left[0]}]
