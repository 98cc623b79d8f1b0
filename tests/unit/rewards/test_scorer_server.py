from __future__ import annotations

import ast
import base64
import io
import json
import logging
import os
import shutil
import signal
import socket
import struct
import subprocess
import sys
import threading
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from PIL import Image

from helpers.hostile_images import many_scans
from helpers.scripted_http import running
from lit_vlaa.rewards.scorers import server as server_module
from lit_vlaa.rewards.scorers.server import TOKEN_ENV, ScoringServer, _Handler, load_scorer, serve

FILE = Path(server_module.__file__)
POSITIONS = "items[0].images must list positions in images, of which there are"

HOSTED = '''
class Length:
    """Scores by length."""

    def __init__(self, factor=1, unit="x"):
        self.factor, self.unit = factor, unit

    def __call__(self, requests, answers):
        return [None if "?" in answer else self.factor * len(answer) for answer in answers]


class Nothing:
    pass


class Unready(Length):
    def prepare(self):
        raise RuntimeError("no weights at\\n/models")
'''


@contextmanager
def hosting(scorer: Callable[..., Any], **options: Any) -> Iterator[httpx.Client]:
    server = ScoringServer(("127.0.0.1", 0), scorer=scorer, **options)
    with running(server), httpx.Client(base_url=server.url, trust_env=False, timeout=60) as client:
        yield client


def lengths(_: Sequence[Any], answers: Sequence[str]) -> list[float]:
    return [float(len(answer)) for answer in answers]


def body(*items: Any, images: Any = (), version: Any = 1) -> dict[str, Any]:
    return {"version": version, "images": list(images) if isinstance(images, tuple) else images, "items": list(items)}


def item(answer: Any = "bus", **fields: Any) -> dict[str, Any]:
    return {"id": "1", "question": "What?", "answer": answer, **fields}


def png(width: int, height: int, mode: str = "RGB") -> str:
    file = io.BytesIO()
    Image.new(mode, (width, height)).save(file, "PNG")
    return base64.b64encode(file.getvalue()).decode()


def test_health() -> None:
    with hosting(lengths) as client:
        reply = client.get("/health")
        expected = {"status": "ok", "version": 1, "scorer": "lengths", "similarity_baseline": None}
        content = reply.json()
        assert len(content.pop("fingerprint")) == 64
        assert (reply.status_code, content) == (200, expected)


def test_scores() -> None:
    with hosting(lengths) as client:
        reply = client.post("/score", json=body(item("a"), item("bb")))
        assert (reply.status_code, reply.json()) == (200, {"scores": [1.0, 2.0]})
        assert client.post("/score", json=body()).json() == {"scores": []}
        assert client.post("/score", json={"version": 1, "items": [{"question": "", "answer": "a"}]}).status_code == 200


def test_other_pages_and_methods() -> None:
    with hosting(lengths) as client:
        assert client.get("/score").status_code == 404
        assert client.post("/health", json={}).status_code == 404
        assert client.get("/../etc/passwd").status_code == 404
        assert client.put("/score", json={}).status_code == 501
        assert client.get("/health").status_code == 200


class Odd:
    """A number type like those of numpy and torch."""

    def __float__(self) -> float:
        return 2.5


@pytest.mark.parametrize(
    ("given", "sent"),
    [
        ([1, 2.5], [1.0, 2.5]),
        ((None, Odd()), [None, 2.5]),
        ([float("nan"), float("inf")], [None, None]),
    ],
)
def test_scores_that_are_no_finite_numbers_become_null(given: Any, sent: Any) -> None:
    with hosting(lambda *_: given) as client:
        assert client.post("/score", json=body(item(), item())).json() == {"scores": sent}


@pytest.mark.parametrize("given", [[1.0], [1.0, 2.0, 3.0], ["a", "b"], None, [[1.0], [2.0]]])
def test_a_scorer_that_answers_nonsense_is_an_error_of_the_server(given: Any, caplog: pytest.LogCaptureFixture) -> None:
    with hosting(lambda *_: given) as client:
        reply = client.post("/score", json=body(item(), item()))
        assert reply.status_code == 500
        assert reply.json()["error"].startswith("the scorer failed: ")
        assert client.get("/health").status_code == 200
    assert "the scorer failed" in caplog.text


