"""JSON over HTTP for scorers: many requests at a time, in bounded time, to a server that may be slow or gone."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import json
import logging
import math
import os
import random
import ssl
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from typing import Any, TypeVar

import httpx

from lit_vlaa.event_loop import run_apart
from lit_vlaa.rewards.scorers.wire import MAX_REPLY_BYTES, RequestError, clean_url, exchange, is_loopback, printable

_log = logging.getLogger(__name__)

LONGEST_WAIT_S = 60.0
"""Between two tries, whatever the server asks for."""

_CONNECT_S = 10.0
_SHOWN_REASONS = 3

T = TypeVar("T")

Body = Callable[[], Mapping[str, Any]]
"""Makes the JSON of one request when its turn comes, in a thread of its own."""


class _ServerGoneError(Exception):
    """No request could connect for as long as one of them went on trying."""


class JsonClient:
    """Sends JSON to one server. Holds no connection between calls, so it can be pickled, copied and forked.

    Args:
        url: Address that paths are appended to.
        option: How users spell the option that gave `url`, for messages.
        api_key_env: Environment variable with the key, None for no key.
        concurrency: Requests under way at a time.
        timeout_s: Seconds for one try of one request, reply included.
        retries: Tries after the first one.
        backoff_s: Seconds before the first repetition; they double from one to the next, up to a minute.
        give_up_after_s: Seconds for a batch (`post_many`); what is open then has failed.

    Raises:
        ValueError: If a setting cannot work.
    """

    def __init__(
        self,
        *,
        url: str,
        option: str,
        api_key_env: str | None,
        concurrency: int,
        timeout_s: float,
        retries: int,
        backoff_s: float,
        give_up_after_s: float = 600.0,
    ) -> None:
        self.url = clean_url(url, option)
        self.option = option
        self.prefix = option.rpartition(".")[0]
        for ok, name, value, wanted in (
            (concurrency >= 1, "concurrency", concurrency, "at least 1"),
            (0 < timeout_s < math.inf, "timeout_s", timeout_s, "positive"),
            (retries >= 0, "retries", retries, "0 or positive"),
            (0 <= backoff_s < math.inf, "backoff_s", backoff_s, "0 or positive"),
            (0 < give_up_after_s < math.inf, "give_up_after_s", give_up_after_s, "positive"),
        ):
            if not ok:
                raise ValueError(f"{self.prefix}.{name} must be {wanted}, got {value}")
        if api_key_env is not None and not api_key_env.isidentifier():
            # Most likely the key itself, which must not be shown.
            raise ValueError(f"{self.prefix}.api_key_env must be the name of an environment variable, not a key")
        self.api_key_env = api_key_env
        self.concurrency = concurrency
        self.timeout_s = timeout_s
        self.retries = retries
        self.backoff_s = backoff_s
        self.give_up_after_s = give_up_after_s
        self._loopback = is_loopback(self.url)
        self._warned = False
        # A generator of its own: the global one belongs to the run, whose numbers must not depend on a server's moods.
        self._random = random.Random()

    def key(self) -> str | None:
        """Reads the key from the environment; it is not kept.

        Raises:
            ValueError: If the variable is named but unset, or holds what no HTTP header can.
        """
        if self.api_key_env is None:
            return None
        name = f"{self.prefix}.api_key_env {self.api_key_env}"
        key = os.environ.get(self.api_key_env, "").strip()
        if not key:
            raise ValueError(
                f"{name}: this environment variable is not set; export it, or leave the option out for a server "
                "without a key"
            )
        if not (key.isascii() and key.isprintable()) or " " in key:
            raise ValueError(f"{name}: the variable holds blanks or characters that no key has; export the key alone")
        if not self._warned and not self._loopback and self.url.startswith("http:"):
            self._warned = True
            _log.warning("the key in %s travels unencrypted to %s; use https", self.api_key_env, self.url)
        return key

    def shown(self, text: str) -> str:
        """A server's words as one short line without the key, safe to log."""
        return printable(text, os.environ.get(self.api_key_env, "").strip() if self.api_key_env else None)

    def ask(self, method: str, path: str, body: Body | None = None, *, within_s: float | None = None) -> dict[str, Any]:
        """Sends one request, with repetitions, all within `within_s` seconds if given; gives the reply's JSON object.

        Raises:
            RequestError: If there was no usable reply.
            ValueError: If the key is missing.
        """
        key = self.key()

        async def work() -> dict[str, Any]:
            try:
                async with asyncio.timeout(within_s), self._connections(key) as connections:
                    return await Session(self, connections, key).persist(method, path, body)
            except TimeoutError:
                raise RequestError(f"no reply within {within_s:g} s, all tries together", retry=True) from None

        return run_apart(work)

    def post_many(self, path: str, bodies: Sequence[Body]) -> list[dict[str, Any] | None]:
        """Sends a batch of POST requests; failures are summed up in one warning.

        Returns:
            The JSON object of each reply, None where there was no usable one.

        Raises:
            ValueError: If the key is missing.
        """
        if not bodies:
            return []
        key = self.key()
        results: list[dict[str, Any] | None] = [None] * len(bodies)
        reasons: list[str | None] = [None] * len(bodies)
        cause = f"no reply within the batch's {self.give_up_after_s:g} s"
        slots = asyncio.Semaphore(self.concurrency)

        async def one(session: Session, index: int) -> None:
            async with slots:
                contacts = session.contacts
                try:
                    results[index] = await session.persist("POST", path, bodies[index])
                except RequestError as error:
                    reasons[index] = str(error)
                    if not error.connected and session.contacts == contacts:
                        raise _ServerGoneError from None

        async def work() -> None:
            nonlocal cause
            try:
                async with (
                    asyncio.timeout(self.give_up_after_s),
                    self._connections(key) as connections,
                    asyncio.TaskGroup() as group,
                ):
                    session = Session(self, connections, key)
                    for index in range(len(bodies)):
                        group.create_task(one(session, index))
            except* _ServerGoneError:
                cause = "not sent, because the server cannot be reached"
            except* TimeoutError:
                pass

        run_apart(work)
        failed = [reasons[index] or cause for index, result in enumerate(results) if result is None]
        if failed:
            self._report(path, failed, len(bodies))
        return results

    @contextlib.asynccontextmanager
    async def session(
        self,
        before_try: Callable[[], Awaitable[None]] | None = None,
        after_failure: Callable[[RequestError], None] | None = None,
        *,
        max_reply_bytes: int = MAX_REPLY_BYTES,
    ) -> AsyncIterator[Session]:
        """Connections for any number of requests on the running event loop; the caller bounds how many at a time.

        Args:
            before_try: Awaited before each try of each request, such as for a turn under a rate limit.
            after_failure: Told of each try that failed.
            max_reply_bytes: A longer reply is a failure.

        Raises:
            ValueError: If the key is missing.
        """
        key = self.key()
        async with self._connections(key) as connections:
            yield Session(self, connections, key, before_try, after_failure, max_reply_bytes=max_reply_bytes)

    def _report(self, path: str, reasons: Sequence[str], total: int) -> None:
        common = Counter(reasons).most_common()
        parts = [f"{count} x {reason}" for reason, count in common[:_SHOWN_REASONS]]
        if len(common) > _SHOWN_REASONS:
            parts.append("and others")
        _log.warning("%s%s: %d of %d requests failed: %s", self.url, path, len(reasons), total, "; ".join(parts))

    def _connections(self, key: str | None) -> httpx.AsyncClient:
        headers = {"Accept-Encoding": "identity", "Content-Type": "application/json"}
        if key is not None:
            headers["Authorization"] = f"Bearer {key}"
        return httpx.AsyncClient(
            headers=headers,
            # Less than the limit on the whole, so that a server out of reach is known as such.
            timeout=httpx.Timeout(self.timeout_s, connect=min(0.9 * self.timeout_s, _CONNECT_S)),
            limits=httpx.Limits(max_connections=self.concurrency, max_keepalive_connections=self.concurrency),
            follow_redirects=False,
            trust_env=not self._loopback,  # a proxy cannot reach this machine's own servers
            verify=_certificates(not self._loopback),
        )

    def pause(self, attempt: int, asked: float) -> float:
        """Seconds to wait after a failed try.

        Args:
            attempt: 0 for the first try.
            asked: What the server wants at least; honoured up to a minute.
        """
        backoff = self.backoff_s * 2.0 ** min(attempt, 20) * self._random.uniform(0.5, 1.0)
        return min(max(backoff, asked), LONGEST_WAIT_S)


