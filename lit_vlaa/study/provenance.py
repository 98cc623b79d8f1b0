"""The report's sections on what the study is made of: were the arms matched, and how to do it again."""

from __future__ import annotations

import shlex
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from lit_vlaa.study import circumstances, overlap
from lit_vlaa.study.document import ArmName, Block, Bullets, Cell, Code, Heading, Paragraph, Table
from lit_vlaa.study.findings import Findings
from lit_vlaa.study.job_files import Curve
from lit_vlaa.study.results import Study

_MOST_VALUE = 60
_HASH = 16


def matched(findings: Findings) -> Iterator[Block]:
    """What was compared and found equal, and what differs as declared."""
    manifest = findings.study.manifest
    record = _mapping(manifest.get("matched"))
    yield Heading("Were the arms matched?")
    if not record:
        yield Paragraph("The manifest does not say what was compared.")
    else:
        yield Paragraph(
            "Before anything ran, the resolved configurations of all arms were compared key by key; a difference that "
            "is not declared with its reason stops the study. These are all declared ones."
        )
        yield from _budgets(findings)
        yield from _stages_of_arms(record)
        yield from _stages(record)
        yield from _evaluation(record)
        if own := record.get("set_by_the_runner"):
            yield Paragraph(f"Set by the runner itself: {', '.join(map(str, own))}.", small=True)
    yield Heading("Data, code and machine", 3)
    yield from (Paragraph(line) for line in unlike(findings.study))
    yield from _data(_mapping(manifest.get("data")))
    yield Bullets(tuple(_facts(findings)))


def unlike(study: Study) -> list[str]:
    """What no comparison of configurations can see: tested rows among trained ones, other code or machines."""
    found = list(overlap.lines(study.manifest.get("overlap")))
    for entry in map(_mapping, _sequence(study.manifest.get("other_code"))):
        code = _mapping(entry.get("code"))
        found.append(
            f"From job {entry.get('first_job')} on another program was accepted (--other_code): commit "
            f"{code.get('git_commit') or 'unknown'}, sources {_short(code.get('sources_sha256'))[:_HASH]}…"
        )
    return found + list(circumstances.differences({job.id: job.ran for job in study.jobs}))


def _budgets(findings: Findings) -> Iterator[Block]:
    """How much training each arm had: equal settings are no equal amounts, where one arm has a stage more."""
    study = findings.study
    spent = {one.job.id: one for one in findings.costs}
    rows: list[tuple[Cell, ...]] = []
    for arm in study.arms:
        for stage in dict.fromkeys(arm.steps):
            jobs = [job for seed in study.seeds if (job := study.training(arm, stage, seed)) is not None]
            steps = {_last_step(study.curves[job.id]) for job in jobs if job.id in study.curves}
            tokens = [cost.tokens for job in jobs if (cost := spent.get(job.id)) and cost.tokens is not None]
            mean = round(sum(tokens) / len(tokens)) if tokens else None
            counted = ", ".join(f"{count:,.0f}" for count in sorted(steps)) or "–"
            rows.append((ArmName(arm.name), stage, counted, _count(mean)))
    if rows:
        caption = "What each arm was trained for: optimiser steps, and tokens written or learned from, of one seed"
        yield Table(("arm", "stage", "steps", "tokens"), tuple(rows), caption, left=2)


def _last_step(curves: Mapping[str, Curve]) -> float:
    return max((curve.steps[-1] for curve in curves.values() if curve.steps), default=0.0)


def _stages_of_arms(record: Mapping[str, Any]) -> Iterator[Block]:
    rows: list[tuple[Cell, ...]] = []
    for arm, stages in _mapping(record.get("arms")).items():
        for stage, found in _mapping(stages).items():
            rows.append(
                (str(arm), str(stage), str(_mapping(found).get("equal", "")), _differences(found, ("stage", "arm")))
            )
    if rows:
        caption = "Each arm's stages against the stage as it stands for all arms"
        yield Table(("arm", "stage", "equal keys", "declared differences"), tuple(rows), caption, words=True)


def _stages(record: Mapping[str, Any]) -> Iterator[Block]:
    rows: list[tuple[Cell, ...]] = []
    for found in _sequence(record.get("stages")):
        names = tuple(map(str, _sequence(_mapping(found).get("stages"))))
        only = "; ".join(
            f"{name}: {', '.join(_sections(keys))}"
            for name, keys in _mapping(_mapping(found).get("only")).items()
            if keys
        )
        rows.append(
            (" / ".join(names), str(_mapping(found).get("equal", "")), _differences(found, names), only or "none")
        )
    if rows:
        caption = "The stages against each other: they share every setting that both have, but for those declared"
        head = ("stages", "equal keys", "declared differences", "settings that only one has")
        yield Table(head, tuple(rows), caption, words=True)


