from __future__ import annotations

import asyncio
import copy
import gc
import json
import logging
import math
import os
import pickle
import random
import signal
import socket
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from typing import Any

import pytest

from helpers.scripted_http import Reply, Seen, closed_port, in_turn, scripted
from lit_vlaa.event_loop import run_apart
from lit_vlaa.rewards.scorers import client as client_module
from lit_vlaa.rewards.scorers import wire
from lit_vlaa.rewards.scorers.client import Body, JsonClient
from lit_vlaa.rewards.scorers.wire import MAX_REPLY_BYTES, RequestError, clean_url, is_loopback, printable, retry_after

FINE = Reply({"fine": True})
KEY = "sk-secret-0123456789"


def client(url: str, **options: Any) -> JsonClient:
    defaults: dict[str, Any] = {
        "option": "--model.scorer.url",
        "api_key_env": None,
        "concurrency": 4,
        "timeout_s": 20.0,
        "retries": 2,
        "backoff_s": 0.0,
        "give_up_after_s": 60.0,
    }
    return JsonClient(url=url, **(defaults | options))


def numbered(count: int) -> list[Body]:
    return [lambda i=i: {"number": i} for i in range(count)]  # type: ignore[misc]


def test_replies_come_in_the_order_of_the_requests() -> None:
    held = threading.Event()

    def script(seen: Seen) -> Reply:
        number = seen.json["number"]
        if number == 0:  # the first one is answered last
            assert held.wait(120)
        if number == 3:
            held.set()
        return Reply({"twice": 2 * number})

    with scripted(script) as server:
        replies = client(server.url).post_many("/double", numbered(4))
        assert replies == [{"twice": 0}, {"twice": 2}, {"twice": 4}, {"twice": 6}]
        assert {seen.path for seen in server.seen} == {"/double"}
        assert client(server.url).post_many("/double", []) == []


@pytest.mark.parametrize(("concurrency", "most"), [(1, 1), (3, 3)])
def test_concurrency_is_what_runs_at_a_time(concurrency: int, most: int) -> None:
    lock = threading.Lock()
    full = threading.Event()
    counts = {"now": 0, "most": 0}

    def script(seen: Seen) -> Reply:
        with lock:
            counts["now"] += 1
            counts["most"] = max(counts["most"], counts["now"])
            if counts["now"] == most:
                full.set()
        assert full.wait(120)  # nobody leaves before as many as allowed were here together
        with lock:
            counts["now"] -= 1
        return FINE

    with scripted(script) as server:
        assert client(server.url, concurrency=concurrency).post_many("/x", numbered(7)) == [{"fine": True}] * 7
    assert counts == {"now": 0, "most": most}


@pytest.mark.parametrize(
    "trouble",
    [
        *(Reply({"error": "busy"}, status=status) for status in (408, 409, 425, 429, 500, 502, 503, 504)),
        Reply({"error": "busy"}, status=429, headers={"Retry-After": "0"}),
        Reply({"fine": True}, cut=5),
        Reply(b'{"fine"', headers={"Content-Length": "13"}, cut=7),
        Reply(b'{"fine": true}', headers={"Content-Length": "7"}),
        Reply(b"<html>proxy starting</html>"),
        Reply(b""),
        Reply(["fine"]),
        Reply(b'{"fine": "\xff"}'),
        Reply(b"[" * 100_000),
        Reply(b'{"fine": ' + b"9" * 5000 + b"}"),
    ],
)
def test_passing_trouble_is_tried_again(trouble: Reply) -> None:
    with scripted(in_turn(trouble, trouble, FINE)) as server:
        assert client(server.url).post_many("/x", numbered(1)) == [{"fine": True}]
        assert [seen.json for seen in server.seen] == [{"number": 0}] * 3
    with scripted(in_turn(trouble, trouble, FINE)) as server:
        assert client(server.url, retries=1).post_many("/x", numbered(1)) == [None]
        assert len(server.seen) == 2


