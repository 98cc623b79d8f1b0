"""A look at the files of a run's benchmarks, for `lit-vlaa doctor`."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jsonargparse import ArgumentParser

from callbacks.benchmark_evaluation import BenchmarkEvaluation
from callbacks.benchmarks.interface import Benchmark
from callbacks.evaluation.rows import load_rows
from lit_vlaa.checks import one_line

_OPENED = 3
"""Rows of each benchmark whose images are decoded."""


def run(callback: Mapping[str, Any]) -> tuple[list[str], bool]:
    """Loads every benchmark whose rows lie in a file, as the evaluation will, and opens the images of its first rows.

    Args:
        callback: The parsed settings of a `BenchmarkEvaluation`.

    Returns:
        A line for each benchmark, with what the evaluation would say of it, and whether it would stop there.
    """
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--callback", type=BenchmarkEvaluation)
    try:
        made: BenchmarkEvaluation = parser.instantiate(parser.parse_object({"callback": callback})).callback
    except ValueError as error:
        return [f"error: {one_line(str(error))}"], True
    lines: list[str] = []
    stops = False
    for benchmark in made.benchmarks:
        try:
            lines += _of_hub(benchmark, made.data_dir) or _loaded(benchmark, made.data_dir)
        except (ValueError, OSError) as error:
            lines.append(f"benchmark {benchmark.title}: error: {' '.join(str(error).split())}")
            stops = True
    return lines, stops


def _of_hub(benchmark: Benchmark, data_dir: Path | None) -> list[str]:
    """What to say of a benchmark that would come from the Hub, which is not asked here."""
    if benchmark.hub is None or type(benchmark).load is not Benchmark.load:
        return []
    file = None if data_dir is None else data_dir / benchmark.file
    if file is not None and file.is_file():
        return []
    where = "no data_dir is given" if file is None else f"there is no file {file}"
    return [f"benchmark {benchmark.title}: {where}; the Hub data set {benchmark.hub[0]} would be loaded"]


def _loaded(benchmark: Benchmark, data_dir: Path | None) -> list[str]:
    with warnings.catch_warnings(record=True) as noted:
        warnings.simplefilter("always")
        records = load_rows(benchmark, data_dir)
    told = [f"benchmark {benchmark.title}: {len(records)} rows, from {records[0].origin} on"]
    told += [f"  warning: {note.message}" for note in noted]
    for image in (image for record in records[:_OPENED] for image in record.images):
        try:
            image.open()
        except ValueError as error:
            told.append(f"  warning: {error}; an evaluation leaves such rows out")
    return told
