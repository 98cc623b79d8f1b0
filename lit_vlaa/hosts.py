"""This host's processes of a run on one or several hosts, started again when one of them, or another host, dies.

`configs/cluster/torchrun.sh` calls it. It is torchrun's own agent and rendezvous (`torch.distributed.elastic`, backend
`c10d`), with what torchrun itself does not know of these runs:

1. Torchrun starts every failed run again, or none. Here the exit code tells: a run that is done, that stopped itself,
   that was preempted or interrupted, or whose arguments cannot work has ended; one that crashed or was killed goes on.
2. Torchrun counts restarts over a run's whole life. Here only those from one and the same checkpoint count, so that a
   run of weeks outlives any number of failures, and one that fails at one place ends after a few.
3. When the host that holds torchrun's store dies, the agents of the others die. Here they meet it again.
4. Torchrun's store outlives a round, with the keys of dead ranks in it. Here each round has a store of its own
   (`TORCH_DISABLE_SHARE_RDZV_TCP_STORE`).
"""

from __future__ import annotations

import argparse
import os
import signal
import socket
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

from torch.distributed.elastic.agent.server.api import RunResult, WorkerGroup, WorkerSpec, WorkerState
from torch.distributed.elastic.agent.server.local_elastic_agent import LocalElasticAgent
from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, ProcessFailure, SignalException
from torch.distributed.elastic.rendezvous import (
    RendezvousClosedError,
    RendezvousError,
    RendezvousHandler,
    RendezvousParameters,
    RendezvousTimeoutError,
)
from torch.distributed.elastic.rendezvous.registry import get_rendezvous_handler

from lit_vlaa.checks import ORIGIN

_STOPPED = 1
_OVER = {2, 128 + signal.SIGINT, 128 + signal.SIGTERM}
"""Exit codes of `lit-vlaa` that no new start would change; a run that stopped itself ends with 1, as a crash does."""

_HUNG_GRACE = 5
"""Seconds that processes have to end which wait for a dead one."""

_SAVING_GRACE = 180
"""Seconds that processes have to save a checkpoint when this host is told to go."""

_READ_TIMEOUT = 60
"""Seconds after which a first host that does not answer is asked anew."""

_FAREWELL = 10.0
"""Seconds that the first host stays when a run has ended badly, so that the others learn of it."""


class _OverError(Exception):
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
            _OverError: If it began at this checkpoint too often already.
        """
        origin = self._file.read_text(encoding="utf-8") if self._file.exists() else self._origin
        self._count = self._count + 1 if origin == self._origin else 1
        self._origin = origin
        place = origin.partition("\n")[0] or "the beginning"
        if self._count > self._limit:
            reason = f"{why}; no restart, as {self._count} starts at {place} have failed (RESTARTS={self._limit})"
            raise _OverError(1, reason)
        self.idle_since = time.monotonic()
        _say(f"restart {self._count} of at most {self._limit} after starting at {place}: {why}")


class _Agent(LocalElasticAgent):
    """Starts this host's processes and looks after them."""

    def __init__(self, spec: WorkerSpec, logs: DefaultLogsSpecs, restarts: Restarts) -> None:
        super().__init__(spec, logs, shutdown_timeout=_SAVING_GRACE)
        self._restarts = restarts
        self._why = ""

    def _start_workers(self, worker_group: WorkerGroup) -> dict[int, Any]:
        self._restarts.begin()
        pids: dict[int, Any] = super()._start_workers(worker_group)
        return pids

    def _monitor_workers(self, worker_group: WorkerGroup) -> RunResult:
        result: RunResult = super()._monitor_workers(worker_group)
        if result.state is WorkerState.FAILED:
            if over := [code for failure in result.failures.values() if (code := _final_code(failure))]:
                raise _OverError(over[0])
            rank, first = min(result.failures.items(), key=lambda item: item[1].timestamp)
            self._why = f"process {rank} {_what_happened(first)}"
        return result

    def _restart_workers(self, worker_group: WorkerGroup) -> None:
        why, self._why = self._why or "another host has come anew", ""
        self._restarts.another(why)
        super()._restart_workers(worker_group)

    def _stop_workers(self, worker_group: WorkerGroup, *_: Any, **__: Any) -> None:  # noqa: ARG002
        # Some versions of PyTorch also say whether it is for a restart.
        self._shutdown(timeout=_HUNG_GRACE)

    def _invoke_run(self, role: str = "default") -> RunResult:
        try:
            result: RunResult = super()._invoke_run(role)
        except SignalException:
            raise
        except Exception:
            self._shutdown(timeout=_HUNG_GRACE)
            raise
        return result


def main(words: Sequence[str] | None = None) -> int:
    """Runs `lit-vlaa` on this host until the run has ended.

    Args:
        words: The host's flags, then `--` and the words of `lit-vlaa`.

    Returns:
        The exit code: that of the run, 1 when the hosts did not find each other, 143 after SIGTERM.
    """
    given = _arguments(words)
    os.environ["TORCH_DISABLE_SHARE_RDZV_TCP_STORE"] = "1"
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // given.devices)))
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, _told)
    try:
        with tempfile.TemporaryDirectory(prefix="lit-vlaa-") as folder:
            os.environ[ORIGIN] = str(Path(folder, "origin"))
            return _run(given, folder, Restarts(given.restarts, Path(os.environ[ORIGIN])))
    except SignalException as told:
        return 128 + int(told.sigval)
    except _OverError as over:
        if str(over):
            _say(str(over))
        return over.code