def _sections(keys: Any) -> Iterator[str]:
    """Keys by what they belong to: those of one nested setting stand together, with their number."""
    counts = Counter(".".join(str(key).split(".")[:3]) for key in _sequence(keys))
    yield from (name if count == 1 else f"{name} ({count} keys)" for name, count in counts.items())


def _evaluation(record: Mapping[str, Any]) -> Iterator[Block]:
    found = _mapping(record.get("evaluation"))
    rows: list[tuple[Cell, ...]] = [
        (str(stage), str(_mapping(entry).get("equal", "")), _differences(entry, (str(stage), "evaluation")))
        for stage, entry in _mapping(found.get("with_stages")).items()
    ]
    if found:
        yield Paragraph(
            f"One evaluation for all arms: {found.get('same_for_all_arms', 'all')} keys, the same for each."
        )
    if rows:
        caption = "The evaluation against training: what the model is shown and how it is scored"
        yield Table(("stage", "equal keys", "declared differences"), tuple(rows), caption, words=True)


def _differences(found: Any, names: Sequence[str]) -> str:
    """Declared differences in one cell."""
    parts = []
    for row in map(_mapping, _sequence(_mapping(found).get("differs"))):
        values = " / ".join(_short(row.get(name)) for name in names)
        parts.append(f"{row.get('key')}: {values} ({row.get('reason')})")
    return ";\n".join(parts) or "none"


def _data(data: Mapping[str, Any]) -> Iterator[Block]:
    rows: list[tuple[Cell, ...]] = []
    for path, entry in data.items():
        known = _mapping(entry)
        digest = str(known.get("sha256") or "absent")
        rows.append(
            (
                str(path),
                digest if digest == "absent" else f"{digest[:_HASH]}…",
                *(_count(known.get(k)) for k in ("rows", "bytes")),
            )
        )
    if rows:
        yield Table(("data file", "SHA-256", "rows", "bytes"), tuple(rows), left=2)


def _facts(findings: Findings) -> Iterator[str]:
    manifest = findings.study.manifest
    code = _mapping(manifest.get("code"))
    if code:
        changed = ", with changes that are not committed" if code.get("git_dirty") is True else ""
        yield f"lit-vlaa {code.get('version')}, commit {code.get('git_commit') or 'unknown'}{changed}"
    yield f"Seeds: {', '.join(map(str, findings.study.seeds))}"
    if packages := _mapping(manifest.get("packages")):
        yield f"Packages: {', '.join(f'{name} {version}' for name, version in packages.items())}"
    machine = {key: value for key, value in _mapping(manifest.get("machine")).items() if value not in (None, [], "")}
    if machine:
        yield f"Machine: {', '.join(f'{key} {_short(value)}' for key, value in machine.items())}"


def reproduce(findings: Findings) -> Iterator[Block]:
    """The commands that make the study again."""
    import yaml  # noqa: PLC0415 (only reports need it)

    study = findings.study
    yield Heading("How to reproduce")
    yield Paragraph("Save the study file below as study.yaml, in a checkout of the commit named above, and run:")
    folder = str(study.config.get("output_dir") or study.folder.name)
    yield Code(f"lit-vlaa study run --config study.yaml\nlit-vlaa study report {shlex.quote(folder)}")
    yield Heading("Study file", 3)
    yield Code(yaml.safe_dump(_plain(study.config), sort_keys=False, allow_unicode=True, width=100).rstrip())
    seed = study.seeds[0] if study.seeds else None
    yield Heading("Commands of the first seed", 3)
    yield Code("\n".join(shlex.join(["lit-vlaa", *job.command]) for job in study.jobs if job.seed == seed))


def _plain(value: Any) -> Any:
    """Only what YAML's safe writer knows."""
    match value:
        case Mapping():
            return {str(key): _plain(one) for key, one in value.items()}
        case list() | tuple():
            return [_plain(one) for one in value]
        case str() | int() | float() | bool() | None:
            return value
        case _:
            return str(value)


def _short(value: Any) -> str:
    text = value if isinstance(value, str) else ", ".join(map(str, value)) if isinstance(value, list) else str(value)
    return text if len(text) <= _MOST_VALUE else f"{text[: _MOST_VALUE - 1]}…"


def _count(value: Any) -> str:
    return f"{value:,}" if isinstance(value, int) else "–"


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _sequence(value: Any) -> Sequence[Any]:
    return value if isinstance(value, (list, tuple)) else ()
