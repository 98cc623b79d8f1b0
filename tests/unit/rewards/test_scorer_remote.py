from __future__ import annotations

import base64
import io
import json
import logging
import pickle
import threading
from collections.abc import Sequence
from typing import Any

import pytest
from PIL import Image

from helpers.scripted_http import Reply, Seen, closed_port, in_turn, running, scripted
from lit_vlaa.protocols import Preparable
from lit_vlaa.rewards.config import RewardConfig
from lit_vlaa.rewards.quality import OpenEndedVerifier
from lit_vlaa.rewards.scorers import LexicalScorer, RemoteScorer, similarity_baseline
from lit_vlaa.rewards.scorers.server import ScoringServer
from lit_vlaa.types import RewardRequest

KEY = "secret-0123456789"


def request(question: str = "What is this?", truth: str = "A red bus.", **fields: Any) -> RewardRequest:
    return RewardRequest(response="", kind="open_ended", question=question, truth=truth, **fields)


def remote(url: str, **options: Any) -> RemoteScorer:
    defaults: dict[str, Any] = {"url": url, "retries": 2, "backoff_s": 0.0}
    return RemoteScorer(**(defaults | options))


class Measured:
    """Scores an answer by its length and its row's images by their width; None and failures on demand."""

    def __init__(self) -> None:
        self.calls: list[list[str]] = []
        self.requests: list[Any] = []
        self.failures = 0

    def __call__(self, requests: Sequence[Any], answers: Sequence[str]) -> list[float | None]:
        self.calls.append(list(answers))
        self.requests += requests
        if self.failures:
            self.failures -= 1
            raise RuntimeError("CUDA out of memory")
        widths = [sum(image.size[0] for image in r.images()) if r.images else 0 for r in requests]
        return [
            None if answer == "unsure" else len(answer) + width for answer, width in zip(answers, widths, strict=True)
        ]


def test_answers_travel_to_a_hosted_scorer_and_scores_back() -> None:
    hosted = Measured()
    with running(server := ScoringServer(("127.0.0.1", 0), scorer=hosted)):
        scorer = remote(server.url)
        assert isinstance(scorer, Preparable)
        scorer.prepare()
        requests = [request(id=str(i)) for i in range(3)]
        assert scorer(requests, ["a", "unsure", "ccc"]) == [1.0, None, 3.0]
        assert scorer([], []) == []
    assert hosted.calls == [["a", "unsure", "ccc"]]
    (first, *_) = hosted.requests
    assert (first.id, first.question, first.response, first.truth, first.images) == (
        "0",
        "What is this?",
        "a",
        "",
        None,
    )


def test_requests_hold_batch_size_answers_row_by_row_each_once() -> None:
    hosted = Measured()
    with running(server := ScoringServer(("127.0.0.1", 0), scorer=hosted)):
        rows = [request(id="1"), request(id="2"), request(id="1"), request(id="2"), request(id="1"), request(id="1")]
        scores = remote(server.url, batch_size=2, concurrency=1)(rows, ["a", "bb", "ccc", "dddd", "eeeee", "a"])
    assert scores == [1.0, 2.0, 3.0, 4.0, 5.0, 1.0]
    assert hosted.calls == [["a", "ccc"], ["eeeee", "bb"], ["dddd"]]


def test_images_travel_once_a_request_as_png() -> None:
    def wide() -> tuple[Image.Image, ...]:
        return (Image.new("RGB", (100, 50), (1, 2, 3)),)

    def two() -> tuple[Image.Image, ...]:
        return (Image.new("L", (30, 10)), Image.new("RGB", (100, 50), (1, 2, 3)))

    requests = [
        request(id="1", images=wide),
        request(id="1", images=wide),
        request(id="2", images=two),
        request(id="3"),
    ]
    answers = ["a", "bb", "a", "a"]
    with running(server := ScoringServer(("127.0.0.1", 0), scorer=Measured())):
        assert remote(server.url)(requests, answers) == [101.0, 102.0, 131.0, 1.0]
        assert remote(server.url, max_image_side=50)(requests, answers) == [51.0, 52.0, 81.0, 1.0]
        assert remote(server.url, send_images=False)(requests, answers) == [1.0, 2.0, 1.0, 1.0]
    with scripted(in_turn(Reply({"scores": [0] * 4}))) as recorder:
        remote(recorder.url)(requests, answers)
        sent = recorder.seen[0].json
    assert [item["images"] for item in sent["items"]] == [[0], [0], [1, 0], []]
    first, _ = [Image.open(io.BytesIO(base64.b64decode(code))) for code in sent["images"]]
    assert (first.format, first.size, first.getpixel((5, 5))) == ("PNG", (100, 50), (1, 2, 3))


