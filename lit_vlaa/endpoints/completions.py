"""Chat completions from one endpoint: each asked once, kept on disk, counted, under a rate limit.

A reply is a function of what is asked (model, messages, images by the digest of their bytes, sampling) and not of the
address. One that has arrived is on disk before anything is made of it, so a run that was killed repeats no call that
was answered.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass
from time import monotonic
from typing import Any

from lit_vlaa.endpoints.breaker import Breaker, End
from lit_vlaa.endpoints.rate_limit import TokenBucket
from lit_vlaa.endpoints.replies import Picture, Reply, from_disk, read_reply
from lit_vlaa.endpoints.reply_cache import ReplyCache
from lit_vlaa.endpoints.settings import EndpointConfig
from lit_vlaa.endpoints.text import harmless
from lit_vlaa.rewards.scorers.chat import PATH, trouble
from lit_vlaa.rewards.scorers.client import LONGEST_WAIT_S, Session
from lit_vlaa.rewards.scorers.wire import RequestError

_LOST_AT = frozenset({*range(300, 400), 401, 402, 404, 405, 407})
"""Statuses that no other request would fare better with: moved elsewhere, no key, no money, no such path or method.
403 is none of them, as moderators give it for one request; after `max_refusals` of it the endpoint is lost too."""
_MOVED = "; it sends requests on, which is not followed: give the final address"
_FORMAT = 1


class EndpointLostError(Exception):
    """The endpoint cannot answer anything now, or not to any use; the message says why and what to do."""


class UnansweredError(Exception):
    """One request without a reply though it was repeated; it may have one later."""


class RefusedError(Exception):
    """One request that the server will not answer as it is."""


class UnmadeError(RefusedError):
    """One request that could not be made, such as of a broken image; nothing was sent."""


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

    @classmethod
    def of(cls, counted: Mapping[str, Sequence[int]], *, asked: int) -> Usage:
        """Sums up.

        Args:
            counted: Tokens in, tokens out and whether they are estimates, by question.
            asked: How many were sent.
        """
        sums = [sum(count) for count in zip(*counted.values(), strict=True)] or [0, 0, 0]
        return cls(len(counted), asked, *sums)


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
        self.counted: dict[str, tuple[int, int, bool]] = {}
        """Tokens in and out of each reply, and whether they are estimates, by a digest of the question."""
        rate = config.requests_per_minute
        self._bucket = None if rate is None else TokenBucket(rate * share, burst=rate * share / 60)
        self._breaker = Breaker(self.client.give_up_after_s + config.timeout_s)
        self._asked = 0
        self._refused = 0
        """Refusals since the last reply."""
        self._quiet_until = 0.0
        """When the server takes requests again, on the clock of `monotonic`."""
        self._trouble = ""
        """How the last try that failed did."""
        self._under_way: dict[str, asyncio.Task[Reply]] = {}
        self._on_wire: set[asyncio.Task[Any] | None] = set()
        """Those under way of which a try has been sent and not answered yet."""
        self._draining = False
        self._session: Session
        self._slots: asyncio.Semaphore

    @property
    def usage(self) -> Usage:
        """Of all that was asked so far."""
        return Usage.of(self.counted, asked=self._asked)

    @asynccontextmanager
    async def open(self) -> AsyncIterator[Endpoint]:
        """Connections for the time of a step.

        Raises:
            ValueError: If the key is missing.
        """
        self._slots = asyncio.Semaphore(self.config.concurrency)
        async with self.client.session(self._before_try, self._after_failure) as self._session:
            try:
                yield self
            finally:
                left = list(self._under_way.values())
                for task in left:
                    task.cancel()
                await asyncio.gather(*left, return_exceptions=True)

    async def drain(self) -> int:
        """Sends nothing more and waits for replies to what has been sent, so that they are on disk.

        Returns:
            How many there were to wait for.
        """
        self._draining = True
        sent = [task for task in self._under_way.values() if task in self._on_wire]
        for task in self._under_way.values():
            if task not in self._on_wire:
                task.cancel()
        await asyncio.gather(*sent, return_exceptions=True)
        return len(sent)

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
        self.counted[name[:32]] = reply.tokens_in, reply.tokens_out, reply.estimated
        return reply

    async def _find(
        self, question: Mapping[str, Any], turns: list[dict[str, str]], pictures: Sequence[Picture]
    ) -> Reply:
        async with self._slots:
            kept = await asyncio.to_thread(self.cache.get, question)
            if kept is not None and (reply := from_disk(kept)) is not None and not reply.broken_off:
                # Without this a build that goes on would take all that was refused before for a row of refusals.
                self._refused = 0
                return reply
            for attempt in range(self.config.retries + 1):
                raw = await self._send(turns, pictures)
                found = read_reply(raw, self.client.key(), turns, pictures)
                if found is not None and not found.broken_off:
                    break
                if attempt < self.config.retries and not self._draining:
                    await asyncio.sleep(self.client.pause(attempt, 0.0))
            else:
                why = "the reply is not in the form of a chat completion"
                raise UnansweredError(why if found is None else f"the server broke its reply off ({found.finish})")
            self._asked += 1
            self._refused = 0
            # Before anything else can happen: not even a cancelled step loses what was paid for.
            self.cache.put(question, json.dumps(asdict(found)))
            if self.cache.trouble:
                raise EndpointLostError(f"replies cannot be kept in {self.cache.folder}: {self.cache.trouble}")
            return found

    async def _send(self, turns: list[dict[str, str]], pictures: Sequence[Picture]) -> dict[str, Any]:
        turn = self._breaker.admit()
        where = f"{self.client.option} {self.client.url}"
        if turn is None or turn.probe:
            if turn is not None:
                self._breaker.release(turn, "abandoned")
            raise EndpointLostError(f"{where}: the server has stopped answering (last: {self._trouble or 'silence'})")
        end: End = "abandoned"
        try:
            reply = await self._session.persist("POST", PATH, lambda: self._body(turns, pictures))
            end = "reply"
        except RequestError as error:
            if error.status is None and not error.retry:
                raise UnmadeError(str(error)) from error
            end = "unreachable" if not error.connected else "failure" if error.retry else "refusal"
            if not error.connected or error.status in _LOST_AT:
                hint = _MOVED if error.status is not None and error.status < 400 else ""
                raise EndpointLostError(trouble(self.client, error, hint)) from error
            if error.retry:
                raise UnansweredError(str(error)) from error
            self._refused += 1
            if self._refused >= self.config.max_refusals:
                raise EndpointLostError(
                    f"{self._refused} refusals in a row, the last: {trouble(self.client, error)}; set the server or "
                    f"the options right, or allow for more by {self.client.prefix}.max_refusals"
                ) from error
            raise RefusedError(str(error)) from error
        else:
            return reply
        finally:
            self._on_wire.discard(asyncio.current_task())
            self._breaker.release(turn, end)

    async def _before_try(self) -> None:
        if self._draining:
            raise asyncio.CancelledError
        while (left := self._quiet_until - monotonic()) > 0:
            await asyncio.sleep(left)
        if self._bucket is not None:
            await self._bucket.take()
        self._on_wire.add(asyncio.current_task())

    def _after_failure(self, error: RequestError) -> None:
        self._on_wire.discard(asyncio.current_task())
        self._trouble = str(error)
        # What a server asks one request to wait, it means for all of this key.
        self._quiet_until = max(self._quiet_until, monotonic() + min(error.retry_after, LONGEST_WAIT_S))
        if self._draining:
            raise asyncio.CancelledError

    def _body(self, turns: list[dict[str, str]], pictures: Sequence[Picture]) -> dict[str, Any]:
        """The JSON of one request."""
        messages: list[dict[str, Any]] = [dict(turn) for turn in turns]
        if pictures:
            parts: list[dict[str, Any]] = [
                {"type": "image_url", "image_url": {"url": picture.data_uri()}} for picture in pictures
            ]
            messages[-1]["content"] = [*parts, {"type": "text", "text": messages[-1]["content"]}]
        return {**self.config.sampling(), "messages": messages}
