"""Scores hostile responses (`fuzz_grammar`) by the real code path and watches it.

`PYTHONPATH=.:tests python -m helpers.fuzz KIND COUNT SEED` prints a report and exits with 1 when a rule was broken:
nothing raises, no verifier fails, values are finite and in [0, 1], no response takes longer than its limit, no file,
process, socket or code is touched, memory stays bounded.
"""

from __future__ import annotations

import gc
import math
import sys
import time
import traceback
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from helpers.fuzz_grammar import requests
from lit_vlaa.answers import extract_answer
from lit_vlaa.rewards import math as front_end
from lit_vlaa.rewards.config import RewardConfig
from lit_vlaa.rewards.mixed import MixedReward
from lit_vlaa.types import KINDS, Kind, RewardRequest

CPU_LIMIT_S = 2.0
"""CPU time for one response; about a hundred times the worst measured: no busy machine decides."""
NOTABLE_S = 0.1
"""CPU time of a batch from which on its responses are timed one by one."""
MEMORY_LIMIT_MB = 96.0
"""Growth of the largest resident set over a run."""
MATH_SAMPLE = 48
"""Responses of a math run that also go through the worker processes, about 100 ms each."""
_BATCH = 32
_WARM_UP = 2000

_watched: list[str] | None = None
_FORBIDDEN = (
    "open",
    "subprocess",
    "socket",
    "os.",
    "shutil",
    "exec",
    "compile",
    "import",
    "ctypes",
    "pickle",
    "marshal",
    "urllib",
    "ftplib",
    "smtplib",
    "http",
    "tempfile",
    "glob",
    "pty",
    "fcntl",
    "mmap",
    "signal",
    "sqlite3",
    "winreg",
    "syslog",
)


def _hook(event: str, _arguments: tuple[object, ...]) -> None:
    if _watched is not None and event.startswith(_FORBIDDEN):
        _watched.append(event)


@contextmanager
def watching() -> Iterator[list[str]]:
    """Collects the audit events of the block that have no place in scoring: files, processes, sockets, code."""
    global _watched  # noqa: PLW0603  # an audit hook cannot be removed, so it looks at this name
    if not getattr(watching, "hooked", False):
        sys.addaudithook(_hook)
        watching.hooked = True  # type: ignore[attr-defined]
    _watched = []
    try:
        yield _watched
    finally:
        _watched = None


@dataclass
class Report:
    """What a run saw."""

    kind: Kind
    responses: int = 0
    paid: int = 0
    """Responses with a value above 0."""
    statuses: Counter[str] = field(default_factory=Counter)
    worst_s: float = 0.0
    """CPU time of the slowest response, measured alone; 0 where no batch took `NOTABLE_S`."""
    worst_text: str = ""
    cpu_s: float = 0.0
    """CPU time of all scoring."""
    memory_mb: float = 0.0
    """Growth of the largest resident set after the warm-up."""
    failures: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        slowest = f"{1000 * self.worst_s:.1f} ms ({len(self.worst_text)} characters, {self.worst_text[24:64]!r})"
        head = f"{self.kind}: {self.responses} responses, {self.paid} paid, {self.cpu_s:.1f} s CPU"
        head += f", slowest {slowest}" if self.worst_s else f", no batch took {NOTABLE_S} s"
        statuses = f"memory +{self.memory_mb:.1f} MiB, status: {dict(self.statuses.most_common())}"
        return "\n  ".join([head, statuses, *(f"FAILED {failure}" for failure in self.failures[:20])])


def _peak_mb() -> float:
    """The largest resident set so far; `ru_maxrss` would also know that of the process which started this one."""
    status = Path("/proc/self/status").read_text(encoding="ascii")
    return int(status.partition("VmHWM:")[2].split()[0]) / 1024


