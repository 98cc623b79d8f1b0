"""When `lit_vlaa.hosts` starts a run again, and when not: with a stand-in for Python that ends as it is told to."""

from __future__ import annotations

import ctypes
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace

import pytest

from helpers.launch import ROOT, free_port
from lit_vlaa import host_agent, hosts
from lit_vlaa.__main__ import end_with

STAND_IN = """#!/usr/bin/env bash
cd {folder}
printf '%s\\n' "$@" > words
echo "$LIT_VLAA_AGENT" > agent
echo >> starts
case $(sed -n "$(wc -l < starts)p" script) in
  0) ;;
  crash)
    echo '{{"message": {{"message": "RuntimeError: no luck", "extraInfo": {{"timestamp": "1"}}}}}}' \\
      > "$TORCHELASTIC_ERROR_FILE"
    exit 1;;
  further) wc -l < starts > "$LIT_VLAA_ORIGIN_FILE"; kill -KILL $$;;
  kill) kill -KILL $$;;
  garbled) echo '{{' > "$TORCHELASTIC_ERROR_FILE"; exit 1;;
  half)
    if [ "$LOCAL_RANK" = 1 ]; then trap 'exit 143' TERM; touch ready; while :; do sleep 0.05; done; fi
    until [ -e ready ]; do sleep 0.05; done; kill -KILL $$;;
  signal-*) trap 'exit 143' TERM; trap 'exit 130' INT; kill "-$(sed -n 's/signal-//p' script)" $PPID
    for _ in $(seq 20); do sleep 0.05; done;;
  save) trap 'touch saving; for _ in $(seq 30); do sleep 0.05; done; touch saved; exit 143' TERM
    echo $$ > alive-$GROUP_RANK; while :; do sleep 0.05; done;;
  sleep) trap 'exit 143' TERM; echo $$ > alive-$GROUP_RANK; while :; do sleep 0.05; done;;
  *) exit $(sed -n "$(wc -l < starts)p" script);;
esac
"""
PYTHON = sys.executable
GONE = "restart 1 of at most 2 after starting at the beginning: process 0"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    python = tmp_path / "python"
    python.write_text(STAND_IN.format(folder=tmp_path))
    python.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(python))
    for name in ("TORCH_DISABLE_SHARE_RDZV_TCP_STORE", "LIT_VLAA_ORIGIN_FILE", "LIT_VLAA_AGENT", "OMP_NUM_THREADS"):
        monkeypatch.setenv(name, "")  # given back its value after the test
    monkeypatch.setenv("TORCHELASTIC_SIGNALS_TO_HANDLE", "SIGTERM")
    return tmp_path


@pytest.fixture(autouse=True)
def handlers() -> Iterator[None]:
    numbers = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)
    earlier = {number: signal.getsignal(number) for number in numbers}
    signal.signal(signal.SIGHUP, signal.SIG_DFL)  # `nohup make test` ignores it, and so would the agent
    yield
    for number, handler in earlier.items():
        signal.signal(number, handler)


def flags(**changed: int | str) -> list[str]:
    given = {"nodes": 1, "node": 0, "devices": 1, "head": "127.0.0.1", "port": free_port(), "restarts": 2, "wait": 60}
    return [f"--{name}={value}" for name, value in {**given, **changed}.items()]


def run(folder: Path, script: str, **changed: int) -> tuple[int, int]:
    """Lets starts end as the words of `script` say, one after the other; gives the exit code and their number."""
    (folder / "script").write_text(script.replace(" ", "\n") + "\n")
    code = hosts.main([*flags(**changed), "--", "fit"])
    return code, len((folder / "starts").read_text().splitlines())