@pytest.mark.parametrize("status", [301, 307, 400, 401, 403, 404, 413, 422])
def test_other_refusals_fail_at_once_and_are_told_once(status: int, caplog: pytest.LogCaptureFixture) -> None:
    said = Reply({"error": {"message": "no\nsuch \x1b[31mmodel"}}, status=status, headers={"Location": "/elsewhere"})
    with scripted(in_turn(said)) as server, caplog.at_level(logging.WARNING):
        assert client(server.url).post_many("/x", numbered(5)) == [None] * 5
        assert [seen.path for seen in server.seen] == ["/x"] * 5
    (record,) = caplog.records
    message = rf"{server.url}/x: 5 of 5 requests failed: 5 x HTTP {status}: no\nsuch \x1b[31mmodel"
    assert record.getMessage() == message


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ({"detail": "Not Found"}, "HTTP 400: Not Found"),
        ({"message": "bad"}, "HTTP 400: bad"),
        ({"error": "bad"}, "HTTP 400: bad"),
        ({"error": ["bad"]}, 'HTTP 400: {"error": ["bad"]}'),
        (b"plain", "HTTP 400: plain"),
        (b"", "HTTP 400"),
        (b"x" * 5000, "HTTP 400: " + "x" * 300 + "..."),
    ],
)
def test_a_refusals_message_in_any_form(content: Any, said: str) -> None:
    with scripted(in_turn(Reply(content, status=400))) as server, pytest.raises(RequestError) as caught:
        client(server.url).ask("POST", "/x", dict)
    assert str(caught.value) == said
    assert caught.value.status == 400


def test_reasons_are_counted_and_only_some_are_shown(caplog: pytest.LogCaptureFixture) -> None:
    with scripted(lambda seen: Reply({"error": f"e{seen.json['number'] % 4}"}, status=400)) as server:
        client(server.url).post_many("/x", numbered(9))
    assert "9 of 9 requests failed: 3 x HTTP 400: e0; 2 x HTTP 400: e" in caplog.text
    assert caplog.text.rstrip().endswith("; and others")


def test_an_overlong_reply_is_not_read_to_its_end() -> None:
    exact = b'{"fine": true}'.ljust(MAX_REPLY_BYTES)
    with scripted(in_turn(Reply(exact))) as server:
        assert client(server.url).post_many("/x", numbered(1)) == [{"fine": True}]
    with (
        scripted(in_turn(Reply(exact + b" "))) as server,
        pytest.raises(RequestError, match="longer than 1048576 bytes"),
    ):
        client(server.url).ask("POST", "/x", dict)


def test_compressed_replies_are_refused() -> None:
    with scripted(in_turn(Reply(b"", headers={"Content-Encoding": "gzip"}))) as server:
        with pytest.raises(RequestError, match="compressed"):
            client(server.url).ask("POST", "/x", dict)
        assert server.seen[0].headers["accept-encoding"] == "identity"


def test_a_try_has_a_limit_even_when_bytes_trickle() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        stop = threading.Event()

        def trickle() -> None:
            connection, _ = listener.accept()
            with connection:
                connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n")
                while not stop.wait(0.02):
                    try:
                        connection.sendall(b" ")
                    except OSError:
                        return

        thread = threading.Thread(target=trickle)
        thread.start()
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        with pytest.raises(RequestError, match=r"no complete reply within 1 s"):
            client(url, timeout_s=1.0, retries=0).ask("POST", "/x", dict)
        stop.set()
        thread.join()


def test_a_batch_has_a_limit(caplog: pytest.LogCaptureFixture) -> None:
    release = threading.Event()

    def script(_: Seen) -> Reply:
        release.wait(60)
        return FINE

    with scripted(script) as server:
        assert client(server.url, give_up_after_s=0.2, timeout_s=50).post_many("/x", numbered(4)) == [None] * 4
        release.set()
    assert "4 of 4 requests failed: 4 x no reply within the batch's 0.2 s" in caplog.text


def test_what_came_before_the_limit_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    limits: list[tuple[asyncio.Timeout, asyncio.AbstractEventLoop]] = []
    release = threading.Event()

    def timeout(_: float) -> asyncio.Timeout:
        limits.append((asyncio.Timeout(None), asyncio.get_running_loop()))
        return limits[-1][0]

    def script(seen: Seen) -> Reply:
        if seen.json["number"] == 1:  # one at a time: the first reply has arrived
            batch, loop = limits[0]
            loop.call_soon_threadsafe(batch.reschedule, 0.0)
            release.wait(60)
        return FINE

    monkeypatch.setattr(asyncio, "timeout", timeout)
    with scripted(script) as server:
        replies = client(server.url, concurrency=1).post_many("/x", numbered(3))
        release.set()
    assert replies == [{"fine": True}, None, None]


