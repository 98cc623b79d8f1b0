from __future__ import annotations

import json
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from lit_vlaa.rewards.workers import MathPool, PairVerdict


@pytest.fixture
def pool() -> Iterator[MathPool]:
    pool = MathPool(workers=1, timeout_s=1.5)
    yield pool
    pool.close()


def pids(pool: MathPool) -> list[int]:
    return [worker.process.pid for worker in pool._workers]


def test_starts_lazily_and_closes(pool: MathPool) -> None:
    assert pids(pool) == []
    assert pool.verify_many([]) == []
    assert pids(pool) == []
    assert pool.verify_many([(r"\frac{1}{2}", "0.5"), ("y=2x", "y=3x"), ("1", "1")]) == ["equal", "different", "equal"]
    (pid,) = pids(pool)
    pool.close()
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)
    assert pool.verify_many([("2", "2")]) == ["equal"]


@pytest.mark.parametrize("hang", ["9^{9^{9^9}}", "(10^9)!"])
def test_a_hanging_pair_is_killed_and_the_rest_is_judged(pool: MathPool, hang: str) -> None:
    pool.verify_many([("1", "1")])
    (before,) = pids(pool)
    start = time.monotonic()
    verdicts = pool.verify_many([("4", hang), ("3", "3")])
    assert verdicts[0] in {"timeout", "error"}  # killed by time or by memory
    assert verdicts[1] == "equal"
    assert time.monotonic() - start < 20
    assert pids(pool) != [before]


def test_a_worker_that_was_killed_is_replaced(pool: MathPool) -> None:
    assert pool.verify_many([("1", "1")]) == ["equal"]
    (before,) = pids(pool)
    os.kill(before, signal.SIGKILL)
    pool._workers[0].process.wait()
    assert pool.verify_many([("2", "3")]) == ["different"]
    assert pids(pool) != [before]


def test_memory_limit_is_set() -> None:
    pool = MathPool(workers=1, memory_mb=700)
    try:
        pool.verify_many([("1", "1")])
        limits = Path(f"/proc/{pids(pool)[0]}/limits").read_text()
    finally:
        pool.close()
    (line,) = [line for line in limits.splitlines() if line.startswith("Max address space")]
    assert line.split()[3] == str(700 * 2**20)


def test_works_off_the_main_thread_and_from_several(pool: MathPool) -> None:
    found: dict[int, list[PairVerdict]] = {}

    def ask(number: int) -> None:
        found[number] = pool.verify_many([(str(number), str(number)), (str(number), str(number + 1))])

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == {number: ["equal", "different"] for number in range(4)}


def test_verdicts_are_cached(pool: MathPool) -> None:
    assert pool.verify_many([("2x", "x+x")] * 3) == ["equal"] * 3
    pool.close()
    assert pool.verify_many([("2x", "x+x")]) == ["equal"]
    assert pids(pool) == []  # answered without a process


def test_cache_can_be_off() -> None:
    pool = MathPool(workers=1, cache_size=0)
    try:
        pool.verify_many([("1", "1")])
        pool.close()
        pool.verify_many([("1", "1")])
        assert len(pids(pool)) == 1
    finally:
        pool.close()


def test_two_workers_run_side_by_side() -> None:
    pool = MathPool(workers=2, timeout_s=4.0)
    try:
        assert pool.verify_many([("1", "1"), ("2", "2"), ("3", "4")]) == ["equal", "equal", "different"]
        assert len(pids(pool)) == 2
    finally:
        pool.close()


def _in_child(
    pool: MathPool, parent_pids: list[int], queue: multiprocessing.Queue[tuple[list[PairVerdict], bool]]
) -> None:
    verdicts = pool.verify_many([("5", "5"), ("5", "6")])
    queue.put((verdicts, bool(set(pids(pool)) & set(parent_pids))))
    pool.close()


def test_a_fork_uses_workers_of_its_own(pool: MathPool) -> None:
    assert pool.verify_many([("1", "1")]) == ["equal"]
    mine = pids(pool)
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    child = context.Process(target=_in_child, args=(pool, mine, queue))
    child.start()
    assert queue.get(timeout=60) == (["equal", "different"], False)
    child.join(timeout=20)
    assert child.exitcode == 0
    assert pids(pool) == mine
    assert pool.verify_many([("7", "8")]) == ["different"]


def test_settings_are_checked() -> None:
    with pytest.raises(ValueError, match="math_workers"):
        MathPool(workers=0)
    with pytest.raises(ValueError, match="math_timeout_s"):
        MathPool(timeout_s=0)


def test_processes_end_with_the_program_and_import_no_torch() -> None:
    script = (
        "import json, sys\nfrom lit_vlaa.rewards.workers import MathPool\npool = MathPool(workers=1)\n"
        "pool.verify_many([('1', '1')])\n"
        "print(json.dumps([pool._workers[0].process.pid, 'torch' in sys.modules,"
        " 'torch' in open(f'/proc/{pool._workers[0].process.pid}/maps').read()]))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120, check=True)
    pid, parent_has_torch, child_has_torch = json.loads(done.stdout)
    assert not parent_has_torch
    assert not child_has_torch
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)
