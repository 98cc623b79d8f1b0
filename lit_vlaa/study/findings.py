"""All numbers of a report, computed once; `report.json` is made of them, and so are tables and pictures."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

from lit_vlaa.study.claims import ClaimOptions, read_options
from lit_vlaa.study.contrasts import Absent, Contrast, Contrasts
from lit_vlaa.study.job_files import Curve
from lit_vlaa.study.pictures import Line
from lit_vlaa.study.quantities import Quantity
from lit_vlaa.study.responses import ScoredResponse
from lit_vlaa.study.results import Job, Study
from lit_vlaa.study.statistics import as_plain, holm
from lit_vlaa.study.tables import aggregate, measured
from lit_vlaa.study.verdicts import Judged, judge

REWARD, LENGTH, LOSS = "reward/mean", "rollout/length", "train/loss"
_SMOOTHING = 20
"""Curves are running means over this part of their points."""


@dataclass(frozen=True, slots=True)
class Scored:
    """One arm's mean and that of each of its seeds."""

    arm: str
    contrast: Contrast
    by_seed: dict[int, float]


@dataclass(frozen=True, slots=True)
class Pair:
    """Two arms on the same rows."""

    first: str
    second: str
    contrast: Contrast
    adjusted: float | None
    """p-value after Holm's correction for all pairs."""


@dataclass(frozen=True, slots=True)
class Cost:
    """What one job took."""

    job: Job
    tokens: int | None
    """Generated or trained on, to three digits; None where the logs do not tell."""


@dataclass(frozen=True, slots=True)
class Findings:
    """Everything that a study's responses and logs say."""

    study: Study
    contrasts: Contrasts
    options: ClaimOptions
    arms: tuple[str, ...]
    """In the order of the study."""
    evaluated: tuple[str, ...]
    claims: tuple[Judged, ...]
    scores: tuple[Scored, ...]
    lengths: tuple[Scored, ...]
    groups: dict[str, dict[str, dict[str, Contrast]]]
    """Scores by `set`, `kind` or `source`, then its value, then arm; only what splits the rows."""
    pairs: tuple[Pair, ...]
    curves: dict[str, list[Line]]
    """By name of the logged number."""
    traces: dict[str, Any]
    """Of `tables.aggregate`, over all seeds."""
    costs: tuple[Cost, ...]


def find(study: Study) -> Findings:
    """Computes everything.

    Raises:
        ValueError: If the study's section `claims` cannot be read, or names rows that are not there.
    """
    options = read_options(study.config.get("claims"))
    contrasts = Contrasts(study, options.sets)
    arms = tuple(arm.name for arm in study.arms)
    evaluated = tuple(arm for arm in arms if study.seeds_of(arm))
    return Findings(
        study=study,
        contrasts=contrasts,
        options=options,
        arms=arms,
        evaluated=evaluated,
        claims=tuple(judge(contrasts, options)),
        scores=tuple(_scored(contrasts, evaluated, "score")),
        lengths=tuple(_scored(contrasts, evaluated, "tokens")),
        groups={name: _groups(contrasts, evaluated, name) for name in _splits(contrasts)},
        pairs=tuple(_pairs(contrasts, evaluated)),
        curves={name: list(_lines(study, name)) for name in (REWARD, LENGTH, LOSS)},
        traces=aggregate(
            {
                arm: [
                    row
                    for seed in study.seeds_of(arm)
                    for row in measured(
                        study.evaluations[arm, seed].rows.values(), nll=study.evaluations[arm, seed].nll
                    )
                ]
                for arm in evaluated
            }
        ),
        costs=tuple(Cost(job, _tokens(study, job)) for job in study.jobs if job.seconds is not None),
    )


def _scored(contrasts: Contrasts, arms: Sequence[str], quantity: Quantity) -> Iterator[Scored]:
    for arm in arms:
        try:
            contrast = contrasts.mean(arm, quantity)
        except Absent:
            continue
        yield Scored(arm, contrast, contrasts.by_seed(arm, quantity))


def _splits(contrasts: Contrasts) -> Iterator[str]:
    """Fields that split the rows, and not as an earlier one does."""
    seen: list[set[tuple[int, ...]]] = [{tuple(range(len(contrasts.rows)))}, set()]
    for name in ("set", "kind", "source"):
        members: dict[str, list[int]] = {}
        for place, row in enumerate(contrasts.rows):
            members.setdefault(getattr(row, name), []).append(place)
        split = set(map(tuple, members.values()))
        if split not in seen:
            seen.append(split)
            yield name


def _groups(contrasts: Contrasts, arms: Sequence[str], name: str) -> dict[str, dict[str, Contrast]]:
    """Scores by a field of the rows."""
    values = sorted({getattr(row, name) for row in contrasts.rows if name == "set" or row.set in contrasts.sets} - {""})
    found: dict[str, dict[str, Contrast]] = {}
    for value in values:
        keep = _keeper(name, value)
        for arm in arms:
            try:
                found.setdefault(value, {})[arm] = contrasts.mean(arm, "score", keep, every_set=name == "set")
            except Absent:
                continue
    return found


def _keeper(name: str, value: str) -> Callable[[ScoredResponse], bool]:
    return lambda row: getattr(row, name) == value


