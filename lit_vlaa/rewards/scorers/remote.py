"""A scorer of open-ended answers that runs in another process or on another machine, behind `server.py`'s two pages."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from lit_vlaa.rewards.scorers.client import JsonClient
from lit_vlaa.rewards.scorers.items import EncodedImages, Item, distinct
from lit_vlaa.rewards.scorers.wire import RequestError

if TYPE_CHECKING:
    from lit_vlaa.types import RewardRequest

_log = logging.getLogger(__name__)

VERSION = 1
"""Of the JSON that is sent (docs/scorers.md)."""

_LARGEST = 1e300


class RemoteScorer:
    """Sends answers to a scoring server, `POST {url}/score`, for reward models that need an environment of their own.

    Args:
        url: The server's address, such as `http://127.0.0.1:8765`.
        api_key_env: Name of the environment variable that holds the server's token; null for a server without one.
        similarity_baseline: For a hosted scorer of similarity to the reference, the score up to which nothing is paid;
            null for a scorer of quality.
        send_reference: Send the reference answers along.
        send_images: Send the rows' images along, as PNG.
        max_image_side: Longer images are made smaller, to this many pixels on the longer side.
        batch_size: Answers in one request.
        concurrency: Requests under way at a time, on each rank.
        timeout_s: Seconds for one try of one request, with the time that it waits for the model.
        retries: Tries after the first one.
        backoff_s: Seconds before the first repetition; they double from one to the next, up to a minute.
        give_up_after_s: Seconds for one batch of answers; what is open then has failed.

    Raises:
        ValueError: If a setting cannot work.
    """

    def __init__(
        self,
        *,
        url: str,
        api_key_env: str | None = None,
        similarity_baseline: float | None = None,
        send_reference: bool = False,
        send_images: bool = True,
        max_image_side: int = 1024,
        batch_size: int = 8,
        concurrency: int = 2,
        timeout_s: float = 120.0,
        retries: int = 3,
        backoff_s: float = 0.5,
        give_up_after_s: float = 600.0,
    ) -> None:
        self._client = JsonClient(
            url=url,
            option="--model.scorer.url",
            api_key_env=api_key_env,
            concurrency=concurrency,
            timeout_s=timeout_s,
            retries=retries,
            backoff_s=backoff_s,
            give_up_after_s=give_up_after_s,
        )
        for ok, name, value in (
            (max_image_side >= 1, "max_image_side", max_image_side),
            (batch_size >= 1, "batch_size", batch_size),
        ):
            if not ok:
                raise ValueError(f"--model.scorer.{name} must be at least 1, got {value}")
        if similarity_baseline is not None and not send_reference:
            raise ValueError(
                "--model.scorer.similarity_baseline is for a scorer that compares with the reference: "
                "add --model.scorer.send_reference true"
            )
        self.url = self._client.url
        self.similarity_baseline = similarity_baseline
        self.send_reference = send_reference
        self.send_images = send_images
        self.max_image_side = max_image_side
        self._batch_size = batch_size
        self._hosted: tuple[Any, ...] = (self.url,)

    @property
    def fingerprint(self) -> tuple[Any, ...]:
        """What the kept scores of references depend on: the hosted scorer as its server describes it, not its place."""
        return (*self._hosted, self.similarity_baseline, self.send_reference, self.send_images, self.max_image_side)

    def __call__(self, requests: Sequence[RewardRequest], answers: Sequence[str]) -> list[float | None]:
        """Scores each answer; None where the server failed or said so."""
        items, places = distinct(requests, answers)
        # Answers to one row travel together, and its images with them once.
        first = {row: order for order, row in reversed(list(enumerate(item.row for item in items)))}
        order = sorted(range(len(items)), key=lambda index: first[items[index].row])
        chunks = [order[start : start + self._batch_size] for start in range(0, len(order), self._batch_size)]
        images = EncodedImages("PNG", items, max_side=self.max_image_side)
        bodies = [partial(self._body, [items[index] for index in chunk], images) for chunk in chunks]
        scores: list[float | None] = [None] * len(items)
        for chunk, reply in zip(chunks, self._client.post_many("/score", bodies), strict=True):
            if reply is None:
                continue
            found = _scores(reply, len(chunk))
            if found is None:
                _log.warning("%s: the reply is not {'scores': [...]} with %d numbers or nulls", self.url, len(chunk))
                continue
            for index, score in zip(chunk, found, strict=True):
                scores[index] = score
        return [scores[place] for place in places]

    def prepare(self) -> None:
        """Finds out before a run whether the server is there and what it hosts.

        Raises:
            ValueError: If it cannot be used; the message names the option and the remedy.
        """
        where = f"--model.scorer.url {self.url}"
        try:
            health = self._client.ask("GET", "/health")
        except RequestError as error:
            remedy = "is the server running, and is this its address? (docs/scorers.md tells how to start it)"
            if error.late:
                remedy = "a server is there: see its log, or give it more time by --model.scorer.timeout_s"
            elif error.status in {401, 403}:
                remedy = "name the environment variable with its token by --model.scorer.api_key_env"
            raise ValueError(f"{where}: {error}; {remedy}") from error
        name, version, baseline = health.get("scorer"), health.get("version"), health.get("similarity_baseline")
        if not isinstance(name, str) or version != VERSION:
            raise ValueError(f"{where}: this is no scoring server of version {VERSION} (docs/scorers.md)")
        if baseline is not None and self.similarity_baseline is None:
            hosted, number = self._client.shown(name), self._client.shown(str(baseline))
            raise ValueError(
                f"{where} hosts {hosted}, which measures similarity to the reference; add "
                f"--model.scorer.send_reference true --model.scorer.similarity_baseline {number}"
            )
        settings = health.get("fingerprint")
        self._hosted = (self.url, name) if settings is None else (name, str(settings))
        _log.info("%s hosts %s", self.url, self._client.shown(name))

    def _body(self, items: Sequence[Item], images: EncodedImages) -> dict[str, Any]:
        """The JSON of one request."""
        sent: dict[str, int] = {}
        rows = []
        for item in items:
            codes = images(item) if self.send_images else ()
            row: dict[str, Any] = {
                "id": item.request.id,
                "question": item.request.question,
                "answer": item.answer,
                "images": [sent.setdefault(code, len(sent)) for code in codes],
            }
            if self.send_reference:
                row["reference"] = item.request.truth
            rows.append(row)
        return {"version": VERSION, "images": list(sent), "items": rows}


def _scores(reply: dict[str, Any], count: int) -> list[float | None] | None:
    """The scores of a reply, None if it is not in the agreed form."""
    found = reply.get("scores")
    if not isinstance(found, list) or len(found) != count:
        return None
    for score in found:
        # The comparison also refuses NaN, infinity and integers beyond all floats.
        number = isinstance(score, int | float) and not isinstance(score, bool) and -_LARGEST < score < _LARGEST
        if score is not None and not number:
            return None
    return [None if score is None else float(score) for score in found]
