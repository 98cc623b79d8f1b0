"""Runs a function in several gloo processes on this machine and brings back what each of them returned.

The function is named `module:function`, as the processes start afresh. It takes keyword arguments that JSON can carry
and returns something that JSON can carry.
"""

from __future__ import annotations

import importlib
import json
import os
import signal
import socket
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import distributed

from helpers.hatchery import Hatched, hatchery
from helpers.patience import Patience

ROOT = Path(__file__).resolve().parents[2]
_holders: dict[int, socket.socket] = {}


def run_ranks(target: str, *, ranks: int = 2, timeout: float = 120, **arguments: Any) -> list[Any]:
    """Calls `target(**arguments)` in every rank.

    Args:
        target: `module:function`; modules below `tests/` are importable, such as `helpers.toy`.
        ranks: Number of processes.
        timeout: Seconds after which all of them are killed; a rank stuck in a collective ignores anything gentler.
            Those do not count in which a rank waits for a processor.
        arguments: Passed on to the function.

    Returns:
        What the function returned, by rank.

    Raises:
        AssertionError: If a rank failed or hung, with the end of every rank's output.
    """
    with tempfile.TemporaryDirectory(prefix="ranks-") as folder:
        outputs = [Path(folder, f"{rank}.json") for rank in range(ranks)]
        logs = [Path(folder, f"{rank}.log") for rank in range(ranks)]
        port = free_port()
        processes: list[Hatched] = []
        try:
            for rank in range(ranks):
                logs[rank].touch()
                environment = environment_of_rank(rank, ranks, port)
                processes.append(
                    hatchery(rank, environment).start(
                        target="helpers.launch:main",
                        arguments=[target, json.dumps(arguments), str(outputs[rank])],
                        environment=environment,
                        cwd=folder,
                        log=logs[rank],
                    )
                )
            problem = _wait(processes, timeout)
        finally:
            for process in processes:
                if process.poll() is None:
                    os.killpg(process.pid, signal.SIGKILL)
                    process.wait()
            _holders.pop(port).close()
        if problem:
            tails = "\n".join(f"--- rank {r}\n{log.read_text(errors='replace')[-3000:]}" for r, log in enumerate(logs))
            raise AssertionError(f"{target}: {problem}\n{tails}")
        return [json.loads(output.read_text()) for output in outputs]


def _wait(processes: list[Hatched], timeout: float) -> str:
    """Waits for all; returns what went wrong, empty when nothing did."""
    patience = Patience(timeout)
    while not patience.lost(process.pid for process in processes):
        codes = [process.poll() for process in processes]
        failed = [rank for rank, code in enumerate(codes) if code]
        if failed:
            return f"rank {failed[0]} ended with {codes[failed[0]]}"
        if all(code == 0 for code in codes):
            return ""
        time.sleep(0.05)
    return f"not done after {timeout} s"


def free_port() -> int:
    """A port that nobody is given but the server that is told to take it: this process keeps a socket there.

    One that is merely free now may be another process's by the time the server wants it.
    """
    holder = socket.socket()
    holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # servers set it too, and then both may be there
    holder.bind(("127.0.0.1", 0))
    port = int(holder.getsockname()[1])
    _holders[port] = holder
    return port


def environment_of_rank(rank: int, ranks: int, port: int) -> dict[str, str]:
    """What torchrun would set, and one thread each."""
    return environment_alone() | {
        "TORCHELASTIC_RUN_ID": "tests",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "WORLD_SIZE": str(ranks),
        "LOCAL_WORLD_SIZE": str(ranks),
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "GROUP_RANK": "0",
    }


def environment_alone() -> dict[str, str]:
    """The environment of a process that is no rank of several."""
    return os.environ | {
        "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests"), os.environ.get("PYTHONPATH", "")]),
        "OMP_NUM_THREADS": "1",
        "GLOO_SOCKET_IFNAME": "lo",
        "CUDA_VISIBLE_DEVICES": "",
    }


@contextmanager
def alone(folder: Path) -> Iterator[None]:
    """A process group of this process alone; keeps a file in `folder`."""
    rendezvous = folder / "group"
    distributed.init_process_group("gloo", init_method=f"file://{rendezvous}", rank=0, world_size=1)
    try:
        yield
    finally:
        distributed.destroy_process_group()
        rendezvous.unlink(missing_ok=True)


def hang() -> None:
    """Never returns; for the test of this harness."""
    while True:
        time.sleep(60)


def main() -> None:
    """Entry of one rank."""
    target, arguments, output = sys.argv[1:]
    module, _, function = target.partition(":")
    result = getattr(importlib.import_module(module), function)(**json.loads(arguments))
    Path(output).write_text(json.dumps(result))
    if distributed.is_initialized():
        # Without the barrier a rank that leaves first makes gloo abort another that is still connected.
        distributed.barrier()
        distributed.destroy_process_group()
    # The rank's work is done and written. Python's own way out now and then meets a gloo thread that is still running
    # and aborts; no test is about that.
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)
