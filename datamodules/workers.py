"""What keeps worker processes from ending too early, too late, or with a lock that others wait for."""

from __future__ import annotations

import _thread
import ctypes
import multiprocessing
import os
import queue
import signal
import struct
import threading
import time
import weakref
from contextlib import suppress
from functools import cache, partial
from multiprocessing import forkserver, util
from multiprocessing.context import BaseContext
from multiprocessing.process import BaseProcess
from multiprocessing.reduction import ForkingPickler
from typing import Any

_HEAD = struct.Struct("!Q")
_CHUNK = 2**20

_made: weakref.WeakSet[BaseProcess] = weakref.WeakSet()


def worker_options(workers: int) -> dict[str, Any]:
    """What a `DataLoader` takes so that its workers end when their trainer wants it, and never keep it from ending.

    Schedulers signal every process of a job. These workers pass over it, so that the trainer can save first; they end
    with it, however it ends. One that is killed, as for want of memory, ends the loader with PyTorch's error: with a
    worker's usual means it could die holding a lock, or amid a message, that the trainer then waits for.

    Args:
        workers: Number of processes; 0 loads in the trainer's own.
    """
    if not workers:
        return {"num_workers": 0}
    return {"num_workers": workers, "worker_init_fn": _prepare, "multiprocessing_context": _context()}


_PASSED_OVER = (signal.SIGTERM, signal.SIGUSR1)
"""What schedulers send; at SLURM's a fork of the trainer would save and requeue."""


def _prepare(worker: int) -> None:  # noqa: ARG001  # PyTorch gives the worker's number
    for number in _PASSED_OVER:
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _PASSED_OVER)  # what came since its start is dropped
    # One that PyTorch finds waiting would see it too, but not one whose last message nobody reads any more.
    end_with_parent()


class _Flag:
    """An event without a lock: one process sets it, and the others look."""

    def __init__(self) -> None:
        self._set = multiprocessing.RawValue(ctypes.c_bool, False)

    def set(self) -> None:
        self._set.value = True

    def is_set(self) -> bool:
        return bool(self._set.value)


class _Messages:
    """A queue that one thread of one process reads; what PyTorch uses of those of `multiprocessing`.

    Reading keeps its time limit where a writer was killed amid a message: what came of it stays for the next call.
    Writing waits for nothing, and takes no lock that an exception of a signal's handler could leave held.
    """

    def __init__(self, context: BaseContext) -> None:
        self._reader, self._writer = context.Pipe(duplex=False)
        self._turn = context.Lock()
        """Of the processes that write."""
        self._begin()

    def __getstate__(self) -> tuple[Any, ...]:
        """What a process that is started afresh is handed."""
        return self._reader, self._writer, self._turn

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        """Takes it there."""
        self._reader, self._writer, self._turn = state
        self._begin()

    def _begin(self) -> None:
        self._owner = os.getpid()
        self._came = bytearray()
        self._left: queue.SimpleQueue[memoryview | None] = queue.SimpleQueue()
        self._sends = False

    def put(self, message: Any) -> None:
        """Hands a message over to a thread that sends it.

        Raises:
            Exception: If it cannot be pickled; PyTorch's own queue would keep the reader waiting for it.
        """
        if self._owner != os.getpid():  # a fork has no threads of its parent
            self._begin()
        self._left.put(ForkingPickler.dumps(message))
        if not self._sends:
            # `threading` would wait for the thread's beginning, under a lock.
            _thread.start_new_thread(_send, (self._left, self._writer, self._turn))
            self._sends = True

    def get(self, timeout: float) -> Any:
        """The next message.

        Args:
            timeout: Seconds to wait for all of it.

        Raises:
            Empty: If it does not come in time.
        """
        end = time.monotonic() + timeout
        while len(self._came) < (size := self._size()):
            if not self._reader.poll(max(0.0, end - time.monotonic())):
                raise queue.Empty
            chunk = os.read(self._reader.fileno(), min(size - len(self._came), _CHUNK))
            if not chunk:
                raise EOFError
            self._came += chunk
        whole, self._came = self._came, bytearray()
        return ForkingPickler.loads(memoryview(whole)[_HEAD.size :])

    def cancel_join_thread(self) -> None:
        """Nobody waits for the thread anyway: who reads has had all that it needs when a writer ends."""

    def close(self) -> None:
        """Ends the thread."""
        self._left.put(None)

    def _size(self) -> int:
        """Bytes of the message that is coming with its head; those of the head while it has not come."""
        if len(self._came) < _HEAD.size:
            return _HEAD.size
        return _HEAD.size + int(_HEAD.unpack_from(self._came)[0])


def _send(left: queue.SimpleQueue[memoryview | None], writer: Any, turn: Any) -> None:
    with suppress(BrokenPipeError):  # nobody reads any more
        while (message := left.get()) is not None:
            with turn:
                for part in (memoryview(_HEAD.pack(len(message))), message):
                    while part:
                        part = part[os.write(writer.fileno(), part) :]  # noqa: PLW2901


def _context() -> BaseContext:
    usual: Any = multiprocessing.get_context()

    def process(context: BaseContext, *args: Any, **options: Any) -> BaseProcess:  # noqa: ARG001
        worker: Any = usual.Process(*args, **options)
        worker.start = partial(_start, worker)
        worker.terminate = worker.kill  # what PyTorch calls once one has not ended in time; it passes over SIGTERM
        _made.add(worker)
        _end_workers_with(os.getpid())
        made: BaseProcess = worker
        return made

    def messages(context: BaseContext) -> _Messages:
        return _Messages(context)

    parts = {"Event": _Flag, "Process": process, "Queue": messages}
    context: BaseContext = type("LoaderContext", (type(usual),), parts)()
    return context


def _start(worker: BaseProcess) -> None:
    """Starts a worker that no signal can reach until it is prepared; one of a fork server starts as ever."""
    if multiprocessing.get_start_method() == "forkserver":
        forkserver.ensure_running()  # which would keep what is blocked now for all that it starts
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _PASSED_OVER)
    try:
        type(worker).start(worker)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


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


def end_with_parent() -> None:
    """Makes this process end within a second of its parent, whose death a process that waits may never notice.

    For one that `multiprocessing` has started, in any way; also where the parent has died by now.
    """
    parent, starter = multiprocessing.parent_process(), os.getppid()

    def watch() -> None:
        # A fork may be handed the pipe that tells of another one's parent, and a fork server is not the parent.
        while os.getppid() == starter and (parent is None or parent.is_alive()):
            time.sleep(0.5)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
