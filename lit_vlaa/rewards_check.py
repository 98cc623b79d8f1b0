"""Scores the ground truths of a GRPO file against themselves, before a run does so with the policy's answers.

Every truth is given as the answer twice: as it stands, which must earn the reward, and changed, which must not. A row
that fails the first way teaches nothing or the wrong thing; one that fails the second way can be gamed.
"""

from __future__ import annotations

import json
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from tqdm.auto import tqdm  # type: ignore[import-untyped]

from datamodules.records import normalise
from datamodules.rows import BadRecord
from datamodules.shards import rows_of, trouble_with
from datamodules.sources import OTHER, SOURCES
from lit_vlaa.prompts import format_response
from lit_vlaa.protocols import Verifier
from lit_vlaa.rewards.config import RewardConfig
from lit_vlaa.rewards.mixed import MixedReward
from lit_vlaa.rewards.wrong_answers import wrong_answer
from lit_vlaa.types import Kind, Record, RewardRequest, RewardResult
from lit_vlaa.whole_files import replacing

Problem = Literal["unreadable_row", "unparsable_truth", "truth_earns_less", "mutant_paid"]

PROBLEMS: dict[Problem, str] = {
    "unreadable_row": "rows that cannot be read",
    "unparsable_truth": "truths that the verifier cannot read, so that their rows never get a reward",
    "truth_earns_less": "truths that do not earn the reward when given as the answer",
    "mutant_paid": "wrong answers that earn half or more of what the truth earns",
}
"""What can be found, with its headline."""

_EXACT = ("digit", "mcq", "math", "iou")
"""Kinds whose truth must earn all of the reward; for others any reward will do."""
_BATCH = 256
_SHOWN = 10
_SHOWN_CHARS = 60


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One thing that is wrong with one row."""

    problem: Problem
    row: int
    """In the original file, from 1."""
    detail: str
    """The verdict's status, or why the row cannot be read."""
    id: str = ""
    source: str = ""
    kind: str = ""
    truth: str = ""
    answer: str = ""
    """What was given as the answer."""
    value: float = 0.0
    """What the answer earned."""


def run(
    *,
    data: Path,
    kinds: list[str] | None = None,
    sources: list[str] | None = None,
    max_rows: int | None = None,
    workers: int = 2,
    verifiers: dict[Kind, Verifier] | None = None,
    output: Path | None = None,
) -> int:
    """Scores every ground truth of a file against itself and against a wrong answer, and tells what is paid wrongly.

    A truth must earn 1 (an open-ended one, which is scored by its words here, more than 0). The wrong answer made of it
    must earn less than half of that: the next number, another option, a changed expression, a box elsewhere, an
    unrelated sentence. Images are not needed.

    Args:
        data: Rows with ground truths: a JSON array, JSON Lines or shards, as for `--data.data_file` with split grpo.
        kinds: Verifier kinds to check; null for all.
        sources: Sources to check; null for all.
        max_rows: Stop after this many rows of these kinds and sources; null for all.
        workers: Math-Verify processes, for expressions that cannot be compared without it.
        verifiers: Reward kinds of your own with their functions, as for `--model.verifiers`.
        output: File for all findings as JSON Lines; the report on the screen names ten rows of each.

    Returns:
        The exit code: 0 when nothing was found, 1 when something was, or rows have a kind that nothing scores.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If an argument is out of range, or no row is left to check.
    """
    if trouble := trouble_with(data):
        raise FileNotFoundError(f"--data {data} {trouble}")
    if max_rows is not None and max_rows < 1:
        raise ValueError(f"--max-rows must be at least 1, got {max_rows}")
    if workers < 1:
        raise ValueError(f"--workers must be at least 1, got {workers}")
    if unknown := sorted(set(sources or ()) - {*SOURCES, OTHER}):
        raise ValueError(f"--sources names {unknown}; known are {sorted({*SOURCES, OTHER})}")
    if output is not None and output.resolve() == data.resolve():
        raise ValueError(f"--output {output} would overwrite --data; give another file")
    started = time.perf_counter()
    records, findings = read(data, kinds=kinds, sources=sources, max_rows=max_rows)
    if not records and (not findings or kinds or sources):
        given = " and ".join(f"--{name} {value}" for name, value in (("kinds", kinds), ("sources", sources)) if value)
        raise ValueError(
            f"--data {data} holds no row to check" + (f" with {given}" if given else "; give another file")
        )
    reward = MixedReward(RewardConfig(math_workers=workers), verifiers=verifiers)
    try:
        findings += check(records, reward)
    finally:
        reward.close()
    if output is not None:
        _write(output, findings)
    lines = report(records, findings, reward.kinds)
    if output is not None:
        lines.append(f"{len(findings)} finding(s) written to {output}")
    elif findings:
        lines.append("--output FILE writes all of them")
    sys.stdout.write("\n".join([*lines, f"{time.perf_counter() - started:.0f} seconds", ""]))
    return int(bool(findings) or any(record.kind not in reward.kinds for record in records))


