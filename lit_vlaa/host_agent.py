"""What `lit_vlaa.hosts` makes of torchrun's agent: when processes start again, and how they are told to go."""

from __future__ import annotations

import json
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

from torch.distributed.elastic.agent.server.api import RunResult, WorkerGroup, WorkerSpec, WorkerState
from torch.distributed.elastic.agent.server.local_elastic_agent import LocalElasticAgent
from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, SignalException
from torch.distributed.elastic.rendezvous import RendezvousClosedError

from lit_vlaa.versions import installed

_STOPPED = 1
_OVER = {2, 128 + signal.SIGINT, 128 + signal.SIGPIPE, 128 + signal.SIGTERM}
"""Exit codes of `lit-vlaa` that no new start would change; a run that stopped itself ends with 1, as a crash does."""

_HUNG_GRACE = 5
"""Seconds that processes have to end which wait for a dead one."""

_OVER_GRACE = 30
"""Seconds that processes have to end when the run has ended in another process, or on another host."""

_SAVING_GRACE = 180
"""Seconds that processes have to save a checkpoint when this host is told to go."""

_HEED = 5.0
"""Seconds in which this one must have told the others to go; PyTorch, waiting for a silent host, hears nothing."""

_LEAVING = 20.0
"""Seconds in which this process must end, once it was told to and those that it started have ended."""

_OVERRIDDEN = ("_start_workers", "_monitor_workers", "_restart_workers", "_stop_workers", "_invoke_run", "_shutdown")
_ANOTHER = "PyTorch {} has another elastic agent ({}) than 2.11 to 2.13; use one of these, or torchrun"

_ENDS = dict.fromkeys((signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2), signal.SIGTERM)
_ENDS[signal.SIGINT] = signal.SIGINT
"""What the processes are told by a signal to this one: all but Ctrl-C have them save a checkpoint."""


class OverError(Exception):
    """The run has ended here for good.

    Args:
        code: The exit code.
        reason: What there is to say of it; empty where the run itself has said it.
    """

    def __init__(self, code: int, reason: str = "") -> None:
        super().__init__(reason)
        self.code = code


class Restarts:
    """Counts starts from one checkpoint.

    Args:
        limit: Restarts from one and the same checkpoint.
        origin: File to which the run writes where it began (`lit_vlaa.checks.ORIGIN`).
    """

    def __init__(self, limit: int, origin: Path) -> None:
        self._limit = limit
        self._file = origin
        self._origin = ""
        self._count = 0
        self.idle_since: float | None = time.monotonic()
        """When the hosts began to look for each other, by the monotonic clock; None while the run goes on."""

    def begin(self) -> None:
        """Notes a start."""
        self.idle_since = None
        self._file.touch()  # the run only fills it; one that dies before it has looked counts for the last

    def another(self, why: str) -> None:
        """Says why the run is started again, and how often it was.

        Args:
            why: What happened.

        Raises:
            OverError: If it began at this checkpoint too often already.
        """
        origin = self._file.read_text(encoding="utf-8") if self._file.exists() else self._origin
        self._count = self._count + 1 if origin == self._origin else 1
        self._origin = origin
        place = plain_line(origin.partition("\n")[0]) or "the beginning"
        if self._count > self._limit:
            reason = f"{why}; no restart, as {self._count} starts at {place} have failed (RESTARTS={self._limit})"
            raise OverError(1, reason)
        self.idle_since = time.monotonic()
        say(f"restart {self._count} of at most {self._limit} after starting at {place}: {why}")


