"""What worker processes do besides their work."""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import signal
import threading
import time
import weakref
from functools import cache
from multiprocessing import util
from multiprocessing.context import BaseContext
from multiprocessing.process import BaseProcess
from typing import Any

_made: weakref.WeakSet[BaseProcess] = weakref.WeakSet()


def worker_options(workers: int) -> dict[str, Any]:
    """What a `DataLoader` takes so that its workers end when their trainer wants it, and never keep it from ending.

    Schedulers signal every process of a job. These workers pass over it, so that the trainer can save first. One that
    is killed, as for want of memory, ends the loader with PyTorch's error: with a worker's usual means it could die
    holding a lock that the trainer then waits for.

    Args:
        workers: Number of processes; 0 loads in the trainer's own.
    """
    if not workers:
        return {"num_workers": 0}
    return {"num_workers": workers, "worker_init_fn": _outlive_signals, "multiprocessing_context": _context()}


def _outlive_signals(worker: int) -> None:  # noqa: ARG001  # PyTorch gives the worker's number
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)  # SLURM's; else a fork of the trainer would save and requeue


class _Flag:
    """An event without a lock: one process sets it, and the others look."""

    def __init__(self) -> None:
        self._set = multiprocessing.RawValue(ctypes.c_bool, False)

    def set(self) -> None:
        self._set.value = True

    def is_set(self) -> bool:
        return bool(self._set.value)


def _context() -> BaseContext:
    usual: Any = multiprocessing.get_context()

    def process(context: BaseContext, *args: Any, **options: Any) -> BaseProcess:  # noqa: ARG001
        worker: BaseProcess = usual.Process(*args, **options)
        _made.add(worker)
        _end_workers_with(os.getpid())
        return worker

    context: BaseContext = type("LoaderContext", (type(usual),), {"Event": _Flag, "Process": process})()
    return context


@cache
def _end_workers_with(process: int) -> None:  # noqa: ARG001  # once for each process, as forks do not inherit it
    """Lets the loaders' workers be killed when this process ends: Python sends them SIGTERM, and waits for them."""
    util.Finalize(None, _end_workers, exitpriority=0)


def _end_workers() -> None:
    workers = [worker for worker in _made if worker.is_alive()]
    if workers:
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # PyTorch would report them as failed
    for worker in workers:
        worker.kill()


os.register_at_fork(after_in_child=_made.clear)


def end_with(parent: int) -> None:
    """Makes this process end within a second of its parent, whose death a process that waits for work may never notice.

    Args:
        parent: The parent's process number, taken by the parent.
    """

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(0.5)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
