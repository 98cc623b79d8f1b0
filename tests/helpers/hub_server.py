"""The Hub's protocol on this machine: models and data sets, right or wrong down to the last byte.

Spoken to by `huggingface_hub`, transformers and `datasets` through `HF_ENDPOINT`. It knows descriptions
(`api/.../revision/...`), listings (`tree`), files (`resolve`) with their metadata and ranges, redirects to a storage
host, and the Hub's words for what is missing.
"""

from __future__ import annotations

import hashlib
import json
import os
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Literal
from urllib.parse import parse_qs, unquote

Files = Mapping[str, bytes | Path]


@dataclass
class Repo:
    """One repository."""

    name: str
    commits: Mapping[str, Files]
    """Files by path, of each commit."""
    refs: dict[str, str]
    """Branches and tags."""
    kind: Literal["models", "datasets"] = "models"

    def resolve(self, revision: str) -> str | None:
        """The commit of a branch, a tag or a commit."""
        commit = self.refs.get(revision, revision)
        return commit if commit in self.commits else None


@dataclass
class Asked:
    """A request as it arrived."""

    method: str
    path: str
    headers: dict[str, str]
    """By lower-case name."""

    def __str__(self) -> str:
        return f"{self.method} {self.path}"


@dataclass
class Faults:
    """What goes wrong, by a file's path in its repository; changed at any time."""

    cuts: dict[str, list[int]] = field(default_factory=dict)
    """After how many bytes of the body each next answer breaks off; when the list is used up, none does."""
    down_after_cut: int | None = None
    """The status that requests for a file's content get once the list is used up; None for none."""
    wrong: dict[str, bytes] = field(default_factory=dict)
    """What comes in place of the content; listings and metadata stay as they were."""
    no_ranges: set[str] = field(default_factory=set)
    """Files that come from their start whatever was asked for."""
    chunked: set[str] = field(default_factory=set)
    """Files that come without their length."""


class HubServer(ThreadingHTTPServer):
    """Serves repositories."""

    daemon_threads = True

    def __init__(self, *repos: Repo, host: str = "127.0.0.1") -> None:
        """Starts nothing yet.

        Args:
            repos: What it serves.
            host: Address of this machine to listen at.
        """
        super().__init__((host, 0), _Handler)
        self.repos = {(repo.kind, repo.name): repo for repo in repos}
        self.storage: HubServer | None = None
        self.prefix = ""
        """What stands before each path, as with a mirror that shares its host with others: `/hub`."""
        self.redirects_late = False
        """Whether metadata come from here, and only a request for the content is sent on to the storage."""
        self.token: str | None = None
        self.faults = Faults()
        self.asked: list[Asked] = []

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Says nothing: clients close what they kept open at any time, such as while a later test looks at stderr."""

    @property
    def url(self) -> str:
        return "http://{}:{}".format(*self.server_address[:2]) + self.prefix

    @property
    def seen(self) -> list[str]:
        """Requests as `METHOD /path`."""
        return [str(asked) for asked in self.asked]

    def ranges(self, path: str) -> list[str]:
        """The `Range` header of each GET of a file's content, empty without one."""
        return [
            asked.headers.get("range", "")
            for asked in self.asked
            if asked.method == "GET"
            and asked.path.partition("?")[0].endswith(f"/{path}")
            and "/tree/" not in asked.path
        ]


@contextmanager
def serving(*repos: Repo, storage: bool = False) -> Iterator[HubServer]:
    """Runs a server for repositories.

    Args:
        repos: What it serves.
        storage: Whether files come from another host, to which `resolve` redirects, as the Hub's large ones do. That
            one shares what was asked, and what goes wrong.
    """
    servers = [HubServer(*repos)]
    if storage:
        servers.append(HubServer(*repos, host="127.0.0.2"))
        servers[0].storage, servers[1].asked, servers[1].faults = servers[1], servers[0].asked, servers[0].faults
    threads = [
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True) for server in servers
    ]
    for thread in threads:
        thread.start()
    try:
        yield servers[0]
    finally:
        for server, thread in zip(servers, threads, strict=True):
            server.shutdown()
            server.server_close()
            thread.join()


def environment(url: str, home: Path, **more: str) -> dict[str, str]:
    """The environment of a process that reaches nothing but the server."""
    return os.environ | {
        "HF_ENDPOINT": url,
        "HF_HOME": str(home),
        "HF_HUB_OFFLINE": "0",
        "HF_DATASETS_OFFLINE": "0",
        "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "NO_PROXY": "127.0.0.1,127.0.0.2",
        "OMP_NUM_THREADS": "1",
        **more,
    }


