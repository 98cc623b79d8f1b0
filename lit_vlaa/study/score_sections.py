"""The report's sections on scores: the arms alone, and against each other."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from lit_vlaa.study import pictures
from lit_vlaa.study.contrasts import Contrast
from lit_vlaa.study.document import ArmName, Block, Cell, Heading, Paragraph, Picture, Table
from lit_vlaa.study.findings import Findings
from lit_vlaa.study.quantities import TEST
from lit_vlaa.study.statistics import Estimate
from lit_vlaa.study.verdicts import shown_p

METHOD = (
    "Means are over seeds and rows, 95% intervals cover both: Student's t on the sum of the variance between rows "
    "(rows about one picture count as one) and the variance between seeds, with the degrees of freedom of Welch and "
    "Satterthwaite. Differences are taken row by row and seed by seed. Simulated, such intervals hold the true value "
    "in 93 to 99% of studies."
)


def scores(findings: Findings) -> Iterator[Block]:
    """The arms' scores."""
    yield Heading("Scores")
    if not findings.scores:
        yield Paragraph("No arm has been evaluated yet.")
        return
    sets = findings.contrasts.sets
    what = "mixed reward of the test rows" if sets == (TEST,) else f"hits on {', '.join(sets)}, of equal weight"
    yield Paragraph(f"Score: {what}, between 0 and 1.")
    titles = {arm.name: arm.title for arm in findings.study.arms}
    rows: list[tuple[Cell, ...]] = [
        (
            ArmName(one.arm),
            titles[one.arm],
            _number(one.contrast.found.value),
            interval(one.contrast.found),
            _size(one.contrast.found),
            ", ".join(f"{value:.3f}" for value in one.by_seed.values()),
        )
        for one in findings.scores
    ]
    yield Table(("arm", "", "score", "95% interval", "rows × seeds", "by seed"), tuple(rows), left=2)
    points = [(one.arm, one.arm, one.contrast.found, list(one.by_seed.values())) for one in findings.scores]
    yield pictures.dots(
        "scores",
        points,
        findings.arms,
        unit="score",
        alt=f"Scores with 95% intervals: {listed(points)}.",
        caption="Marks: means over seeds and rows with 95% intervals; small strokes below: single seeds.",
    )
    if left_out := max(one.contrast.left_out for one in findings.scores):
        yield Paragraph(
            f"Up to {left_out} rows without a verdict in some seed of an arm are left out of its mean, and in "
            "comparisons out of both arms'.",
            small=True,
        )
    yield Paragraph(METHOD, small=True)
    for name, found in findings.groups.items():
        yield Heading(f"By {name}", 3)
        yield _group_picture(name, found, findings)
        yield _group_table(name, found, findings)


def _group_table(name: str, found: Mapping[str, Mapping[str, Contrast]], findings: Findings) -> Table:
    """A line an arm, a column a group."""
    rows: list[tuple[Cell, ...]] = [
        (ArmName(arm), *(_with_interval(arms.get(arm)) for arms in found.values())) for arm in findings.evaluated
    ]
    counts = {value: next(iter(arms.values())).found.rows for value, arms in found.items()}
    head = ("arm", *(f"{value} ({count} rows)" for value, count in counts.items()))
    return Table(head, tuple(rows), f"Scores by {name}, with 95% intervals in brackets")


def _with_interval(one: Contrast | None) -> str:
    return "–" if one is None else f"{one.found.value:.3f} ({interval(one.found)})"


def _group_picture(name: str, found: Mapping[str, Mapping[str, Contrast]], findings: Findings) -> Picture:
    groups = [(value, [(arm, one.found) for arm, one in arms.items()]) for value, arms in found.items()]
    listed = "; ".join(
        f"{value}: {', '.join(f'{arm} {one.value:.2f}' for arm, one in members)}" for value, members in groups
    )
    return pictures.by_group(
        f"scores-by-{name}",
        groups,
        findings.arms,
        unit="score",
        alt=f"Scores by {name}: {listed}.",
        caption=f"Scores by {name} with 95% intervals.",
    )


def comparisons(findings: Findings) -> Iterator[Block]:
    """Every two arms, and the lengths of responses."""
    yield Heading("Paired comparisons")
    if findings.pairs:
        rows: list[tuple[Cell, ...]] = [
            (
                ArmName(one.first),
                ArmName(one.second),
                f"{one.contrast.found.value:+.3f}",
                interval(one.contrast.found, signed=True),
                _p(one.contrast.found.p),
                _p(one.adjusted),
                f"{one.contrast.found.stderr_rows or 0:.3f}",
                "–" if one.contrast.found.stderr_seeds is None else f"{one.contrast.found.stderr_seeds:.3f}",
            )
            for one in findings.pairs
        ]
        head = ("arm", "less arm", "difference", "95% interval", "p", "p (Holm)", "error: rows", "error: seeds")
        caption = (
            "Differences of scores on the same rows and seeds; p (Holm): corrected for all comparisons of this table"
        )
        yield Table(head, tuple(rows), caption, left=2)
    else:
        yield Paragraph("There are no two arms to compare.")
    if findings.lengths:
        yield Heading("Length of responses", 3)
        length_rows: list[tuple[Cell, ...]] = [
            (
                ArmName(one.arm),
                f"{one.contrast.found.value:.1f}",
                interval(one.contrast.found, places=1),
                ", ".join(f"{value:.1f}" for value in one.by_seed.values()),
            )
            for one in findings.lengths
        ]
        yield Table(("arm", "tokens", "95% interval", "by seed"), tuple(length_rows))


def _number(value: float, places: int = 3) -> str:
    return f"{value:.{places}f}"


def interval(found: Estimate, *, signed: bool = False, places: int = 3) -> str:
    """The ends of an estimate's interval; a dash where it has none."""
    if found.low is None or found.high is None:
        return "–"
    sign = "+" if signed else ""
    text = f"{found.low:{sign}.{places}f} to {found.high:{sign}.{places}f}"
    return f"{text} (rows alone)" if found.seeds == 1 else text


def _p(value: float | None) -> str:
    """A p-value in a column of them."""
    return "–" if value is None else shown_p(value)[2:].removeprefix("= ")


def _size(found: Estimate) -> str:
    return f"{found.rows} × {found.seeds}"


def listed(points: Sequence[tuple[str, str, Estimate, Sequence[float]]]) -> str:
    """Estimates in words, for those who do not see a picture."""
    return "; ".join(f"{label} {found.value:.3f} ({interval(found)})" for label, _, found, _ in points)