def test_a_scorer_that_raises_is_logged_here_and_named_there(caplog: pytest.LogCaptureFixture) -> None:
    def fails(*_: Any) -> list[float]:
        raise MemoryError("weights in /home/me/private")

    with hosting(fails) as client:
        reply = client.post("/score", json=body(item()))
    assert (reply.status_code, reply.json()) == (500, {"error": "the scorer failed: MemoryError"})
    assert "weights in /home/me/private" in caplog.text


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "the request is not JSON"),
        (b"{", "the request is not JSON"),
        (b"\xff\xfe{", "the request is not JSON"),
        (b"[" * 200_000, "the request is not JSON"),
        ([], "the request must be a JSON object with version 1"),
        ({}, "the request must be a JSON object with version 1"),
        (body(version=2), "the request must be a JSON object with version 1"),
        ({"version": 1}, "items and images must be lists"),
        ({"version": 1, "items": {}}, "items and images must be lists"),
        (body(images="x"), "items and images must be lists"),
        (body(item(), "bus"), "items[1] must be an object"),
        (body({"question": "What?"}), "items[0].answer must be a string"),
        (body({"answer": "bus"}), "items[0].question must be a string"),
        (body(item(answer=None)), "items[0].answer must be a string"),
        (body(item(id=7)), "items[0].id must be a string"),
        (body(item(reference=[])), "items[0].reference must be a string"),
        (body(item(images=0)), "items[0].images must list positions in images, of which there are 0"),
        (body(item(images=[0])), "items[0].images must list positions in images, of which there are 0"),
        (
            body(item(images=[-1]), images=(png(1, 1),)),
            "items[0].images must list positions in images, of which there are 1",
        ),
        (
            body(item(images=[True]), images=(png(1, 1),)),
            "items[0].images must list positions in images, of which there are 1",
        ),
        (body(images=("?",)), "images[0] must be a PNG or JPEG file as base64"),
        (body(images=(None,)), "images[0] must be a PNG or JPEG file as base64"),
        (body(images=(png(1, 1), "AAAA")), "images[1] must be a PNG or JPEG file as base64"),
    ],
)
def test_malformed_requests_are_refused_with_the_reason(content: Any, reason: str) -> None:
    raw = content if isinstance(content, bytes) else json.dumps(content).encode()
    with hosting(lengths) as client:
        reply = client.post("/score", content=raw)
        assert (reply.status_code, reply.json()) == (400, {"error": reason})
        assert client.post("/score", json=body(item())).status_code == 200


def sizes(requests: Sequence[Any], _: Sequence[str]) -> list[float | None]:
    """The pixels of a request's images, None without any."""
    return [None if r.images is None else sum(i.size[0] * i.size[1] for i in r.images()) for r in requests]


def test_images_are_opened_as_rgb() -> None:
    modes: list[str] = []

    def hosted(requests: Sequence[Any], _: Sequence[str]) -> list[float]:
        modes.extend(image.mode for request in requests for image in request.images())
        return [0.0] * len(requests)

    with hosting(hosted) as client:
        images = (png(2, 2, "L"), png(2, 2, "RGBA"), png(2, 2, "P"))
        assert client.post("/score", json=body(item(images=[0, 1, 2]), images=images)).status_code == 200
    assert modes == ["RGB"] * 3
    with hosting(sizes) as client:
        sent = body(item(images=[1]), item(images=[0, 1]), item(), images=(png(2, 3), png(5, 4)))
        assert client.post("/score", json=sent).json() == {"scores": [20.0, 26.0, None]}


def test_images_have_a_limit_in_pixels() -> None:
    with hosting(sizes, max_image_pixels=20) as client:
        assert client.post("/score", json=body(item(images=[0]), images=(png(5, 4),))).status_code == 200
        reply = client.post("/score", json=body(item(images=[0]), images=(png(3, 7),)))
        assert (reply.status_code, reply.json()) == (400, {"error": "images[0] has 3 x 7 pixels, more than 20"})


