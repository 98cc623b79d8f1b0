"""Hosts that are network namespaces of this machine, joined by a cable each, or loopback addresses of it."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from helpers.launch import ROOT, free_port

SCRIPT = ROOT / "configs" / "cluster" / "torchrun.sh"


class Network:
    """Some hosts; they share this machine's files.

    Args:
        hosts: How many.
        switch: Name of the namespace in which the cables of the hosts meet; None for loopback addresses.
    """

    def __init__(self, hosts: int, switch: str | None) -> None:
        self.switch, self.hosts = switch, hosts
        self.head = "10.99.0.1" if switch else "127.0.0.2"
        self.port = 29400 if switch else free_port()
        self.interface = "cable" if switch else "lo"
        self.started: list[Host] = []

    def close(self) -> None:
        """Ends what still runs."""
        for host in self.started:
            if host.process.poll() is None:
                host.power_off()

    def within(self, number: int) -> list[str]:
        """What to say ahead of a command so that it runs on a host."""
        return ["ip", "netns", "exec", f"{self.switch}-{number}"] if self.switch else []

    def plug(self, number: int, state: str) -> None:
        """Pulls a host's cable out (`down`) or puts it in (`up`); without namespaces there is none."""
        if self.switch:
            _ip("-n", f"{self.switch}-{number}", "link", "set", "cable", state)


def why_no_namespaces() -> str:
    """Why network namespaces cannot be made here; empty where they can."""
    if shutil.which("ip") is None:
        return "there is no `ip` command"
    try:
        with namespaces(1):
            return ""
    except subprocess.CalledProcessError as error:
        return f"network namespaces cannot be made: {error.stderr.strip()}"


@contextmanager
def namespaces(hosts: int) -> Iterator[Network]:
    """Hosts with nothing but TCP between them.

    Raises:
        CalledProcessError: Where they cannot be made.
    """
    switch = f"lit{os.getpid()}"
    network = Network(hosts, switch)
    try:
        _ip("netns", "add", switch)
        _ip("-n", switch, "link", "add", "name", "bridge", "type", "bridge")
        _ip("-n", switch, "link", "set", "bridge", "up")
        for number in range(1, hosts + 1):
            host = f"{switch}-{number}"
            _ip("netns", "add", host)
            _ip("-n", switch, "link", "add", f"port{number}", "type", "veth", "peer", "name", "cable", "netns", host)
            _ip("-n", switch, "link", "set", f"port{number}", "master", "bridge", "up")
            _ip("-n", host, "address", "add", f"10.99.0.{number}/24", "dev", "cable")
            _ip("-n", host, "link", "set", "cable", "up")
            _ip("-n", host, "link", "set", "lo", "up")
        yield network
    finally:
        network.close()
        for name in (*(f"{switch}-{number}" for number in range(1, hosts + 1)), switch):
            with suppress(subprocess.CalledProcessError):
                _ip("netns", "delete", name)


def _ip(*words: str) -> None:
    subprocess.run(["/usr/bin/env", "ip", *words], check=True, capture_output=True, text=True)


class Host:
    """A host that runs `torchrun.sh`."""

    def __init__(self, network: Network, number: int, arguments: list[str], folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.network, self.number = network, number
        self.log = folder / f"host{number}-{time.monotonic_ns()}.log"
        environment = {
            **os.environ,
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
            "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'tests'}",
            "NODES": str(network.hosts),
            "NODE": str(number - 1),
            "DEVICES": "1",
            "HEAD": network.head,
            "PORT": str(network.port),
            "GLOO_SOCKET_IFNAME": network.interface,
            "OMP_NUM_THREADS": "1",
            "TMPDIR": str(folder),  # what a host that dies leaves there
        }
        network.plug(number, "up")
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                [*network.within(number), str(SCRIPT), *arguments],
                env=environment,
                cwd=folder,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        network.started.append(self)

    def said(self) -> str:
        """All that it printed."""
        return self.log.read_text(errors="replace")

    def power_off(self) -> None:
        """Takes it off the net, so that nobody hears of its end, and kills everything on it."""
        self.network.plug(self.number, "down")
        for pid in self.pids():
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self.process.wait()

    def pids(self) -> list[int]:
        """All processes on it; a parent comes ahead of its children."""
        pids = [self.process.pid]
        for pid in pids:  # grows by each one's children
            with suppress(OSError):  # it has ended
                pids += map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split())
        return pids
