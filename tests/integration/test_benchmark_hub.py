"""A benchmark's data set by its Hub id: the Hub's protocol on this machine, spoken by `datasets`' own client."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import datasets
import pytest

from helpers.benchmark_files import picture

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[2]
REPO = "lscpku/LogicVista"
COMMIT = "c" * 40
FILE = "data/test-00000-of-00001.parquet"


class Hub(ThreadingHTTPServer):
    """Serves one data set of one file as huggingface.co does."""

    daemon_threads = True

    def __init__(self, content: bytes) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.content = content
        self.seen: list[str] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class Handler(BaseHTTPRequestHandler):
    """The data set's description, listing and file, and the Hub's own words for what is missing."""

    server: Hub
    protocol_version = "HTTP/1.1"

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002, ARG002  # as the base class has it
        self.server.seen.append(f"{self.command} {self.path}")

    def _answer(self) -> None:
        path = unquote(self.path.partition("?")[0]).removeprefix("/")
        size = len(self.server.content)
        entry = {"type": "file", "path": FILE, "size": size, "oid": "0" * 40}
        if path == f"api/datasets/{REPO}" or path.startswith(f"api/datasets/{REPO}/revision/"):
            files = [{"rfilename": FILE}]
            self._json({"_id": "0", "id": REPO, "sha": COMMIT, "siblings": files, "private": False, "gated": False})
        elif path == f"api/datasets/{REPO}/tree/{COMMIT}":
            self._json([{"type": "directory", "path": "data", "size": 0, "oid": "0" * 40}, entry])
        elif path == f"api/datasets/{REPO}/tree/{COMMIT}/data":
            self._json([entry])
        elif path == f"datasets/{REPO}/resolve/{COMMIT}/{FILE}":
            etag = hashlib.sha256(self.server.content).hexdigest()
            self._send(200, self.server.content, {"ETag": f'"{etag}"', "X-Repo-Commit": COMMIT})
        else:
            code = "EntryNotFound" if REPO in path else "RepoNotFound"
            self._send(404, b"", {"X-Error-Code": code, "X-Repo-Commit": COMMIT})

    def _json(self, value: Any) -> None:
        self._send(200, json.dumps(value).encode(), {"Content-Type": "application/json"})

    def _send(self, status: int, content: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(content))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[Hub]:
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
    server = Hub((tmp_path / "test.parquet").read_bytes())
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()


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
    environment = os.environ | {
        "HF_ENDPOINT": url,
        "HF_HOME": str(home),
        "HF_HUB_OFFLINE": str(int(offline)),
        "HF_DATASETS_OFFLINE": str(int(offline)),
        "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "NO_PROXY": "127.0.0.1",
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": str(ROOT),
    }
    done = subprocess.run(
        [sys.executable, "-c", code, name, str(home)],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    [result] = [line[7:] for line in done.stdout.splitlines() if line.startswith("RESULT ")]
    return json.loads(result)


def test_a_data_set_loads_by_its_id_and_from_the_cache_without_a_network(hub: Hub, tmp_path: Path) -> None:
    expected = [["v0", "Which?", [255, 0, 0]], ["v1", "Quelle forme ?", [0, 128, 0]]]
    assert load(hub.url, tmp_path / "home", "logicvista") == expected
    assert f"GET /datasets/{REPO}/resolve/{COMMIT}/{FILE}" in hub.seen
    asked = len(hub.seen)
    assert load(hub.url, tmp_path / "home", "logicvista", offline=True) == expected
    assert len(hub.seen) == asked


def test_an_unknown_data_set_is_named(hub: Hub, tmp_path: Path) -> None:
    message = load(hub.url, tmp_path, "wemath")
    assert f"there is no file {tmp_path / 'WeMath.tsv'}" in message
    assert "the Hub data set We-Math/We-Math, split testmini, cannot be loaded: DatasetNotFoundError" in message