class Agent(LocalElasticAgent):
    """Starts this host's processes and looks after them.

    Args:
        spec: What to start, and where to meet the other hosts.
        folder: Where crashed processes leave word.
        restarts: Counts them.
        wait: Seconds to wait for the other hosts when this one's processes are done.
        heard: Signals to this process, as `signals_heeded` gives them.

    Raises:
        OverError: If this version of PyTorch has another agent.
    """

    def __init__(
        self, spec: WorkerSpec, folder: str, restarts: Restarts, wait: float, heard: Sequence[SignalException]
    ) -> None:
        # A method that PyTorch calls otherwise would be passed over without a word.
        if missing := [name for name in _OVERRIDDEN if not hasattr(LocalElasticAgent, name)]:
            raise OverError(1, _ANOTHER.format(installed("torch"), f"without {', '.join(missing)}"))
        super().__init__(spec, DefaultLogsSpecs(folder), exit_barrier_timeout=wait)
        self._restarts = restarts
        self._heard = heard
        self._why = ""
        self._told = False

    def run_to_end(self) -> None:
        """Trains until the run is done.

        Raises:
            OverError: If it ended in any other way.
            RendezvousClosedError: If it has ended on another host, or went on without this one until its end.
            SignalException: If this process was told to go.
        """
        if self.run() is None:  # the hosts were complete without this one
            raise RendezvousClosedError

    def _start_workers(self, worker_group: WorkerGroup) -> dict[int, Any]:
        self._restarts.begin()
        self._told = False
        pids: dict[int, Any] = super()._start_workers(worker_group)
        return pids

    def _monitor_workers(self, worker_group: WorkerGroup) -> RunResult:
        if self._heard:  # what a signal's handler raises is lost where a logger, say, catches every exception
            raise self._heard[0]
        # Torch's own method tells the others to go once one has failed, and then reports how they ended too.
        codes = {rank: process.poll() for rank, process in self._processes().items()}
        if failed := {rank: code for rank, code in codes.items() if code}:
            told = {rank: self._told_why(rank) for rank in failed}
            over = [code for rank, code in failed.items() if code in _OVER or (code == _STOPPED and not told[rank])]
            if over:
                raise OverError(over[0])
            first = min(failed, key=lambda rank: (failed[rank] > 0, rank))
            number = next(worker.global_rank for worker in worker_group.workers if worker.local_rank == first)
            self._why = f"process {number} {_what_happened(failed[first], told[first])}"
            return RunResult(state=WorkerState.FAILED)
        if None not in codes.values():
            done: RunResult = super()._monitor_workers(worker_group)
            return done
        if worker_group.spec.rdzv_handler.is_closed():
            raise RendezvousClosedError  # these may wait for processes of a host that has left, and never notice
        return RunResult(state=WorkerState.HEALTHY)

    def _restart_workers(self, worker_group: WorkerGroup) -> None:
        why, self._why = self._why or "another host has come anew", ""
        self._restarts.another(why)
        super()._restart_workers(worker_group)

    def _stop_workers(self, worker_group: WorkerGroup, *_: Any, **__: Any) -> None:  # noqa: ARG002
        self._end(signal.SIGTERM, _HUNG_GRACE)

    def _invoke_run(self, role: str = "default") -> RunResult:
        try:
            result: RunResult = super()._invoke_run(role)
        except SignalException:
            raise
        except (OverError, RendezvousClosedError):
            self._end(signal.SIGTERM, _OVER_GRACE)
            raise
        except Exception:
            self._end(signal.SIGTERM, _HUNG_GRACE)
            raise
        return result

    def _shutdown(self, death_sig: signal.Signals = signal.SIGTERM, *_: Any, **__: Any) -> None:
        # From 2.12 on PyTorch also says how many seconds to wait. A scheduler may tell this one several times, and to
        # leave now would cost the checkpoint: the processes end with their agent. Ctrl-C still leaves.
        earlier = {number: signal.signal(number, _heed_no_more) for number in _ENDS if number != signal.SIGINT}
        try:
            self._end(death_sig, _SAVING_GRACE)
        finally:
            for number, handler in earlier.items():
                signal.signal(number, handler)

    def _end(self, number: signal.Signals, grace: int) -> None:
        self._told = True
        if self._pcontext is not None:
            self._pcontext.close(number, grace)

    def tell(self, number: int) -> bool:
        """Passes a signal on to this host's processes, unless they were told to go before; called from any thread.

        Args:
            number: The signal; 0 for none.

        Returns:
            Whether any of them still runs.
        """
        running = [process for process in self._processes().values() if process.poll() is None]
        for process in running if number and not self._told else ():
            with suppress(ProcessLookupError):
                os.killpg(process.pid, number)
        return bool(running)

    def _processes(self) -> dict[int, Any]:
        """The processes that were started last, by local rank."""
        context: Any = self._pcontext
        if context is None:
            return {}
        try:
            return {rank: handler.proc for rank, handler in context.subprocess_handlers.items()}
        except AttributeError as error:
            raise OverError(1, _ANOTHER.format(installed("torch"), error)) from error

    def _told_why(self, rank: int) -> str:
        """What a process crashed of: Python met an exception that nobody caught (`__main__` has it written down)."""
        context: Any = self._pcontext
        path = Path(context.error_files[rank])
        if not path.is_file():
            return ""
        try:
            told = json.loads(path.read_text(encoding="utf-8"))["message"]
        except (OSError, ValueError, KeyError, TypeError):  # killed amid its last words, or the disk is full
            return "its report cannot be read"
        return plain_line(told.get("message", told) if isinstance(told, dict) else told) or "no message"