def bomb(width: int, height: int) -> str:
    """A PNG of a few bytes that claims to be huge."""
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunks = [(b"IHDR", header), (b"IDAT", zlib.compress(b"\0" * 100)), (b"IEND", b"")]
    packed = [struct.pack(">I", len(c)) + n + c + struct.pack(">I", zlib.crc32(n + c)) for n, c in chunks]
    return base64.b64encode(b"\x89PNG\r\n\x1a\n" + b"".join(packed)).decode()


def test_images_that_lie_are_the_clients_fault() -> None:
    with hosting(sizes) as client:
        reply = client.post("/score", json=body(item(images=[0]), images=(bomb(30_000, 30_000),)))
        assert reply.status_code == 400
        reply = client.post("/score", json=body(item(images=[0]), images=(bomb(300, 300),)))
        assert (reply.status_code, reply.json()) == (400, {"error": "images[0] is a broken file"})
        gif = io.BytesIO()
        Image.new("P", (2, 2)).save(gif, "GIF")
        code = base64.b64encode(gif.getvalue()).decode()
        assert client.post("/score", json=body(item(images=[0]), images=(code,))).status_code == 400


@pytest.mark.parametrize(("more", "status"), [(0, 200), (600, 400)])
def test_a_jpeg_of_scans_without_end(more: int, status: int) -> None:
    file = many_scans(Image.new("RGB", (16, 16), "red"), more)
    with hosting(sizes) as client:
        sent = body(item(images=[0]), images=(base64.b64encode(file).decode(),))
        assert client.post("/score", json=sent).status_code == status


def test_bodies_have_a_limit() -> None:
    with hosting(lengths, max_body_mb=1) as client:
        fixed = len(json.dumps(body(item(""))))
        fits = json.dumps(body(item("a" * (2**20 - fixed)))).encode()
        assert len(fits) == 2**20
        assert client.post("/score", content=fits).json() == {"scores": [2**20 - fixed]}
        reply = client.post("/score", content=fits + b" ")
        assert (reply.status_code, reply.json()) == (413, {"error": "the request is longer than 1048576 bytes"})
        assert client.get("/health").status_code == 200


def raw_exchange(client: httpx.Client, sent: bytes) -> bytes:
    with socket.create_connection((client.base_url.host, client.base_url.port or 0), timeout=60) as connection:
        connection.sendall(sent)
        connection.shutdown(socket.SHUT_WR)
        received = b""
        while chunk := connection.recv(4096):
            received += chunk
        return received


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        (b"", b"411"),
        (b"Content-Length: -5\r\n", b"411"),
        (b"Content-Length: 1e3\r\n", b"411"),
        (b"Content-Length: " + b"9" * 5000 + b"\r\n", b"411"),
        (b"Transfer-Encoding: chunked\r\n", b"411"),
        (b"Content-Length: 999999999999\r\n", b"413"),
    ],
)
def test_bodies_without_a_true_length(headers: bytes, status: bytes) -> None:
    with hosting(lengths) as client:
        assert raw_exchange(client, b"POST /score HTTP/1.1\r\n" + headers + b"\r\n")[9:12] == status
        hung_up = raw_exchange(client, b"POST /score HTTP/1.1\r\nContent-Length: 50\r\n\r\n{")
        assert hung_up[9:12] == b"400"
        assert client.get("/health").status_code == 200


@pytest.mark.parametrize(
    ("header", "status"),
    [
        ("Bearer sesame", 200),
        ("Bearer Sesame", 401),
        ("Bearer sesam", 401),
        ("sesame", 401),
        ("Bearer \u00fc", 401),
        (None, 401),
    ],
)
def test_the_token_is_asked_for_on_both_pages(header: str | None, status: int) -> None:
    headers = {} if header is None else {b"Authorization": header.encode()}
    with hosting(lengths, token="sesame") as client:  # noqa: S106
        assert client.get("/health", headers=headers).status_code == status
        assert client.post("/score", json=body(item()), headers=headers).status_code == status


