"""Rows through processes that look at them, in order, a bounded number at a time."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Collection, Iterator, Sequence
from concurrent.futures import Future
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Protocol

from datamodules.check.parts import CountingProcessor, Truths
from datamodules.check.rows import RowChecker, RowFacts
from datamodules.check.settings import Settings
from datamodules.rows import BadRecord
from datamodules.shards import RowAt, ShardSet, is_shards, rows_of
from datamodules.worker_pool import worker_pool
from lit_vlaa.checks import UsageError

_BATCH = 32
_AHEAD = 4
"""Batches in flight for each process."""


class Look(Protocol):
    """Looks at rows in whichever process is free."""

    def __call__(self, rows: Iterator[RowAt], *, fingerprint: bool = False) -> Iterator[RowFacts]:
        """Yields the facts of the rows in their order, of a fingerprint those of rows with usable image fields."""


@contextmanager
def looking(settings: Settings, processor: CountingProcessor | None, *, workers: int, inside: bool) -> Iterator[Look]:
    """Opens the processes; with one worker, rows are looked at in this one.

    Args:
        settings: What rows are held against.
        processor: Counts tokens; None to count none.
        workers: Number of processes.
        inside: Whether the images lie in the shards.

    Raises:
        UsageError: If a process is killed.
    """
    if workers == 1:
        checker = _new_checker(settings, processor, inside=inside)

        def here(rows: Iterator[RowAt], *, fingerprint: bool = False) -> Iterator[RowFacts]:
            for batch in _batches(rows):
                yield from checker.fingerprint(batch) if fingerprint else checker(batch)

        try:
            yield here
        finally:
            if checker.truths is not None:
                checker.truths.close()
        return
    try:
        with worker_pool(workers, partial(_start, settings, processor, inside=inside)) as pool:

            def there(rows: Iterator[RowAt], *, fingerprint: bool = False) -> Iterator[RowFacts]:
                pending: deque[Future[list[RowFacts]]] = deque()
                for batch in _batches(rows):
                    pending.append(pool.submit(_look, batch, fingerprint))
                    if len(pending) >= _AHEAD * workers:
                        yield from pool.result(pending.popleft())
                while pending:
                    yield from pool.result(pending.popleft())

            yield there
    except BrokenProcessPool as error:
        raise UsageError(
            ["a process that looked at rows was killed (too little memory?); use fewer --workers"]
        ) from error


def _batches(rows: Iterator[RowAt]) -> Iterator[list[RowAt]]:
    while batch := list(islice(rows, _BATCH)):
        yield batch


_checker: RowChecker | None = None


def _new_checker(settings: Settings, processor: CountingProcessor | None, *, inside: bool) -> RowChecker:
    truths = Truths(settings.verifiers) if settings.split == "grpo" else None
    return RowChecker(settings, processor, truths, inside=inside)


def _start(settings: Settings, processor: CountingProcessor | None, *, inside: bool) -> None:
    """Makes a worker of a fresh process."""
    global _checker  # noqa: PLW0603 - the executor offers no other place
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    _checker = _new_checker(settings, processor, inside=inside)


def _look(rows: Sequence[RowAt], fingerprint: bool) -> list[RowFacts]:
    assert _checker is not None  # noqa: S101 - for the type checker
    return _checker.fingerprint(rows) if fingerprint else _checker(rows)


class Rows:
    """The rows of a data file, some or all; `broken` says where it breaks off.

    Args:
        path: A data file, or a folder of shards.
        chosen: Numbers of rows to take, from 1; None for all.
    """

    def __init__(self, path: Path, chosen: Collection[int] | None = None) -> None:
        self.path, self.chosen = path, chosen
        self.broken: BadRecord | None = None

    def __iter__(self) -> Iterator[RowAt]:
        """Reads the rows in order up to where the file breaks off."""
        self.broken = None
        try:
            for place, at in enumerate(rows_of(self.path), 1):
                if self.chosen is None or place in self.chosen:
                    yield at
        except BadRecord as error:
            self.broken = error

    def count(self) -> int:
        """Number of rows in the file, whatever is chosen."""
        return sum(1 for _ in Rows(self.path))


def holds_images(path: Path) -> bool:
    """Whether the images of a file's rows lie in its shards."""
    return is_shards(path) and ShardSet.read(path).images == "embed"
