"""A benchmark's data set by its Hub id: the Hub's protocol on this machine, spoken by `datasets`' own client."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import datasets
import pytest

from helpers.benchmark_files import picture
from helpers.hub_server import HubServer, Repo, environment, serving

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[2]
REPO = "lscpku/LogicVista"
COMMIT = "c" * 40
FILE = "data/test-00000-of-00001.parquet"


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[HubServer]:
    features = {name: datasets.Value("string") for name in ("id", "question", "answer", "skill")}
    columns = {
        "id": ["v0", "v1"],
        "question": ["Which?", "Quelle forme ?"],
        "answer": ["B", "A, C"],
        "skill": ["spatial", "inductive"],
        "image": [picture(0), picture(1)],
    }
    data = datasets.Dataset.from_dict(columns, features=datasets.Features({**features, "image": datasets.Image()}))
    data.to_parquet(tmp_path / "test.parquet")
    with serving(Repo(REPO, {COMMIT: {FILE: tmp_path / "test.parquet"}}, {"main": COMMIT}, "datasets")) as server:
        yield server


def load(url: str, home: Path, name: str, *, offline: bool = False) -> Any:
    """What `load_benchmark(name).load(folder)` gives in a fresh process that reaches nothing but `url`."""
    code = (
        "import json, sys; from pathlib import Path; from callbacks.benchmarks import load_benchmark\n"
        "try:\n"
        "    rows = load_benchmark(sys.argv[1]).load(Path(sys.argv[2]))\n"
        "    found = [[r.id, r.question, list(r.images[0].open().getpixel((8 + 5 * int(r.id[1]), 8)))] for r in rows]\n"
        "except ValueError as error: found = str(error)\n"
        "print('RESULT', json.dumps(found))\n"
    )
    flags = {name: str(int(offline)) for name in ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE")}
    done = subprocess.run(
        [sys.executable, "-c", code, name, str(home)],
        env=environment(url, home, PYTHONPATH=str(ROOT), **flags),
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    [result] = [line[7:] for line in done.stdout.splitlines() if line.startswith("RESULT ")]
    return json.loads(result)


def test_a_data_set_loads_by_its_id_and_from_the_cache_without_a_network(hub: HubServer, tmp_path: Path) -> None:
    expected = [["v0", "Which?", [255, 0, 0]], ["v1", "Quelle forme ?", [0, 128, 0]]]
    assert load(hub.url, tmp_path / "home", "logicvista") == expected
    assert f"GET /datasets/{REPO}/resolve/{COMMIT}/{FILE}" in hub.seen
    asked = len(hub.seen)
    assert load(hub.url, tmp_path / "home", "logicvista", offline=True) == expected
    assert len(hub.seen) == asked


def test_an_unknown_data_set_is_named(hub: HubServer, tmp_path: Path) -> None:
    message = load(hub.url, tmp_path, "wemath")
    assert f"there is no file {tmp_path / 'WeMath.tsv'}" in message
    assert "the Hub data set We-Math/We-Math, split testmini, cannot be loaded: DatasetNotFoundError" in message
