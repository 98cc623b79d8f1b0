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
import socket
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from torch.distributed.elastic.agent.server.api import WorkerSpec
from torch.distributed.elastic.multiprocessing import SignalException
from torch.distributed.elastic.rendezvous import (
    RendezvousClosedError,
    RendezvousError,
    RendezvousHandler,
    RendezvousParameters,
    RendezvousTimeoutError,
)
from torch.distributed.elastic.rendezvous.registry import get_rendezvous_handler

from lit_vlaa.checks import AGENT, ORIGIN
from lit_vlaa.host_agent import Agent, OverError, Restarts, plain_line, say, signals_heeded

_LAST_PORT = 65535

_READ_TIMEOUT = 60
"""Seconds after which a first host that does not answer is asked anew."""

_FAREWELL = 10.0
"""Seconds that the first host stays when a run has ended badly, so that the others learn of it."""


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
    os.environ[AGENT] = str(os.getpid())
    agents: list[Agent] = []
    with signals_heeded(lambda number: bool(agents) and agents[-1].tell(number)) as heard:
        try:
            with tempfile.TemporaryDirectory(prefix="lit-vlaa-", ignore_cleanup_errors=True) as folder:
                os.environ[ORIGIN] = str(Path(folder, "origin"))
                return _run(given, folder, Restarts(given.restarts, Path(os.environ[ORIGIN])), agents, heard)
        except SignalException as told:
            return 128 + int(told.sigval)
        except OverError as over:
            if str(over):
                say(str(over))
            return over.code


def _run(
    given: argparse.Namespace, folder: str, restarts: Restarts, agents: list[Agent], heard: Sequence[SignalException]
) -> int:
    """Meets the other hosts and trains, anew each time that the meeting point is lost."""
    place = f"{given.head}:{given.port}"
    if given.nodes > 1:
        say(f"host {given.node} of {given.nodes} waits for the others at {place}, {given.wait} s at most (WAIT)")
    told = ""
    while True:
        try:
            handler = get_rendezvous_handler(_meeting(given))
            agents[:] = [Agent(_spec(given, handler), folder, restarts, given.wait, heard)]
            try:
                agents[0].run_to_end()
            except (SignalException, OverError, RendezvousClosedError):
                _leave(given, handler)
                raise
            with suppress(Exception):  # the first host may have left
                handler.shutdown()
        except RendezvousClosedError as error:
            raise OverError(1, "the run has ended on another host, whose output says why") from error
        except RendezvousTimeoutError as error:
            reason = f"fewer than {given.nodes} hosts came to {place} within {given.wait} s (WAIT)"
            raise OverError(1, reason) from error
        except (RendezvousError, RuntimeError) as error:
            why = plain_line(error.__cause__ or error)
            if restarts.idle_since is None:
                restarts.another(f"the meeting point {place} is gone")
            elif time.monotonic() - restarts.idle_since > given.wait:
                raise OverError(1, f"nothing answers at {place} since {given.wait} s (WAIT): {why}") from error
            elif why != told:
                say(f"no meeting at {place} yet: {why}")
                told = why
            time.sleep(1.0)
        else:
            return 0


def _arguments(words: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m lit_vlaa.hosts", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--nodes", type=int, required=True, help="hosts")
    parser.add_argument("--node", required=True, help="this one's number, from 0")
    parser.add_argument("--devices", type=int, required=True, help="processes of each host")
    parser.add_argument("--head", required=True, help="address of host 0, as the others reach it")
    parser.add_argument("--port", type=int, required=True, help="where all meet there")
    parser.add_argument("--restarts", type=int, required=True, help="how often a run may start from one checkpoint")
    parser.add_argument("--wait", type=int, required=True, help="seconds to wait for the other hosts")
    parser.add_argument("words", nargs="+", help="of lit-vlaa, after --")
    given = parser.parse_args(words)
    for name, alone in (("node", "0"), ("head", "127.0.0.1")):
        if not getattr(given, name):
            if given.nodes > 1:
                parser.error(f"NODES={given.nodes}, but no {name.upper()} is given")
            setattr(given, name, alone)
    if not given.node.isdecimal():
        parser.error(f"NODE={given.node}: it must be a number from 0")
    given.node = int(given.node)
    for name, least in (("nodes", 1), ("devices", 1), ("restarts", 0), ("wait", 1), ("port", 1)):
        if getattr(given, name) < least:
            parser.error(f"{name.upper()} must be at least {least}")
    if given.port > _LAST_PORT:
        parser.error(f"PORT must be at most {_LAST_PORT}")
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


if __name__ == "__main__":
    sys.exit(main())
