"""A scoring server for `RemoteScorer`: hosts one scorer of open-ended answers in an environment of its own.

This one file needs only Python 3.9 and, if images are sent, Pillow; it can be copied to where the reward model lives:

    python server.py --scorer my_module:MyScorer --port 8765 --arg device=cuda

Requests are data from another machine: bodies and images are bounded, and nothing in them is executed.
"""

from __future__ import annotations

import argparse
import base64
import contextlib
import hashlib
import hmac
import importlib
import io
import json
import logging
import math
import os
import selectors
import signal
import socket
import sys
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

_log = logging.getLogger("lit_vlaa.scoring_server")

VERSION = 1
"""Of the JSON (docs/scorers.md)."""

TOKEN_ENV = "LIT_VLAA_SCORER_TOKEN"  # noqa: S105 - the variable's name
"""Environment variable whose value, if set, clients must send as bearer token."""

_SIMPLE = (str, int, float, bool)
_TEXTS = {"id": "", "question": None, "answer": None, "reference": ""}
"""Texts of an item, with what stands for one that is missing; None for a necessary one."""


class RefusedError(Exception):
    """A request that the client got wrong: (how, HTTP status)."""


class _HungUpError(Exception):
    """Nobody waits for the answer."""


@dataclass(frozen=True)
class Request:
    """What a hosted scorer sees of a row; has the names of `lit_vlaa.types.RewardRequest`."""

    id: str
    question: str
    truth: str
    """The reference answer, empty if the client sends none."""
    response: str
    """The answer."""
    images: Callable[[], tuple[Any, ...]] | None = field(compare=False, repr=False)
    """Opens the images as RGB (`PIL.Image.Image`); None if there are none."""
    kind: str = "open_ended"
    source: str = ""


class ScoringServer(ThreadingHTTPServer):
    """Answers `GET /health` and `POST /score`; the scorer is called by one request at a time.

    Args:
        address: (host, port); port 0 takes a free one.
        scorer: Called with requests and answers, returns a number or None for each.
        token: What clients must send as bearer token, None for nothing.
        max_body_mb: Size of a request in MiB.
        max_image_pixels: Width times height of an image.
    """

    daemon_threads = True

    def __init__(
        self,
        address: tuple[str, int],
        *,
        scorer: Callable[[Sequence[Any], Sequence[str]], Sequence[Any]],
        token: str | None = None,
        max_body_mb: int = 64,
        max_image_pixels: int = 16_777_216,
    ) -> None:
        self.scorer = scorer
        self.token = token
        self.max_body = max_body_mb * 2**20
        self.max_image_pixels = max_image_pixels
        self.turn = threading.Lock()
        """Held while the scorer works."""
        if ":" in address[0]:
            self.address_family = socket.AF_INET6
        super().__init__(address, _Handler)

    @property
    def url(self) -> str:
        """Where the server listens."""
        host, port = str(self.server_address[0]), self.server_address[1]
        return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"

    def health(self) -> dict[str, Any]:
        """What `GET /health` answers."""
        name = getattr(self.scorer, "__name__", type(self.scorer).__name__)
        baseline = getattr(self.scorer, "similarity_baseline", None)
        own = {k: v for k, v in sorted(getattr(self.scorer, "__dict__", {}).items()) if k[0] != "_"}
        settings = getattr(self.scorer, "fingerprint", {k: v for k, v in own.items() if type(v) in _SIMPLE})
        about = {"scorer": name, "fingerprint": hashlib.sha256(repr(settings).encode()).hexdigest()}
        number = None if baseline is None else float(baseline)
        return {"status": "ok", "version": VERSION, "similarity_baseline": number, **about}

    def score(self, body: bytes, wanted: Callable[[], bool]) -> dict[str, Any]:
        """What `POST /score` answers to `body`, unless `wanted` says that nobody waits by the time of its turn."""
        requests = _parse(body, self.max_image_pixels)
        if not requests:
            return {"scores": []}
        with self.turn:
            if not wanted():
                raise _HungUpError
            scores = list(self.scorer(requests, [request.response for request in requests]))
        if len(scores) != len(requests):
            raise ValueError(f"the scorer gave {len(scores)} scores for {len(requests)} answers")
        numbers = [math.nan if score is None else float(score) for score in scores]
        return {"scores": [number if math.isfinite(number) else None for number in numbers]}

    def handle_error(self, request: Any, client_address: Any) -> None:  # noqa: ARG002
        """A connection that broke is the client's affair."""
        _log.debug("a connection with %s ended early", client_address, exc_info=True)