def test_the_scorer_works_for_one_request_at_a_time() -> None:
    both = threading.Event()
    together: list[int] = []
    inside: list[int] = []

    def hosted(_: Sequence[Any], answers: Sequence[str]) -> list[float]:
        inside.append(1)
        together.append(len(inside))
        both.wait(0.2)  # time for another one to come in, if it could
        inside.pop()
        return [1.0] * len(answers)

    with hosting(hosted) as client:
        threads = [threading.Thread(target=lambda: client.post("/score", json=body(item()))) for _ in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert together == [1, 1, 1]


def test_answers_that_nobody_waits_for_are_not_scored() -> None:
    calls: list[str] = []

    def hosted(_: Sequence[Any], answers: Sequence[str]) -> list[float]:
        calls.extend(answers)
        return [1.0] * len(answers)

    server = ScoringServer(("127.0.0.1", 0), scorer=hosted)
    with running(server):
        server.turn.acquire()
        address = server.server_address[0], server.server_address[1]
        sent = json.dumps(body(item("left"))).encode()
        with socket.create_connection(address, timeout=60) as impatient:  # type: ignore[arg-type]
            impatient.sendall(b"POST /score HTTP/1.1\r\nContent-Length: %d\r\n\r\n" % len(sent) + sent)
        server.turn.release()
        with httpx.Client(base_url=server.url, trust_env=False, timeout=60) as client:
            assert client.post("/score", json=body(item("stayed"))).json() == {"scores": [1.0]}
    assert calls == ["stayed"]


@pytest.fixture
def hosted_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "hosted_scorer.py").write_text(HOSTED)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.delitem(sys.modules, "hosted_scorer", raising=False)
    return tmp_path


def test_a_scorer_is_found_in_the_current_folder(hosted_module: Path) -> None:
    scorer = load_scorer("hosted_scorer:Length", {"factor": 3})
    assert scorer([], ["ab"]) == [6]


@pytest.mark.parametrize(
    ("spec", "arguments", "match"),
    [
        ("nowhere:Length", {}, r"nowhere:Length .* ModuleNotFoundError: No module named 'nowhere'"),
        ("hosted_scorer:Width", {}, "AttributeError"),
        ("hosted_scorer", {}, "module:Class"),
        ("", {}, "module:Class"),
        ("hosted_scorer:Length", {"height": 1}, "TypeError: .*height"),
        ("hosted_scorer:Nothing", {}, "makes a Nothing, which has no __call__"),
        ("hosted_scorer:Unready", {}, "RuntimeError: no weights at"),
    ],
)
def test_scorers_that_cannot_be_hosted(hosted_module: Path, spec: str, arguments: dict[str, Any], match: str) -> None:
    with pytest.raises(ValueError, match=match):
        load_scorer(spec, arguments)


def test_settings_that_cannot_work(hosted_module: Path) -> None:
    with pytest.raises(ValueError, match="port must lie in 0 to 65535, got 70000"):
        serve(scorer="hosted_scorer:Length", port=70000)
    with socket.create_server(("127.0.0.1", 0)) as taken, pytest.raises(OSError, match="in use"):
        serve(scorer="hosted_scorer:Length", port=taken.getsockname()[1])


@contextmanager
def started(folder: Path, *options: str, file: Path = FILE, **environment: str) -> Iterator[tuple[Any, str]]:
    """The server as a user starts it, without any installed package."""
    command = [sys.executable, "-E", "-S", str(file), "--scorer", "hosted_scorer:Length", "--port", "0", *options]
    pipe = subprocess.PIPE
    with subprocess.Popen(
        command, cwd=folder, env=os.environ | environment, stdout=pipe, stderr=pipe, text=True
    ) as process:
        try:
            assert process.stdout is not None
            yield process, process.stdout.readline()
        finally:
            if process.poll() is None:
                process.kill()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_the_file_runs_alone_and_ends_cleanly(hosted_module: Path, number: signal.Signals) -> None:
    with started(hosted_module, "--arg", "factor=2", "--arg", "unit=cm") as (process, line):
        said, _, url = line.strip().rpartition(" ")
        assert said == "hosting Length at"
        reply = httpx.post(f"{url}/score", json=body(item("abc"), item("?")), trust_env=False, timeout=60)
        assert reply.json() == {"scores": [6.0, None]}
        reply = httpx.post(f"{url}/score", json=body(images=(png(1, 1),)), trust_env=False, timeout=60)
        assert (reply.status_code, "install pillow" in reply.json()["error"]) == (400, True)
        process.send_signal(number)
        _, errors = process.communicate(timeout=60)
    assert (process.returncode, errors) == (0, "INFO: stopped\n")


