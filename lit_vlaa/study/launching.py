"""Runs `lit-vlaa` commands in processes of their own, shows what they print, and passes signals on.

A process that works alone on the CPU is forked from one that has imported everything already (several seconds saved a
job); others are started as `python -m lit_vlaa`, since those that start ranks run their own command line again.
"""

from __future__ import annotations

import multiprocessing
import os
import runpy
import select
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from types import FrameType
from typing import Any, Protocol, Self

from lit_vlaa.checks import RunStoppedError
from lit_vlaa.study.locks import join

_PRELOADED = ["lit_vlaa.lightning_cli", "lit_vlaa.sft", "lit_vlaa.grpo", "callbacks", "datamodules"]
_NOT_INHERITED = ("PL_GLOBAL_SEED", "LIT_VLAA_LAST_CHECKPOINT", "SLURM_")
"""Variables (or their beginnings) that would change what a job does. Without SLURM's, Lightning starts a job's ranks
itself, on the machine where the job runs, instead of expecting one task a rank."""

_CHUNK = 1 << 16
_POLL = 0.2


class Interrupted(BaseException):  # like KeyboardInterrupt, nothing on the way should catch it
    """The runner was told to stop, and the job has ended."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


class Launch(Protocol):
    """Runs one command."""

    def __call__(self, words: Sequence[str], *, log: Path, lock: Path | None, handle: int | None) -> int:
        """Runs a command to its end.

        Args:
            words: After `lit-vlaa`.
            log: File that what it prints is added to.
            lock: File of a lock that the process shall share, with the descriptor that holds it here.
            handle: See `lock`.

        Returns:
            Its exit code; minus the signal's number if one ended it.
        """


class Processes:
    """Launches commands.

    Args:
        fork: Whether each works alone on the CPU.
    """

    def __init__(self, *, fork: bool) -> None:
        self._fork = fork
        if fork:
            multiprocessing.get_context("forkserver").set_forkserver_preload(_PRELOADED)

    def __call__(self, words: Sequence[str], *, log: Path, lock: Path | None = None, handle: int | None = None) -> int:
        """Runs a command to its end; see `Launch`.

        Raises:
            Interrupted: If SIGTERM or SIGINT came meanwhile; the command got SIGTERM, and has ended.
        """
        start = self._forked if self._fork else self._started
        reading, writing = os.pipe()
        try:
            # From before there is a child, or a signal that comes while it starts would leave it behind.
            with _Signals() as signals:
                try:
                    child = start(words, writing, lock, handle)
                except RunStoppedError as error:
                    if signals.told:  # a terminal's Ctrl-C ends the server that forks as well
                        raise Interrupted(signals.told[0]) from error
                    raise
                finally:
                    os.close(writing)
                signals.pass_on(child.signal)
                try:
                    _stream(reading, log, child.ended)
                except BaseException:  # such as a full disk
                    child.signal(signal.SIGTERM)
                    _discard(reading, child.ended)  # or its next word would end it, before it has saved
                    child.wait()
                    raise
                code = child.wait()
        finally:
            os.close(reading)
        if signals.told:
            raise Interrupted(signals.told[0])
        return code

    @staticmethod
    def _started(words: Sequence[str], writing: int, lock: Path | None, handle: int | None) -> _Child:  # noqa: ARG004
        process = subprocess.Popen(  # noqa: S603 - this program
            [sys.executable, "-m", "lit_vlaa", *words],
            stdin=subprocess.DEVNULL,
            stdout=writing,
            stderr=writing,
            env=_environment(),
            pass_fds=() if handle is None else (handle,),
            start_new_session=True,  # the terminal's Ctrl-C reaches this process alone, which passes it on
        )

        def send(number: int) -> None:
            if process.poll() is None:
                _send(process.pid, number)

        return _Child(send, lambda: process.poll() is not None, process.wait)

    @staticmethod
    def _forked(words: Sequence[str], writing: int, lock: Path | None, handle: int | None) -> _Child:  # noqa: ARG004
        context = multiprocessing.get_context("forkserver")
        receiver, sender = context.Pipe(duplex=False)
        os.dup2(writing, sender.fileno())  # the server hands connections on to what it forks, not bare descriptors
        arguments = (tuple(words), sender, str(Path.cwd()), _environment(), None if lock is None else str(lock))
        process = context.Process(target=_run_forked, args=arguments, daemon=False)
        try:
            process.start()
        except (EOFError, OSError) as error:
            raise RunStoppedError("the process that starts jobs was killed; the same command goes on") from error
        sender.close()
        receiver.close()

        def send(number: int) -> None:
            if process.pid is not None and process.is_alive():
                _send(process.pid, number)

        def wait() -> int:
            process.join()
            return int(process.exitcode or 0)

        return _Child(send, lambda: not process.is_alive(), wait)


class _Child:
    """A process that was started, in either way."""

    def __init__(self, send: Callable[[int], Any], ended: Callable[[], bool], wait: Callable[[], int]) -> None:
        self.signal, self.ended, self.wait = send, ended, wait


def _run_forked(
    words: tuple[str, ...], output: Any, folder: str, environment: dict[str, str], lock: str | None
) -> None:
    """What a forked process does: the same as `python -m lit_vlaa`."""
    os.setsid()
    os.dup2(output.fileno(), 1)
    os.dup2(output.fileno(), 2)
    output.close()
    sys.stdout = open(1, "w", buffering=1, encoding="utf-8", errors="replace", closefd=False)  # noqa: SIM115
    sys.stderr = open(2, "w", buffering=1, encoding="utf-8", errors="replace", closefd=False)  # noqa: SIM115
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    if lock is not None:
        join(Path(lock))
    sys.argv = ["lit-vlaa", *words]
    runpy.run_module("lit_vlaa", run_name="__main__")


def _environment() -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith(_NOT_INHERITED)}
    return {**kept, "PYTHONUNBUFFERED": "1"}


def _send(leader: int, number: int) -> None:
    """Sends a signal to a process; SIGKILL goes to its ranks and loaders as well, which could not be told otherwise."""
    with suppress(ProcessLookupError):
        if number == signal.SIGKILL:
            with suppress(ProcessLookupError):  # one that was just forked leads no group yet
                os.killpg(leader, number)
        os.kill(leader, number)


class _Signals:
    """Passes SIGTERM and SIGINT on as SIGTERM, upon which training saves a checkpoint; a second SIGINT kills."""

    def __init__(self) -> None:
        self.told: list[int] = []
        self._send: Callable[[int], Any] | None = None
        self._earlier: dict[int, Any] = {}

    def __enter__(self) -> Self:
        for number in (signal.SIGTERM, signal.SIGINT):
            self._earlier[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._earlier.items():
            signal.signal(number, handler)

    def pass_on(self, send: Callable[[int], Any]) -> None:
        """Says how the child is sent a signal; one that came before it could be is sent now."""
        self._send = send
        if self.told:
            send(signal.SIGTERM)

    def _note(self, number: int, frame: FrameType | None) -> None:  # noqa: ARG002
        again = number == signal.SIGINT and signal.SIGINT in self.told
        self.told.append(number)
        if self._send is not None:
            self._send(signal.SIGKILL if again else signal.SIGTERM)
        elif again:  # the server that forks may take long to start, and forks nothing for a runner that is gone
            raise Interrupted(self.told[0])


def _discard(reading: int, ended: Callable[[], bool]) -> None:
    """Reads what a process prints until it has ended."""
    while not ended():
        ready, _, _ = select.select([reading], [], [], _POLL)
        if ready and not os.read(reading, _CHUNK):
            return


def _stream(reading: int, log: Path, ended: Callable[[], bool]) -> None:
    """Copies what a process prints to the console and to its log until it has ended."""
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("ab") as file:
        while True:
            over = ended()  # asked before reading, so that nothing printed last is missed
            ready, _, _ = select.select([reading], [], [], 0 if over else _POLL)
            chunk = os.read(reading, _CHUNK) if ready else b""
            if chunk:
                file.write(chunk)
                file.flush()
                sys.stdout.write(chunk.decode("utf-8", errors="replace"))
                sys.stdout.flush()
            elif over or ready:
                return
