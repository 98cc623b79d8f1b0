"""What stops `lit-vlaa data build`: money, options, signals, files in the way; and that nothing is lost by it."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from helpers.builds import ASKING, completion, endpoints, make_config, make_source, questions, read_lines, split
from helpers.commands import lit
from helpers.scripted_http import Reply
from lit_vlaa.endpoints.completions import Endpoint


def build(config: Path, output: Path, *more: str) -> int:
    return lit("data", "build", f"--config={config}", f"--output-dir={output}", *more)


def told(capsys: pytest.CaptureFixture[str]) -> str:
    """The one line that says why it ended."""
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("lit-vlaa: ")]
    return line


def one_at_a_time(root: Path, url: str, **changes: Any) -> Path:
    return make_config(root, url, **{f"{step}__endpoint__concurrency": 1 for step in ASKING}, **changes)


def test_files_of_others_are_neither_replaced_nor_removed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make_source(tmp_path, questions(3))
    out = tmp_path / "data"
    out.mkdir()
    release = out / "VLAA-Thinking-SFT-126K.json"
    with endpoints() as (server, script):
        config = make_config(tmp_path, server.url)
        for name in ("README.md", "notes.txt", release.name):
            (out / name).write_text("precious")
            for more in ((), ("--dry-run",)):
                assert build(config, out, *more) == 2
                assert f"--output-dir {out} holds {name}, and no build was begun there; name a new or" in told(capsys)
            assert [file.name for file in out.iterdir()] == [name]
            (out / name).unlink()
        assert not script.by_step
        for name in (".nfs01", "slurm-7", "build.yaml", "build.log"):  # of a disk and of the job
            (out / name).touch()
        assert build(config, out) == 0
        # What is put there later stays, the release too, and what would replace it is not written.
        (out / "notes.txt").write_text("mine")
        release.write_text("precious")
        assert build(make_config(tmp_path, server.url, curate__cues=["nothing"]), out) == 0
        assert sorted(file.name for file in out.glob("VLAA-*")) == [
            "VLAA-Thinking-GRPO-0.json",
            "VLAA-Thinking-SFT-126K.json",
            "VLAA-Thinking-SFT-3.json",
        ]
        (out / "VLAA-Thinking-GRPO-1.json").write_text("precious")
        assert build(make_config(tmp_path, server.url), out) == 2
        assert "VLAA-Thinking-GRPO-1.json is not of this build; move it away and run again" in told(capsys)
        assert (out / "VLAA-Thinking-GRPO-1.json").read_text() == release.read_text() == "precious"


def test_a_folder_that_another_command_filled(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "data"
    counts = ["--sft-count=2", "--grpo-count=1", "--test-count=1", "--progress=false"]
    assert lit("data", "synthetic", f"--output-dir={out}", *counts) == 0
    before = sorted(out.rglob("*"))
    make_source(tmp_path, questions(1))
    with endpoints() as (server, script):
        assert build(make_config(tmp_path, server.url), out) == 2
    assert not script.by_step
    (first, *others) = sorted(path.name for path in out.iterdir())
    assert f"{out} holds {first} and {len(others)} more, and no build was begun there" in told(capsys)
    assert sorted(out.rglob("*")) == before


def test_a_build_goes_on_in_its_folder_and_in_a_copy(tmp_path: Path) -> None:
    make_source(tmp_path, questions(2))
    out, copy, half = tmp_path / "out", tmp_path / "copy", tmp_path / "half"
    with endpoints() as (server, script):
        config = make_config(tmp_path, server.url)
        assert build(config, half, "--only=metadata") == 0
        assert build(config, half) == 0
        assert build(config, out, "--shard=1/1") == 0
        (out / "notes.txt").write_text("mine")
        assert build(config, out, "--merge") == 0
        asked = dict(script.by_step)
        shutil.copytree(half, copy, ignore=shutil.ignore_patterns(".*"))
        (copy / "notes.txt").write_text("mine")
        assert build(config, copy) == 0
        assert script.by_step == asked


@pytest.mark.parametrize("status", [402, 405, 307])
def test_no_money_and_no_such_place_stop_it(tmp_path: Path, capsys: pytest.CaptureFixture[str], status: int) -> None:
    make_source(tmp_path, questions(4))
    out = tmp_path / "out"
    poor = lambda text, answer: answer if "picture 0" in text else Reply({"error": "Pay!"}, status=status)  # noqa: E731
    with endpoints({"distil": poor}) as (server, script):
        config = one_at_a_time(tmp_path, server.url)
        assert build(config, out) == 1
        assert f"HTTP {status}: Pay!" in told(capsys)
        assert script.by_step == {"caption": 4, "distil": 2}
        script.answers.clear()
        assert build(config, out) == 0
        assert script.by_step == {"caption": 4, "distil": 2 + 3, "rewrite": 4, "verify": 4}
    assert read_lines(out / "rejects.jsonl") == []


def test_refusals_in_a_row_stop_it_and_single_ones_do_not(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make_source(tmp_path, questions(6))
    refused = {1, 3, 4}
    moody = lambda text, answer: (  # noqa: E731
        Reply({"error": "flagged"}, status=403) if any(f"picture {n}?" in text for n in refused) else answer
    )
    with endpoints({"distil": moody}) as (server, script):
        assert build(one_at_a_time(tmp_path, server.url, distil__endpoint__max_refusals=2), tmp_path / "out") == 1
        said = told(capsys)
        assert "2 refusals in a row, the last: distil.endpoint.base_url" in said
        assert "HTTP 403: flagged; name the environment variable with the key by api_key_env; set the server" in said
        assert script.by_step["distil"] == 5
        assert build(one_at_a_time(tmp_path, server.url, distil__endpoint__max_refusals=3), tmp_path / "out") == 0
    rejects = [(row["id"], row["reason"]) for row in read_lines(tmp_path / "out" / "rejects.jsonl")]
    assert rejects == [(f"r{number}", "the endpoint refused the request") for number in (1, 3, 4)]


def test_a_step_that_rejects_everything_is_not_done(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make_source(tmp_path, questions(8))
    out = tmp_path / "out"
    with endpoints({"caption": lambda *_: Reply(completion("A", finish="length"))}) as (server, script):
        config = one_at_a_time(tmp_path, server.url)
        for _ in range(2):
            assert build(config, out) == 1
            said = told(capsys)
            assert (
                "step caption rejected all 8 rows (most often: the caption was cut off; the first: length: A)" in said
            )
            assert said.endswith("2_caption.rejects.jsonl, and set caption's prompt or endpoint right")
        assert not (out / "README.md").exists()
        assert script.by_step == {"caption": 8}
        # The first rows tell as much, and cost less; a window of 16 is begun.
        script.by_step.clear()
        more = tmp_path / "more"
        more.mkdir()
        make_source(more, questions(60))
        assert build(one_at_a_time(more, server.url, caption__stop_after=3), tmp_path / "new") == 1
        assert "none of the first 3 rows passed (most often: the caption was cut off; the last" in told(capsys)
        assert script.by_step["caption"] < 60
        # Where some pass it goes on, and the option changes nothing of what is done.
        script.answers["caption"] = lambda _, answer: answer
        assert build(one_at_a_time(tmp_path, server.url), tmp_path / "third") == 0
        script.by_step.clear()
        assert build(one_at_a_time(tmp_path, server.url, caption__stop_after=None), tmp_path / "third") == 0
        assert not script.by_step


@pytest.mark.parametrize("finish", ["abort", "insufficient_system_resource", "error"])
def test_replies_that_the_server_broke_off_are_not_kept(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], finish: str
) -> None:
    make_source(tmp_path, questions(2))
    out = tmp_path / "out"
    with endpoints({"caption": lambda *_: Reply(completion("A pla", finish=finish))}) as (server, script):
        assert build(make_config(tmp_path, server.url), out) == 1
        assert f"no reply for 2 of 2 rows (first: r0: the server broke its reply off ({finish}))" in told(capsys)
        assert script.by_step == {"caption": 2 * 2}  # each repeated once
        script.answers.clear()
        assert build(make_config(tmp_path, server.url), out) == 0
    assert {row["caption"] for row in split(out, "GRPO")} == {"A plain picture with dots."}


def test_shards_share_replies_and_one_may_have_nothing_left(tmp_path: Path) -> None:
    # All rows ask the same but for the image, so steps 3 to 5 have one reply.
    make_source(tmp_path, [{"question": "How many dots are in picture 1?", "answer": 1}] * 9)
    with endpoints() as (server, _):
        config = make_config(tmp_path, server.url)
        assert build(config, tmp_path / "whole") == 0
        out = tmp_path / "out"
        for shard in ("1/3", "2/3", "3/3", "--merge"):
            assert build(config, out, shard if shard == "--merge" else f"--shard={shard}") == 0
    report = (tmp_path / "whole" / "report.json").read_bytes()
    assert (out / "report.json").read_bytes() == report
    assert [step["replies"] for step in json.loads(report)["steps"][1:5]] == [9, 1, 1, 1]
    rare = lambda text, answer: answer if "picture 0?" in text else "No"  # noqa: E731
    make_source(tmp_path, questions(9))
    with endpoints({"verify": rare}) as (server, _):
        config = make_config(tmp_path, server.url, cache_dir="other")
        for shard in ("1/3", "2/3", "3/3", "--merge"):
            assert build(config, tmp_path / "few", shard if shard == "--merge" else f"--shard={shard}") == 0
    assert len(split(tmp_path / "few", "SFT")) == 1


@pytest.mark.parametrize(("signum", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)], ids=["SIGINT", "SIGTERM"])
def test_a_signal_waits_for_what_is_paid_for(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    signum: signal.Signals,
    code: int,
) -> None:
    make_source(tmp_path, questions(12))
    under_way = threading.Barrier(3, action=lambda: os.kill(os.getpid(), signum))
    before = [signal.getsignal(kind) for kind in (signal.SIGINT, signal.SIGTERM)]
    stopped = False
    drain, draining = Endpoint.drain, threading.Event()

    async def noted(endpoint: Endpoint) -> int:
        asyncio.get_running_loop().call_soon(draining.set)  # as soon as it waits
        return await drain(endpoint)

    monkeypatch.setattr(Endpoint, "drain", noted)

    def slow(_: str, answer: str) -> str:
        if not stopped:
            under_way.wait(120)
            while signal.getsignal(signum) not in before:  # the first signal leaves the second one as it was
                time.sleep(0.05)
            assert draining.wait(120)
        return answer

    with endpoints({"caption": slow}) as (server, script):
        config = make_config(tmp_path, server.url, caption__endpoint__concurrency=3)
        assert build(config, tmp_path / "out") == code
        assert "lit-vlaa: interrupted; run the same command again" in told(capsys)
        assert script.by_step == {"caption": 3}
        stopped = True
        assert build(config, tmp_path / "out") == 0
        # The three replies came after the signal and are on disk.
        assert script.by_step["caption"] == 12
        assert set(script.asked.values()) == {1}
    assert [signal.getsignal(kind) for kind in (signal.SIGINT, signal.SIGTERM)] == before


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"caption__endpoint__concurrency": 0}, "caption.endpoint.concurrency must be at least 1, got 0"),
        ({"verify__endpoint__base_url": "nonsense"}, "verify.endpoint.base_url must be an address"),
        ({"distil__prompt": "gone.txt"}, "cannot be read (No such file or directory); take one of configs/data"),
        ({"image_root": "gone"}, "gone is no folder; --config gives it, below the folder of its file"),
    ],
    ids=["concurrency", "address", "prompt", "images"],
)
def test_what_cannot_work_is_told_before_anything_is_asked(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], changes: dict[str, Any], said: str
) -> None:
    make_source(tmp_path, questions(1))
    with endpoints() as (server, script):
        assert build(make_config(tmp_path, server.url, **changes), tmp_path / "out") == 2
        assert not script.by_step
    assert said in told(capsys)


def test_a_broken_image_costs_its_row_and_is_called_so(tmp_path: Path) -> None:
    make_source(tmp_path, questions(3))
    image = tmp_path / "images" / "set" / "1.png"
    image.write_bytes(image.read_bytes()[:60])
    with endpoints() as (server, _):
        assert build(make_config(tmp_path, server.url, caption__endpoint__max_refusals=1), tmp_path / "out") == 0
    (reject,) = read_lines(tmp_path / "out" / "rejects.jsonl")
    assert (reject["id"], reject["reason"]) == ("r1", "the request could not be made")
    assert "set/1.png" in reject["detail"]