def read(
    data: Path, *, kinds: Sequence[Kind] | None, sources: Sequence[str] | None, max_rows: int | None
) -> tuple[list[Record], list[Finding]]:
    """Reads the rows to check, and finds those that cannot be read (whatever their kind and source would be).

    Raises:
        BadRecord: Where the file breaks off.
    """
    records: list[Record] = []
    findings: list[Finding] = []
    for at in rows_of(data):
        try:
            if isinstance(at.value, BadRecord):
                raise at.value
            record = normalise(at.value, file=str(data), number=at.number, split="grpo", name=at.name)
        except BadRecord as error:
            findings.append(Finding(problem="unreadable_row", row=at.number, detail=f"{error.field}: {error.reason}"))
            continue
        if (kinds is None or record.kind in kinds) and (sources is None or record.source in sources):
            records.append(record)
            if len(records) == max_rows:
                break
    return records, findings


def check(records: Sequence[Record], reward: MixedReward) -> list[Finding]:
    """Scores each truth and the wrong answer made of it; rows of kinds that `reward` does not know are left out."""
    known = [record for record in records if record.kind in reward.kinds]
    findings: list[Finding] = []
    with tqdm(total=len(known), desc="ground truths", unit="row", disable=None) as bar:
        for start in range(0, len(known), _BATCH):
            batch = known[start : start + _BATCH]
            findings += check_batch(batch, reward)
            bar.update(len(batch))
    return findings


def check_batch(records: Sequence[Record], reward: MixedReward) -> list[Finding]:
    """Scores the truths of some rows, of kinds that `reward` knows and with origins that differ, all at one time."""
    wrong = {
        record.origin: answer
        for record in records
        if (answer := wrong_answer(record.kind, record.truth, record.question)) is not None
    }
    asked = [record for record in records if record.origin in wrong]
    results = reward(
        [_request(record, record.truth) for record in records]
        + [_request(record, wrong[record.origin]) for record in asked]
    )
    mutants = dict(zip(wrong, results[len(records) :], strict=True))
    return [
        finding
        for record, result in zip(records, results[: len(records)], strict=True)
        for finding in _judged(record, result, wrong.get(record.origin, ""), mutants.get(record.origin))
    ]


def _request(record: Record, answer: str) -> RewardRequest:
    return RewardRequest(
        response=format_response("...", answer),
        kind=record.kind,
        truth=record.truth,
        question=record.question,
        source=record.source,
        id=record.id,
    )