class _Handler(BaseHTTPRequestHandler):
    server: HubServer
    protocol_version = "HTTP/1.1"

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002  # as the base class has it
        """Says nothing."""

    def _answer(self) -> None:
        headers = {name.lower(): value for name, value in self.headers.items()}
        self.server.asked.append(Asked(self.command, self.path, headers))
        raw, _, query = self.path.partition("?")
        if not raw.startswith(f"{self.server.prefix}/"):
            self._send(404, b"", {})
            return
        path = unquote(raw).removeprefix(f"{self.server.prefix}/")
        if path.startswith("storage/"):
            key, _, name = path.removeprefix("storage/").partition("/")
            files = next(repo.commits[key] for repo in self.server.repos.values() if key in repo.commits)
            self._content(name, _bytes(files[name]), {})
            return
        if self.server.token and headers.get("authorization") != f"Bearer {self.server.token}":
            self._send(401, b"", {"X-Error-Message": "Invalid credentials in Authorization header"})
            return
        found = self._find(path)
        if found is None:
            self._send(404, b"", {"X-Error-Code": "RepoNotFound"})
            return
        repo, verb, rest = found
        revision, _, name = (rest or "main").partition("/")
        commit = repo.resolve(revision)
        if commit is None:
            self._send(404, b"", {"X-Error-Code": "RevisionNotFound"})
        elif verb == "revision":
            siblings = [{"rfilename": each} for each in repo.commits[commit]]
            facts = {"_id": "0", "id": repo.name, "sha": commit, "siblings": siblings, "private": False, "gated": False}
            self._json(facts | ({"modelId": repo.name} if repo.kind == "models" else {}))
        elif verb == "tree":
            recursive = parse_qs(query).get("recursive", ["false"])[0].lower() in {"true", "1"}
            self._json(_tree(repo.commits[commit], name, recursive=recursive))
        elif name in repo.commits[commit]:
            self._file(commit, name, _bytes(repo.commits[commit][name]))
        else:
            self._send(404, b"", {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": commit})

    def _find(self, path: str) -> tuple[Repo, str, str] | None:
        """The repository that a path speaks of, what of it, and the rest of the path."""
        for (kind, name), repo in self.server.repos.items():
            api = f"api/{kind}/{name}"
            files = f"datasets/{name}/resolve/" if kind == "datasets" else f"{name}/resolve/"
            if path == api:
                return repo, "revision", ""
            if path.startswith(f"{api}/"):
                verb, _, rest = path.removeprefix(f"{api}/").partition("/")
                return repo, verb, rest
            if path.startswith(files):
                return repo, "resolve", path.removeprefix(files)
        return None

    def _file(self, commit: str, name: str, content: bytes) -> None:
        etag, size = f'"{hashlib.sha256(content).hexdigest()}"', str(len(content))
        if self.server.storage and not (self.server.redirects_late and self.command == "HEAD"):
            where = f"{self.server.storage.url}/storage/{commit}/{name}?signed=1"
            facts = {"X-Linked-Etag": etag, "X-Linked-Size": size, "X-Repo-Commit": commit, "Location": where}
            self._send(302, b"", facts)
        else:
            self._content(name, content, {"ETag": etag, "X-Repo-Commit": commit})

    def _content(self, name: str, content: bytes, headers: dict[str, str]) -> None:
        faults = self.server.faults
        if self.command == "HEAD":
            self._send(200, content, headers)
            return
        if faults.cuts.get(name) == [] and faults.down_after_cut is not None:
            self._send(faults.down_after_cut, b"", {})
            return
        content = faults.wrong.get(name, content)
        wanted: str = "" if name in faults.no_ranges else str(self.headers.get("Range", ""))
        status = 200
        if wanted:
            first = int(wanted.removeprefix("bytes=").partition("-")[0])
            status = 206
            headers = headers | {"Content-Range": f"bytes {first}-{len(content) - 1}/{len(content)}"}
            content = content[first:]
        cuts = faults.cuts.get(name)
        self._send(status, content, headers, cut=cuts.pop(0) if cuts else None, chunked=name in faults.chunked)

    def _json(self, value: Any) -> None:
        self._send(200, json.dumps(value).encode(), {"Content-Type": "application/json"})

    def _send(
        self, status: int, content: bytes, headers: dict[str, str], *, cut: int | None = None, chunked: bool = False
    ) -> None:
        self.send_response(status)
        length = {"Connection": "close"} if chunked else {"Content-Length": str(len(content))}
        for name, value in {**headers, **length}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content[:cut])
        self.close_connection = self.close_connection or cut is not None


def _bytes(content: bytes | Path) -> bytes:
    return content.read_bytes() if isinstance(content, Path) else content


def _tree(files: Files, below: str, *, recursive: bool) -> list[dict[str, Any]]:
    """The entries of a folder as the Hub lists them, all files as large ones."""
    start = f"{below}/" if below else ""
    entries: dict[str, dict[str, Any]] = {}
    for name, content in files.items():
        if not name.startswith(start):
            continue
        rest = name.removeprefix(start)
        folders = [start + rest[:at] for at, letter in enumerate(rest) if letter == "/"]
        for folder in folders if recursive else folders[:1]:
            entries[folder] = {"type": "directory", "path": folder, "size": 0, "oid": "0" * 40}
        if recursive or not folders:
            body = _bytes(content)
            lfs = {"oid": hashlib.sha256(body).hexdigest(), "size": len(body), "pointerSize": 134}
            entries[name] = {"type": "file", "path": name, "size": len(body), "oid": "0" * 40, "lfs": lfs}
    return list(entries.values())
