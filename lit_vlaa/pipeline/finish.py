"""Step 6 with everything that tells of the build: splits, report, data card, rejects."""

from __future__ import annotations

import itertools
import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lit_vlaa.pipeline import report
from lit_vlaa.pipeline.config import STEPS
from lit_vlaa.pipeline.curate import Split, grpo_line, place, sft_line, split_paths
from lit_vlaa.pipeline.folder import SplitFiles
from lit_vlaa.pipeline.rows import file_digest, lines, write_lines, write_text

if TYPE_CHECKING:
    from lit_vlaa.pipeline.run import Build


def curate(build: Build, wanted: str) -> Iterator[str]:
    """Writes all results.

    Args:
        build: Of which step 5 is done.
        wanted: Fingerprint of step 6.

    Yields:
        What to tell the user.

    Raises:
        UsageError: If a file is in the way.
    """
    source = build.files("verify")
    placings = place(source.read(), build.config.curate)
    counts: dict[Split, int] = {"sft": 0, "grpo": 0}
    for placing in placings:
        counts[placing.split] += 1
    paths = split_paths(build.output, counts)
    models = {step: settings.endpoint.model for step, settings in build.config.asking().items()}
    moved = sum(placing.moved for placing in placings)
    table: Counter[tuple[str, str, str]] = Counter()
    with build.files("curate").writing(wanted) as writer:
        for row, placing in zip(source.read(), placings, strict=True):
            table[row.source, row.kind, placing.split] += 1
            writer.keep(row)
        writer.notes["moved to RL for a shared image or question"] = moved
    splits = SplitFiles(build.output)
    splits.claim(paths.values())
    for split, path in paths.items():
        chosen = (row for row, placing in zip(source.read(), placings, strict=True) if placing.split == split)
        write_lines(path, (sft_line(row) if split == "sft" else grpo_line(row, models) for row in chosen))
    yield _report(build, table, paths, counts, moved=moved)
    splits.remove_others(paths.values())
    for split, path in paths.items():
        yield f"{split}: {counts[split]} rows in {path}" + ("" if counts[split] else "; an empty split")
    yield f"card, counts and rejected rows: README.md, report.json and rejects.jsonl in {build.output}"


def _report(
    build: Build,
    table: Counter[tuple[str, str, str]],
    paths: dict[Split, Path],
    counts: dict[Split, int],
    *,
    moved: int,
) -> str:
    dones = [done for step in STEPS if (done := build.files(step).done()) is not None]
    settings = build.config.curate
    found: dict[str, Any] = {
        "format": 1,
        "name": build.config.name,
        "files": {
            split: {"name": path.name, "rows": counts[split], "sha256": file_digest(path)}
            for split, path in paths.items()
        },
        "table": report.split_table(table),
        "steps": [report.step_report(done, build.config, build.prompts) for done in dones],
        "curation": {
            "cues": settings.cues,
            "matching": settings.matching,
            "disjoint_by": settings.disjoint_by,
            "moved": moved,
        },
    }
    rejects = itertools.chain.from_iterable(lines(build.files(step).rejects) for step in STEPS)
    write_lines(build.output / "rejects.jsonl", rejects)
    write_text(build.output / "report.json", json.dumps(found, indent=1, ensure_ascii=False) + "\n")
    report.funnel(build.output / "funnel.png", found["steps"])
    write_text(build.output / "README.md", report.card(found))
    return report.cost_line(found["steps"])
