"""Processes that have imported everything already: each start costs a fork in place of five seconds of imports.

Each rank has a hatchery of its own, so that ranks differ in what differs between processes, such as the order of sets.
"""

from __future__ import annotations

import atexit
import gc
import importlib
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

_MODULES = (
    "helpers.adapted",
    "helpers.commands",
    "helpers.matrix",
    "lit_vlaa.lightning_cli",
    "lightning.pytorch.loggers",
    "torch.utils.tensorboard",
)
_there: dict[int, Hatchery] = {}


class Hatched:
    """A process that was forked; `pid` leads a group of its own."""

    def __init__(self, parent: Hatchery, pid: int) -> None:
        self._parent, self.pid = parent, pid
        self.returncode: int | None = None

    def poll(self) -> int | None:
        """The exit code, negative for a signal; None while it runs."""
        if self.returncode is None:
            self.returncode = self._parent.ask({"poll": self.pid})
        return self.returncode

    def wait(self) -> int:
        """Waits for the end."""
        if self.returncode is None:
            self.returncode = self._parent.ask({"wait": self.pid})
        assert self.returncode is not None
        return self.returncode


class Hatchery:
    """A process that forks."""

    def __init__(self, environment: dict[str, str]) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "helpers.hatchery"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment,
        )
        atexit.register(self.close)

    def ask(self, order: dict[str, Any]) -> Any:
        """Sends an order and waits for its answer."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            self._process.stdin.write(json.dumps(order) + "\n")
            self._process.stdin.flush()
            answer = self._process.stdout.readline()
            assert answer, "the process that starts ranks has died"
        except BaseException:  # such as a test's time limit: the answer would be taken for that to the next order
            self.close()
            raise
        return json.loads(answer)

    @property
    def there(self) -> bool:
        """Whether it can still be asked."""
        return self._process.poll() is None

    def start(self, *, target: str, arguments: list[str], environment: dict[str, str], cwd: str, log: Path) -> Hatched:
        """Forks a process that calls `target` with `sys.argv` set, its output going to a file.

        Args:
            target: `module:function`.
            arguments: What follows the program's name in `sys.argv`.
            environment: The whole environment.
            cwd: Where it runs.
            log: The file.
        """
        order = {"target": target, "arguments": arguments, "environment": environment, "cwd": cwd, "log": str(log)}
        return Hatched(self, self.ask(order))

    def close(self) -> None:
        """Ends it; what it forked has sessions of its own."""
        self._process.kill()
        self._process.wait()


def hatchery(rank: int, environment: dict[str, str]) -> Hatchery:
    """The hatchery of a rank, made when it is first asked for and when the last one has died."""
    if rank not in _there or not _there[rank].there:
        _there[rank] = Hatchery(environment)
    return _there[rank]


def _serve() -> None:
    gc.disable()
    for module in _MODULES:
        importlib.import_module(module)
    gc.enable()
    gc.freeze()  # or each child would go through all of this, and so get memory of its own
    for line in sys.stdin:
        order = json.loads(line)
        if "poll" in order or "wait" in order:
            pid, status = os.waitpid(order.get("poll") or order["wait"], os.WNOHANG if "poll" in order else 0)
            answer = os.waitstatus_to_exitcode(status) if pid else None
        else:
            answer = os.fork()
            if answer == 0:
                _become(order)
        print(json.dumps(answer), flush=True)


def _become(order: dict[str, Any]) -> None:
    """Turns a forked process into the one that was asked for; does not return."""
    os.setsid()
    os.chdir(order["cwd"])
    log = os.open(order["log"], os.O_WRONLY | os.O_APPEND)
    for number, opened in enumerate((os.open(os.devnull, os.O_RDONLY), log, log)):
        os.dup2(opened, number)
    os.environ.clear()
    os.environ.update(order["environment"])
    sys.argv = [sys.argv[0], *order["arguments"]]
    # Lightning reads it from the environment while it is imported.
    rank_zero: Any = importlib.import_module("lightning_utilities.core.rank_zero")
    rank_zero.rank_zero_only.rank = int(os.environ.get("RANK", "0"))
    code = 1
    try:
        module, _, function = order["target"].partition(":")
        getattr(importlib.import_module(module), function)()
        code = 0
    except SystemExit as stop:
        code = stop.code if isinstance(stop.code, int) else 1
    except BaseException:  # noqa: BLE001  # as the interpreter does
        sys.excepthook(*sys.exc_info())
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


if __name__ == "__main__":
    _serve()