def _run(given: argparse.Namespace, folder: str, restarts: Restarts) -> int:
    """Meets the other hosts and trains, anew each time that the meeting point is lost."""
    while True:
        try:
            handler = get_rendezvous_handler(_meeting(given))
            try:
                _Agent(_spec(given, handler), DefaultLogsSpecs(folder), restarts).run()
            except (SignalException, _OverError):
                _leave(given, handler)
                raise
            with suppress(Exception):  # the first host may have left
                handler.shutdown()
        except RendezvousClosedError as error:
            raise _OverError(1, "the run has ended on another host, whose output says why") from error
        except RendezvousTimeoutError as error:
            reason = f"fewer than {given.nodes} hosts came to {given.head}:{given.port} within {given.wait} s (WAIT)"
            raise _OverError(1, reason) from error
        except (RendezvousError, RuntimeError) as error:
            if restarts.idle_since is None:
                restarts.another(f"the meeting point {given.head}:{given.port} is gone")
            elif time.monotonic() - restarts.idle_since > given.wait:
                reason = f"nothing answers at {given.head}:{given.port} since {given.wait} s (WAIT): {_line(error)}"
                raise _OverError(1, reason) from error
            time.sleep(1.0)
        else:
            return 0


def _told(number: int, frame: FrameType | None) -> NoReturn:  # noqa: ARG001
    raise SignalException(f"told to go by signal {number}", sigval=signal.Signals(number))


def _arguments(words: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m lit_vlaa.hosts", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--nodes", type=int, required=True, help="hosts")
    parser.add_argument("--node", type=int, required=True, help="this one's number, from 0")
    parser.add_argument("--devices", type=int, required=True, help="processes of each host")
    parser.add_argument("--head", required=True, help="address of host 0, as the others reach it")
    parser.add_argument("--port", type=int, required=True, help="where all meet there")
    parser.add_argument("--restarts", type=int, required=True, help="how often a run may start from one checkpoint")
    parser.add_argument("--wait", type=int, required=True, help="seconds to wait for the other hosts")
    parser.add_argument("words", nargs="+", help="of lit-vlaa, after --")
    given = parser.parse_args(words)
    for name, least in (("nodes", 1), ("devices", 1), ("node", 0), ("restarts", 0), ("wait", 1)):
        if getattr(given, name) < least:
            parser.error(f"{name.upper()} must be at least {least}")
    if given.node >= given.nodes:
        parser.error(f"NODE={given.node}: hosts are numbered from 0, and NODES={given.nodes}")
    return given


def _meeting(given: argparse.Namespace) -> RendezvousParameters:
    return RendezvousParameters(
        backend="c10d",
        endpoint=f"{given.head}:{given.port}",
        run_id="lit-vlaa",
        min_nodes=given.nodes,
        max_nodes=given.nodes,
        local_addr=_own_address(given),
        is_host=given.node == 0,
        join_timeout=given.wait,
        read_timeout=_READ_TIMEOUT,
    )


def _own_address(given: argparse.Namespace) -> str:
    """The address by which this host reaches the first one, and the others this one: names need not resolve."""
    if given.node == 0:
        return str(given.head)
    try:
        family, kind, *_, there = socket.getaddrinfo(given.head, given.port, type=socket.SOCK_DGRAM)[0]
        with socket.socket(family, kind) as probe:
            probe.connect(there)  # sends nothing
            return str(probe.getsockname()[0])
    except OSError as error:
        raise RendezvousError(f"{given.head} cannot be reached: {error}") from error


def _spec(given: argparse.Namespace, handler: RendezvousHandler) -> WorkerSpec:
    # Torchrun fills in templates in arguments; a dollar of a prompt is none.
    words = [word.replace("$", "$$") for word in given.words]
    shape = ["--trainer.num_nodes", str(given.nodes), "--trainer.devices", str(given.devices)]
    return WorkerSpec(
        role="default",
        local_world_size=given.devices,
        entrypoint=sys.executable,
        args=("-u", "-m", "lit_vlaa", *words, *shape, "--ckpt_path", "last"),
        rdzv_handler=handler,
        max_restarts=sys.maxsize,  # `Restarts` counts
        monitor_interval=0.1,
        local_addr=_own_address(given),
    )


def _leave(given: argparse.Namespace, handler: RendezvousHandler) -> None:
    """Lets the others know that the run is over."""
    with suppress(Exception):  # the first host may have left
        handler.shutdown()
        if given.node == 0 and given.nodes > 1:
            time.sleep(_FAREWELL)


def _final_code(failure: ProcessFailure) -> int:
    """The exit code of a process that ended the run for good; 0 for one that crashed or was killed."""
    stopped = failure.exitcode == _STOPPED and not _told_why(failure)
    return failure.exitcode if stopped or failure.exitcode in _OVER else 0


def _told_why(failure: ProcessFailure) -> bool:
    """Whether Python met an exception that nobody caught (`__main__` has torchrun's `record` write it down)."""
    return Path(failure.error_file).is_file()


def _what_happened(failure: ProcessFailure) -> str:
    if failure.exitcode < 0:
        return f"was killed by {failure.signal_name()}"
    if not _told_why(failure):
        return f"ended with {failure.exitcode}"
    told = failure.message
    return f"crashed: {_line(told['message'] if isinstance(told, dict) else told)}"


def _line(told: object) -> str:
    text = " ".join(str(told).split())[:300]
    return "".join(char if char.isprintable() else "?" for char in text)


def _say(text: str) -> None:
    sys.stderr.write(f"lit-vlaa: {time.strftime('%F %T')} {text}\n")
    sys.stderr.flush()


if __name__ == "__main__":
    sys.exit(main())