class Session:
    """The requests of one call, and what they know of each other."""

    def __init__(
        self,
        settings: JsonClient,
        connections: httpx.AsyncClient,
        key: str | None,
        before_try: Callable[[], Awaitable[None]] | None = None,
        after_failure: Callable[[RequestError], None] | None = None,
        *,
        max_reply_bytes: int = MAX_REPLY_BYTES,
    ) -> None:
        self.settings = settings
        self.connections = connections
        self.key = key
        self.before_try = before_try
        self.after_failure = after_failure
        self.max_reply_bytes = max_reply_bytes
        self.contacts = 0
        """How often the server gave a sign of life."""

    async def persist(self, method: str, path: str, body: Body | None) -> dict[str, Any]:
        """Repeats one request until it succeeds, cannot succeed, or no repetition is left.

        Returns:
            The JSON object of the reply.

        Raises:
            RequestError: If there was no usable reply.
        """
        settings = self.settings
        content = None if body is None else await asyncio.to_thread(_encode, body)
        for attempt in range(settings.retries + 1):
            if self.before_try is not None:
                await self.before_try()
            try:
                reply = await exchange(
                    self.connections,
                    method,
                    settings.url + path,
                    content,
                    timeout_s=settings.timeout_s,
                    secret=self.key,
                    max_reply_bytes=self.max_reply_bytes,
                )
            except RequestError as error:
                self.contacts += error.connected
                if self.after_failure is not None:
                    self.after_failure(error)
                if not error.retry or attempt == settings.retries:
                    raise
                await asyncio.sleep(settings.pause(attempt, error.retry_after))
            else:
                self.contacts += 1
                return reply
        raise AssertionError


def _encode(body: Body) -> bytes:
    try:
        return json.dumps(body(), allow_nan=False).encode()
    except Exception as error:  # a data file that cannot be read must not end the run
        _log.debug("a request could not be made", exc_info=True)
        raise RequestError(f"the request could not be made: {printable(str(error))}") from error


@functools.cache
def _certificates(trust_env: bool) -> ssl.SSLContext:
    """What to trust, as httpx would read it for every client anew, which takes longer than a short request."""
    return httpx.create_ssl_context(trust_env=trust_env)
