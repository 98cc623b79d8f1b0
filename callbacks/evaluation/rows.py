"""Which rows of benchmarks there are, and how many of them are evaluated during training."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType

from callbacks.benchmarks.interface import Benchmark, EvalRecord

SUBSET: Mapping[str, int] = MappingProxyType(
    {"mathvista": 100, "mathvision": 100, "mathverse": 80, "dynamath": 200, "wemath": 115, "logicvista": 60}
)
"""Rows of each benchmark that are evaluated during training unless the user says otherwise."""

_OTHER_ROWS = 100


def subset_sizes(names: Sequence[str], subset: Mapping[str, int] | int | None) -> dict[str, int]:
    """Rows of each benchmark that are evaluated during training.

    Args:
        names: Of the benchmarks.
        subset: What the user wants, by name or the same for all; `SUBSET` fills in the rest.

    Raises:
        ValueError: If `subset` names another benchmark or less than one row.
    """
    wanted = dict(subset) if isinstance(subset, Mapping) else dict.fromkeys(names, subset)
    if unknown := sorted(wanted.keys() - set(names)):
        raise ValueError(f"BenchmarkEvaluation: subset names {', '.join(unknown)}; known are {', '.join(names)}")
    for name, rows in wanted.items():
        if rows is not None and rows < 1:
            raise ValueError(f"BenchmarkEvaluation: subset of {name} must be at least 1, got {rows}")
    return {name: wanted.get(name) or SUBSET.get(name, _OTHER_ROWS) for name in names}


def load_rows(benchmark: Benchmark, data_dir: Path | None) -> list[EvalRecord]:
    """A benchmark's rows, checked also where it has a rule of its own for loading them.

    Raises:
        ValueError: If there are none, two have the same id, or `Benchmark.load` raises it.
    """
    records = benchmark.load(data_dir)
    if not records:
        raise ValueError(f"{benchmark.title}: `load` of {type(benchmark).__name__} gives no rows")
    ((name, count),) = Counter(record.id for record in records).most_common(1)
    if count > 1:
        raise ValueError(
            f"{benchmark.title}: {count} rows have the id {name!r}; `load` of {type(benchmark).__name__} must give "
            "each row an id of its own"
        )
    return records
