"""Chat completions from one endpoint: each asked once, kept on disk, counted, under a rate limit.

A reply is a function of what is asked (model, messages, images by the digest of their bytes, sampling) and not of the
address. One that has arrived is on disk before anything is made of it, so a run that was killed repeats no call that
was answered.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import math
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass
from typing import Any

from lit_vlaa.endpoints.breaker import Breaker, End
from lit_vlaa.endpoints.rate_limit import TokenBucket
from lit_vlaa.endpoints.reply_cache import ReplyCache
from lit_vlaa.endpoints.text import harmless
from lit_vlaa.rewards.scorers.chat import OWN_FIELDS, PATH, trouble
from lit_vlaa.rewards.scorers.client import JsonClient, Session
from lit_vlaa.rewards.scorers.wire import RequestError, printable

CHARS_A_TOKEN = 4.0
"""Of English prose, for estimates where a server does not count."""
PIXELS_A_TOKEN = 28 * 28
"""Of an image in the Qwen family, for the same estimates."""

_LOST_AT = frozenset({401, 403, 404})
_FORMAT = 1


class EndpointLostError(Exception):
    """The endpoint cannot answer anything now; the message says why and what to do."""


class UnansweredError(Exception):
    """One request without a reply though it was repeated; it may have one later."""


class RefusedError(Exception):
    """One request that the server will not answer as it is."""


@dataclass(frozen=True, kw_only=True)
class EndpointConfig:
    """A model behind an OpenAI-compatible server."""

    base_url: str
    """The server's address with its version, such as `http://127.0.0.1:8000/v1`."""
    model: str
    """The model's name at the server."""
    api_key_env: str | None = None
    """Environment variable with the key; null for none."""
    max_tokens: int | None = 4096
    """Most tokens of a reply; null leaves the field out."""
    temperature: float | None = 0.0
    """Of the sampling; null leaves the field out."""
    extra_body: dict[str, Any] | None = None
    """More fields of each request, as the server defines them."""
    concurrency: int = 16
    """Requests under way at a time."""
    requests_per_minute: float | None = None
    """Most tries a minute, of all shards together; null for no limit."""
    timeout_s: float = 300.0
    """Seconds for one try of one request."""
    retries: int = 4
    """Tries after the first one."""
    backoff_s: float = 1.0
    """Seconds before the first repetition; they double from one to the next, up to a minute."""
    price_in: float | None = None
    """Price of a million tokens sent; null where there is none."""
    price_out: float | None = None
    """Price of a million tokens received, those of the reasoning included."""

    def __post_init__(self) -> None:
        for ok, name, wanted in (
            (bool(self.model.strip()), "model", "the name of a model at the server"),
            (self.max_tokens is None or self.max_tokens >= 1, "max_tokens", "at least 1, or null"),
            (self.temperature is None or 0 <= self.temperature <= 2, "temperature", "in [0, 2], or null"),
            (
                self.requests_per_minute is None or 0 < self.requests_per_minute < math.inf,
                "requests_per_minute",
                "positive, or null",
            ),
            (self.price_in is None or 0 <= self.price_in < math.inf, "price_in", "0 or positive, or null"),
            (self.price_out is None or 0 <= self.price_out < math.inf, "price_out", "0 or positive, or null"),
        ):
            if not ok:
                raise ValueError(f"endpoint.{name} must be {wanted}, got {getattr(self, name)!r}")
        if own := sorted((OWN_FIELDS | {"max_tokens", "temperature"}) & set(self.extra_body or {})):
            raise ValueError(f"endpoint.extra_body must not hold {', '.join(own)}, which have options or are set here")

    def sampling(self) -> dict[str, Any]:
        """What of the settings decides a reply."""
        fields = {"max_tokens": self.max_tokens, "temperature": self.temperature}
        return {
            "model": self.model,
            **{name: value for name, value in fields.items() if value is not None},
            **(self.extra_body or {}),
        }

    def client(self, option: str) -> JsonClient:
        """Makes what sends the requests.

        Args:
            option: How users spell the place of `base_url`, for messages.

        Raises:
            ValueError: If a setting cannot work.
        """
        return JsonClient(
            url=self.base_url,
            option=option,
            api_key_env=self.api_key_env,
            concurrency=self.concurrency,
            timeout_s=self.timeout_s,
            retries=self.retries,
            backoff_s=self.backoff_s,
        )


