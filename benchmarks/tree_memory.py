"""Time and memory of a command with all its processes (Linux).

    python -m benchmarks.tree_memory lit-vlaa data check --data-file rows.json

Every two seconds the resident memory of the process and of those below it is added up: as `RSS`, in which pages that
several of them share count several times, and as `PSS`, in which they count once.
"""

from __future__ import annotations

import re
import resource
import subprocess
import sys
import time
from pathlib import Path

_EVERY_S = 2.0


def main(words: list[str]) -> int:
    """Runs the command and tells what it took; gives its exit code."""
    started = time.monotonic()
    process = subprocess.Popen(words)  # noqa: S603 - the user's own command
    peaks = {"Rss": 0, "Pss": 0}
    most = 0
    while process.poll() is None:
        tree = _tree(process.pid)
        peaks = {name: max(peak, sum(_kilobytes(pid, name) for pid in tree)) for name, peak in peaks.items()}
        most = max(most, len(tree))
        time.sleep(_EVERY_S)
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    rss, pss = (peaks[name] / 2**20 for name in ("Rss", "Pss"))
    sys.stderr.write(
        f"{time.monotonic() - started:.0f} s, {used.ru_utime + used.ru_stime:.0f} s of processors, {most} processes, "
        f"peak RSS {rss:.2f} GiB, peak PSS {pss:.2f} GiB\n"
    )
    return process.returncode


def _tree(root: int) -> list[int]:
    """A process and all below it."""
    found = [root]
    for pid in found:
        for task in Path(f"/proc/{pid}/task").glob("*"):
            found += map(int, _read(task / "children").split())
    return found


def _kilobytes(pid: int, name: str) -> int:
    match = re.search(rf"^{name}:\s+(\d+) kB", _read(Path(f"/proc/{pid}/smaps_rollup")), re.MULTILINE)
    return int(match[1]) if match else 0


def _read(path: Path) -> str:
    """A file of a process that may be gone."""
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