def test_a_server_that_is_gone_costs_one_series_of_tries(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    tries = []
    exchange = wire.exchange

    async def counting(*args: Any, **kwargs: Any) -> dict[str, Any]:
        tries.append(args)
        return await exchange(*args, **kwargs)

    monkeypatch.setattr(client_module, "exchange", counting)
    with closed_port() as port:
        gone = client(f"http://127.0.0.1:{port}", retries=2, concurrency=3)
        assert gone.post_many("/x", numbered(100)) == [None] * 100
    assert len(tries) <= 3 * 3
    (record,) = caplog.records
    assert "x not sent, because the server cannot be reached; " in record.getMessage()
    assert "cannot connect" in record.getMessage()


def test_a_server_that_comes_back_is_used_again() -> None:
    with closed_port() as port:
        sender = client(f"http://127.0.0.1:{port}")
        for _ in range(2):
            with scripted(in_turn(FINE), port):
                assert sender.post_many("/x", numbered(2)) == [{"fine": True}] * 2
            assert sender.post_many("/x", numbered(2)) == [None] * 2


def test_one_request_that_cannot_be_made_fails_alone(caplog: pytest.LogCaptureFixture) -> None:
    def broken() -> dict[str, Any]:
        raise OSError("picture.png is\nbroken")

    with scripted(in_turn(FINE)) as server:
        replies = client(server.url).post_many("/x", [*numbered(1), broken, lambda: {"nan": math.nan}])
    assert replies == [{"fine": True}, None, None]
    assert r"1 x the request could not be made: picture.png is\nbroken" in caplog.text


def test_pauses_double_and_follow_the_server_within_limits() -> None:
    sender = client("http://127.0.0.1:1", backoff_s=1.0)
    for attempt, longest in ((0, 1.0), (1, 2.0), (3, 8.0), (5, 32.0)):
        pauses = [sender.pause(attempt, 0.0) for _ in range(50)]
        assert longest / 2 <= min(pauses) < max(pauses) <= longest
    assert 30 <= sender.pause(6, 0.0) <= 60
    assert sender.pause(500, 0.0) == 60
    assert sender.pause(0, 7.5) == 7.5
    assert sender.pause(0, 1e9) == 60
    assert client("http://127.0.0.1:1", backoff_s=0.0).pause(3, 0.0) == 0


def test_pauses_leave_the_runs_random_numbers_alone() -> None:
    sender = client("http://127.0.0.1:1", backoff_s=1.0)
    state = random.getstate()
    sender.pause(0, 0.0)
    assert random.getstate() == state


def test_retry_after() -> None:
    assert retry_after("7") == 7
    assert retry_after("2.5") == 2.5
    assert [retry_after(text) for text in ("", "soon", "-3", "nan", "inf", "9" * 400)] == [0.0] * 6
    later = datetime.now(UTC) + timedelta(seconds=1000)
    assert 990 < retry_after(format_datetime(later, usegmt=True)) <= 1000
    assert retry_after("Wed, 21 Oct 2015 07:28:00 GMT") == 0
    assert retry_after("Wed, 21 Oct 2015 07:28:00") == 0


def test_the_servers_wish_is_heard(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def pause(_: JsonClient, attempt: int, wish: float) -> float:
        asked.append((attempt, wish))
        return 0.0

    monkeypatch.setattr(JsonClient, "pause", pause)
    busy = Reply({}, status=429, headers={"Retry-After": "12"})
    with scripted(in_turn(busy, Reply({}, status=500), FINE)) as server:
        assert client(server.url).ask("POST", "/x", dict) == {"fine": True}
    assert asked == [(0, 12.0), (1, 0.0)]


def test_the_key_is_sent_and_never_shown(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setenv("TEST_KEY", f" {KEY}\n")
    refused = Reply({"error": {"message": f"Incorrect API key provided: {KEY}"}}, status=401)
    with scripted(in_turn(FINE, refused)) as server, caplog.at_level(logging.DEBUG):
        sender = client(server.url, api_key_env="TEST_KEY")
        assert sender.post_many("/x", numbered(1)) == [{"fine": True}]
        assert sender.post_many("/x", numbered(1)) == [None]
        with pytest.raises(RequestError) as caught:
            sender.ask("GET", "/x")
        assert {seen.headers["authorization"] for seen in server.seen} == {f"Bearer {KEY}"}
    assert "Incorrect API key provided: ***" in caplog.text
    shown = [caplog.text, str(caught.value), repr(caught.value), repr(sender), repr(vars(sender))]
    assert all(KEY not in text for text in shown)
    assert KEY.encode() not in pickle.dumps(sender)
    assert sender.shown(f"it is {KEY}\n.") == r"it is ***\n."


def test_without_a_key_nothing_is_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    with scripted(in_turn(FINE)) as server:
        client(server.url).ask("GET", "/x")
        assert "authorization" not in server.seen[0].headers


@pytest.mark.parametrize("value", [None, "", "  "])
def test_a_named_key_must_be_there(monkeypatch: pytest.MonkeyPatch, value: str | None) -> None:
    monkeypatch.delenv("TEST_KEY", raising=False)
    if value is not None:
        monkeypatch.setenv("TEST_KEY", value)
    sender = client("http://127.0.0.1:1", api_key_env="TEST_KEY")
    with pytest.raises(ValueError, match=r"--model\.scorer\.api_key_env TEST_KEY: .* not set"):
        sender.post_many("/x", numbered(1))


@pytest.mark.parametrize("value", ["two words", "line\nbreak", "schlüssel"])
def test_a_key_that_no_header_can_hold(monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    monkeypatch.setenv("TEST_KEY", value)
    with pytest.raises(ValueError, match="TEST_KEY") as caught:
        client("http://127.0.0.1:1", api_key_env="TEST_KEY").key()
    assert value not in str(caught.value)


@pytest.mark.parametrize(
    ("url", "warns"),
    [
        ("http://judge.example.org/v1", True),
        ("https://judge.example.org/v1", False),
        ("http://127.0.0.1:8000", False),
        ("http://[::1]:8000", False),
        ("http://localhost:8000", False),
    ],
)
def test_a_key_in_the_clear_is_warned_of_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, url: str, warns: bool
) -> None:
    monkeypatch.setenv("TEST_KEY", KEY)
    sender = client(url, api_key_env="TEST_KEY")
    assert [sender.key(), sender.key()] == [KEY, KEY]
    assert [("unencrypted" in record.getMessage()) for record in caplog.records] == [True] * warns


def test_proxies_are_not_asked_for_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("NO_PROXY", "no_proxy", "http_proxy"):
        monkeypatch.delenv(name, raising=False)
    with scripted(in_turn(FINE)) as server, closed_port() as port:
        monkeypatch.setenv("HTTP_PROXY", f"http://127.0.0.1:{port}")
        assert client(server.url).ask("GET", "/x") == {"fine": True}
    with scripted(in_turn(FINE)) as proxy:
        monkeypatch.setenv("HTTP_PROXY", proxy.url)
        assert client("http://judge.invalid").ask("GET", "/x") == {"fine": True}


def test_it_can_be_pickled_copied_and_used_in_a_fork() -> None:
    with scripted(in_turn(FINE)) as server:
        sender = client(server.url)
        assert sender.ask("GET", "/x") == {"fine": True}
        for other in (pickle.loads(pickle.dumps(sender)), copy.deepcopy(sender)):  # noqa: S301
            assert other.ask("GET", "/x") == {"fine": True}
        reading, writing = os.pipe()
        child = os.fork()
        if child == 0:
            try:
                os.write(writing, json.dumps(sender.ask("GET", "/x")).encode())
            finally:
                os._exit(0)
        os.waitpid(child, 0)
        assert os.read(reading, 100) == b'{"fine": true}'
        os.close(reading)
        os.close(writing)


def test_it_works_inside_a_running_event_loop() -> None:
    async def notebook(sender: JsonClient) -> Any:
        return sender.post_many("/x", numbered(2))

    with scripted(in_turn(FINE)) as server:
        assert asyncio.run(notebook(client(server.url))) == [{"fine": True}] * 2


@contextmanager
def default_interrupts() -> Iterator[None]:
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def test_ctrl_c_gets_through() -> None:
    release = threading.Event()

    def script(seen: Seen) -> Reply:
        if seen.json["number"] == 0:
            os.kill(os.getpid(), signal.SIGINT)
        release.wait(60)
        return FINE

    with default_interrupts(), scripted(script) as server:
        with pytest.raises(KeyboardInterrupt):
            client(server.url, timeout_s=50).post_many("/x", numbered(3))
        release.set()


def test_ctrl_c_while_the_thread_starts_ends_its_work(monkeypatch: pytest.MonkeyPatch) -> None:
    begun, ended = threading.Event(), threading.Event()

    async def work() -> None:
        begun.set()
        try:
            await asyncio.sleep(120)
        except asyncio.CancelledError:
            ended.set()

    start = threading.Thread.start

    def interrupted(thread: threading.Thread) -> None:
        start(thread)
        if thread.name == "requests":
            assert begun.wait(120)
            raise KeyboardInterrupt

    monkeypatch.setattr(threading.Thread, "start", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run_apart(work)
    assert ended.wait(60)


def test_a_task_that_does_not_end_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lit_vlaa.event_loop._PATIENCE_S", 0.1)
    ended: list[bool] = []

    async def stubborn() -> None:
        while not ended:
            try:
                await asyncio.sleep(600)
            except asyncio.CancelledError:
                continue

    async def work() -> asyncio.Task[None]:
        task = asyncio.ensure_future(stubborn())
        await asyncio.sleep(0)
        return task

    task = run_apart(work)
    ended.append(True)
    assert not task.done()
    task._log_destroy_pending = False  # type: ignore[attr-defined]  # asyncio's word on it would reach another test


def test_what_was_read_in_part_is_closed_and_causes_no_words(caplog: pytest.LogCaptureFixture) -> None:
    """Of a task that is dropped amid its work asyncio tells the user, at any later time."""
    closed: list[str] = []

    async def reply(name: str) -> AsyncIterator[bytes]:
        try:
            while True:
                yield b"more"
        finally:
            await asyncio.sleep(0)  # a connection is closed in several turns of the loop
            closed.append(name)

    async def work() -> None:
        held.append(reply("held"))  # as by a cycle that is not collected yet
        await anext(held[0])
        await anext(reply("dropped"))

    held: list[AsyncIterator[bytes]] = []
    run_apart(work)
    gc.collect()
    assert sorted(closed) == ["dropped", "held"]
    assert not caplog.records


def test_what_work_raises_comes_out() -> None:
    async def work() -> None:
        raise LookupError("inside")

    with pytest.raises(LookupError, match="inside"):
        run_apart(work)


@pytest.mark.parametrize(
    ("name", "value", "match"),
    [
        ("concurrency", 0, "concurrency must be at least 1, got 0"),
        ("timeout_s", 0.0, "timeout_s must be positive"),
        ("timeout_s", math.nan, "timeout_s must be positive"),
        ("retries", -1, "retries must be 0 or positive"),
        ("backoff_s", -1.0, "backoff_s must be 0 or positive"),
        ("give_up_after_s", math.inf, "give_up_after_s must be positive"),
    ],
)
def test_settings_that_cannot_work(name: str, value: Any, match: str) -> None:
    with pytest.raises(ValueError, match=rf"^--model\.scorer\.{match}"):
        client("http://127.0.0.1:1", **{name: value})


def test_addresses() -> None:
    assert clean_url(" http://127.0.0.1:8000/v1/ ", "--url") == "http://127.0.0.1:8000/v1"
    assert clean_url("https://api.openai.com/v1", "--url") == "https://api.openai.com/v1"
    for bad in ("127.0.0.1:8000", "ftp://host/", "http://", "", "http://host:port/", "http://host/#top"):
        with pytest.raises(ValueError, match="--url"):
            clean_url(bad, "--url")
    for bad in (f"http://me:{KEY}@host/v1", f"http://host/v1?key={KEY}"):
        with pytest.raises(ValueError, match="--url") as caught:
            clean_url(bad, "--url")
        assert KEY not in str(caught.value)
    assert [is_loopback(f"http://{host}/") for host in ("127.0.0.1", "127.8.8.8", "[::1]", "localhost", "a.localhost")]
    assert not any(is_loopback(f"http://{host}/") for host in ("10.0.0.1", "localhost.example.org", "[::2]"))


def test_what_is_logged_is_one_clean_line() -> None:
    assert printable("a\nb\x00\x1b\u2028\ud800\u202e") == r"a\nb\x00\x1b\u2028\ud800\u202e"
    assert printable("Größe 5 µm") == "Größe 5 µm"
    assert printable("x" * 301) == "x" * 300 + "..."
