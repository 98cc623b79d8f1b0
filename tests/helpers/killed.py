"""Commands in processes of their own that are killed (SIGKILL) at a given point; imports are paid for once."""

from __future__ import annotations

import importlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lit_vlaa.cli import main

_TESTS = Path(__file__).resolve().parents[1]


class Nursery:
    """A process that forks one child for each command."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process

    def run(self, *words: str, die: tuple[str, int] | None = None) -> int:
        """Runs one command to its end.

        Args:
            words: Of `lit-vlaa`.
            die: `module:Class.function` and the number of its call, from 1, ahead of which the child kills itself.

        Returns:
            The exit code; -9 for one that was killed.
        """
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps({"words": words, "die": die}) + "\n")
        self._process.stdin.flush()
        return int(self._process.stdout.readline())


@contextmanager
def nursery(*modules: str) -> Iterator[Nursery]:
    """A nursery that has imported the modules."""
    environment = {**os.environ, "PYTHONPATH": f"{_TESTS.parent}{os.pathsep}{_TESTS}"}
    process = subprocess.Popen(
        [sys.executable, "-m", "helpers.killed", *modules],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=environment,
    )
    try:
        yield Nursery(process)
    finally:
        assert process.stdin is not None
        process.kill()
        process.wait()
        process.stdin.close()
        assert process.stdout is not None
        process.stdout.close()


def _arm(place: str, call: int) -> None:
    """Makes the process kill itself at a call."""
    name, _, path = place.partition(":")
    owner: Any = importlib.import_module(name)
    *parents, attribute = path.split(".")
    for parent in parents:
        owner = getattr(owner, parent)
    function = getattr(owner, attribute)
    calls = 0

    def deadly(*args: Any, **kwargs: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == call:
            os.kill(os.getpid(), signal.SIGKILL)
        return function(*args, **kwargs)

    setattr(owner, attribute, deadly)


def _serve(modules: Sequence[str]) -> None:

    for module in modules:
        importlib.import_module(module)
    for line in sys.stdin:
        order = json.loads(line)
        child = os.fork()
        if child == 0:
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
            if order["die"]:
                _arm(*order["die"])
            os._exit(main(order["words"]))
        _, status = os.waitpid(child, 0)
        print(os.waitstatus_to_exitcode(status), flush=True)


if __name__ == "__main__":
    _serve(sys.argv[1:])