@dataclass(frozen=True, slots=True)
class Picture:
    """An image to send."""

    digest: str
    """Of its bytes on disk and of how they are prepared; stands for it among the replies on disk."""
    size: tuple[int, int]
    """(width, height) in pixels as sent, for estimates."""
    data_uri: Callable[[], str]
    """Prepares it; called only where the request is sent."""


@dataclass(frozen=True, slots=True)
class Reply:
    """What a server answered."""

    text: str
    """Empty where it wrote nothing."""
    reasoning: str
    """A reasoning model's thinking where the server gives it in a field of its own; else empty."""
    finish: str | None
    """Why it ended there: `stop`, `length`, or another word of the server's."""
    tokens_in: int
    tokens_out: int
    estimated: bool
    """Whether the tokens are estimates, as the server did not count."""


@dataclass(slots=True)
class Usage:
    """What the replies of a step took, whenever they were asked for."""

    replies: int = 0
    asked: int = 0
    """Of them, how many were sent for now; the others were on disk."""
    tokens_in: int = 0
    tokens_out: int = 0
    estimated: int = 0
    """Replies whose tokens are estimates."""


class Endpoint:
    """Asks one server, from one event loop; see the module's docstring. Enter `open` first.

    Args:
        config: Its settings.
        option: How users spell the place of `base_url`, for messages.
        cache: Replies on disk.
        share: Part of the rate limit that this process may use.
    """

    def __init__(self, config: EndpointConfig, *, option: str, cache: ReplyCache, share: float = 1.0) -> None:
        self.config = config
        self.client = config.client(option)
        self.cache = cache
        self.usage = Usage()
        rate = config.requests_per_minute
        self._bucket = None if rate is None else TokenBucket(rate * share, burst=rate * share / 60)
        self._breaker = Breaker(self.client.give_up_after_s + config.timeout_s)
        self._under_way: dict[str, asyncio.Task[Reply]] = {}
        self._counted: set[bytes] = set()
        self._session: Session
        self._slots: asyncio.Semaphore

    @asynccontextmanager
    async def open(self) -> AsyncIterator[Endpoint]:
        """Connections for the time of a step.

        Raises:
            ValueError: If the key is missing.
        """
        self._slots = asyncio.Semaphore(self.config.concurrency)
        async with self.client.session(None if self._bucket is None else self._bucket.take) as self._session:
            try:
                yield self
            finally:
                left = list(self._under_way.values())
                for task in left:
                    task.cancel()
                await asyncio.gather(*left, return_exceptions=True)

    async def ask(
        self, messages: Sequence[Mapping[str, str]], *, pictures: Sequence[Picture] = (), attempt: int = 0
    ) -> Reply:
        """Asks one question, or finds the reply on disk. The same question asked twice at a time is sent once.

        Args:
            messages: Role and content of each turn; the text is made harmless here.
            pictures: Images for the last turn, ahead of its text.
            attempt: Tells repetitions apart that want another reply to the same question.

        Raises:
            EndpointLostError: If the endpoint cannot answer anything.
            UnansweredError: If there was no reply to this question.
            RefusedError: If there will be none.
        """
        turns = [{"role": turn["role"], "content": harmless(turn["content"])} for turn in messages]
        question = {
            "format": _FORMAT,
            "request": {**self.config.sampling(), "messages": turns},
            "images": [picture.digest for picture in pictures],
            "attempt": attempt,
        }
        name = hashlib.sha256(json.dumps(question, sort_keys=True).encode()).hexdigest()
        task = self._under_way.get(name)
        if task is None:
            task = asyncio.create_task(self._find(question, turns, pictures))
            self._under_way[name] = task
            task.add_done_callback(lambda _: self._under_way.pop(name, None))
        reply = await asyncio.shield(task)
        if (key := bytes.fromhex(name)) not in self._counted:
            self._counted.add(key)
            self.usage.replies += 1
            self.usage.tokens_in += reply.tokens_in
            self.usage.tokens_out += reply.tokens_out
            self.usage.estimated += reply.estimated
        return reply

    async def _find(
        self, question: Mapping[str, Any], turns: list[dict[str, str]], pictures: Sequence[Picture]
    ) -> Reply:
        async with self._slots:
            kept = await asyncio.to_thread(self.cache.get, question)
            if kept is not None and (reply := _from_disk(kept)) is not None:
                return reply
            raw = await self._send(turns, pictures)
            reply = _read(raw, self.client.key(), turns, pictures)
            if reply is None:
                raise UnansweredError("the reply is not in the form of a chat completion")
            self.usage.asked += 1
            # Before anything else can happen: not even a cancelled step loses what was paid for.
            self.cache.put(question, json.dumps(asdict(reply)))
            return reply

    async def _send(self, turns: list[dict[str, str]], pictures: Sequence[Picture]) -> dict[str, Any]:
        turn = self._breaker.admit()
        if turn is None or turn.probe:
            if turn is not None:
                self._breaker.release(turn, "abandoned")
            raise EndpointLostError(f"{self.client.option} {self.client.url}: the server has stopped answering")
        end: End = "abandoned"
        try:
            reply = await self._session.persist("POST", PATH, lambda: self._body(turns, pictures))
            end = "reply"
        except RequestError as error:
            end = "unreachable" if not error.connected else "failure" if error.retry else "refusal"
            if not error.connected or error.status in _LOST_AT:
                raise EndpointLostError(trouble(self.client, error)) from error
            raise (UnansweredError if error.retry else RefusedError)(str(error)) from error
        else:
            return reply
        finally:
            self._breaker.release(turn, end)

    def _body(self, turns: list[dict[str, str]], pictures: Sequence[Picture]) -> dict[str, Any]:
        """The JSON of one request."""
        messages: list[dict[str, Any]] = [dict(turn) for turn in turns]
        if pictures:
            parts: list[dict[str, Any]] = [
                {"type": "image_url", "image_url": {"url": picture.data_uri()}} for picture in pictures
            ]
            messages[-1]["content"] = [*parts, {"type": "text", "text": messages[-1]["content"]}]
        return {**self.config.sampling(), "messages": messages}


