"""When `lit_vlaa.hosts` starts a run again, and when not: with a stand-in for Python that ends as it is told to."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from helpers.launch import ROOT, _free_port
from lit_vlaa import hosts

STAND_IN = """#!/usr/bin/env bash
cd {folder}
printf '%s\\n' "$@" > words
echo >> starts
case $(sed -n "$(wc -l < starts)p" script) in
  0) ;;
  crash)
    echo '{{"message": {{"message": "RuntimeError: no luck", "extraInfo": {{"timestamp": "1"}}}}}}' \\
      > "$TORCHELASTIC_ERROR_FILE"
    exit 1;;
  further) wc -l < starts > "$LIT_VLAA_ORIGIN_FILE"; kill -KILL $$;;
  kill) kill -KILL $$;;
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
    for name in ("TORCH_DISABLE_SHARE_RDZV_TCP_STORE", "LIT_VLAA_ORIGIN_FILE", "TORCHELASTIC_SIGNALS_TO_HANDLE"):
        monkeypatch.setenv(name, "")  # given back its value after the test
    monkeypatch.setenv("TORCHELASTIC_SIGNALS_TO_HANDLE", "SIGTERM,SIGINT,SIGHUP,SIGQUIT")
    return tmp_path


@pytest.fixture(autouse=True)
def handlers() -> Iterator[None]:
    numbers = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT)
    earlier = {number: signal.getsignal(number) for number in numbers}
    yield
    for number, handler in earlier.items():
        signal.signal(number, handler)


def flags(**changed: int | str) -> list[str]:
    given = {"nodes": 1, "node": 0, "devices": 1, "head": "127.0.0.1", "port": _free_port(), "restarts": 2, "wait": 60}
    return [f"--{name}={value}" for name, value in {**given, **changed}.items()]


def run(folder: Path, script: str) -> tuple[int, int]:
    """Lets starts end as the words of `script` say, one after the other; gives the exit code and their number."""
    (folder / "script").write_text(script.replace(" ", "\n") + "\n")
    code = hosts.main([*flags(), "--", "fit"])
    return code, len((folder / "starts").read_text().splitlines())


@pytest.mark.parametrize(
    ("code", "meaning"), [(0, "done"), (1, "stopped itself"), (2, "arguments"), (130, "Ctrl-C"), (143, "SIGTERM")]
)
def test_a_run_that_is_over_stays_so(code: int, meaning: str, folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert run(folder, f"{code} 0") == (code, 1), meaning
    assert "restart" not in capfd.readouterr().err


@pytest.mark.parametrize(
    ("end", "told"),
    [("kill", "was killed by SIGKILL"), ("crash", "crashed: RuntimeError: no luck"), ("134", "ended with 134")],
)
def test_a_process_that_dies_starts_again(end: str, told: str, folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert run(folder, f"{end} 0") == (0, 2)
    (line,) = re.findall(r"lit-vlaa: .* (restart .*)", capfd.readouterr().err)
    assert line == f"{GONE} {told}"


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


def test_others_that_do_not_come(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    port = _free_port()
    assert hosts.main([*flags(nodes=2, wait=1, port=port), "--", "fit"]) == 1
    assert f"fewer than 2 hosts came to 127.0.0.1:{port} within 1 s (WAIT)" in capfd.readouterr().err
    assert not (folder / "starts").exists()


def test_a_first_host_that_does_not_answer(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(hosts, "_READ_TIMEOUT", 1)
    port = _free_port()
    assert hosts.main([*flags(nodes=2, node=1, wait=1, port=port), "--", "fit"]) == 1
    assert f"nothing answers at 127.0.0.1:{port} since 1 s (WAIT)" in capfd.readouterr().err
    assert not (folder / "starts").exists()


def test_a_number_that_no_host_has(capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        hosts.main([*flags(nodes=2, node=2), "--", "fit"])
    assert "NODE=2: hosts are numbered from 0, and NODES=2" in capfd.readouterr().err


def test_a_host_that_is_told_to_go_ends_the_run(folder: Path) -> None:
    (folder / "script").write_text("sleep\n" * 4)
    code = "import sys; from lit_vlaa import hosts; sys.executable = sys.argv.pop(1); sys.exit(hosts.main())"
    port = _free_port()
    first, second = (
        subprocess.Popen(
            [PYTHON, "-c", code, folder / "python", *flags(nodes=2, node=node, port=port), "--", "fit"],
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            stderr=subprocess.PIPE,
            text=True,
        )
        for node in (0, 1)
    )
    end = time.monotonic() + 120
    while len(alive := [path for path in folder.glob("alive-*") if path.read_text()]) < 2:
        assert time.monotonic() < end
        time.sleep(0.05)
    second.send_signal(signal.SIGTERM)
    told = second.communicate(timeout=120)[1]
    assert (second.returncode, "restart" in told) == (143, False)
    for path in alive:
        with suppress(ProcessLookupError):
            os.kill(int(path.read_text()), signal.SIGKILL)
    told = first.communicate(timeout=120)[1]
    assert first.returncode == 1
    assert "the run has ended on another host, whose output says why" in told
