"""Ctrl-C, or a process's end, wherever it may fall into the work of a pool.

One program tries it all, as a Ctrl-C goes to the main thread.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]
LOCKS = (1, 2, 3, 10, 25, 60)
PROGRAM = """
import json, multiprocessing, os, signal, struct, threading, time
from concurrent.futures.process import BrokenProcessPool
from datamodules.worker_pool import worker_pool

def press():
    os.kill(os.getpid(), signal.SIGINT)

def press_twice(pool):
    time.sleep(0.1)
    press()
    while not pool._pressed:  # two at a time would be one
        time.sleep(0.01)
    time.sleep(0.2)
    press()

enter, main, left = threading.Condition.__enter__, threading.get_ident(), 0

def entering(lock):
    # Ctrl-C right after the main thread took a lock, where Python too may raise it
    global left
    got = enter(lock)
    if threading.get_ident() == main:
        left -= 1
        if left == 0:
            press()
    return got

def jobs(lock):
    global left
    left = lock
    with worker_pool(2) as pool:
        running, results = set(), []
        for job in range(20):
            running.add(pool.submit(abs, -job))
            results += pool.finished(running, block=False)
        while running:
            results += pool.finished(running, block=True)
    return sorted(results)

def hanging(body):
    with worker_pool(1) as pool:
        job = pool.submit(time.sleep, 3600)
        threading.Thread(target=press_twice, args=(pool,)).start()
        body(pool, job)

def killed():
    with worker_pool(1, lambda: None) as pool:
        pool.result(pool.submit(os._exit, 1))

def half(connection, message):
    os.write(connection.fileno(), struct.pack("!i", len(message)) + bytes(message[: len(message) // 2]))
    os.kill(os.getpid(), signal.SIGKILL)

def cut():
    multiprocessing.connection.Connection._send_bytes = half

def killed_amid_a_message():
    # Python sends a job by the same method, but the parent's is another process's
    with worker_pool(2, cut) as pool:
        pool.result(pool.submit(bytes, 1000))

def hung_up():
    raise BrokenPipeError("by whom the job had asked")

def failing(work):
    with worker_pool(1) as pool:
        job = pool.submit(work)
        after = pool.submit(abs, -1)
        try:
            pool.result(job)
        except Exception as error:
            return [type(error).__name__, str(error), work.__name__ in str(error.__cause__), pool.result(after)]

def no_pickle():
    return lambda: 0

def told(work, *args):
    try:
        return work(*args)
    except (KeyboardInterrupt, BrokenProcessPool) as error:
        return type(error).__name__

before = signal.getsignal(signal.SIGINT)
found = {"killed": told(killed), "cut": told(killed_amid_a_message)}
found["failed"] = [told(failing, work) for work in (hung_up, no_pickle)]
threading.Condition.__enter__ = entering
found["undisturbed"] = told(jobs, 0)
found["locks"] = [told(jobs, lock) for lock in LOCKS]
threading.Condition.__enter__ = enter
found["waiting"] = told(hanging, lambda pool, job: pool.result(job))
found["at work"] = told(hanging, lambda pool, job: time.sleep(3600))
found["left"] = [len(multiprocessing.active_children()), signal.getsignal(signal.SIGINT) is before]
print(json.dumps(found))
"""


@pytest.fixture(scope="module")
def found() -> dict[str, object]:
    done = subprocess.run(
        [sys.executable, "-c", f"LOCKS = {LOCKS}\n{PROGRAM}"],
        env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert not done.stderr
    told: dict[str, object] = json.loads(done.stdout)
    return told


def test_a_ctrl_c_between_a_lock_and_its_block_leaves_nobody_waiting(found: dict[str, object]) -> None:
    assert found["locks"] == ["KeyboardInterrupt"] * len(LOCKS)


def test_without_ctrl_c_every_result_comes(found: dict[str, object]) -> None:
    assert found["undisturbed"] == list(range(20))


@pytest.mark.parametrize("body", ["waiting", "at work"])
def test_a_second_ctrl_c_ends_the_jobs_in_progress(body: str, found: dict[str, object]) -> None:
    assert found[body] == "KeyboardInterrupt"


def test_a_process_that_was_killed_is_told(found: dict[str, object]) -> None:
    assert found["killed"] == found["cut"] == "BrokenProcessPool"


def test_errors_of_jobs_come_with_their_traceback_and_end_no_process(found: dict[str, list[list[object]]]) -> None:
    hung_up, no_pickle = found["failed"]
    assert hung_up == ["BrokenPipeError", "by whom the job had asked", True, 1]
    assert "no_pickle" in str(no_pickle[1])
    assert no_pickle[2:] == [True, 1]


def test_no_process_stays_and_ctrl_c_is_what_it_was(found: dict[str, object]) -> None:
    assert found["left"] == [0, True]