def _judged(record: Record, result: RewardResult, wrong: str, paid: RewardResult | None) -> Iterable[Finding]:
    def finding(problem: Problem, answer: str, verdict: RewardResult) -> Finding:
        return Finding(
            problem=problem,
            row=int(record.origin.rpartition(":")[2]),
            id=record.id,
            source=record.source,
            kind=record.kind,
            truth=record.truth,
            answer=answer,
            value=verdict.value,
            detail=verdict.status,
        )

    if result.status == "unparsable_gt":
        yield finding("unparsable_truth", record.truth, result)
        return
    if not (result.value >= 1 if record.kind in _EXACT else result.value > 0):
        yield finding("truth_earns_less", record.truth, result)
    if paid is not None and paid.value > 0 and paid.value >= result.value / 2:
        yield finding("mutant_paid", wrong, paid)


def report(records: Sequence[Record], findings: Sequence[Finding], kinds: Sequence[Kind]) -> list[str]:
    """Writes the table by source and kind, and under it the first rows of everything found.

    Args:
        records: All rows that could be read.
        findings: What is wrong with them and with the others.
        kinds: Kinds that can be scored.

    Returns:
        The lines.
    """
    checked = Counter((record.source, record.kind) for record in records if record.kind in kinds)
    counts = Counter((finding.problem, finding.source, finding.kind) for finding in findings)
    scored: tuple[Problem, ...] = ("unparsable_truth", "truth_earns_less", "mutant_paid")
    lines = _table(
        ("source", "kind", "rows", "unparsable", "earns less", "mutant paid"),
        [
            (*group, str(rows), *(str(counts[problem, *group]) for problem in scored))
            for group, rows in sorted(checked.items())
        ],
    )
    for kind, rows in sorted(Counter(record.kind for record in records if record.kind not in kinds).items()):
        lines.append(
            f"not checked, as nothing scores this kind: {kind}, {rows} row(s); name its function by --verifiers"
        )
    for problem, headline in PROBLEMS.items():
        groups: dict[str, list[Finding]] = defaultdict(list)
        for finding in findings:
            if finding.problem == problem:
                groups[f"{finding.source} {finding.kind}".strip() or finding.detail].append(finding)
        if groups:
            lines += ["", f"{headline}: {sum(map(len, groups.values()))}"]
        for name, found in sorted(groups.items()):
            lines += [f"  {name}: {len(found)}", *(f"    {_shown(finding)}" for finding in found[:_SHOWN])]
            if len(found) > _SHOWN:
                lines.append(f"    and {len(found) - _SHOWN} more")
    wrong = len({finding.row for finding in findings})
    among = " in the others" if any(record.kind not in kinds for record in records) else ""
    return [*lines, "", f"rows with something wrong: {wrong}" if wrong else f"nothing found{among}"]


def _table(head: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> list[str]:
    """Columns of text, the first two to the left; nothing without rows."""
    widths = [max(map(len, column)) for column in zip(head, *rows, strict=True)]
    return [
        "  ".join(
            cell.ljust(w) if at < 2 else cell.rjust(w) for at, (cell, w) in enumerate(zip(row, widths, strict=True))
        )
        for row in ((head, *rows) if rows else ())
    ]


def _shown(finding: Finding) -> str:
    if finding.problem == "unreadable_row":
        return f"row {finding.row}"
    text = f"row {finding.row}: truth {_cut(finding.truth)}"
    if finding.problem == "mutant_paid":
        text += f", answer {_cut(finding.answer)}"
    if finding.problem == "unparsable_truth":
        return text
    return f"{text} earns {finding.value:.2f}{'' if finding.detail == 'ok' else f' ({finding.detail})'}"


def _cut(text: str) -> str:
    """The end of a long text, where solutions have their result; control characters become visible."""
    return repr(text if len(text) <= _SHOWN_CHARS else f"...{text[-_SHOWN_CHARS:]}")


def _write(path: Path, findings: Sequence[Finding]) -> None:
    """Writes the file whole or not at all."""
    with replacing(path) as draft, draft.open("w", encoding="utf-8", newline="\n") as stream:
        stream.writelines(json.dumps(asdict(finding), ensure_ascii=False) + "\n" for finding in findings)
