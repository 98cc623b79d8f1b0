"""Reading a benchmark's rows: from an LMUData TSV file, else from its data set on the Hub.

Images are not kept in memory: a record knows where its images lie, and they are read again when they are opened.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from lightning_utilities.core.rank_zero import rank_zero_warn

from callbacks.benchmarks.images import EncodedImage, row_images
from callbacks.benchmarks.interface import Benchmark, EvalImage, EvalRecord
from callbacks.benchmarks.table import read_table

__all__ = ["EncodedImage", "load_records", "row_images"]

SPLIT, ROW = "__split__", "__row__"
"""Keys that a Hub row gets beside its own columns: the split it comes from, and its number there from 1, as text."""


def load_records(benchmark: Benchmark, data_dir: Path | None) -> list[EvalRecord]:
    """Reads all rows of a benchmark, in the order of its file.

    Args:
        benchmark: Names the file and the Hub data set, and makes records of rows.
        data_dir: Folder with the TSV file. Without it, or where the file is not there, the Hub data set is loaded; what
            is in the Hub's local cache is found without a network. A file whose MD5 differs from the benchmark's gives
            a warning: benchmarks are corrected after their publication.

    Raises:
        ValueError: If there is neither file nor data set, or a row is malformed, or two rows have the same id; the
            message names the row as `file:row` and the column.
    """
    file = None if data_dir is None or not benchmark.file else data_dir / benchmark.file
    if file is not None and file.is_file():
        records = list(_from_file(benchmark, file))
    else:
        records = list(_from_hub(benchmark, file))
    seen: dict[str, str] = {}
    for record in records:
        if record.id in seen:
            raise ValueError(f"{record.origin}: column 'index': {record.id!r} stands in {seen[record.id]} already")
        seen[record.id] = record.origin
    if not records:
        raise ValueError(f"{benchmark.title}: no rows in {file or benchmark.hub}")
    return records


def _from_file(benchmark: Benchmark, file: Path) -> Iterator[EvalRecord]:
    table = read_table(file)
    if benchmark.md5 is not None and table.md5 != benchmark.md5:
        rank_zero_warn(
            f"{file}: MD5 is {table.md5}, expected {benchmark.md5}. Scores may not be comparable with published ones; "
            "fetch the file again, unless you changed it on purpose."
        )
    for origin, row, images in table.rows():
        yield _record(benchmark, row, images, origin)


def _from_hub(benchmark: Benchmark, file: Path | None) -> Iterator[EvalRecord]:
    from callbacks.benchmarks.hub import hub_rows  # noqa: PLC0415  # `datasets` takes a second to import

    wanted = f"the folder of benchmark data needs {benchmark.file}" if file is None else f"there is no file {file}"
    if benchmark.hub is None:
        raise ValueError(f"{benchmark.title}: {wanted}")
    repository, configuration, splits = benchmark.hub
    for split in splits.split("+"):
        rows = hub_rows(repository, configuration, split, advice=f"{benchmark.title}: {wanted}, and")
        for number, cells in enumerate(rows, 1):
            origin = f"{repository}[{split}]:{number}"
            given = {**cells, SPLIT: split, ROW: str(number)}
            if not benchmark.keeps_hub_row(given):
                continue
            try:
                row = benchmark.row_from_hub(given)
                images = row_images(row, origin)
            except KeyError as error:
                raise ValueError(f"{origin}: column {error} is missing") from error
            except ValueError as error:
                raise ValueError(f"{origin}: {error}") from error
            yield _record(benchmark, row, images, origin)


def _record(benchmark: Benchmark, row: Mapping[str, Any], images: tuple[EvalImage, ...], origin: str) -> EvalRecord:
    if not images:
        raise ValueError(f"{origin}: column 'image' is empty")
    try:
        record = benchmark.record_from_row({**row, "image": images})
    except ValueError as error:
        raise ValueError(f"{origin}: {error}") from error
    return replace(record, images=images, origin=origin)
