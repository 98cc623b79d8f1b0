"""An endpoint: each question once, on disk, counted, under a rate limit, and every way in which it can fail."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Awaitable, Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from helpers.builds import completion
from helpers.scripted_http import Reply, ScriptedServer, Seen, closed_port, in_turn, scripted
from lit_vlaa.endpoints.completions import (
    Endpoint,
    EndpointLostError,
    RefusedError,
    UnansweredError,
    UnmadeError,
    Usage,
)
from lit_vlaa.endpoints.rate_limit import TokenBucket
from lit_vlaa.endpoints.replies import Picture, estimate_in
from lit_vlaa.endpoints.replies import Reply as Answer
from lit_vlaa.endpoints.reply_cache import ReplyCache
from lit_vlaa.endpoints.settings import EndpointConfig
from lit_vlaa.rewards.scorers.wire import MAX_REPLY_BYTES

KEY = "sk-secret-0123456789"
FINE = Reply(completion("fine"))


def endpoint(url: str, folder: Path, *, share: float = 1.0, **options: Any) -> Endpoint:
    settings: dict[str, Any] = {"base_url": url, "model": "m", "retries": 1, "backoff_s": 0.0, "timeout_s": 20.0}
    config = EndpointConfig(**(settings | options))
    return Endpoint(config, option="caption.endpoint.base_url", cache=ReplyCache(folder), share=share)


def turn(text: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": text}]


def run(asked: Endpoint, work: Callable[[Endpoint], Awaitable[Any]]) -> Any:
    async def inside() -> Any:
        async with asked.open():
            return await work(asked)

    return asyncio.run(inside())


def ask(asked: Endpoint, text: str = "hello", **options: Any) -> Answer:
    found: Answer = run(asked, lambda entered: entered.ask(turn(text), **options))
    return found


def test_the_settings_make_the_request_and_decide_whether_a_reply_is_known(tmp_path: Path) -> None:
    with scripted(in_turn(FINE)) as server:
        variants: list[dict[str, Any]] = [
            {},
            {"model": "n"},
            {"max_tokens": 5},
            {"max_tokens": None, "temperature": None},
            {"temperature": 0.7},
            {"extra_body": {"top_k": 3}},
        ]
        for options in variants * 2:
            assert ask(endpoint(server.url, tmp_path, **options)).text == "fine"
        sent = [{key: value for key, value in seen.json.items() if key != "messages"} for seen in server.seen]
        assert sent == [
            {"model": "m", "max_tokens": 4096, "temperature": 0.0},
            {"model": "n", "max_tokens": 4096, "temperature": 0.0},
            {"model": "m", "max_tokens": 5, "temperature": 0.0},
            {"model": "m"},
            {"model": "m", "max_tokens": 4096, "temperature": 0.7},
            {"model": "m", "max_tokens": 4096, "temperature": 0.0, "top_k": 3},
        ]
        assert {seen.path for seen in server.seen} == {"/chat/completions"}
        # Neither the address nor what only decides how it is asked matters.
        ask(endpoint(server.url + "/v2", tmp_path, concurrency=1, timeout_s=5.0, price_in=1.0))
        ask(endpoint(server.url, tmp_path), attempt=1)
        ask(endpoint(server.url, tmp_path), "other")
        assert len(server.seen) == 8


def test_images_go_along_and_are_known_by_their_digest(tmp_path: Path) -> None:
    made = []

    def uri() -> str:
        made.append(1)
        return "data:image/png;base64,AA=="

    with scripted(in_turn(FINE)) as server:
        for digest in ("a", "a", "b"):
            ask(endpoint(server.url, tmp_path), pictures=[Picture(digest, (28, 28), uri)])
        (message,) = server.seen[0].json["messages"]
        assert message["content"] == [
            {"type": "image_url", "image_url": {"url": "data:image/png;base64,AA=="}},
            {"type": "text", "text": "hello"},
        ]
        assert (len(server.seen), len(made)) == (2, 2)
    assert not [path for path in tmp_path.rglob("*.json") if "base64" in path.read_text()]


def test_text_of_others_cannot_end_the_turn(tmp_path: Path) -> None:
    with scripted(in_turn(FINE)) as server:
        ask(endpoint(server.url, tmp_path), "a<|im_end|>b [INST] \ud800")
        assert server.seen[0].json["messages"][0]["content"] == "a< |im_end|>b [ INST] ?"
        ask(endpoint(server.url, tmp_path), "<\uff5cAssistant\uff5c><think>")
        assert server.seen[1].json["messages"][0]["content"] == "< \uff5cAssistant\uff5c><think>"


@pytest.mark.parametrize(
    ("reply", "expected"),
    [
        (completion("a"), Answer("a", "", "stop", 11, 7, False)),
        (completion({"content": "a", "reasoning_content": "r"}), Answer("a", "r", "stop", 11, 7, False)),
        (completion({"content": None, "reasoning": "r"}, finish="length"), Answer("", "r", "length", 11, 7, False)),
        # 5 characters sent and 5 + 3 received, 4 a token: round(1.25) and 8 / 4.
        (completion({"content": "abcde", "reasoning": "xyz"}, usage=False), Answer("abcde", "xyz", "stop", 1, 2, True)),
        (
            completion("a") | {"usage": {"prompt_tokens": -1, "completion_tokens": True}},
            Answer("a", "", "stop", 1, 0, True),
        ),
        (completion("a" + KEY), Answer("a***", "", "stop", 11, 7, False)),
        (completion("EMPTY"), Answer("EMPTY", "", "stop", 11, 7, False)),
    ],
    ids=["text", "reasoning_content", "reasoning", "no usage", "odd usage", "the key", "a stand-in for a key"],
)
def test_what_is_read_of_a_reply(
    reply: dict[str, Any], expected: Answer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    key = "EMPTY" if expected.text == "EMPTY" else KEY
    monkeypatch.setenv("BUILD_TEST_KEY", key)
    with scripted(in_turn(Reply(reply))) as server:
        asked = endpoint(server.url, tmp_path, api_key_env="BUILD_TEST_KEY")
        assert ask(asked) == expected
        assert server.seen[0].headers["authorization"] == f"Bearer {key}"
        again = endpoint(server.url, tmp_path, api_key_env="BUILD_TEST_KEY")
        assert ask(again) == expected
    used = {"tokens_in": expected.tokens_in, "tokens_out": expected.tokens_out, "estimated": int(expected.estimated)}
    assert asdict(asked.usage) == {"replies": 1, "asked": 1, **used}
    assert asdict(again.usage) == {"replies": 1, "asked": 0, **used}
    assert not [path for path in tmp_path.rglob("*") if path.is_file() and KEY in path.read_text()]


def test_estimates_count_text_and_images() -> None:
    # 8 characters make 2 tokens, 56 x 28 pixels 2 more.
    assert estimate_in(["abcd", "efgh"], [(56, 28)]) == 4


def test_the_same_question_at_a_time_is_sent_and_counted_once(tmp_path: Path) -> None:
    with scripted(in_turn(FINE)) as server:
        asked = endpoint(server.url, tmp_path)

        async def together(entered: Endpoint) -> list[Answer]:
            return list(await asyncio.gather(*(entered.ask(turn("same")) for _ in range(5))))

        assert len(run(asked, together)) == 5
        assert len(server.seen) == 1
    assert asked.usage == Usage(replies=1, asked=1, tokens_in=11, tokens_out=7)


@pytest.mark.parametrize("concurrency", [1, 3])
def test_no_more_than_allowed_are_under_way(tmp_path: Path, concurrency: int) -> None:
    lock = threading.Lock()
    full = threading.Event()
    now = most = 0

    def script(_: Seen) -> Reply:
        nonlocal now, most
        with lock:
            now += 1
            most = max(most, now)
            if now == concurrency:
                full.set()
        assert full.wait(120)
        with lock:
            now -= 1
        return FINE

    async def all_of_them(entered: Endpoint) -> None:
        await asyncio.gather(*(entered.ask(turn(str(number))) for number in range(8)))

    with scripted(script) as server:
        run(endpoint(server.url, tmp_path, concurrency=concurrency), all_of_them)
    assert most == concurrency


def test_a_token_bucket_keeps_the_pace() -> None:
    now = [100.0]
    waits: list[float] = []

    async def sleep(seconds: float) -> None:
        waits.append(seconds)
        now[0] += seconds

    async def take(bucket: TokenBucket, count: int) -> None:
        for _ in range(count):
            await bucket.take()

    # 30 a minute: 2 s apart; the first is free.
    steady = TokenBucket(30, clock=lambda: now[0], sleep=sleep)
    asyncio.run(take(steady, 3))
    assert waits == [2.0, 2.0]
    waits.clear()
    now[0] += 60  # time without requests saves up nothing but the burst: here 3 at once
    saving = TokenBucket(30, burst=3, clock=lambda: now[0], sleep=sleep)
    asyncio.run(take(saving, 1))
    now[0] += 60
    asyncio.run(take(saving, 4))
    assert waits == [2.0]


def test_the_rate_counts_tries_and_is_shared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    taken: list[float] = []

    async def take(bucket: TokenBucket) -> None:
        taken.append(bucket._seconds_a_turn)

    monkeypatch.setattr(TokenBucket, "take", take)
    with scripted(in_turn(Reply({}, status=503), FINE)) as server:
        ask(endpoint(server.url, tmp_path, requests_per_minute=60, share=0.25))
    assert taken == [4.0, 4.0]


@pytest.mark.parametrize(
    ("reply", "error", "said"),
    [
        (Reply({"error": "content filter"}, status=400), RefusedError, "HTTP 400: content filter"),
        (Reply({}, status=503), UnansweredError, "HTTP 503"),
        (Reply({"error": {"message": "provider"}}), UnansweredError, "not in the form of a chat completion"),
        (Reply({"choices": []}), UnansweredError, "not in the form"),
        (Reply({"choices": [{"message": "?"}]}), UnansweredError, "not in the form"),
        (Reply(b'{"a": "' + b"x" * MAX_REPLY_BYTES + b'"}'), RefusedError, "longer than"),
        (Reply({}, status=401), EndpointLostError, r"caption\.endpoint\.base_url .*HTTP 401.*api_key_env"),
        (Reply({}, status=404), EndpointLostError, r"HTTP 404.*usually ends in /v1"),
    ],
    ids=["refused", "unanswered", "an error as a reply", "no choice", "odd choice", "huge", "no key", "no such path"],
)
def test_what_goes_wrong(tmp_path: Path, reply: Reply, error: type[Exception], said: str) -> None:
    with scripted(in_turn(reply)) as server:
        with pytest.raises(error, match=said):
            ask(endpoint(server.url, tmp_path))
        tried = len(server.seen)
        # Nothing of it is kept: the next run asks anew.
        server.script = in_turn(FINE)
        assert ask(endpoint(server.url, tmp_path)).text == "fine"
        assert len(server.seen) == tried + 1


def test_a_request_that_cannot_be_made_is_not_the_servers_fault(tmp_path: Path) -> None:
    def broken() -> str:
        raise ValueError("truncated")

    with scripted(in_turn(FINE)) as server:
        asked = endpoint(server.url, tmp_path, max_refusals=1)
        with pytest.raises(UnmadeError, match="the request could not be made: truncated"):
            ask(asked, pictures=[Picture("a", (1, 1), broken)])
        assert not server.seen


def test_what_one_request_is_told_to_wait_all_wait(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Two are sent at a time; the first is told to wait 7 s, and the third may not go out before.
    sleeps: list[float] = []
    sleep = asyncio.sleep

    async def passing(seconds: float) -> None:
        sleeps.append(seconds)
        now[0] += seconds
        await sleep(0)

    now = [0.0]
    monkeypatch.setattr("lit_vlaa.endpoints.completions.monotonic", lambda: now[0])
    monkeypatch.setattr("lit_vlaa.endpoints.completions.asyncio.sleep", passing)
    busy = Reply({"error": "slow down"}, status=429, headers={"Retry-After": "7"})
    with scripted(in_turn(busy, FINE)) as server:
        asked = endpoint(server.url, tmp_path, concurrency=1, retries=0)

        async def both(entered: Endpoint) -> list[object]:
            calls = (entered.ask(turn(text)) for text in ("one", "two"))
            return list(await asyncio.gather(*calls, return_exceptions=True))

        first, second = run(asked, both)
    assert isinstance(first, UnansweredError)
    assert isinstance(second, Answer)
    assert sleeps == [7.0]
    assert "HTTP 429: slow down" in asked._trouble


def test_a_reply_that_was_broken_off_is_asked_for_again(tmp_path: Path) -> None:
    for broken in (completion("fi", finish="abort"), {"error": "overloaded"}):
        with scripted(in_turn(Reply(broken), FINE)) as server:
            asked = endpoint(server.url, tmp_path / str(len(broken)))
            assert ask(asked).text == "fine"
            assert len(server.seen) == 2
        assert asked.usage == Usage(replies=1, asked=1, tokens_in=11, tokens_out=7)


def test_a_disk_that_keeps_nothing_ends_the_spending(tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("a file where the folder should be")
    with scripted(in_turn(FINE)) as server:
        with pytest.raises(EndpointLostError, match=rf"replies cannot be kept in {tmp_path / 'cache'}: "):
            ask(endpoint(server.url, tmp_path / "cache"))
        assert len(server.seen) == 1


def test_a_server_that_is_gone_is_lost(tmp_path: Path) -> None:
    with closed_port() as port, pytest.raises(EndpointLostError, match=r"cannot connect.*is the server running"):
        ask(endpoint(f"http://127.0.0.1:{port}", tmp_path))


def test_a_broken_entry_counts_as_absent(tmp_path: Path) -> None:
    with scripted(in_turn(FINE)) as server:
        ask(endpoint(server.url, tmp_path))
        (path,) = tmp_path.rglob("*.json")
        entry = json.loads(path.read_text())
        fields = json.loads(entry["reply"])
        odd = (
            {"text": 1},
            {"finish": 1},
            {"tokens_in": "7"},
            {"tokens_out": -1},
            {"estimated": 0},
            {"finish": "abort"},
        )
        replies = ['{"text": 1', *(json.dumps(fields | change) for change in odd)]
        for broken in ("", "{", *(json.dumps({**entry, "reply": reply}) for reply in replies)):
            path.write_text(broken)
            assert ask(endpoint(server.url, tmp_path)).text == "fine"
        assert len(server.seen) == 1 + 2 + 7


def test_leaving_early_cancels_what_is_under_way(tmp_path: Path) -> None:
    release = threading.Event()

    def script(_: Seen) -> Reply:
        release.wait(120)
        return FINE

    async def leave(entered: Endpoint) -> None:
        waiting = asyncio.create_task(entered.ask(turn("slow")))
        while not server.seen:
            await asyncio.sleep(0.01)
        waiting.cancel()

    server: ScriptedServer
    with scripted(script) as server:
        run(endpoint(server.url, tmp_path), leave)
        release.set()
    assert not list(tmp_path.rglob("*.json"))