class _Run:
    def __init__(self, kind: Kind, reward: MixedReward) -> None:
        self.reward, self.report = reward, Report(kind)

    def score(self, batch: Sequence[RewardRequest]) -> None:
        """Scores one batch with everything watched but the worker processes."""
        before = time.process_time()
        broken = self._broken(batch)
        spent = time.process_time() - before
        self.report.cpu_s += spent
        self.report.responses += len(batch)
        if broken:
            alone = [(request, found) for request in batch if (found := self._broken([request]))]
            for request, found in alone or [(batch[0], f"{broken}, but only in a batch that starts")]:
                self._fail(f"{found} with {request.response[:300]!r}, truth {request.truth!r}")
        if spent > max(self.report.worst_s, min(NOTABLE_S, CPU_LIMIT_S)):  # else none is slow, or slower than another
            self._time(batch)

    def _broken(self, batch: Sequence[RewardRequest]) -> str:
        """What went wrong while a batch was scored: an exception, or what it touched; empty for nothing."""
        try:
            with watching() as events:
                self._plan(batch) if self.report.kind == "math" else self._judge(batch)
        except Exception as error:  # noqa: BLE001  # finding any is what this is for
            where = traceback.extract_tb(error.__traceback__)[-1]
            return f"{type(error).__name__} in {where.name}, line {where.lineno}: {error!s:.80}"
        return f"scoring touched {sorted(set(events))}" if events else ""

    def sample(self, batch: Sequence[RewardRequest]) -> None:
        """Scores a batch through the worker processes, where a timeout is a legitimate verdict."""
        self._judge(batch, allowed=("timeout", "verifier_error"))

    def _fail(self, failure: str) -> None:
        self.report.failures.append(failure)

    def _judge(self, batch: Sequence[RewardRequest], allowed: Sequence[str] = ()) -> None:
        results = self.reward(batch)
        if len(results) != len(batch):
            self._fail(f"{len(results)} results for {len(batch)} requests")
        for request, result in zip(batch, results, strict=False):
            self.report.statuses[result.status] += 1
            self.report.paid += result.value > 0
            if not (math.isfinite(result.value) and 0 <= result.value <= 1):
                self._fail(f"value {result.value} for {request.response[:300]!r}")
            if result.status not in ("ok", "no_answer", *allowed):
                self._fail(f"status {result.status} for {request.response[:300]!r}, truth {request.truth!r}")
            if (result.extracted is None) != (result.status == "no_answer"):
                self._fail(f"{result.status} with the answer {result.extracted!r:.200}")

    def _plan(self, batch: Sequence[RewardRequest]) -> None:
        for request in batch:
            answer = extract_answer(request.response)
            plan = None if answer is None else front_end.plan(answer, request.truth)
            decided = "equal" if plan and plan.possible and not plan.pairs else "wrong"
            self.report.statuses["no_answer" if plan is None else "to confirm" if plan.pairs else decided] += 1

    def _time(self, batch: Sequence[RewardRequest]) -> None:
        for request in batch:
            before = time.process_time()
            try:
                self._plan_only(request) if self.report.kind == "math" else self.reward([request])
            except Exception:  # noqa: BLE001, S112  # reported by `score`
                continue
            spent = time.process_time() - before
            if spent > self.report.worst_s:
                self.report.worst_s, self.report.worst_text = spent, request.response
            if spent > CPU_LIMIT_S:
                self._fail(f"{spent:.1f} s for {request.response[:300]!r}")

    def _plan_only(self, request: RewardRequest) -> None:
        front_end.plan(extract_answer(request.response) or "", request.truth)


def run(kind: Kind, count: int, seed: int = 0, *, reward: MixedReward | None = None) -> Report:
    """Scores `count` hostile responses of a kind.

    Args:
        kind: One of the five.
        count: How many.
        seed: Which.
        reward: What scores them; the default settings when left out.
    """
    scored = reward or MixedReward(RewardConfig(math_workers=1))
    try:
        warm = _Run(kind, scored)
        for request in requests(kind, min(count, _WARM_UP), seed + 1):  # imports, caches, the patterns of `re`
            warm.score([request])
        found = _Run(kind, scored)
        gc.collect()
        start = _peak_mb()
        batch: list[RewardRequest] = []
        for request in requests(kind, count, seed):
            batch.append(request)
            if len(batch) == _BATCH:
                found.score(batch)
                batch = []
        found.score(batch)
        found.report.memory_mb = _peak_mb() - start
        if found.report.memory_mb > MEMORY_LIMIT_MB:
            found.report.failures.append(f"memory grew by {found.report.memory_mb:.0f} MiB")
        if kind == "math":
            for request in requests(kind, MATH_SAMPLE, seed):
                found.sample([request])
        return found.report
    finally:
        if reward is None:
            scored.close()


def main(arguments: Sequence[str]) -> int:
    """Runs one kind (or `all`) and prints the report."""
    name, count, seed = arguments[0], int(arguments[1]), int(arguments[2]) if len(arguments) > 2 else 0
    reports = [run(kind, count, seed) for kind in (KINDS if name == "all" else (name,))]
    for report in reports:
        print(report, flush=True)
    return int(any(report.failures for report in reports))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
