"""Runs commands one after the other in a process of their own, as one reader in one folder does.

    python -m helpers.documented_runs COMMANDS.json LOGS

For each command (a list of words after `lit-vlaa`) a line of JSON goes to stdout: its exit code and the seconds of
processors that it took. What it prints goes to `LOGS/<number>.txt`.
"""

from __future__ import annotations

import contextlib
import json
import sys
import time
import traceback
from pathlib import Path

from helpers.commands import lit

FAILED = -1
"""In the place of an exit code where a command ended with a traceback."""


def run(words: list[str], log: Path) -> int:
    """Runs a command and keeps what it prints."""
    with log.open("w", encoding="utf-8") as file, contextlib.redirect_stdout(file), contextlib.redirect_stderr(file):
        try:
            return lit(*words)
        except Exception:  # noqa: BLE001 - the test shows it
            traceback.print_exc()
            return FAILED


def main(commands: Path, logs: Path) -> None:
    """Runs all of them."""
    for number, words in enumerate(json.loads(commands.read_text(encoding="utf-8"))):
        before = time.process_time()
        code = run(words, logs / f"{number}.txt")
        sys.stdout.write(json.dumps({"code": code, "seconds": time.process_time() - before}) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
