"""A pool of killable processes that run Math-Verify.

Math-Verify can hang or eat all memory on a dozen characters, and its own timeouts use signals, which work in the main
thread only. Here each comparison runs in a process that is killed and replaced when it exceeds its time or memory.

A pair whose process exceeds its time gets `timeout` at once. A pair whose process dies (out of memory, killed from
outside) is tried once more in a fresh process, for it may be innocent; when that dies too the pair gets `error`.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import selectors
import subprocess
import sys
import threading
import time
import weakref
from collections import Counter, OrderedDict, deque
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

from lit_vlaa.rewards.math_worker import OUT_OF_MEMORY

_log = logging.getLogger(__name__)

PairVerdict = Literal["equal", "different", "unparsable_gt", "timeout", "error"]
"""What a worker says of two expressions; the last three say that no comparison was made."""

LossReason = Literal["timeout", "memory", "died", "start"]


class Pair(NamedTuple):
    """Two expressions to compare."""

    form: Literal["tree", "latex"]
    """`tree`: both as `Expression.wire` writes them. `latex`: both in LaTeX without delimiters."""
    truth: str
    answer: str


_SCRIPT = Path(__file__).with_name("math_worker.py")
_VERDICTS = {verdict: verdict for verdict in get_args(PairVerdict)}
_KEPT = ("equal", "different", "unparsable_gt")


class _Worker:
    """One process with its pipes."""

    def __init__(self, memory_bytes: int) -> None:
        self.process = subprocess.Popen(  # noqa: S603 - our own script, fixed arguments
            [sys.executable, "-P", str(_SCRIPT), str(memory_bytes)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env={**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"},
            start_new_session=True,
            bufsize=0,
        )
        assert self.process.stdin is not None  # noqa: S101 - for the type checker
        assert self.process.stdout is not None  # noqa: S101
        self.stdin, self.stdout = self.process.stdin, self.process.stdout
        self.buffer = b""
        self.ready = False
        self.dead = False
        self.job: int | None = None
        self.deadline = 0.0

    def send(self, job: int, pair: Pair, deadline: float) -> None:
        self.job, self.deadline = job, deadline
        self.stdin.write(json.dumps(pair).encode() + b"\n")

    @property
    def busy(self) -> bool:
        """True while something is due by the deadline: a verdict, or the sign that it has started."""
        return self.job is not None or not self.ready

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()
        self.stdin.close()
        self.stdout.close()


def _kill_all(workers: list[_Worker], owner: int) -> None:
    """Ends the processes, unless called in a fork of their owner."""
    if os.getpid() == owner:
        while workers:
            workers.pop().kill()


def _key(pair: Pair) -> bytes:
    """Stands for a pair in the cache, whose memory must not depend on how long hostile texts are."""
    return hashlib.blake2b(json.dumps(pair).encode(), digest_size=16).digest()


def _new_pool(settings: dict[str, Any]) -> MathPool:
    return MathPool(**settings)


class MathPool:
    """Compares pairs of expressions in worker processes.

    Processes start at the first use. Calls from several threads are served one after the other. A process that was
    forked from the owner (a data loader's worker) gets workers of its own and never touches the owner's pipes; a
    pickled pool arrives with its settings only.

    Args:
        workers: Number of processes on this rank.
        timeout_s: Seconds for one pair before its process is killed.
        memory_mb: Address space of one process in MiB.
        cache_size: Number of verdicts kept, the least recently used go first; 0 keeps none.
        start_timeout_s: Seconds that a process may take to start.
    """

    def __init__(
        self,
        *,
        workers: int = 2,
        timeout_s: float = 4.0,
        memory_mb: int = 2048,
        cache_size: int = 65536,
        start_timeout_s: float = 120.0,
    ) -> None:
        if workers < 1:
            raise ValueError(f"math_workers must be at least 1, got {workers}")
        if timeout_s <= 0:
            raise ValueError(f"math_timeout_s must be positive, got {timeout_s}")
        self.timeout_s = timeout_s
        self.lost: Counter[LossReason] = Counter()
        """Processes lost so far: over time, over memory, died otherwise (killed from outside), could not start."""
        self._size = workers
        self._memory_bytes = memory_mb * 2**20
        self._cache_size = cache_size
        self._start_timeout_s = start_timeout_s
        self._cache: OrderedDict[bytes, PairVerdict] = OrderedDict()
        self._workers: list[_Worker] = []
        self._lock = threading.Lock()
        self._owner = os.getpid()
        self._cleanup = weakref.finalize(self, _kill_all, self._workers, self._owner)

    def __reduce__(self) -> tuple[Any, ...]:
        """Leaves processes, locks and verdicts behind."""
        return _new_pool, (
            {
                "workers": self._size,
                "timeout_s": self.timeout_s,
                "memory_mb": self._memory_bytes // 2**20,
                "cache_size": self._cache_size,
                "start_timeout_s": self._start_timeout_s,
            },
        )

    def verify_many(self, pairs: Sequence[Pair]) -> list[PairVerdict]:
        """Compares the pairs, in parallel and each different one once.

        Returns:
            One verdict a pair, in order. Where no process can be started the verdict is `error`.
        """
        if os.getpid() != self._owner:
            self._forget()
        with self._lock:
            keys = [_key(pair) for pair in pairs]
            known: dict[bytes, PairVerdict] = {}
            for key in keys:
                if key in self._cache:
                    self._cache.move_to_end(key)
                    known[key] = self._cache[key]
            missing = {key: pair for key, pair in zip(keys, pairs, strict=True) if key not in known}
            try:
                found = dict(zip(missing, self._run(list(missing.values())), strict=True)) if missing else {}
            except BaseException:
                # The processes are amid pairs of this call, and their replies would be taken for another's.
                _kill_all(self._workers, self._owner)
                raise
            if self._cache_size > 0:
                self._cache.update((key, verdict) for key, verdict in found.items() if verdict in _KEPT)
            while len(self._cache) > self._cache_size:
                self._cache.popitem(last=False)
            return [known[key] if key in known else found[key] for key in keys]

    def close(self) -> None:
        """Ends the processes; a later call starts new ones."""
        if os.getpid() != self._owner:
            return
        with self._lock:
            _kill_all(self._workers, self._owner)

    def _forget(self) -> None:
        """Leaves the parent's processes alone after a fork; its lock may have been held by a thread that is gone."""
        self._cleanup.detach()
        self._lock = threading.Lock()
        self._workers = []
        self._owner = os.getpid()
        self._cleanup = weakref.finalize(self, _kill_all, self._workers, self._owner)

    def _start(self) -> _Worker:
        worker = _Worker(self._memory_bytes)
        worker.deadline = time.monotonic() + self._start_timeout_s
        self._workers.append(worker)
        return worker

    def _run(self, pairs: Sequence[Pair]) -> list[PairVerdict]:
        verdicts: list[PairVerdict] = ["error"] * len(pairs)
        queue = deque(range(len(pairs)))
        retried: set[int] = set()
        while len(self._workers) < min(self._size, len(pairs)):
            self._start()
        with selectors.DefaultSelector() as selector:
            for worker in self._workers:
                selector.register(worker.stdout, selectors.EVENT_READ, worker)
                self._feed(worker, queue, pairs)
            while self._workers and (queue or any(worker.job is not None for worker in self._workers)):
                busy = [worker for worker in self._workers if worker.busy]
                soonest = min((worker.deadline for worker in busy), default=0.0)
                for key, _ in selector.select(max(0.0, soonest - time.monotonic())):
                    self._read(key.data, verdicts)
                for worker in list(self._workers):
                    late = worker.busy and time.monotonic() >= worker.deadline
                    if not (worker.dead or late):
                        self._feed(worker, queue, pairs)
                        continue
                    selector.unregister(worker.stdout)
                    if self._bury(worker, verdicts, queue, retried):
                        fresh = self._start()
                        selector.register(fresh.stdout, selectors.EVENT_READ, fresh)
        return verdicts

    def _bury(self, worker: _Worker, verdicts: list[PairVerdict], queue: deque[int], retried: set[int]) -> bool:
        """Ends a process that is dead or late and settles its pair; False if no other should take its place."""
        worker.kill()
        self._workers.remove(worker)
        if not worker.ready:  # not replaced, or this would never end
            self.lost["start"] += 1
            _log.error("a Math-Verify process could not start; try `%s -c 'import math_verify'`", sys.executable)
            return False
        out_of_memory = worker.process.returncode == OUT_OF_MEMORY
        self.lost["memory" if out_of_memory else "died" if worker.dead else "timeout"] += 1
        if worker.job is None:
            return True
        if not worker.dead:
            verdicts[worker.job] = "timeout"
        elif worker.job not in retried:
            retried.add(worker.job)
            queue.append(worker.job)
        return True

    def _feed(self, worker: _Worker, queue: deque[int], pairs: Sequence[Pair]) -> None:
        if not queue or not worker.ready or worker.job is not None:
            return
        job = queue.popleft()
        try:
            worker.send(job, pairs[job], time.monotonic() + self.timeout_s)
        except OSError:  # it died while idle; the pair goes to its replacement
            worker.job, worker.dead = None, True
            queue.appendleft(job)

    def _read(self, worker: _Worker, verdicts: list[PairVerdict]) -> None:
        chunk = os.read(worker.stdout.fileno(), 65536)
        if not chunk:  # end of file: dead or dying
            worker.dead = True
            return
        *lines, worker.buffer = (worker.buffer + chunk).split(b"\n")
        for line in lines:
            word = json.loads(line)
            if word == "ready":
                worker.ready = True
            elif worker.job is not None:
                verdicts[worker.job] = _VERDICTS.get(word, "error")
                worker.job = None
