"""The command itself against a mirror, and training on what it brought, as JSON and as shards."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from datamodules import convert
from helpers.commands import command, lit, logged, started
from helpers.hub_server import environment, serving
from helpers.released import IMAGES, repo, tree

ROOT = Path(__file__).resolve().parents[2]
STEPS = 2
DOWNLOAD = ["data", "download", "--sources", *IMAGES]


def test_a_mirror_and_a_token_by_the_environment(tmp_path: Path) -> None:
    with serving(repo(), storage=True) as hub:
        hub.token = "hf_secret"  # noqa: S105
        done = subprocess.run(
            [sys.executable, "-m", "lit_vlaa", *DOWNLOAD, "--output-dir", tmp_path / "data"],
            env=environment(hub.url, tmp_path / "home", PYTHONPATH=str(ROOT), HF_TOKEN=hub.token),
            capture_output=True,
            text=True,
            check=False,
            timeout=150,
            cwd=tmp_path,
        )
    # One GB is kept free, which this machine has.
    assert done.returncode == 0, done.stderr[-3000:]
    assert "docvqa" in done.stdout
    assert hub.token not in done.stdout + done.stderr
    assert tree(tmp_path / "data")["images/docvqa/c.png"] == IMAGES["docvqa"]["c.png"]


def test_ctrl_c_keeps_finished_shards(tmp_path: Path) -> None:
    rows = [{"image": "a.png", "question": "q" * 20_000, "gt": number} for number in range(800)]
    (tmp_path / "rows.json").write_text(json.dumps(rows))
    shards = tmp_path / "shards"
    last = shards / ".convert" / "00399.rows"
    last.parent.mkdir(parents=True)
    os.mkfifo(last)  # nobody reads it, so that no machine is too busy to press Ctrl-C ahead of the last shard
    words = [
        "data",
        "convert",
        "--data-file",
        "rows.json",
        "--images=link",
        f"--output-dir={shards}",
        "--shard-mb=0.05",
    ]
    process = started(words, tmp_path / "log", cwd=tmp_path)
    limit = time.monotonic() + 120
    while len(list(shards.glob("rows-*"))) < 3 and time.monotonic() < limit:
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGINT)
    assert process.wait() == 130
    last.unlink(missing_ok=True)
    told = (tmp_path / "log").read_text()
    assert told.splitlines()[-2:] == [
        (
            "lit-vlaa: shards in progress are finished (unless Ctrl-C is pressed again); "
            "the same command goes on from there"
        ),
        "lit-vlaa: interrupted",
    ]
    assert "Traceback" not in told
    assert not (shards / "manifest.json").exists()
    kept = len(list((shards / ".convert").glob("*.json")))
    done = convert.run(output_dir=shards, data_file=tmp_path / "rows.json", images="link", shard_mb=0.05)
    assert done == 0
    assert 3 <= kept < len(list(shards.glob("rows-*"))) == 400


@pytest.mark.parametrize("stage", ["sft", "grpo"])
def test_training_on_shards_is_training_on_the_file(stage: str, tmp_path: Path) -> None:
    data = tmp_path / "data"
    counts = {"sft_count": 24, "grpo_count": 24, "test_count": 4}
    flags = [f"--{name}={count}" for name, count in counts.items()]
    assert lit("data", "synthetic", f"--output-dir={data}", "--progress=false", *flags) == 0
    file = data / f"VLAA-Thinking-{stage.upper()}.json"
    shards = tmp_path / "shards"
    words = [f"--data-file={file}", f"--image-root={data / 'images'}", f"--output-dir={shards}", "--shard-mb=0.01"]
    assert lit("data", "convert", *words) == 0
    assert len(list(shards.glob("rows-*.parquet"))) > 1
    options: dict[str, Any] = {"trainer__max_steps": STEPS, "data__batch_size": 8, "trainer__limit_val_batches": 0}
    options |= {"model__sampling__max_new_tokens": 8}
    assert lit(*command("fit", stage, data, tmp_path / "json", **options)) == 0
    options |= {"data__data_file": shards, "data__num_workers": 1}
    assert lit(*command("fit", stage, data, tmp_path / "parquet", **options)) == 0
    expected = logged(tmp_path / "json")
    assert len(expected) >= STEPS
    assert logged(tmp_path / "parquet") == expected
