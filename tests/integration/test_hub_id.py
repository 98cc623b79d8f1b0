"""A backbone by its Hub id: the Hub's protocol on this machine, spoken by transformers' own client."""

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

import pytest
import torch

from helpers.checkpoints import as_released
from helpers.samples import mixed_samples, tiny_backbone
from lit_vlaa.backbone import Backbone, BackboneConfig, build_backbone
from lit_vlaa.sequences import assemble

ROOT = Path(__file__).resolve().parents[2]
REPO = "lit-vlaa/tiny-test"
MAIN, TAGGED = "a" * 40, "b" * 40
REVISIONS = {"main": MAIN, MAIN: MAIN, "v1": TAGGED, TAGGED: TAGGED}


class Hub(ThreadingHTTPServer):
    """Serves the folders of `REPO`'s commits as huggingface.co does."""

    daemon_threads = True

    def __init__(self, folders: dict[str, Path]) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.folders = folders
        self.seen: list[str] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class Handler(BaseHTTPRequestHandler):
    """Files with their metadata, listings of a revision, and the Hub's own words for what is missing."""

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
        if path.startswith(f"api/models/{REPO}/"):
            verb, revision, *_ = [*path.removeprefix(f"api/models/{REPO}/").split("/"), ""]
        elif path.startswith(f"{REPO}/resolve/"):
            verb = "resolve"
            revision, _, name = path.removeprefix(f"{REPO}/resolve/").partition("/")
        else:
            self._send(404, b"", {"X-Error-Code": "RepoNotFound"})
            return
        commit = REVISIONS.get(revision)
        if commit is None:
            self._send(404, b"", {"X-Error-Code": "RevisionNotFound"})
            return
        files = {file.name: file for file in self.server.folders[commit].iterdir()}
        if verb == "revision":
            siblings = [{"rfilename": name} for name in files]
            self._send_json({"_id": "0", "id": REPO, "modelId": REPO, "sha": commit, "siblings": siblings})
        elif verb == "tree":
            self._send_json(
                [{"type": "file", "path": n, "size": f.stat().st_size, "oid": "0" * 40} for n, f in files.items()]
            )
        elif name in files:
            content = files[name].read_bytes()
            etag = hashlib.sha256(content).hexdigest()
            self._send(200, content, {"ETag": f'"{etag}"', "X-Repo-Commit": commit})
        else:
            self._send(404, b"", {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": commit})

    def _send_json(self, value: Any) -> None:
        self._send(200, json.dumps(value).encode(), {"Content-Type": "application/json"})

    def _send(self, status: int, content: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(content))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(content)


def scores(backbone: Backbone) -> list[float]:
    """Log-probabilities of the mixed rows' responses."""
    rows = [
        (backbone.processor.encode(item), backbone.processor.encode_response(item.record.response or ""))
        for item in mixed_samples()
    ]
    with torch.no_grad():
        logprobs = backbone.eval()(assemble(rows, pad_token_id=backbone.processor.pad_token_id)).logprobs
    return [float(value) for value in logprobs]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Two commits: `main` in our own layout, `v1` with other weights, in several files, and laid out as Qwen's are."""
    folders = {commit: tmp_path_factory.mktemp(commit[:4]) for commit in (MAIN, TAGGED)}
    backbone = tiny_backbone()
    backbone.save_pretrained(folders[MAIN])
    with torch.no_grad():
        backbone.get_parameter("model.lm_head.weight").mul_(1.5)
    backbone.save_pretrained(folders[TAGGED])
    (folders[TAGGED] / "model.safetensors").unlink()
    backbone.model.save_pretrained(folders[TAGGED], max_shard_size="600KB")
    as_released(folders[TAGGED])
    assert len(list(folders[TAGGED].glob("*.safetensors"))) > 1
    return folders


@pytest.fixture(scope="module")
def hub(folders: dict[str, Path]) -> Iterator[Hub]:
    server = Hub(folders)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()


def remote_scores(hub: Hub, home: Path, revisions: list[str | None]) -> list[Any]:
    """What `BackboneConfig(path=REPO)` gives in a fresh process that reaches nothing but `hub`; errors as text."""
    code = (
        "import json, sys; from test_hub_id import *\n"
        "for revision in json.loads(sys.argv[1]):\n"
        "    try:\n"
        "        config = BackboneConfig(path=REPO, revision=revision, max_pixels=84 * 84)\n"
        "        print('RESULT', json.dumps(scores(build_backbone(config))))\n"
        "    except ValueError as error: print('RESULT', json.dumps(str(error)))\n"
    )
    environment = os.environ | {
        "HF_ENDPOINT": hub.url,
        "HF_HOME": str(home),
        "HF_HUB_OFFLINE": "0",
        "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "NO_PROXY": "127.0.0.1",
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests"), str(Path(__file__).parent)]),
    }
    done = subprocess.run(
        [sys.executable, "-c", code, json.dumps(revisions)],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return [json.loads(line[7:]) for line in done.stdout.splitlines() if line.startswith("RESULT ")]


def test_a_hub_id_and_its_revision_load_what_was_saved(hub: Hub, folders: dict[str, Path], tmp_path: Path) -> None:
    local = {
        commit: scores(build_backbone(BackboneConfig(path=str(folder), max_pixels=84 * 84)))
        for commit, folder in folders.items()
    }
    assert local[MAIN] != local[TAGGED]
    latest, tagged, absent = remote_scores(hub, tmp_path, [None, "v1", "v2"])
    assert latest == local[MAIN]
    assert tagged == local[TAGGED]
    assert absent.startswith(f"--model.backbone.path {REPO}: ")
    assert "v2" in absent
    assert any(line.startswith(f"GET /{REPO}/resolve/") and "00002-of-" in line for line in hub.seen)

    def weights_fetched() -> int:
        return sum(line.startswith("GET") and ".safetensors" in line for line in hub.seen)

    before = weights_fetched()
    assert before >= 3
    assert remote_scores(hub, tmp_path, [MAIN]) == [latest]
    assert weights_fetched() == before, "what is in the cache must not be fetched again"