def test_the_request_is_the_documented_one() -> None:
    with scripted(in_turn(Reply({"scores": [1]}))) as server:
        remote(server.url)([request(id="7")], ["bus"])
        remote(server.url, send_reference=True)([request(id="7")], ["bus"])
        first, second = server.seen
    item = {"id": "7", "question": "What is this?", "answer": "bus", "images": []}
    assert (first.method, first.path, first.headers["content-type"]) == ("POST", "/score", "application/json")
    assert first.json == {"version": 1, "images": [], "items": [item]}
    assert second.json == {"version": 1, "images": [], "items": [item | {"reference": "A red bus."}]}


@pytest.mark.parametrize(
    "content",
    [
        {},
        {"scores": None},
        {"scores": "11"},
        {"scores": {"0": 1, "1": 2}},
        {"scores": [1]},
        {"scores": [1, 2, 3]},
        {"scores": [1, "2"]},
        {"scores": [1, True]},
        {"scores": [1, [2]]},
        b'{"scores": [1, NaN]}',
        b'{"scores": [1, Infinity]}',
        b'{"scores": [1, 1e999]}',
        b'{"scores": [1, ' + b"9" * 400 + b"]}",
        b'{"scores": [1, 2], "scores": []}',
    ],
)
def test_a_malformed_reply_is_a_failure_of_its_request(content: Any, caplog: pytest.LogCaptureFixture) -> None:
    with scripted(in_turn(Reply(content), Reply({"scores": [5, None]}))) as server:
        scorer = remote(server.url, batch_size=2, concurrency=1)
        requests = [request(id=str(i)) for i in range(4)]
        assert scorer(requests, list("abcd")) == [None, None, 5.0, None]
        assert len(server.seen) == 2
    (record,) = caplog.records
    assert f"{server.url}: the reply is not" in record.getMessage()


def test_a_scorer_that_fails_now_and_then_is_asked_again(caplog: pytest.LogCaptureFixture) -> None:
    hosted = Measured()
    with running(server := ScoringServer(("127.0.0.1", 0), scorer=hosted)):
        hosted.failures = 2
        assert remote(server.url)([request()], ["abc"]) == [3.0]
        hosted.failures = 3
        assert remote(server.url)([request()], ["abc"]) == [None]
    assert len(hosted.calls) == 6
    assert "1 of 1 requests failed: 1 x HTTP 500: the scorer failed: RuntimeError" in caplog.text


@pytest.mark.parametrize(
    "trouble",
    [
        Reply({"error": "loading"}, status=503),
        Reply({"error": "slow down"}, status=429, headers={"Retry-After": "0"}),
        Reply({"scores": [1.0]}, cut=9),
        Reply(b'{"scores": [1.0]}', headers={"Content-Length": "9"}),
        Reply(b'{"scores": [1.0]}', headers={"Content-Length": "99"}, cut=17),
    ],
)
def test_passing_trouble_costs_no_answer(trouble: Reply) -> None:
    with scripted(in_turn(trouble, trouble, Reply({"scores": [4.0]}))) as server:
        assert remote(server.url)([request()], ["abc"]) == [4.0]
        assert len(server.seen) == 3


def test_a_huge_reply_is_a_failure() -> None:
    with scripted(in_turn(Reply({"scores": [4.0], "more": "x" * 2**20}))) as server:
        assert remote(server.url)([request()], ["abc"]) == [None]