class _Handler(BaseHTTPRequestHandler):
    server: ScoringServer
    protocol_version = "HTTP/1.1"
    timeout = 60.0  # of a silent connection

    def do_GET(self) -> None:
        self._answer("/health", self.server.health)

    def do_POST(self) -> None:
        self._answer("/score", lambda: self.server.score(self._body(), self._wanted))

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the name of the method's base
        _log.debug(format, *args)

    def _answer(self, page: str, make: Callable[[], dict[str, Any]]) -> None:
        given, token = self.headers.get("Authorization", ""), self.server.token
        length = self.headers.get("Content-Length", "")
        known = length.isascii() and length.isdigit() and len(length) < 16
        self.left = min(int(length), 4 * self.server.max_body) if known else 0
        status = 200
        try:
            known = not token or hmac.compare_digest(given.encode("utf-8", "replace"), f"Bearer {token}".encode())
            _require(known, "the bearer token is missing or wrong", 401)
            _require(self.path == page, f"the page is {page}", 404)
            content = make()
        except RefusedError as error:
            reason, status = error.args
            content = {"error": reason}
            self._drop_body()
        except _HungUpError:
            self.close_connection = True
            return
        except Exception as error:  # noqa: BLE001 - the hosted scorer is anybody's code; the server goes on
            _log.exception("the scorer failed")
            status, content = 500, {"error": f"the scorer failed: {type(error).__name__}"}
        self._reply(status, content)

    def _body(self) -> bytes:
        """The request's body."""
        given, most = self.headers.get("Content-Length", ""), self.server.max_body
        known = given.isascii() and given.isdigit() and len(given) < 16
        _require(known, "Content-Length is missing", 411)
        _require(int(given) <= most, f"the request is longer than {most} bytes", 413)
        self.left = 0
        return self.rfile.read(int(given))

    def _drop_body(self) -> None:
        """Reads on without keeping: many clients see a refusal only when they have sent everything."""
        self.close_connection = True
        while self.left > 0 and (chunk := self.rfile.read(min(self.left, 2**16))):
            self.left -= len(chunk)

    def _wanted(self) -> bool:
        """Whether the client is still connected; one that lost patience has asked again."""
        with selectors.DefaultSelector() as selector:
            selector.register(self.connection, selectors.EVENT_READ)
            with contextlib.suppress(OSError):
                return not selector.select(timeout=0) or bool(self.connection.recv(1, socket.MSG_PEEK))
        return False

    def _reply(self, status: int, content: dict[str, Any]) -> None:
        body = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        if self.close_connection:
            self.send_header("Connection", "close")
        self.end_headers()
        self.wfile.write(body)


def serve(*, scorer: str, host: str = "127.0.0.1", port: int = 8765, scorer_args: dict[str, Any] | None = None) -> None:
    """Hosts a scorer of open-ended answers over HTTP until it is interrupted, for --model.scorer RemoteScorer.

    Clients must send the token in the environment variable LIT_VLAA_SCORER_TOKEN, if that is set.

    Args:
        scorer: What to host, as `module:Class`; the module is also looked for in the current folder. It is called
            with `scorer_args` and returns an object with `__call__(requests, answers) -> scores`.
        host: Address to listen at. The default can be reached from this machine only; set a token for any other.
        port: Port to listen at; 0 takes a free one.
        scorer_args: Keyword arguments of the scorer's class.

    Raises:
        ValueError: If there is no such scorer, or it cannot be made.
        OSError: If the server cannot listen at the address.
    """
    if not 0 <= port <= 65535:
        raise ValueError(f"--port must lie in 0 to 65535, got {port}")
    token = os.environ.get(TOKEN_ENV, "").strip() or None
    hosted = load_scorer(scorer, scorer_args or {})
    if token is None and host not in ("127.0.0.1", "localhost", "::1"):
        _log.warning("anybody who reaches %s can use this server; set %s to ask for a token", host, TOKEN_ENV)
    server = ScoringServer((host, port), scorer=hosted, token=token)
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        sys.stdout.write(f"hosting {server.health()['scorer']} at {server.url}\n")
        sys.stdout.flush()
        server.serve_forever()
    except KeyboardInterrupt:
        _log.info("stopped")
    finally:
        signal.signal(signal.SIGTERM, before)
        server.server_close()
        server.turn.acquire(timeout=10.0)  # a model in the middle of a call would end with a crash