def test_the_token_comes_from_the_environment(hosted_module: Path) -> None:
    with started(hosted_module, LIT_VLAA_SCORER_TOKEN="sesame") as (_, line):  # noqa: S106
        url = line.split()[-1]
        assert httpx.get(f"{url}/health", trust_env=False, timeout=60).status_code == 401
        headers = {"Authorization": "Bearer sesame"}
        assert httpx.get(f"{url}/health", headers=headers, trust_env=False, timeout=60).status_code == 200
    assert TOKEN_ENV == "LIT_VLAA_SCORER_TOKEN"  # noqa: S105


def test_a_copy_beside_the_scorer_works_from_anywhere(
    hosted_module: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    copied = shutil.copy(FILE, hosted_module / "scoring.py")
    with started(tmp_path_factory.mktemp("elsewhere"), file=Path(copied)) as (_, line):
        assert line.startswith("hosting Length at http://127.0.0.1:")


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--arg", "factor"], "'factor' is not of the form key=value"),
        (["--arg", "no way=1"], "'no way=1' is not of the form key=value"),
        (["--arg", "height=1"], "error: --scorer hosted_scorer:Length"),
        (["--port", "-1"], "error: --port must lie in 0 to 65535"),
    ],
)
def test_wrong_options_end_with_one_line(hosted_module: Path, options: list[str], said: str) -> None:
    with started(hosted_module, *options) as (process, _):
        _, errors = process.communicate(timeout=60)
    assert process.returncode == 2
    assert said in errors.splitlines()[-1]


def test_a_server_for_everybody_without_a_token_warns(
    hosted_module: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def stop(_: ScoringServer) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(ScoringServer, "serve_forever", stop)
    monkeypatch.delenv(TOKEN_ENV, raising=False)
    before = signal.getsignal(signal.SIGTERM)
    serve(scorer="hosted_scorer:Length", port=0)
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]
    serve(scorer="hosted_scorer:Length", port=0, host="0.0.0.0")  # noqa: S104
    assert "anybody who reaches 0.0.0.0 can use this server" in caplog.text
    assert signal.getsignal(signal.SIGTERM) is before


def test_the_file_is_python_3_9_and_imports_only_the_standard_library() -> None:
    tree = ast.parse(FILE.read_text(), feature_version=(3, 9))
    imported = {
        alias.name.split(".")[0] for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names
    }
    imported |= {(node.module or "").split(".")[0] for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    assert imported - sys.stdlib_module_names == {"PIL"}
    assert not [node for node in tree.body if isinstance(node, ast.ImportFrom) and node.module == "PIL"]


def test_a_body_without_the_token_is_not_kept() -> None:
    """The refusal comes before anything is read into memory; what arrives is dropped piece by piece."""
    read: list[int] = []

    class Watched(_Handler):
        def _body(self) -> bytes:
            read.append(1)
            return super()._body()

    server = ScoringServer(("127.0.0.1", 0), scorer=lengths, token="sesame")  # noqa: S106 - of a test
    server.RequestHandlerClass = Watched
    with running(server), httpx.Client(base_url=server.url, trust_env=False, timeout=60) as client:
        assert client.post("/score", content=b"x" * 2**20).status_code == 401
        assert client.post("/elsewhere", content=b"x", headers={"Authorization": "Bearer sesame"}).status_code == 404
        assert not read
        reply = client.post("/score", json=body(item("a")), headers={"Authorization": "Bearer sesame"})
        assert (reply.status_code, read) == (200, [1])
