"""A judge behind an OpenAI-compatible endpoint, whose replies are kept on disk."""

from __future__ import annotations

import logging
import threading
from pathlib import Path
from typing import Any

from lit_vlaa.endpoints.breaker import Breaker, End
from lit_vlaa.endpoints.reply_cache import ReplyCache
from lit_vlaa.endpoints.text import harmless, without_key
from lit_vlaa.rewards.scorers.chat import OWN_FIELDS, PATH, completion, try_out
from lit_vlaa.rewards.scorers.client import JsonClient
from lit_vlaa.rewards.scorers.verdict import after_thought
from lit_vlaa.rewards.scorers.wire import RequestError

_log = logging.getLogger(__name__)

OPTION = "--trainer.callbacks.judge"
"""How users spell the place of a judge among a run's flags, for messages."""

_TRIAL = "Reply with the single word: ready"
_TOLD_REASONS = 5


class EndpointJudge:
    """Asks a chat model: vLLM, SGLang, OpenAI, or any other server with `/chat/completions`.

    A reply is a function of model, prompt, temperature, token limit and further fields, and not of the address: with
    `cache_dir` the same question is asked once, in this run and in later ones, whichever server answers. Replies of
    servers that fail are not kept. Safe to call from many threads.

    A server that cannot be reached or answers nothing but errors for as long as a call goes on trying, a few calls in
    a row, is taken for gone, and so is one that gave no reply for `give_up_after_s`: from then on one call at a time
    tries it once now and then, and all others return at once, until it is back.
    """

    def __init__(
        self,
        *,
        base_url: str,
        model: str,
        api_key_env: str | None = None,
        max_tokens: int | None = 128,
        send_temperature: bool = True,
        extra_body: dict[str, Any] | None = None,
        cache_dir: str | None = None,
        concurrency: int = 16,
        timeout_s: float = 60.0,
        retries: int = 3,
        backoff_s: float = 0.5,
        give_up_after_s: float = 600.0,
    ) -> None:
        """Checks the settings; nothing is sent.

        Args:
            base_url: The server's address with its version, such as `http://127.0.0.1:8000/v1`.
            model: The model's name at the server.
            api_key_env: Name of the environment variable that holds the key; null for a server without one.
            max_tokens: Length of a reply; 128 as in the reference, a judge that thinks needs thousands. Null leaves
                the field out of the requests, for servers that refuse it.
            send_temperature: Ask for the temperature that a benchmark wants; false for servers that refuse it.
            extra_body: More fields of each request, as the server defines them.
            cache_dir: Folder of replies, shared by processes and runs; null keeps none.
            concurrency: Requests under way at a time, on each rank.
            timeout_s: Seconds for one try of one request.
            retries: Tries after the first one.
            backoff_s: Seconds before the first repetition; they double from one to the next, up to a minute.
            give_up_after_s: Seconds of asking without a single reply, on each rank, after which the server is taken
                for gone; one question with its repetitions takes no longer either. At least `timeout_s`.

        Raises:
            ValueError: If a setting cannot work.
        """
        settings: dict[str, Any] = {
            "url": base_url,
            "option": f"{OPTION}.base_url",
            "api_key_env": api_key_env,
            "concurrency": concurrency,
            "timeout_s": timeout_s,
            "backoff_s": backoff_s,
            "give_up_after_s": give_up_after_s,
        }
        self._client = JsonClient(**settings, retries=retries)
        self._scout = JsonClient(**settings, retries=0)
        if give_up_after_s < timeout_s:
            raise ValueError(
                f"{OPTION}.give_up_after_s must be at least timeout_s, {timeout_s:g}, got {give_up_after_s:g}"
            )
        if not model.strip():
            raise ValueError(f"{OPTION}.model must be the name of a model at the server, got {model!r}")
        if max_tokens is not None and max_tokens < 1:
            raise ValueError(f"{OPTION}.max_tokens must be at least 1, got {max_tokens}")
        if own := sorted((OWN_FIELDS | {"max_tokens", "temperature"}) & set(extra_body or {})):
            raise ValueError(f"{OPTION}.extra_body must not hold {', '.join(own)}, which the judge sets itself")
        self.base_url = self._client.url
        self.model = model
        self.max_tokens = max_tokens
        self.send_temperature = send_temperature
        self.extra_body = dict(extra_body or {})
        self.concurrency = concurrency
        self.cache = None if cache_dir is None else ReplyCache(Path(cache_dir).expanduser())
        self.calls = 0
        """Questions sent to the server, answered or not; repetitions after a failure do not count."""
        self.cached = 0
        """Questions answered from the cache."""
        self.failed = 0
        """Questions without a reply."""
        self._lock = threading.Lock()
        self._slots = threading.BoundedSemaphore(concurrency)
        self._breaker = Breaker(give_up_after_s)
        self._told: set[str] = set()

    def __call__(self, prompt: str, temperature: float) -> str | None:
        """Asks one question.

        Args:
            prompt: The user's message; there is no other.
            temperature: Of the judge's sampling.

        Returns:
            What the judge wrote after its thinking, empty if it wrote nothing else; None when it could not be reached
            or refused.

        Raises:
            ValueError: If the key is missing.
        """
        request = self._request(prompt, temperature)
        key = {"request": request, "temperature": temperature}
        if self.cache is not None and (kept := self.cache.get(key)) is not None:
            with self._lock:
                self.cached += 1
            return _spoken(kept)
        reply = self._ask(request)
        if reply is None:
            with self._lock:
                self.failed += 1
            return None
        if self.cache is not None:
            self.cache.put(key, reply)
        return _spoken(reply)

    def prepare(self) -> None:
        """Finds out before an evaluation whether the judge answers and the cache can be written.

        Raises:
            ValueError: If not; the message names the option and the remedy.
        """
        if self.cache is not None:
            try:
                self.cache.prepare()
            except OSError as error:
                raise ValueError(f"{OPTION}.cache_dir {self.cache.folder} cannot be written: {error}") from error
        reply = try_out(self._client, model=self.model, body=lambda: self._request(_TRIAL, 0.0), hint=self._hint())
        text, _ = completion(reply)
        if text is None or not _spoken(text):
            raise ValueError(
                f"{OPTION}.model {self.model} replied without text to a question to try it out; raise "
                f"{OPTION}.max_tokens (a judge that thinks needs thousands) or take another"
            )
        self._breaker.reset()

    def _hint(self) -> str:
        fields = [f"{OPTION}.send_temperature false"] if self.send_temperature else []
        fields += [f"{OPTION}.max_tokens null"] if self.max_tokens is not None else []
        return f"; for a server that refuses a field give {' or '.join(fields)}" if fields else ""

    def _request(self, prompt: str, temperature: float) -> dict[str, Any]:
        """The JSON of one request."""
        body: dict[str, Any] = {"model": self.model, "messages": [{"role": "user", "content": harmless(prompt)}]}
        if self.max_tokens is not None:
            body["max_tokens"] = self.max_tokens
        if self.send_temperature:
            body["temperature"] = temperature
        return body | self.extra_body

    def _ask(self, request: dict[str, Any]) -> str | None:
        """The text of the server's reply, None without one."""
        with self._slots:
            turn = self._breaker.admit()
            if turn is None:
                return None
            end: End = "abandoned"
            try:
                with self._lock:
                    self.calls += 1
                client = self._scout if turn.probe else self._client
                text, _ = completion(client.ask("POST", PATH, lambda: request, within_s=turn.within_s))
                end = "refusal" if text is None else "reply"
            except RequestError as error:
                end = _end(error)
                self._tell(str(error))
                return None
            finally:
                self._breaker.release(turn, end)
                if self._breaker.gone:
                    self._tell("it is taken for gone; until it is back, questions are left without a reply")
        if text is None:
            self._tell("a reply that holds no text, or is not in the form of a chat completion")
            return None
        return without_key(text, self._client.key())

    def _tell(self, reason: str) -> None:
        """Warns of a reason for failure once, and of a few reasons at most."""
        with self._lock:
            if reason in self._told or len(self._told) >= _TOLD_REASONS:
                return
            self._told.add(reason)
        _log.warning("judge %s at %s: %s", self.model, self.base_url, reason)


def _end(error: RequestError) -> End:
    """What a failed request says of the server; one that asks to wait (429) is there."""
    if not error.connected:
        return "unreachable"
    return "failure" if error.retry and error.status != 429 else "refusal"


def _spoken(text: str) -> str:
    """A reply without its thinking; nothing where only thinking came."""
    spoken = after_thought(text)
    if spoken is None:
        return text.rpartition("</think>")[2].strip()
    return "" if spoken.startswith("<think>") and "</think>" not in spoken else spoken
