"""`lit-vlaa study traces`: what saved responses look like, arm beside arm."""

from __future__ import annotations

import json
import math
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lit_vlaa.checks import UsageError
from lit_vlaa.flags import Flags
from lit_vlaa.hints import unreadable
from lit_vlaa.study.responses import OWN_FILE, read_responses
from lit_vlaa.study.tables import CORRECT_FROM, Measured, aggregate, measured
from lit_vlaa.study.trace_report import cases, markdown, picture


def run(words: Sequence[str]) -> int:
    """Measures the traces of one or more arms.

    Args:
        words: The arguments of the command.

    Returns:
        0.

    Raises:
        UsageError: If an argument cannot work.
    """
    given = _parser().read(words)
    names = given.names or default_names(given.responses)
    if len(names) != len(given.responses):
        raise UsageError([f"--names gives {len(names)} name(s) for {len(given.responses)} file(s); give one for each"])
    if len(set(names)) != len(names):
        raise UsageError([f"--names: {', '.join(names)} are not all different; give each file a name of its own"])
    if given.perplexity and len(given.perplexity) != len(names):
        raise UsageError(
            [f"--perplexity gives {len(given.perplexity)} file(s) for {len(names)} of responses; give one for each"]
        )
    if not 0 < given.correct_from < math.inf:
        raise UsageError([f"--correct-from must be a positive number, got {given.correct_from}"])
    arms: dict[str, list[Measured]] = {}
    try:
        for place, (name, path) in enumerate(zip(names, given.responses, strict=True)):
            nll = read_nll(given.perplexity[place]) if given.perplexity else None
            arms[name] = measured(read_responses(path), correct_from=given.correct_from, nll=nll)
        table: dict[str, Any] = {"correct_from": given.correct_from, **aggregate(arms)}
        sys.stdout.write(markdown(table))
        if given.output_dir is not None:
            _write(given.output_dir, table, arms)
    except (ValueError, OSError) as error:
        raise UsageError([str(error)]) from error
    return 0


def _parser() -> Flags:
    parser = Flags(
        prog="lit-vlaa study traces",
        description="Measures saved responses: length, aha cues, hesitation, repetition, self-contradiction, form, and "
        "error rates with and without each, by source and kind. Definitions: docs/traces.md.",
    )
    parser.add_argument(
        "responses",
        metavar="RESPONSES",
        type=Path,
        nargs="+",
        help="JSON Lines with a `response` in each row (responses.jsonl, a benchmark's verdicts), or a folder of them; "
        "one for each arm",
    )
    parser.add_argument("--names", nargs="+", help="names of the arms, in the order of the files; default: the files'")
    parser.add_argument("--output-dir", type=Path, help="write traces.json, traces.md, traces.png and cases.md here")
    parser.add_argument(
        "--perplexity",
        type=Path,
        nargs="+",
        help="files that `lit-vlaa study perplexity` wrote, one for each arm",
    )
    parser.add_argument(
        "--correct-from",
        type=float,
        default=CORRECT_FROM,
        help=f"score from which a response counts as right (default: {CORRECT_FROM})",
    )
    return parser


def default_names(paths: Sequence[Path]) -> list[str]:
    """A file's stem, a folder's name, of `responses.jsonl` its folder's; equal ones become paths."""
    names = [
        path.resolve().parent.name if path.name == OWN_FILE else path.resolve().name if path.is_dir() else path.stem
        for path in paths
    ]
    if len(set(names)) == len(names):
        return names
    common = os.path.commonpath([path.resolve().parent for path in paths])
    return [str(path.resolve().relative_to(common)) for path in paths]


def read_nll(path: Path) -> dict[tuple[str, str], tuple[float, int]]:
    """Reads what `lit-vlaa study perplexity` wrote.

    Raises:
        ValueError: If a line cannot be read; the message names it.
    """
    found: dict[tuple[str, str], tuple[float, int]] = {}
    try:
        with path.open("rb") as file:
            for number, line in enumerate(file, 1):
                try:
                    row = json.loads(line)
                    key, value = (row["set"], row["id"]), (float(row["nll"]), int(row["tokens"]))
                except (ValueError, KeyError, TypeError, OverflowError, RecursionError):
                    key, value = ("", ""), (math.nan, 0)
                if not all(isinstance(part, str) for part in key) or not math.isfinite(value[0]) or value[1] < 1:
                    raise ValueError(f"{path}:{number}: not a line of perplexities; write the file anew")
                found[key] = value
    except OSError as error:
        raise ValueError(f"{path} {unreadable(path, error)}") from error
    return found


def _write(folder: Path, table: dict[str, Any], arms: dict[str, list[Measured]]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "traces.json").write_text(json.dumps(table, indent=2) + "\n", encoding="utf-8")
    (folder / "traces.md").write_text(markdown(table), encoding="utf-8")
    (folder / "cases.md").write_text(cases(arms), encoding="utf-8", errors="replace")
    picture(table).savefig(folder / "traces.png", dpi=120)
    sys.stdout.write(f"\nwritten to {folder}\n")
