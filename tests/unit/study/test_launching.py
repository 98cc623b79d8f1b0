from __future__ import annotations

import multiprocessing.context
import multiprocessing.forkserver
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from lit_vlaa.checks import RunStoppedError, UsageError
from lit_vlaa.study import launching
from lit_vlaa.study.launching import Interrupted, Processes
from lit_vlaa.study.locks import locked, share


@pytest.fixture
def program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Sets what runs in the place of Python."""

    def write(text: str) -> None:
        path = tmp_path / "python"
        path.write_text(f"#!/usr/bin/env bash\n{text}\n")
        path.chmod(0o755)
        monkeypatch.setattr(sys, "executable", str(path))

    return write


def when(path: Path, act: Callable[[], object]) -> threading.Thread:
    """Does something as soon as a file is there."""

    def wait() -> None:
        while not path.exists():
            time.sleep(0.01)
        act()

    thread = threading.Thread(target=wait, daemon=True)
    thread.start()
    return thread


def test_output_goes_to_the_console_and_the_log(
    program: Callable[[str], None], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    program('echo "$@"; echo broken >&2; exit 5')
    log = tmp_path / "jobs" / "log.txt"
    for _ in range(2):
        assert Processes(fork=False)(["fit", "--a=b c"], log=log) == 5
    assert log.read_text() == "-m lit_vlaa fit --a=b c\nbroken\n" * 2
    assert capsys.readouterr().out == log.read_text()


def test_variables_that_would_change_a_job_are_left_out(
    program: Callable[[str], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program("env")
    for name in ("SLURM_NTASKS", "PL_GLOBAL_SEED", "OTHER"):
        monkeypatch.setenv(name, "1")
    Processes(fork=False)([], log=tmp_path / "log")
    seen = {line.partition("=")[0] for line in (tmp_path / "log").read_text().splitlines()}
    assert not {"SLURM_NTASKS", "PL_GLOBAL_SEED"} & seen
    assert {"OTHER", "PATH", "PYTHONUNBUFFERED"} <= seen


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signals_are_passed_on_as_sigterm(number: int, program: Callable[[str], None], tmp_path: Path) -> None:
    program(f'trap "echo saved; exit 143" TERM; trap "echo int" INT; touch {tmp_path}/on; while :; do sleep 0.02; done')
    before = signal.getsignal(number)
    thread = when(tmp_path / "on", lambda: os.kill(os.getpid(), number))
    with pytest.raises(Interrupted) as caught:
        Processes(fork=False)([], log=tmp_path / "log")
    thread.join()
    assert caught.value.number == number
    assert (tmp_path / "log").read_text() == "saved\n"
    assert signal.getsignal(number) is before


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_that_comes_while_a_job_starts_reaches_it(
    number: int, program: Callable[[str], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program(f'trap "echo saved; exit 143" TERM; touch {tmp_path}/on; while :; do sleep 0.02; done')
    popen = subprocess.Popen

    def started(*args: Any, **options: Any) -> Any:
        process = popen(*args, **options)
        while not (tmp_path / "on").exists():
            time.sleep(0.01)
        os.kill(os.getpid(), number)
        return process

    monkeypatch.setattr(subprocess, "Popen", started)
    with pytest.raises(Interrupted) as caught:
        Processes(fork=False)([], log=tmp_path / "log")
    assert caught.value.number == number
    assert (tmp_path / "log").read_text() == "saved\n"


@pytest.mark.parametrize("dies", [True, False])
def test_ctrl_c_while_the_server_of_processes_starts(
    dies: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A terminal's reaches it too; it dies, or it takes its time and a second one comes."""
    before = signal.getsignal(signal.SIGINT)

    def start(_: Any) -> None:
        os.kill(os.getpid(), signal.SIGINT)
        if dies:
            raise EOFError("unexpected EOF")
        os.kill(os.getpid(), signal.SIGINT)
        pytest.fail("it went on")

    monkeypatch.setattr(multiprocessing.context.ForkServerProcess, "start", start)
    with pytest.raises(Interrupted):
        Processes(fork=True)(["fit"], log=tmp_path / "log")
    assert signal.getsignal(signal.SIGINT) is before