def load_scorer(spec: str, arguments: dict[str, Any]) -> Callable[..., Any]:
    """Makes the scorer `module:Class`; raises ValueError, which says why, if that fails."""
    module, _, name = spec.partition(":")
    # Started as a file, Python looks for modules beside it; where that is our package, ours would hide the user's.
    beside = Path(__file__).resolve().parent
    kept = (path for path in sys.path if Path(path).resolve() != beside or not (beside / "__init__.py").exists())
    sys.path[:] = [str(Path.cwd()), *kept]
    try:
        scorer = getattr(importlib.import_module(module), name)(**arguments)
        if hasattr(scorer, "prepare"):
            scorer.prepare()
    except Exception as error:
        raise ValueError(f"--scorer {spec} (module:Class) cannot be made: {type(error).__name__}: {error}") from error
    if not callable(scorer):
        made = type(scorer).__name__
        raise ValueError(f"--scorer {spec} makes a {made}, which has no __call__(requests, answers)")  # noqa: TRY004
    return scorer  # type: ignore[no-any-return]


def _parse(body: bytes, max_pixels: int) -> list[Request]:
    try:
        content = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise RefusedError("the request is not JSON", 400) from error
    right = isinstance(content, dict) and content.get("version") == VERSION
    _require(right, f"the request must be a JSON object with version {VERSION}")
    items, codes = content.get("items"), content.get("images", [])
    _require(isinstance(items, list) and isinstance(codes, list), "items and images must be lists")
    images = [_image(code, f"images[{place}]", max_pixels) for place, code in enumerate(codes)]
    return [_item(item, f"items[{place}]", images) for place, item in enumerate(items)]


def _item(item: Any, where: str, images: Sequence[Callable[[], Any]]) -> Request:
    _require(isinstance(item, dict), f"{where} must be an object")
    texts: dict[str, Any] = {name: item.get(name, default) for name, default in _TEXTS.items()}
    for name, text in texts.items():
        _require(isinstance(text, str), f"{where}.{name} must be a string")
    places = item.get("images", [])
    right = isinstance(places, list) and all(type(i) is int and 0 <= i < len(images) for i in places)
    _require(right, f"{where}.images must list positions in images, of which there are {len(images)}")
    own = [images[place] for place in places]
    opener = (lambda: tuple(open_image() for open_image in own)) if own else None
    names = {"id": "id", "question": "question", "truth": "reference", "response": "answer"}
    return Request(images=opener, **{field: texts[name] for field, name in names.items()})


def _image(code: Any, where: str, max_pixels: int) -> Callable[[], Any]:
    """Looks at an image's header and, of a JPEG, for scans without end; the scorer has the pixels unpacked."""
    try:
        from PIL import Image  # noqa: PLC0415 - not needed where no images are sent
    except ImportError as error:
        raise RefusedError("this server cannot read images: install pillow there, or send none", 400) from error

    def opened() -> Any:
        raw = base64.b64decode(code, validate=True)
        return Image.open(io.BytesIO(raw), formats=("PNG",) if raw.count(b"\xff\xda") > 500 else ("PNG", "JPEG"))

    def open_image() -> Any:
        try:
            return opened().convert("RGB")
        except Exception as error:
            raise RefusedError(f"{where} is a broken file", 400) from error

    try:
        width, height = opened().size
    except Exception as error:
        raise RefusedError(f"{where} must be a PNG or JPEG file as base64", 400) from error
    _require(width * height <= max_pixels, f"{where} has {width} x {height} pixels, more than {max_pixels}")
    return open_image


def _require(right: bool, reason: str, status: int = 400) -> None:
    if not right:
        raise RefusedError(reason, status)


def _argument(text: str) -> tuple[str, Any]:
    """`key=value`; a value that is JSON is read as such."""
    key, equals, value = text.partition("=")
    if not equals or not key.isidentifier():
        raise argparse.ArgumentTypeError(f"{text!r} is not of the form key=value")
    try:
        return key, json.loads(value)
    except ValueError:
        return key, value


def main() -> int:
    """The command line; returns the exit code."""
    logging.basicConfig(level=logging.INFO, format="%(levelname)s: %(message)s")
    parser = argparse.ArgumentParser(description="Hosts a scorer of open-ended answers over HTTP.")
    parser.add_argument("--scorer", required=True, help="what to host, as module:Class")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen at (%(default)s)")
    parser.add_argument("--port", type=int, default=8765, help="port to listen at, 0 for a free one (%(default)s)")
    parser.add_argument("--arg", type=_argument, action="append", default=[], help="key=value for the class")
    options = vars(parser.parse_args())
    try:
        serve(scorer_args=dict(options.pop("arg")), **options)
    except (ValueError, OSError) as error:
        sys.stderr.write(f"error: {error}\n")
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