def _pairs(contrasts: Contrasts, arms: Sequence[str]) -> Iterator[Pair]:
    """Every later arm against every earlier one."""
    found: list[tuple[str, str, Contrast]] = []
    for earlier, later in combinations(arms, 2):
        try:
            found.append((later, earlier, contrasts.difference({later: 1.0, earlier: -1.0}, "score")))
        except Absent:
            continue
    tested = [place for place, (_, _, contrast) in enumerate(found) if contrast.found.p is not None]
    adjusted = dict(zip(tested, holm([found[place][2].found.p or 0.0 for place in tested]), strict=True))
    for place, (first, second, contrast) in enumerate(found):
        yield Pair(first, second, contrast, adjusted.get(place))


def _lines(study: Study, name: str) -> Iterator[Line]:
    """A logged number of all arms' stages that log it; a stage that arms share stands under the first of them."""
    seen: set[str] = set()
    for arm in study.arms:
        for stage in dict.fromkeys(arm.steps):
            jobs = [job for seed in study.seeds if (job := study.training(arm, stage, seed)) is not None]
            curves = [curve for job in jobs if (curve := study.curves.get(job.id, {}).get(name)) is not None]
            if curves and seen.isdisjoint(job.id for job in jobs):
                seen |= {job.id for job in jobs}
                yield _line(arm.name, curves)


def _line(arm: str, curves: Sequence[Curve]) -> Line:
    """Mean, lowest and highest of the seeds at the steps that all have, smoothed."""
    by_step = [dict(zip(curve.steps, curve.values, strict=True)) for curve in curves]
    steps = [step for step in curves[0].steps if all(step in values for values in by_step)]
    width = max(1, len(steps) // _SMOOTHING)
    smooth = [_running_mean([values[step] for step in steps], width) for values in by_step]
    columns = list(zip(*smooth, strict=True))
    return Line(arm, steps, [sum(c) / len(c) for c in columns], [min(c) for c in columns], [max(c) for c in columns])


def _running_mean(values: Sequence[float], width: int) -> list[float]:
    """Mean of each value and up to `width - 1` before it."""
    return [sum(part := values[max(0, at - width + 1) : at + 1]) / len(part) for at in range(len(values))]


def _tokens(study: Study, job: Job) -> int | None:
    """Tokens that a job wrote or learned from: rates times seconds as logged, for all steps where only some are."""
    if job.kind != "train":
        counts = [
            row.tokens for found in study.evaluations.values() if found.job == job.id for row in found.rows.values()
        ]
        known = [count for count in counts if count is not None]
        return _rounded(sum(known)) if known and len(known) == len(counts) else None
    curves = study.curves.get(job.id, {})
    for rate, seconds in (("rollout/tokens_per_second", "time/generate"), ("train/tokens_per_second", "time/step")):
        if rate in curves and seconds in curves:
            times = dict(zip(curves[seconds].steps, curves[seconds].values, strict=True))
            products = [
                value * times[step]
                for step, value in zip(curves[rate].steps, curves[rate].values, strict=True)
                if step in times
            ]
            gaps = curves[rate].steps[-1] / len(products) if products and rate.startswith("train") else 1.0
            return _rounded(sum(products) * gaps) if products else None
    return None


def _rounded(value: float) -> int:
    """To three digits: products of logged rates and seconds are no more exact, and differ from run to run beyond."""
    return int(float(f"{value:.3g}"))


def as_json(findings: Findings) -> dict[str, Any]:
    """The numbers for other programs."""
    study = findings.study
    return {
        "format": 1,
        "name": study.name,
        "seeds": list(study.seeds),
        "arms": {arm.name: {"title": arm.title, "steps": list(arm.steps)} for arm in study.arms},
        "judged_on": list(findings.contrasts.sets),
        "missing": list(study.missing),
        "claims": [_claim(judged) for judged in findings.claims],
        "scores": {one.arm: _scored_json(one) for one in findings.scores},
        "tokens": {one.arm: _scored_json(one) for one in findings.lengths},
        "scores_by": {
            name: {value: {arm: _contrast(one) for arm, one in arms.items()} for value, arms in found.items()}
            for name, found in findings.groups.items()
        },
        "pairs": [
            {"first": one.first, "second": one.second, **_contrast(one.contrast), "p_holm": one.adjusted}
            for one in findings.pairs
        ],
        "curves": {
            name: {
                line.arm: {"steps": list(line.steps), "mean": line.middle, "low": line.low, "high": line.high}
                for line in lines
            }
            for name, lines in findings.curves.items()
        },
        "traces": findings.traces,
        "costs": [{"job": one.job.id, "seconds": one.job.seconds, "tokens": one.tokens} for one in findings.costs],
    }


def _claim(judged: Judged) -> dict[str, Any]:
    claim = judged.claim
    return {
        "claim": claim.number,
        "says": claim.says,
        "read_as": claim.read_as,
        "source": claim.source,
        "verdict": judged.verdict,
        "sentence": judged.sentence,
        "caveats": list(judged.caveats),
        "p": judged.p,
        "p_holm": judged.adjusted,
        "parts": [
            {
                "measure": one.part.measure,
                "first": one.part.first,
                "second": one.part.second,
                "claimed_sign": one.part.sign,
                **_contrast(one.contrast),
            }
            for one in judged.found
        ],
    }


def _scored_json(one: Scored) -> dict[str, Any]:
    return _contrast(one.contrast) | {"by_seed": {str(seed): value for seed, value in one.by_seed.items()}}


def _contrast(one: Contrast) -> dict[str, Any]:
    return {**as_plain(one.found), "of_seeds": list(one.seeds), "left_out": one.left_out}