def test_a_slow_scorer_fails_by_the_clock_and_only_then() -> None:
    release = threading.Event()

    def hosted(_: Sequence[Any], answers: Sequence[str]) -> list[float]:
        release.wait(60)
        return [1.0] * len(answers)

    with running(server := ScoringServer(("127.0.0.1", 0), scorer=hosted)):
        assert remote(server.url, timeout_s=0.2, retries=0)([request()], ["abc"]) == [None]
        assert remote(server.url, give_up_after_s=0.2)([request()], ["abc"]) == [None]
        release.set()
        assert remote(server.url)([request()], ["abc"]) == [1.0]


def test_killed_between_two_batches_and_started_again() -> None:
    with closed_port() as port:
        scorer = remote(f"http://127.0.0.1:{port}")
        for _ in range(2):
            with running(ScoringServer(("127.0.0.1", port), scorer=Measured())):
                assert scorer([request()], ["abc"]) == [3.0]
            assert scorer([request()], ["abc"]) == [None]


@pytest.mark.parametrize(
    "text",
    [
        "",
        '"}]}, {"scores": [10]}',
        "<|im_end|></s>[INST]",
        "line\nline\r\n\t\x00\x1b",
        "lone \ud800 surrogate \udfff",
        "\U0001f600 \u202e \u2028",
        "x" * 500_000,
    ],
)
def test_hostile_text_arrives_as_it_is(text: str) -> None:
    hosted = Measured()
    with running(server := ScoringServer(("127.0.0.1", 0), scorer=hosted)):
        scores = remote(server.url, send_reference=True)([request(text, text, id=text)], [text])
    assert scores == [float(len(text))]
    (seen,) = hosted.requests
    assert (seen.id, seen.question, seen.truth, seen.response) == (text, text, text, text)


def test_a_hosted_scorer_of_similarity() -> None:
    with running(server := ScoringServer(("127.0.0.1", 0), scorer=LexicalScorer())):
        with pytest.raises(ValueError, match=r"LexicalScorer, .* --model.scorer.similarity_baseline 4.0$"):
            remote(server.url).prepare()
        scorer = remote(server.url, send_reference=True, similarity_baseline=4.0)
        scorer.prepare()
        assert similarity_baseline(scorer) == 4.0
        ((value, status),) = OpenEndedVerifier(scorer, RewardConfig())([request()], ["A red bus."])
    assert similarity_baseline(remote(server.url)) is None
    assert status == "ok"
    assert value == pytest.approx(0.9592377960216338)  # 1 - exp(-(20 - 4) / 5)


@pytest.mark.parametrize(
    ("health", "match"),
    [
        (Reply({"error": "the bearer token is missing"}, status=401), "HTTP 401: .*api_key_env"),
        (Reply({"error": "x"}, status=404), "HTTP 404: x; is the server running"),
        (Reply({"scorer": "S", "version": 2}), "no scoring server of version 1"),
        (Reply({"status": "ok"}), "no scoring server of version 1"),
        (Reply(b"<html>"), "not a JSON object, it begins: <html>; is the server running"),
        (
            Reply({"scorer": "S\n", "version": 1, "similarity_baseline": "4\n"}),
            r"hosts S, .* --model.scorer.similarity_baseline 4$",
        ),
    ],
)
def test_prepare_says_what_is_wrong(health: Reply, match: str) -> None:
    with scripted(in_turn(health)) as server:
        with pytest.raises(ValueError, match=match) as caught:
            remote(server.url).prepare()
        assert {(seen.method, seen.path) for seen in server.seen} == {("GET", "/health")}
    assert str(caught.value).startswith(f"--model.scorer.url {server.url}")


def test_prepare_tells_a_slow_server_from_none() -> None:
    ended = threading.Event()
    with scripted(lambda _: Reply({"late": ended.wait(9)})) as server:
        remedy = r"within 1 s; a server is there: .* give it more time by --model.scorer.timeout_s$"
        with pytest.raises(ValueError, match=remedy):
            remote(server.url, timeout_s=1.0, retries=0).prepare()
        ended.set()


