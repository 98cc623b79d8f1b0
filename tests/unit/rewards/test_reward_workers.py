from __future__ import annotations

import json
import multiprocessing
import os
import pickle
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from lit_vlaa.rewards.algebra.syntax import parse_expression
from lit_vlaa.rewards.workers import MathPool, Pair, PairVerdict, _Worker


def tree(truth: str, answer: str) -> Pair:
    return Pair("tree", parse_expression(truth).wire(), parse_expression(answer).wire())


def latex(truth: str, answer: str) -> Pair:
    return Pair("latex", truth, answer)


HANG = latex("4", "9^{9^{9^9}}")
HANGING = [HANG, latex("4", "(10^9)!"), tree("4", "(10^9)!")]
HUNGRY = tree("4", "2^(2^36)")  # 8 GiB of digits


@pytest.fixture(autouse=True)
def no_hurry(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only pairs that hang run out of time, and not others for want of a processor."""
    send = _Worker.send

    def patient(worker: _Worker, job: int, pair: Pair, deadline: float) -> None:
        send(worker, job, pair, deadline if pair in HANGING else deadline + 120)

    monkeypatch.setattr(_Worker, "send", patient)


@pytest.fixture
def pool() -> Iterator[MathPool]:
    pool = MathPool(workers=1, timeout_s=60.0)
    yield pool
    pool.close()


@pytest.fixture
def hasty() -> Iterator[MathPool]:
    """For pairs that hang."""
    pool = MathPool(workers=1, timeout_s=1.5)
    yield pool
    pool.close()


@pytest.fixture(scope="module")
def lasting() -> Iterator[MathPool]:
    """For what leaves a pool as it was; a process takes a second to start."""
    pool = MathPool(workers=2, timeout_s=60.0)
    yield pool
    pool.close()


@pytest.fixture
def patient() -> Iterator[MathPool]:
    pool = MathPool(workers=2, timeout_s=60.0)
    yield pool
    pool.close()


def pids(pool: MathPool) -> list[int]:
    return [worker.process.pid for worker in pool._workers]


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def children() -> list[int]:
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            parent = stat.read_text().rpartition(")")[2].split()[1]
        except (FileNotFoundError, ProcessLookupError):
            continue
        if int(parent) == os.getpid():
            found.append(int(stat.parent.name))
    return found


def wait_for(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + 120
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


def in_background(pool: MathPool, pairs: list[Pair]) -> tuple[threading.Thread, list[PairVerdict]]:
    verdicts: list[PairVerdict] = []
    thread = threading.Thread(target=lambda: verdicts.extend(pool.verify_many(pairs)))
    thread.start()
    return thread, verdicts


def test_starts_lazily_and_closes(pool: MathPool) -> None:
    assert pids(pool) == []
    assert pool.verify_many([]) == []
    assert pids(pool) == []
    pairs = [latex(r"\frac{1}{2}", "0.5"), latex("y=2x", "y=3x"), tree("1", "1")]
    assert pool.verify_many(pairs) == ["equal", "different", "equal"]
    (pid,) = pids(pool)
    pool.close()
    assert not alive(pid)
    assert pool.verify_many([tree("2", "2")]) == ["equal"]


@pytest.mark.parametrize(
    ("truth", "answer", "verdict"),
    [
        ("x^2 - x - 2", "(x + 1)(x - 2)", "equal"),
        ("sin(2x)", "2 sin(x) cos(x)", "equal"),
        ("0.1x + 0.2x", "0.3x", "equal"),
        ("0.333333", "1/3", "equal"),
        ("1/3", "0.333", "different"),
        ("(-8)^(1/3)", "-2", "equal"),
        ("log10(1000) + log_2(8)", "6", "equal"),
        ("sqrt(x^2)", "|x|", "equal"),
        ("sqrt(x^2)", "x", "different"),
        ("floor(7/2) + 3!", "9", "equal"),
        ("arctan(1)", "pi/4", "equal"),
        ("i^2", "-1", "equal"),
        ("x + 1", "x + 1.000000001", "different"),
        ("(x + 1)^40 - (x + 1)^39", "x (x + 1)^39", "equal"),
    ],
)
def test_trees_mean_what_they_say(lasting: MathPool, truth: str, answer: str, verdict: PairVerdict) -> None:
    assert lasting.verify_many([tree(truth, answer), tree(answer, truth)]) == [verdict, verdict]


def test_a_division_by_zero_equals_nothing(lasting: MathPool) -> None:
    assert lasting.verify_many([tree("1/0", "2/0")]) != ["equal"]


def test_latex_that_no_one_can_read(lasting: MathPool) -> None:
    assert lasting.verify_many([latex(r"\frac{", "1"), latex("1", r"\frac{")]) == ["unparsable_gt", "different"]


@pytest.mark.parametrize("hang", HANGING)
def test_a_hanging_pair_is_killed_and_the_rest_is_judged(hasty: MathPool, hang: Pair) -> None:
    hasty.verify_many([tree("1", "1")])
    (before,) = pids(hasty)
    assert hasty.verify_many([hang, tree("3", "3")]) == ["timeout", "equal"]
    (after,) = pids(hasty)
    assert after != before
    assert not alive(before)
    assert hasty.lost == {"timeout": 1}


def test_out_of_memory_ends_the_process_and_not_the_step() -> None:
    pool = MathPool(workers=2, timeout_s=60.0, memory_mb=256)
    try:
        assert pool.verify_many([tree("1", "2"), HUNGRY, tree("3", "3")]) == ["different", "error", "equal"]
        assert pool.lost == {"memory": 2}  # tried twice
        assert len(pids(pool)) == 2
        assert all(map(alive, pids(pool)))
        assert pool.verify_many([tree("4", "4"), tree("4", "5")]) == ["equal", "different"]
        assert pool.lost == {"memory": 2}
    finally:
        pool.close()


def test_a_pair_whose_process_is_killed_from_outside_is_tried_again(patient: MathPool) -> None:
    numbers = iter(range(100, 10_000))
    patient.verify_many([tree("1", "1"), tree("2", "2")])
    stopped, other = patient._workers
    while not (stopped.ready and other.ready):  # noticed while there is work only
        patient.verify_many([tree("1", str(next(numbers)))])
    os.kill(stopped.process.pid, signal.SIGSTOP)  # it takes its pair and sits on it
    pairs = [tree(str(n), str(n + n % 2)) for n in range(10, 16)]
    thread, verdicts = in_background(patient, pairs)
    wait_for(lambda: stopped.job is not None and other.job is None)
    os.kill(stopped.process.pid, signal.SIGKILL)
    thread.join(timeout=120)
    assert verdicts == ["equal", "different"] * 3
    assert patient.lost == {"died": 1}
    assert len(pids(patient)) == 2
    assert all(map(alive, pids(patient)))
    assert stopped.process.pid not in pids(patient)


def test_a_pair_whose_process_is_killed_twice_is_an_error(patient: MathPool) -> None:
    patient.verify_many([tree("1", "1"), tree("2", "2")])
    thread, verdicts = in_background(patient, [HANG, tree("3", "3"), tree("3", "4")])
    killed: set[int] = set()
    for _ in range(2):
        wait_for(lambda: any(w.job == 0 and w.process.pid not in killed for w in list(patient._workers)))
        pid = next(w.process.pid for w in patient._workers if w.job == 0 and w.process.pid not in killed)
        killed.add(pid)
        os.kill(pid, signal.SIGKILL)
    thread.join(timeout=120)
    assert verdicts == ["error", "equal", "different"]
    assert patient.lost == {"died": 2}
    assert len(pids(patient)) == 2
    assert patient.verify_many([tree("5", "6")]) == ["different"]


def test_a_process_that_died_while_idle_is_replaced(pool: MathPool) -> None:
    assert pool.verify_many([tree("1", "1")]) == ["equal"]
    (before,) = pids(pool)
    os.kill(before, signal.SIGKILL)
    pool._workers[0].process.wait()
    assert pool.verify_many([tree("2", "3")]) == ["different"]
    assert pids(pool) != [before]


def test_ctrl_c_amid_a_call_does_not_give_its_verdicts_to_the_next(
    pool: MathPool, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert pool.verify_many([tree("1", "1")]) == ["equal"]
    (before,) = pids(pool)

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(pool, "_read", interrupted)
        with pytest.raises(KeyboardInterrupt):
            pool.verify_many([tree("2", "2")])
    assert not alive(before)
    assert pool.verify_many([tree("3", "4")]) == ["different"]


def test_no_process_is_left_behind() -> None:
    before = set(children())
    pool = MathPool(workers=2, timeout_s=1.5)
    pool.verify_many([HANG, tree("3", "3"), tree("3", "4")])
    os.kill(pids(pool)[0], signal.SIGKILL)
    assert len(set(children()) - before) == 2
    pool.close()
    assert set(children()) <= before  # a zombie would still be a child
    pool.close()


def test_a_forgotten_pool_ends_its_processes() -> None:
    before = set(children())
    pool = MathPool(workers=1)
    pool.verify_many([tree("1", "2")])
    assert set(children()) > before
    del pool
    assert set(children()) <= before


def test_a_process_that_cannot_start_gives_errors_and_says_so(caplog: pytest.LogCaptureFixture) -> None:
    pool = MathPool(workers=2, memory_mb=16)  # too little for Python itself
    assert pool.verify_many([tree("1", "1"), tree("1", "2"), tree("1", "3")]) == ["error"] * 3
    assert "import math_verify" in caplog.text
    assert pool.lost["start"] >= 1
    pool.close()


def test_a_start_that_takes_too_long_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    python = tmp_path / "python"
    python.write_text("#!/bin/sh\nexec sleep 600\n")
    python.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(python))
    pool = MathPool(workers=1, start_timeout_s=0.1)
    assert pool.verify_many([tree("1", "2")]) == ["error"]
    assert pool.lost == {"start": 1}
    pool.close()


def test_memory_limit_is_set() -> None:
    pool = MathPool(workers=1, memory_mb=700)
    try:
        pool.verify_many([tree("1", "1")])
        limits = Path(f"/proc/{pids(pool)[0]}/limits").read_text()
    finally:
        pool.close()
    (line,) = [line for line in limits.splitlines() if line.startswith("Max address space")]
    assert line.split()[3] == str(700 * 2**20)


def test_works_off_the_main_thread_and_from_several(pool: MathPool) -> None:
    found: dict[int, list[PairVerdict]] = {}

    def ask(number: int) -> None:
        found[number] = pool.verify_many([tree(str(number), str(number)), tree(str(number), str(number + 1))])

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == {number: ["equal", "different"] for number in range(4)}


def test_no_signal_handler_is_touched(lasting: MathPool) -> None:
    handlers = [signal.getsignal(number) for number in (signal.SIGALRM, signal.SIGCHLD, signal.SIGTERM)]
    lasting.verify_many([tree("11", "12")])
    assert [signal.getsignal(number) for number in (signal.SIGALRM, signal.SIGCHLD, signal.SIGTERM)] == handlers


def test_verdicts_are_cached(pool: MathPool) -> None:
    assert pool.verify_many([tree("2x", "x+x")] * 3) == ["equal"] * 3
    pool.close()
    assert pool.verify_many([tree("2x", "x+x")]) == ["equal"]
    assert pids(pool) == []  # answered without a process


def test_failures_are_not_cached(hasty: MathPool) -> None:
    assert hasty.verify_many([HANG]) == ["timeout"]
    assert hasty.verify_many([HANG]) == ["timeout"]
    assert hasty.lost == {"timeout": 2}


@pytest.mark.parametrize("size", [0, 2])
def test_the_cache_is_bounded_and_forgets_the_least_recent(size: int) -> None:
    pool = MathPool(workers=1, cache_size=size)
    pairs = [tree(str(number), str(number + 1)) for number in range(3)]
    try:
        pool.verify_many(pairs)
        assert len(pool._cache) == size
        assert all(len(key) == 16 for key in pool._cache)  # however long the texts were
        for pair, kept in zip(reversed(pairs), (size > 0, size > 1, False), strict=True):
            pool.close()
            assert pool.verify_many([pair]) == ["different"]
            assert (pids(pool) == []) is kept
    finally:
        pool.close()


def test_two_workers_run_side_by_side(patient: MathPool) -> None:
    pairs = [tree("1", "1"), tree("2", "2"), tree("3", "4")]
    assert patient.verify_many(pairs) == ["equal", "equal", "different"]
    assert len(pids(patient)) == 2


def _in_child(
    pool: MathPool, parent_pids: list[int], queue: multiprocessing.Queue[tuple[list[PairVerdict], bool]]
) -> None:
    verdicts = pool.verify_many([tree("5", "5"), tree("5", "6")])
    queue.put((verdicts, bool(set(pids(pool)) & set(parent_pids))))
    pool.close()


@pytest.mark.parametrize("locked", [False, True])
def test_a_fork_uses_workers_of_its_own(pool: MathPool, locked: bool) -> None:
    assert pool.verify_many([tree("1", "1")]) == ["equal"]
    mine = pids(pool)
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    child = context.Process(target=_in_child, args=(pool, mine, queue))
    if locked:  # another thread was scoring when the data loader forked
        pool._lock.acquire()
    child.start()
    if locked:
        pool._lock.release()
    assert queue.get(timeout=120) == (["equal", "different"], False)
    child.join(timeout=120)
    assert child.exitcode == 0
    assert pids(pool) == mine
    assert pool.verify_many([tree("7", "8")]) == ["different"]


def test_a_pickled_pool_arrives_with_its_settings_only(pool: MathPool) -> None:
    source = MathPool(workers=2, timeout_s=1.25, memory_mb=700, cache_size=1)
    try:
        source.verify_many([tree("1", "1"), tree("1", "2")])
        copy = pickle.loads(pickle.dumps(source))  # noqa: S301 - our own bytes
        try:
            assert (pids(copy), len(copy._cache)) == ([], 0)
            assert copy.verify_many([tree("1", "1"), tree("1", "2"), HANG]) == ["equal", "different", "timeout"]
            assert len(pids(copy)) == 2
            assert not set(pids(copy)) & set(pids(source))
            assert len(copy._cache) == 1
            assert str(700 * 2**20) in Path(f"/proc/{pids(copy)[0]}/limits").read_text()
        finally:
            copy.close()
    finally:
        source.close()


def test_settings_are_checked() -> None:
    with pytest.raises(ValueError, match="math_workers"):
        MathPool(workers=0)
    with pytest.raises(ValueError, match="math_timeout_s"):
        MathPool(timeout_s=0)


def test_processes_end_with_the_program_and_import_no_torch() -> None:
    script = (
        "import json, sys\nfrom lit_vlaa.rewards.workers import MathPool, Pair\npool = MathPool(workers=1)\n"
        "pool.verify_many([Pair('latex', '1', '2')])\n"
        "print(json.dumps([pool._workers[0].process.pid, 'torch' in sys.modules,"
        " 'torch' in open(f'/proc/{pool._workers[0].process.pid}/maps').read()]))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120, check=True)
    pid, parent_has_torch, child_has_torch = json.loads(done.stdout)
    assert not parent_has_torch
    assert not child_has_torch
    assert not alive(pid)


def test_processes_end_when_the_program_is_killed() -> None:
    script = (
        "import os, signal\nfrom lit_vlaa.rewards.workers import MathPool, Pair\npool = MathPool(workers=1)\n"
        "pool.verify_many([Pair('latex', '1', '2')])\nprint(pool._workers[0].process.pid, flush=True)\n"
        "os.kill(os.getpid(), signal.SIGKILL)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == -signal.SIGKILL
    wait_for(lambda: not alive(int(done.stdout)))