@pytest.mark.parametrize(
    ("code", "meaning"),
    [(0, "done"), (1, "stopped itself"), (2, "arguments"), (130, "Ctrl-C"), (141, "nobody reads"), (143, "SIGTERM")],
)
def test_a_run_that_is_over_stays_so(code: int, meaning: str, folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert run(folder, f"{code} 0") == (code, 1), meaning
    assert "restart" not in capfd.readouterr().err


@pytest.mark.parametrize(
    ("end", "told"),
    [
        ("kill", "was killed by SIGKILL"),
        ("crash", "crashed: RuntimeError: no luck"),
        ("134", "ended with 134"),
        ("garbled", "crashed: its report cannot be read"),
    ],
)
def test_a_process_that_dies_starts_again(end: str, told: str, folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert run(folder, f"{end} 0") == (0, 2)
    (line,) = re.findall(r"lit-vlaa: .* (restart .*)", capfd.readouterr().err)
    assert line == f"{GONE} {told}"


def test_processes_that_end_as_they_are_told_do_not_end_the_run(
    folder: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert run(folder, "half half 0 0", devices=2) == (0, 4)  # process 0 is killed, 1 told to go: it ends with 143
    assert f"{GONE} was killed by SIGKILL" in capfd.readouterr().err


@pytest.mark.parametrize(("name", "code"), [("TERM", 143), ("USR1", 143), ("HUP", 143), ("INT", 130)])
def test_a_signal_ends_the_run(name: str, code: int, folder: Path) -> None:
    assert run(folder, f"signal-{name} 0") == (code, 1)


def test_a_signal_counts_whose_exception_is_caught(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As by a logger of PyTorch's, whatever it writes at the moment."""
    begin = host_agent.Restarts.begin

    def interrupted(restarts: host_agent.Restarts) -> None:
        begin(restarts)
        with suppress(Exception):
            os.kill(os.getpid(), signal.SIGHUP)

    monkeypatch.setattr(host_agent.Restarts, "begin", interrupted)
    monkeypatch.setattr(host_agent, "_HEED", 1000.0)  # or the thread that watches would see to it
    assert run(folder, "sleep 0") == (143, 1)


def test_the_end_of_a_terminal_is_ignored_where_it_was_before(folder: Path) -> None:
    signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as `nohup` does
    assert run(folder, "signal-HUP 0") == (0, 1)


def test_a_run_that_gets_no_further_ends(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert run(folder, "kill kill kill 0") == (1, 3)
    said = capfd.readouterr().err
    assert "restart 2 of at most 2" in said
    assert "killed by SIGKILL; no restart, as 3 starts at the beginning have failed (RESTARTS=2)" in said


def test_a_run_that_gets_further_goes_on(folder: Path) -> None:
    assert run(folder, "further further further further 0") == (0, 5)


def test_arguments_arrive_as_they_were_given(folder: Path) -> None:
    (folder / "script").write_text("0\n")
    words = ["fit", "--prompt=$$x$$ and ${local_rank}", "a  b", ""]
    assert hosts.main([*flags(), "--", *words]) == 0
    ends = ["--trainer.num_nodes", "1", "--trainer.devices", "1", "--ckpt_path", "last"]
    assert (folder / "words").read_text() == "\n".join(["-u", "-m", "lit_vlaa", *words, *ends]) + "\n"
    assert int((folder / "agent").read_text()) == os.getpid()  # the processes end with this one


def test_others_that_do_not_come(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    port = free_port()
    assert hosts.main([*flags(nodes=2, wait=1, port=port), "--", "fit"]) == 1
    assert f"fewer than 2 hosts came to 127.0.0.1:{port} within 1 s (WAIT)" in capfd.readouterr().err
    assert not (folder / "starts").exists()


def test_a_first_host_that_does_not_answer(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(hosts, "_READ_TIMEOUT", 1)
    port = free_port()
    assert hosts.main([*flags(nodes=2, node=1, wait=1, port=port), "--", "fit"]) == 1
    assert f"nothing answers at 127.0.0.1:{port} since 1 s (WAIT)" in capfd.readouterr().err
    assert not (folder / "starts").exists()


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({"nodes": 2, "node": 2}, "NODE=2: hosts are numbered from 0, and NODES=2"),
        ({"nodes": 2, "node": ""}, "NODES=2, but no NODE is given"),
        ({"nodes": 2, "node": 1, "head": ""}, "NODES=2, but no HEAD is given"),
        ({"node": "x"}, "NODE=x: it must be a number from 0"),
        ({"port": 65536}, "PORT must be at most 65535"),
        ({"port": 0}, "PORT must be at least 1"),
    ],
)
def test_flags_that_cannot_be(changed: dict[str, int | str], told: str, capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        hosts.main([*flags(**changed), "--", "fit"])
    assert told in capfd.readouterr().err


def test_a_port_that_another_has(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    now = [0.0]
    waiting = {"monotonic": lambda: now[0], "sleep": lambda seconds: now.append(now.pop() + seconds)}
    for module in (hosts, host_agent):  # only waiting takes time, however busy the machine is
        monkeypatch.setattr(module, "time", SimpleNamespace(strftime=time.strftime, **waiting))
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        assert hosts.main([*flags(nodes=2, wait=1, port=port), "--", "fit"]) == 1
    told = capfd.readouterr().err
    assert told.count(f"no meeting at 127.0.0.1:{port} yet: The server socket has failed to listen") == 1
    assert f"nothing answers at 127.0.0.1:{port} since 1 s (WAIT): The server socket has failed to listen" in told
    assert not (folder / "starts").exists()


def test_a_host_that_was_one_too_many(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(host_agent.Agent, "run", lambda _: None)  # torch: the others ended without it
    assert run_nothing() == 1
    assert "the run has ended on another host" in capfd.readouterr().err
    assert not (folder / "starts").exists()


def test_another_version_of_torch(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(host_agent, "_OVERRIDDEN", ("_start_workers", "_begin_workers"))
    assert run_nothing() == 1
    assert "has another elastic agent (without _begin_workers) than 2.11" in capfd.readouterr().err
    assert not (folder / "starts").exists()


def run_nothing() -> int:
    return hosts.main([*flags(), "--", "fit"])


AGENT = """
import sys
from lit_vlaa import host_agent, hosts
sys.executable = sys.argv.pop(1)
hosts._FAREWELL, host_agent._HEED, host_agent._LEAVING = 2.0, 0.2, float(sys.argv.pop(1))
hosts._READ_TIMEOUT = 900  # in which torch hears nothing
sys.exit(hosts.main())
"""


def start(folder: Path, *, leaving: float = 0.5, **changed: int | str) -> subprocess.Popen[str]:
    """An agent in a process of its own; once told to go it has `leaving` seconds when its processes have ended."""
    return subprocess.Popen(
        [PYTHON, "-c", AGENT, folder / "python", str(leaving), *flags(**{"nodes": 2} | changed), "--", "fit"],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stderr=subprocess.PIPE,
        text=True,
    )


def wait(done: Callable[[], bool]) -> None:
    end = time.monotonic() + 120
    while not done():
        assert time.monotonic() < end
        time.sleep(0.05)


def test_a_host_that_is_told_to_go_ends_the_run(folder: Path) -> None:
    (folder / "script").write_text("sleep\n" * 4)
    port = free_port()
    # Half a second is too short for a busy machine: one that has not said that it leaves is waited for.
    first, second = (start(folder, leaving=100, node=node, port=port) for node in (0, 1))
    wait(lambda: len([path for path in folder.glob("alive-*") if path.read_text()]) == 2)
    second.send_signal(signal.SIGTERM)
    told = second.communicate(timeout=120)[1]
    assert (second.returncode, "restart" in told) == (143, False)
    # Its processes would wait for those of the second for ever.
    told = first.communicate(timeout=120)[1]
    assert first.returncode == 1
    assert "the run has ended on another host, whose output says why" in told
    for path in folder.glob("alive-*"):
        with pytest.raises(ProcessLookupError):
            os.kill(int(path.read_text()), 0)


def test_a_host_that_is_told_again_and_again_lets_its_processes_save(folder: Path) -> None:
    (folder / "script").write_text("save\n")
    host = start(folder, nodes=1)
    wait(lambda: any(path.read_text() for path in folder.glob("alive-*")))
    host.send_signal(signal.SIGTERM)
    wait((folder / "saving").exists)
    for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGTERM):
        host.send_signal(number)
        time.sleep(0.1)  # or they would be one
    assert host.wait(timeout=120) == 143
    assert (folder / "saved").exists()
    assert "Traceback" not in host.communicate(timeout=120)[1]


def test_a_signal_is_heeded_while_a_silent_host_keeps_torch_waiting(folder: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:  # takes calls and never answers
        server.settimeout(120)
        host = start(folder, node=1, port=server.getsockname()[1])
        silent, _ = server.accept()
        with silent:
            host.send_signal(signal.SIGTERM)
            host.communicate(timeout=120)
    assert host.returncode == 143


CHILD = """
import os, time
from lit_vlaa.__main__ import end_with
end_with(os.getppid())
print("ready", flush=True)
time.sleep(600)
"""
PARENT = "import subprocess, sys; subprocess.run([sys.executable, '-c', sys.argv[1]])"


def test_a_process_ends_with_its_agent() -> None:
    parent = subprocess.Popen([PYTHON, "-c", PARENT, CHILD], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    assert parent.stdout.readline() == "ready\n"
    parent.kill()
    parent.communicate(timeout=120)  # ends when nobody can write to the pipe any more


def test_a_process_ends_whose_agent_has_died_before(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ctypes, "CDLL", lambda _: SimpleNamespace(prctl=lambda *_: None))  # not for pytest's process
    with pytest.raises(SystemExit, match="137"):
        end_with(os.getpid())