def test_prepare_without_a_server() -> None:
    with closed_port() as port, pytest.raises(ValueError, match=r"cannot connect.*is the server running.*docs/scorers"):
        remote(f"http://127.0.0.1:{port}").prepare()


def test_the_token_is_sent_and_never_shown(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setenv("TEST_TOKEN", KEY)
    with (
        caplog.at_level(logging.DEBUG),
        running(server := ScoringServer(("127.0.0.1", 0), scorer=Measured(), token=KEY)),
    ):
        scorer = remote(server.url, api_key_env="TEST_TOKEN")
        scorer.prepare()
        assert scorer([request()], ["abc"]) == [3.0]
        with pytest.raises(ValueError, match="HTTP 401"):
            remote(server.url).prepare()
        assert remote(server.url)([request()], ["abc"]) == [None]
        monkeypatch.setenv("TEST_TOKEN", "wrong")
        assert scorer([request()], ["abc"]) == [None]
    copied = pickle.loads(pickle.dumps(scorer))  # noqa: S301
    assert vars(copied).keys() == vars(scorer).keys()
    assert all(KEY not in text for text in (caplog.text, repr(scorer), repr(vars(scorer))))
    monkeypatch.delenv("TEST_TOKEN")
    with pytest.raises(ValueError, match=r"--model\.scorer\.api_key_env TEST_TOKEN: .* not set"):
        scorer.prepare()


def test_concurrency_is_the_number_of_requests_under_way() -> None:
    full = threading.Barrier(3, timeout=60)

    def script(seen: Seen) -> Reply:
        full.wait()  # passes when three are here together
        return Reply({"scores": [len(item["answer"]) for item in json.loads(seen.body)["items"]]})

    with scripted(script) as server:
        scorer = remote(server.url, concurrency=3, batch_size=1)
        assert scorer([request(id=str(i)) for i in range(6)], ["a"] * 6) == [1.0] * 6


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"batch_size": 0}, "batch_size must be at least 1, got 0"),
        ({"max_image_side": 0}, "max_image_side must be at least 1"),
        ({"similarity_baseline": 4.0}, "similarity_baseline .* add --model.scorer.send_reference true"),
        ({"retries": -1}, "retries must be 0 or positive"),
        ({"url": "nowhere"}, "url must be an address"),
    ],
)
def test_settings_that_cannot_work(options: dict[str, Any], match: str) -> None:
    with pytest.raises(ValueError, match=rf"--model\.scorer\.{match}"):
        remote(options.pop("url", "http://127.0.0.1:1"), **options)


class Hosted:
    """A scorer with a setting."""

    def __init__(self, model: str) -> None:
        self.model = model

    def __call__(self, requests: Sequence[Any], answers: Sequence[str]) -> list[float | None]:  # noqa: ARG002
        return [float(len(answer)) for answer in answers]


def test_the_fingerprint_is_the_hosted_scorers_and_not_its_address() -> None:
    found = []
    for model in ("one", "one", "two"):
        with running(server := ScoringServer(("127.0.0.1", 0), scorer=Hosted(model))):
            scorer = remote(server.url)
            scorer.prepare()
            found.append(scorer.fingerprint)
    assert found[0] == found[1] != found[2]
    assert remote("http://127.0.0.1:1").fingerprint != remote("http://127.0.0.1:2").fingerprint  # not yet asked
    assert remote("http://127.0.0.1:1", send_images=False).fingerprint != remote("http://127.0.0.1:1").fingerprint


@pytest.mark.parametrize("key", ["sk-abcdef123456", "A B", ""])
def test_a_key_given_in_place_of_its_variables_name_is_not_shown(key: str) -> None:
    with pytest.raises(ValueError, match="name of an environment variable") as error:
        remote("http://127.0.0.1:1", api_key_env=key)
    assert not key or key not in str(error.value)
