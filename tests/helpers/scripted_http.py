"""An HTTP server on this machine that answers by a script, right or wrong down to the last byte."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@dataclass
class Seen:
    """A request as it arrived."""

    method: str
    path: str
    headers: dict[str, str]
    """By lower-case name."""
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


@dataclass
class Reply:
    """What to send back."""

    content: Any = None
    """Sent as JSON, bytes as they are."""
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    cut: int | None = None
    """Close the connection after so many bytes of the body."""


Script = Callable[[Seen], Reply]


class ScriptedServer(ThreadingHTTPServer):
    """Records requests and answers them by `script`, which may block."""

    daemon_threads = True

    def __init__(self, script: Script, port: int = 0) -> None:
        self.script = script
        self.seen: list[Seen] = []
        super().__init__(("127.0.0.1", port), _Handler)

    @property
    def port(self) -> int:
        return int(self.server_address[1])

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def posts(self) -> list[Seen]:
        return [seen for seen in self.seen if seen.method == "POST"]

    def handle_error(self, request: Any, client_address: Any) -> None:
        pass  # clients of these tests hang up as they please


class _Handler(BaseHTTPRequestHandler):
    server: ScriptedServer
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self._answer()

    def do_POST(self) -> None:
        self._answer()

    def log_message(self, *args: Any) -> None:
        pass

    def _answer(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        headers = {name.lower(): value for name, value in self.headers.items()}
        seen = Seen(self.command, self.path, headers, body)
        self.server.seen.append(seen)
        reply = self.server.script(seen)
        content = reply.content if isinstance(reply.content, bytes) else json.dumps(reply.content).encode()
        self.send_response(reply.status)
        for name, value in ({"Content-Length": str(len(content))} | reply.headers).items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(content[: reply.cut])
        self.close_connection = reply.cut is not None


@contextmanager
def running(server: ThreadingHTTPServer) -> Iterator[None]:
    """Serves in a thread; leaves the port when done."""
    thread = threading.Thread(target=lambda: server.serve_forever(poll_interval=0.01), daemon=True)
    thread.start()
    try:
        yield
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@contextmanager
def scripted(script: Script, port: int = 0) -> Iterator[ScriptedServer]:
    """A scripted server that runs."""
    server = ScriptedServer(script, port)
    with running(server):
        yield server


def in_turn(*replies: Reply) -> Script:
    """Gives the replies one after the other, the last one for ever."""
    left = list(replies)
    lock = threading.Lock()

    def script(_: Seen) -> Reply:
        with lock:
            return left.pop(0) if len(left) > 1 else left[0]

    return script


@contextmanager
def closed_port() -> Iterator[int]:
    """A port that refuses connections and that nobody else takes, except a server that is told to."""
    with socket.socket() as holder:
        holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        holder.bind(("127.0.0.1", 0))
        yield holder.getsockname()[1]
