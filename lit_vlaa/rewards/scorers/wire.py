"""One JSON request over HTTP, and everything that can be wrong with its reply.

What a server sends is hostile: replies are bounded in size and time, redirects are not followed, and its words are
cleaned before they are logged.
"""

from __future__ import annotations

import asyncio
import ipaddress
import json
import math
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any

import httpx

MAX_REPLY_BYTES = 2**20
"""A longer reply is a failure, unless its caller asked for more."""

_RETRIED = frozenset({408, 409, 425, 429})
_SHOWN_CHARS = 300
_BEGINNING = 80
"""Characters shown of a reply that is no JSON, such as a web page's."""


class RequestError(Exception):
    """A request without a usable reply.

    Args:
        reason: Why, in one line that is safe to log.
        status: The HTTP status, None when there was none.
        retry: Whether the same request may succeed later.
        retry_after: Seconds that the server asked to wait.
        connected: Whether the server could be reached.
        late: Whether a server took the request and did not answer in time.
    """

    def __init__(
        self,
        reason: str,
        *,
        status: int | None = None,
        retry: bool = False,
        retry_after: float = 0.0,
        connected: bool = True,
        late: bool = False,
    ) -> None:
        super().__init__(reason)
        self.status = status
        self.retry = retry
        self.retry_after = retry_after
        self.connected = connected
        self.late = late


async def exchange(
    client: httpx.AsyncClient,
    method: str,
    url: str,
    content: bytes | None,
    *,
    timeout_s: float,
    secret: str | None,
    max_reply_bytes: int = MAX_REPLY_BYTES,
) -> dict[str, Any]:
    """Sends one request, once.

    Args:
        client: Connections to use.
        method: `GET` or `POST`.
        url: The whole address.
        content: The request's body, None for none.
        timeout_s: Seconds until the last byte of the reply.
        secret: What must never appear in a message, even if the server repeats it.
        max_reply_bytes: A longer reply is a failure.

    Returns:
        The JSON object of the reply.

    Raises:
        RequestError: If there was no usable reply.
    """
    try:
        # httpx limits each wait for bytes; a server that sends one now and then needs a limit on the whole.
        async with asyncio.timeout(timeout_s), client.stream(method, url, content=content) as response:
            raw = await _read(response, max_reply_bytes)
    except TimeoutError:
        raise RequestError(f"no complete reply within {timeout_s:g} s", retry=True, late=True) from None
    except httpx.TransportError as error:
        unreachable = isinstance(error, httpx.ConnectError | httpx.ConnectTimeout | httpx.ProxyError)
        what = "cannot connect" if unreachable else "the connection broke"
        reason = f"{what}: {printable(str(error), secret) or type(error).__name__}"
        raise RequestError(reason, retry=True, connected=not unreachable) from error
    reply = _json(raw)
    status = response.status_code
    if not response.is_success:
        said = printable(_message(reply, raw), secret)
        raise RequestError(
            f"HTTP {status}" + (f": {said}" if said else ""),
            status=status,
            retry=status in _RETRIED or status >= 500,
            retry_after=retry_after(response.headers.get("retry-after", "")),
        )
    if not isinstance(reply, dict):
        begins = printable(raw.decode("utf-8", "replace"), secret)[:_BEGINNING]  # cut behind the key's removal
        raise RequestError(
            f"the reply is not a JSON object{f', it begins: {begins}' if begins else ' but empty'}",
            status=status,
            retry=True,
        )
    return reply


def retry_after(header: str) -> float:
    """Seconds that a `Retry-After` header asks to wait, as a number or as a date; 0 if it says nothing readable."""
    try:
        seconds = float(header)
    except ValueError:
        try:
            when = parsedate_to_datetime(header)
        except (ValueError, TypeError, OverflowError):
            return 0.0
        seconds = (when.replace(tzinfo=when.tzinfo or UTC) - datetime.now(UTC)).total_seconds()
    return max(seconds, 0.0) if math.isfinite(seconds) else 0.0


def clean_url(url: str, option: str) -> str:
    """The address without its last slash.

    Args:
        url: What the user gave.
        option: The option that gave it, for messages.

    Raises:
        ValueError: If it is no address that paths can be appended to.
    """
    try:
        parsed = httpx.URL(url.strip())
    except (httpx.InvalidURL, TypeError, ValueError) as error:
        raise ValueError(f"{option} is not an address such as http://127.0.0.1:8000/v1: {error}") from None
    if parsed.userinfo:
        raise ValueError(f"{option} must not hold a password; name an environment variable by api_key_env")
    if parsed.scheme not in {"http", "https"} or not parsed.host or parsed.query or parsed.fragment:
        given = str(parsed.copy_with(query=None, fragment=None))  # keys also travel in queries
        raise ValueError(
            f"{option} must be an address such as http://127.0.0.1:8000/v1 without ? and #, got {printable(given)!r}"
        )
    return str(parsed).rstrip("/")


def is_loopback(url: str) -> bool:
    """Whether an address means this machine."""
    host = httpx.URL(url).host
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost" or host.endswith(".localhost")


def printable(text: str, secret: str | None = None) -> str:
    """One short line without control characters and without `secret`, safe to log."""
    if secret:
        text = text.replace(secret, "***")
    shown = text[: _SHOWN_CHARS + 1].strip()
    line = "".join(c if c.isprintable() else c.encode("unicode_escape", "surrogatepass").decode() for c in shown)
    return f"{line[:_SHOWN_CHARS]}..." if len(line) > _SHOWN_CHARS else line


async def _read(response: httpx.Response, most: int) -> bytes:
    # A compressed reply could unpack to any size; none was asked for.
    if response.headers.get("content-encoding", "identity").strip().lower() not in {"", "identity"}:
        raise RequestError("the reply is compressed", status=response.status_code)
    chunks: list[bytes] = []
    size = 0
    async for chunk in response.aiter_raw():
        size += len(chunk)
        if size > most:
            raise RequestError(f"the reply is longer than {most} bytes", status=response.status_code)
        chunks.append(chunk)
    return b"".join(chunks)


def _json(raw: bytes) -> Any:
    try:
        return json.loads(raw)
    except (ValueError, RecursionError):  # no JSON, no text, or nested without end
        return None


def _message(reply: Any, raw: bytes) -> str:
    """What a refusal says, in the forms of OpenAI, FastAPI and our own server; else its first words."""
    for name in ("error", "detail", "message"):
        found = reply.get(name) if isinstance(reply, dict) else None
        if isinstance(found, dict):
            found = found.get("message")
        if isinstance(found, str):
            return found
    return raw[: 4 * _SHOWN_CHARS].decode("utf-8", "replace")
