"""The report's section on traces: what the arms' responses look like beside each other."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from lit_vlaa.study import pictures
from lit_vlaa.study.document import ArmName, Block, Bullets, Cell, Heading, Paragraph, Picture, Table
from lit_vlaa.study.findings import Findings
from lit_vlaa.study.measures import FLAGS, NUMBERS

_AHA = "aha"
_ERROR_FLAGS = ("aha", "aha_words", "hesitates", "repeats", "contradicts", "answer_first", "truncated")
_LEAST = 20
"""Responses with a property, and as many without it, that an error rate needs."""
_MOST_MISSING = 12


def traces(findings: Findings) -> Iterator[Block]:
    """Shares and means by arm, and error rates with and without each property."""
    arms: Mapping[str, Any] = findings.traces["arms"]
    yield Heading("Traces")
    if not arms:
        yield Paragraph("No arm has been evaluated yet.")
        return
    yield Paragraph("All responses of all seeds. Each measure's definition and limits: docs/traces.md.", small=True)
    names = [name for name in findings.arms if name in arms]
    yield Table(("measure", *names), tuple(_measures(arms, names)), "Means and shares of responses")
    yield Heading("Is doubt any use?", 3)
    yield Paragraph(
        "Error rates of responses with and without a property. The difference is taken within kind and source (Mantel "
        "and Haenszel), since a kind of question may both be harder and make a model hesitate. It says what goes "
        "together, not what causes what. Intervals take all responses for independent, also those of several seeds to "
        f"one row; the verdict on claim 6 does not. Shown where {_LEAST} responses or more have the property and as "
        "many lack it.",
        small=True,
    )
    if picture := _picture(findings, arms, names):
        yield picture
    if rows := tuple(_errors(arms, names)):
        head = ("property", "arm", "wrong with it", "wrong without it", "difference within kind and source")
        yield Table(head, rows, left=2)
    else:
        yield Paragraph(f"There is no property that {_LEAST} judged responses of an arm have and as many lack.")
    if missing := findings.traces["missing"]:
        shown = missing[:_MOST_MISSING]
        more = [f"and {len(missing) - len(shown)} more"] if len(missing) > len(shown) else []
        yield Heading("What the responses do not tell", 3)
        yield Bullets((*shown, *more))


def _measures(arms: Mapping[str, Any], names: list[str]) -> Iterator[tuple[Cell, ...]]:
    def line(title: str, found: list[str | None]) -> Iterator[tuple[Cell, ...]]:
        if any(cell is not None for cell in found):
            yield (title, *("–" if cell is None else cell for cell in found))

    yield ("responses", *(str(arms[name]["rows"]) for name in names))
    yield from line("wrong", [_share(arms[name]["wrong"]) for name in names])
    for field, title in NUMBERS.items():
        yield from line(title, [_number(arms[name]["numbers"].get(field, {}).get("mean")) for name in names])
    for field, title in FLAGS.items():
        yield from line(title, [_share(arms[name]["flags"].get(field, {}).get("mean")) for name in names])
    for side, title in (("right", "tokens of right ones"), ("wrong_rows", "tokens of wrong ones")):
        yield from line(title, [_number(arms[name][side].get("tokens", {}).get("mean")) for name in names])
    title = "perplexity of the response under the base model"
    yield from line(title, [_number((arms[name]["nll"] or {}).get("perplexity")) for name in names])


def _errors(arms: Mapping[str, Any], names: list[str]) -> Iterator[tuple[Cell, ...]]:
    for flag in _ERROR_FLAGS:
        for name in names:
            found = arms[name]["errors"].get(flag)
            if found is None or _few(found):
                continue
            sides = [f"{100 * found[side]['wrong']:.1f}% of {found[side]['n']}" for side in ("with", "without")]
            one = found["standardised"]
            within = "–"
            if one is not None:
                within = f"{100 * one['difference']:+.1f} ({100 * one['low']:+.1f} to {100 * one['high']:+.1f}) points"
            yield (FLAGS[flag], ArmName(name), *sides, within)


def _picture(findings: Findings, arms: Mapping[str, Any], names: list[str]) -> Picture | None:
    rows = [
        (name, found["without"]["wrong"], found["with"]["wrong"])
        for name in names
        if (found := arms[name]["errors"].get(_AHA)) is not None and not _few(found)
    ]
    if not rows:
        return None
    listed = "; ".join(f"{name} {without:.2f} without, {given:.2f} with" for name, without, given in rows)
    return pictures.dumbbells(
        "doubt",
        rows,
        findings.arms,
        ends=("without an aha cue", "with an aha cue"),
        unit="share of wrong responses",
        alt=f"Error rates with and without an aha cue: {listed}.",
        caption=f"Error rates of responses without (empty) and with (full) an aha cue, of arms with {_LEAST} of each.",
    )


def _few(found: Mapping[str, Any]) -> bool:
    return bool(min(found[side]["n"] for side in ("with", "without")) < _LEAST)


def _number(mean: float | None) -> str | None:
    return None if mean is None else f"{mean:.{0 if abs(mean) >= 100 else 1 if abs(mean) >= 10 else 2}f}"


def _share(mean: float | None) -> str | None:
    return None if mean is None else f"{100 * mean:.1f}%"
