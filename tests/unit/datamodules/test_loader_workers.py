from __future__ import annotations

import os
import signal
import time
from typing import Any

import pytest
from torch.utils.data import DataLoader

from datamodules.workers import outlive_sigterm


class Slow:
    """Rows that tell the process that loads them, each after a while."""

    def __len__(self) -> int:
        return 20

    def __getitem__(self, row: int) -> int:
        time.sleep(0.02)
        return os.getpid()


def loader(**options: Any) -> DataLoader[int]:
    return DataLoader(Slow(), num_workers=1, prefetch_factor=1, **options)  # type: ignore[arg-type]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_a_schedulers_first_signal_passes_a_worker_by(number: int) -> None:
    rows = []
    for place, row in enumerate(loader(worker_init_fn=outlive_sigterm)):
        rows.append(int(row))
        if place == 2:
            os.kill(int(row), number)
    assert len(rows) == 20


@pytest.mark.parametrize(("init", "signals"), [(outlive_sigterm, 2), (None, 1)])
def test_a_worker_that_is_told_twice_ends(init: Any, signals: int) -> None:
    batches = iter(loader(worker_init_fn=init))
    worker = int(next(batches))

    def go_on() -> None:
        for told, _ in enumerate(batches):
            # Two signals at a time would be one; a row that was asked for after the first comes from a worker that
            # has taken note of it, and one more may have been made before.
            if told % 3 == 0 and told < 3 * signals:
                os.kill(worker, signal.SIGTERM)

    with pytest.raises(RuntimeError, match="DataLoader worker"):
        go_on()
