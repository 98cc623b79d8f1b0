"""What users set of an endpoint."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from typing import Any

from lit_vlaa.rewards.scorers.chat import OWN_FIELDS
from lit_vlaa.rewards.scorers.client import JsonClient


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
    max_refusals: int = 20
    """Refusals in a row (a wrong option, a content filter) after which the step stops instead of rejecting on."""
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
            (self.max_refusals >= 1, "max_refusals", "at least 1"),
            (self.price_in is None or 0 <= self.price_in < math.inf, "price_in", "0 or positive, or null"),
            (self.price_out is None or 0 <= self.price_out < math.inf, "price_out", "0 or positive, or null"),
        ):
            if not ok:
                raise ValueError(f"endpoint.{name} must be {wanted}, got {getattr(self, name)!r}")
        try:
            json.dumps(self.extra_body, allow_nan=False)
        except (TypeError, ValueError) as error:
            raise ValueError(f"endpoint.extra_body must hold what JSON can write: {error}") from error
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