def estimate_in(texts: Sequence[str], sizes: Sequence[tuple[int, int]]) -> int:
    """Tokens of a request, where nobody counted them.

    Args:
        texts: Its turns.
        sizes: (width, height) in pixels of its images.
    """
    text = sum(map(len, texts)) / CHARS_A_TOKEN
    return round(text + sum(width * height for width, height in sizes) / PIXELS_A_TOKEN)


def _read(
    raw: Mapping[str, Any], key: str | None, turns: Sequence[Mapping[str, str]], pictures: Sequence[Picture]
) -> Reply | None:
    """Takes a server's reply apart, without the key should the server repeat it; None if it is no chat completion."""
    try:
        (choice,) = raw["choices"]
        message, finish = choice["message"], choice.get("finish_reason")
        fields = [message.get(name) for name in ("content", "reasoning_content", "reasoning")]
    except (KeyError, TypeError, ValueError, AttributeError):
        return None
    text, reasoning, other = (_clean(field, key) for field in fields)
    reasoning = reasoning or other
    usage = raw.get("usage")
    counts = [usage.get(name) if isinstance(usage, dict) else None for name in ("prompt_tokens", "completion_tokens")]
    counted = [count for count in counts if isinstance(count, int) and not isinstance(count, bool) and count >= 0]
    estimated = len(counted) != 2
    if estimated:
        sent = estimate_in([turn["content"] for turn in turns], [picture.size for picture in pictures])
        counted = [sent, round((len(text) + len(reasoning)) / CHARS_A_TOKEN)]
    shown = printable(finish, key)[:40] if isinstance(finish, str) else None
    return Reply(text, reasoning, shown, min(counted[0], 2**53), min(counted[1], 2**53), estimated)


def _clean(field: object, key: str | None) -> str:
    text = field if isinstance(field, str) else ""
    text = text.encode("utf-8", "replace").decode("utf-8")
    return text.replace(key, "***") if key else text


def _from_disk(kept: str) -> Reply | None:
    try:
        return Reply(**json.loads(kept))
    except (ValueError, TypeError):
        return None