def _what_happened(code: int, told: str) -> str:
    if code >= 0:
        return f"crashed: {told}" if told else f"ended with {code}"
    try:
        return f"was killed by {signal.Signals(-code).name}"
    except ValueError:  # a real-time signal
        return f"was killed by signal {-code}"


@contextmanager
def signals_heeded(tell: Callable[[int], bool]) -> Iterator[Sequence[SignalException]]:
    """Turns signals into `SignalException`, but for those that were ignored before, as `nohup` has it.

    A thread sees to it that this process ends then, also where the main one is kept by PyTorch.

    Args:
        tell: As `Agent.tell`.

    Yields:
        What was raised.
    """
    heard: list[SignalException] = []

    def heed(number: int, frame: FrameType | None) -> NoReturn:  # noqa: ARG001
        heard.append(SignalException(f"told to go by signal {number}", sigval=_ENDS[signal.Signals(number)]))
        raise heard[-1]

    # Torch sets handlers of its own, by default also for what `nohup` ignores.
    os.environ["TORCHELASTIC_SIGNALS_TO_HANDLE"] = "SIGTERM"
    for number in _ENDS:
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, heed)
    left = threading.Event()
    reading, writing = socket.socketpair()
    writing.setblocking(False)
    earlier = signal.set_wakeup_fd(writing.fileno(), warn_on_full_buffer=False)
    threading.Thread(target=_watch, args=(reading, left, tell), daemon=True).start()
    try:
        yield heard
    finally:
        signal.set_wakeup_fd(earlier)
        left.set()
        writing.close()


def _heed_no_more(number: int, frame: FrameType | None) -> None:
    """Does nothing."""


def _watch(reading: socket.socket, left: threading.Event, tell: Callable[[int], bool]) -> None:
    with reading:  # to the end, as Python complains of signals that nobody reads
        while (told := reading.recv(1)) and told[0] not in _ENDS:
            pass
        if not told or left.wait(_HEED):
            return
        number = _ENDS[signal.Signals(told[0])]
        tell(number)
        end = time.monotonic() + _SAVING_GRACE
        while tell(0) and time.monotonic() < end:
            if left.wait(0.2):
                return
        if not left.wait(_LEAVING):
            os._exit(128 + number)


def plain_line(told: object) -> str:
    """A text of any length and kind as part of a line."""
    text = " ".join(str(told).split())[:300]
    return "".join(char if char.isprintable() else "?" for char in text)


def say(text: str) -> None:
    """Tells something on standard error."""
    sys.stderr.write(f"lit-vlaa: {time.strftime('%F %T')} {text}\n")
    sys.stderr.flush()
