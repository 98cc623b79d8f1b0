"""`lit-vlaa data build` on a VQA set that only the Hub has: its protocol on this machine, spoken by `datasets`."""

from __future__ import annotations

import io
import subprocess
import sys
from pathlib import Path

import datasets
import pytest
from PIL import Image

from helpers.builds import endpoints, make_config, read_lines, split
from helpers.commands import lit
from helpers.hub_server import Repo, environment, serving

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[2]
REPO, COMMIT, FILE = "someone/vqa", "c" * 40, "data/train-00000-of-00001.parquet"


def png(number: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (28, 28), (number, 0, 0)).save(buffer, format="PNG")
    return buffer.getvalue()


def test_a_set_by_its_hub_id_becomes_splits(tmp_path: Path) -> None:
    columns = {
        "question_id": ["q0", "q1", "q2"],
        "image": [{"bytes": png(number), "path": None} for number in range(3)],
        "question": [f"How many dots are in picture {number}?" for number in range(3)],
        "choices": [["0", "1", "2"]] * 3,
        "correct_choice_idx": [0, 1, 2],
    }
    text = datasets.Value("string")
    features = datasets.Features(
        {
            "question_id": text,
            "image": datasets.Image(),
            "question": text,
            "choices": datasets.List(text),
            "correct_choice_idx": datasets.Value("int64"),
        }
    )
    datasets.Dataset.from_dict(columns, features=features).to_parquet(tmp_path / "train.parquet")
    source = {
        "adapter": "hub",
        "path": REPO,
        "name": "a_vqa",
        "revision": COMMIT,
        "columns": {"answer": "correct_choice_idx", "id": "question_id"},
    }
    out = tmp_path / "out"
    hub = Repo(REPO, {COMMIT: {FILE: tmp_path / "train.parquet"}}, {"main": COMMIT}, "datasets")
    with serving(hub) as server, endpoints() as (models, _):
        config = make_config(tmp_path, models.url, sources=[source])
        words = ["data", "build", f"--config={config}", f"--output-dir={out}"]
        done = subprocess.run(  # the address of the Hub is read when its client is imported
            [sys.executable, "-c", "import sys; from lit_vlaa.cli import main; sys.exit(main())", *words],
            env=environment(server.url, tmp_path / "home", PYTHONPATH=str(ROOT)),
            capture_output=True,
            text=True,
            check=False,
            timeout=120,
        )
        assert done.returncode == 0, done.stderr[-3000:]
        assert f"GET /datasets/{REPO}/resolve/{COMMIT}/{FILE}" in server.seen
        # Its rows are there now: further steps need no Hub.
        assert lit(*words, "--only", "curate") == 0
    rows = {row["id"]: row for name in ("SFT", "GRPO") for row in split(out, name)}
    assert [(rows[f"q{number}"]["gt"], rows[f"q{number}"]["verifier_type"]) for number in range(3)] == [
        ("A", "mcq"),
        ("B", "mcq"),
        ("C", "mcq"),
    ]
    assert rows["q1"]["question"].endswith("Choices:\nA: 0\nB: 1\nC: 2")
    assert (tmp_path / "images" / rows["q2"]["image"]).read_bytes() == png(2)
    assert rows["q2"]["image"].startswith("a_vqa/")
    assert read_lines(out / "rejects.jsonl") == []