def test_a_second_ctrl_c_kills_a_job_with_all_its_processes(program: Callable[[str], None], tmp_path: Path) -> None:
    loop = "while :; do sleep 0.02; done"
    program(
        f'trap "touch {tmp_path}/told" TERM; (trap "" TERM; echo $BASHPID > {tmp_path}/rank; touch {tmp_path}/on; '
        f"{loop}) & {loop}"
    )
    threads = [when(tmp_path / name, lambda: os.kill(os.getpid(), signal.SIGINT)) for name in ("on", "told")]
    with pytest.raises(Interrupted):
        Processes(fork=False)([], log=tmp_path / "log")
    for thread in threads:
        thread.join()
    wait_for_end(int((tmp_path / "rank").read_text()))


def wait_for_end(pid: int) -> None:
    stat = Path(f"/proc/{pid}/stat")
    for _ in range(6000):
        try:
            if stat.read_text().rpartition(")")[2].split()[0] == "Z":
                return
        except (FileNotFoundError, ProcessLookupError):
            return
        time.sleep(0.02)
    pytest.fail(f"{pid} still runs")


def test_a_job_that_nobody_can_listen_to_is_told_to_end(
    program: Callable[[str], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    saving = f"echo saving; echo more; touch {tmp_path}/saved; exit 143"
    program(f'trap "{saving}" TERM; echo $$ > {tmp_path}/job; echo here; while :; do sleep 0.02; done')

    def closed(_: str) -> None:
        raise BrokenPipeError

    monkeypatch.setattr(sys.stdout, "write", closed)
    with pytest.raises(BrokenPipeError):
        Processes(fork=False)([], log=tmp_path / "log")
    monkeypatch.undo()
    wait_for_end(int((tmp_path / "job").read_text()))
    assert (tmp_path / "saved").exists()


def test_a_job_that_outlives_its_runner_keeps_its_lock(program: Callable[[str], None], tmp_path: Path) -> None:
    program(f"(touch {tmp_path}/on; while [ ! -e {tmp_path}/end ]; do sleep 0.02; done) > /dev/null 2>&1 &")
    lock = tmp_path / "lock"
    with locked(lock, "it") as handle:
        share(handle, lock, "it")
        assert Processes(fork=False)([], log=tmp_path / "log", lock=lock, handle=handle) == 0
    with pytest.raises(UsageError, match="it is being run by"), locked(lock, "it"):
        pass
    (tmp_path / "end").touch()
    for _ in range(6000):
        try:
            with locked(lock, "it"):
                return
        except UsageError:
            time.sleep(0.02)
    pytest.fail("the lock is still held")


@pytest.fixture
def bare_server(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A server to fork from without the imports that take seconds; the integration test has one with them."""
    monkeypatch.setattr(launching, "_PRELOADED", [])
    server: Any = multiprocessing.forkserver._forkserver
    server._stop()
    yield
    server._stop()


def test_forked_jobs_start_in_a_clean_process(
    bare_server: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lock, log = tmp_path / "lock", tmp_path / "log"
    launch = Processes(fork=True)
    with locked(lock, "it") as handle:
        share(handle, lock, "it")
        assert launch(["--version"], log=log, lock=lock, handle=handle) == 0
        assert launch(["nonsense"], log=log, lock=lock, handle=handle) == 2
    first, second = log.read_text().splitlines()
    assert first.startswith("lit-vlaa ")
    assert second.startswith("lit-vlaa: error: there is no command `lit-vlaa nonsense`")
    assert capsys.readouterr().out == log.read_text()


def test_a_killed_server_of_processes_is_said_in_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def killed(_: Any) -> None:
        raise EOFError("unexpected EOF")

    monkeypatch.setattr(multiprocessing.context.ForkServerProcess, "start", killed)
    with pytest.raises(RunStoppedError, match="the process that starts jobs was killed; the same command goes on"):
        Processes(fork=True)(["fit"], log=tmp_path / "log.txt")
