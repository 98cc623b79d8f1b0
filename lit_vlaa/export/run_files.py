"""What a run left beside its checkpoint."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lit_vlaa.hints import missing

_METRICS = {
    "reward": "mean reward of one drawn answer a row",
    "loss": "nats a token of the row's answer",
    "perplexity": "of the row's answer",
    "token_accuracy": "share of the answer's tokens that are the most probable one",
}
"""What `lit-vlaa test` measures."""
_LAST_FIRST = ("test", "final")
"""Labels of a summary's rows that are preferred to the last one."""


@dataclass(frozen=True, slots=True)
class Score:
    """One number of an evaluation."""

    name: str
    value: float
    stderr: float | None = None
    rows: int | None = None
    note: str = ""
    percent: bool = False


def config_beside(checkpoint: Path) -> Path | None:
    """The configuration that Lightning saved for the run that wrote a checkpoint.

    Args:
        checkpoint: `<log folder>/checkpoints/*.ckpt`, or a file beside `version_<n>` folders, of which the one that was
            written last counts.
    """
    for folder in checkpoint.absolute().parents[:2]:
        if (folder / "config.yaml").is_file():
            return folder / "config.yaml"
        if found := list(folder.glob("version_*/config.yaml")):
            return max(found, key=lambda path: path.stat().st_mtime_ns)
    return None


def read_scores(path: Path) -> list[Score]:
    """Reads what an evaluation wrote.

    Args:
        path: `summary.json` of `callbacks.BenchmarkEvaluation`, or `metrics.csv` of `lit-vlaa test`, or a folder that
            holds one of them (in `benchmarks/`, or itself).

    Raises:
        ValueError: If there is no score in it.
    """
    if path.is_dir():
        files = [
            file
            for name in ("benchmarks/summary.json", "summary.json", "metrics.csv")
            if (file := path / name).is_file()
        ]
        found = [score for file in files for score in _of_file(file)]
    elif path.is_file():
        found = _of_file(path)
    else:
        raise ValueError(f"--scores {path} {missing(path)}")
    if not found:
        raise ValueError(
            f"--scores {path}: no evaluation in it; give a summary.json of BenchmarkEvaluation, or the log folder of "
            "`lit-vlaa test`"
        )
    return found


def _of_file(path: Path) -> list[Score]:
    return _of_metrics(path) if path.suffix == ".csv" else _of_summary(path)


def _of_summary(path: Path) -> list[Score]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ValueError(f"--scores {path}: {error}") from error
    rows = {name: row for name, row in content.items() if isinstance(row, dict)} if isinstance(content, dict) else {}
    label = next((name for name in _LAST_FIRST if name in rows), next(reversed(rows), None))
    if label is None:
        return []
    scope, found = str(rows[label].get("scope", "")), _mapping(rows[label].get("benchmarks"))
    return [score for name, entry in found.items() if (score := _benchmark(name, entry, scope)) is not None]


def _benchmark(name: str, entry: Any, scope: str) -> Score | None:
    known, numbers = _mapping(entry), _mapping(_mapping(entry).get("numbers"))
    headline = _number(known.get("headline"))
    if headline is None:
        return None
    rows = _number(numbers.get("n"))
    profile = f"scored by the {known['profile']} profile of lit-vlaa" if "profile" in known else ""
    notes = (
        "" if known.get("comparable", True) else f"not comparable with the leaderboard: {known.get('caveat')}",
        str(known.get("metric", "")),
        profile,
        "" if scope in {"", "full"} else f"{scope} of the rows",
    )
    return Score(
        name,
        headline,
        _number(numbers.get("stderr")),
        None if rows is None else int(rows),
        "; ".join(note for note in notes if note),
        percent=True,
    )


def _of_metrics(path: Path) -> list[Score]:
    """The last value of every score that a test loop writes; counts and the standard error go with their score."""
    last: dict[str, float] = {}
    try:
        with path.open(encoding="utf-8", newline="") as file:
            for row in csv.DictReader(file):
                for name, text in row.items():
                    if name and name.startswith("test/") and (value := _number(text)) is not None:
                        last[name] = value
    except (csv.Error, OSError, ValueError) as error:
        raise ValueError(f"--scores {path}: {error}") from error
    scores = []
    for name in sorted(last.keys() - {"test/stderr", "test/n", "test/failed"}):
        _, metric, *kind = name.split("/")
        if metric == "n":
            continue
        rows = last.get("/".join(["test/n", *kind]))
        stderr = None if kind else last.get("test/stderr")
        note = _METRICS.get(metric, "")
        scores.append(Score(name, last[name], stderr, None if rows is None else int(rows), note))
    return scores


def value_at(config: Mapping[str, Any], key: str) -> Any:
    """A configuration's value by its dotted key, with or without `init_args` in between; None where there is none."""
    found: Any = config
    for name in key.split("."):
        if not isinstance(found, Mapping):
            return None
        inner = found.get("init_args")
        found = found[name] if name in found else inner.get(name) if isinstance(inner, Mapping) else None
    return found


def _number(text: Any) -> float | None:
    try:
        value = float(text)
    except (TypeError, ValueError, OverflowError):
        return None
    return value if math.isfinite(value) else None


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}
