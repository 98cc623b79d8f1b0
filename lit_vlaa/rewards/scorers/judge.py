"""A language model behind an OpenAI-compatible endpoint as judge of open-ended answers."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from lit_vlaa.rewards.scorers.chat import OWN_FIELDS, completion, try_out
from lit_vlaa.rewards.scorers.client import JsonClient
from lit_vlaa.rewards.scorers.items import EncodedImages, Item, distinct
from lit_vlaa.rewards.scorers.verdict import AGREEMENT, QUALITY, read_verdict, system_text, user_text

if TYPE_CHECKING:
    from lit_vlaa.types import RewardRequest

_log = logging.getLogger(__name__)


class ChatJudge:
    """Asks a chat model for a grade: vLLM, SGLang, `transformers serve`, OpenAI, or any other `/chat/completions`.

    By default the judge is the reward model of the paper's formula: it grades an answer by image and question alone,
    and the reference answer likewise. With `show_reference` it sees the reference and grades agreement.

    Args:
        base_url: The server's address with its version, such as `http://127.0.0.1:8000/v1`.
        model: The model's name at the server.
        api_key_env: Name of the environment variable that holds the key; null for a server without one.
        show_reference: Show the reference answer to the judge, which then measures similarity to it.
        baseline: With `show_reference`, the grade up to which nothing is paid.
        scale: The best grade; the worst is 0.
        instructions: What makes an answer good; null takes the embedded text. The rules on the verdict's form and on
            the data are always added.
        send_images: Send the row's images along; false for a judge that reads text only.
        max_image_side: Longer images are made smaller, to this many pixels on the longer side.
        max_tokens: Length of a reply; a judge that thinks needs more. A reply that was cut is a failure. Null leaves
            the field out of the requests, for servers that refuse it.
        temperature: Of the judge's sampling; null leaves it out.
        seed: Of the judge's sampling; null leaves it out.
        extra_body: More fields of each request, as the server defines them.
        concurrency: Requests under way at a time, on each rank.
        timeout_s: Seconds for one try of one request.
        retries: Tries after the first one.
        backoff_s: Seconds before the first repetition; they double from one to the next, up to a minute.
        give_up_after_s: Seconds for one batch of answers; what is open then has failed.

    Raises:
        ValueError: If a setting cannot work.
    """

    def __init__(
        self,
        *,
        base_url: str,
        model: str,
        api_key_env: str | None = None,
        show_reference: bool = False,
        baseline: float = 2.0,
        scale: float = 10.0,
        instructions: str | None = None,
        send_images: bool = True,
        max_image_side: int = 1024,
        max_tokens: int | None = 1024,
        temperature: float | None = 0.0,
        seed: int | None = 0,
        extra_body: dict[str, Any] | None = None,
        concurrency: int = 16,
        timeout_s: float = 60.0,
        retries: int = 3,
        backoff_s: float = 0.5,
        give_up_after_s: float = 600.0,
    ) -> None:
        self._client = JsonClient(
            url=base_url,
            option="--model.scorer.base_url",
            api_key_env=api_key_env,
            concurrency=concurrency,
            timeout_s=timeout_s,
            retries=retries,
            backoff_s=backoff_s,
            give_up_after_s=give_up_after_s,
        )
        for ok, name, value, wanted in (
            (0 < scale < math.inf, "scale", scale, "positive"),
            (not show_reference or 0 <= baseline < scale, "baseline", baseline, f"in [0, scale), scale being {scale}"),
            (max_image_side >= 1, "max_image_side", max_image_side, "at least 1"),
            (max_tokens is None or max_tokens >= 1, "max_tokens", max_tokens, "at least 1"),
            (temperature is None or 0 <= temperature < math.inf, "temperature", temperature, "0 or positive"),
        ):
            if not ok:
                raise ValueError(f"--model.scorer.{name} must be {wanted}, got {value}")
        if own := sorted(OWN_FIELDS & set(extra_body or {})):
            raise ValueError(f"--model.scorer.extra_body must not hold {', '.join(own)}, which the judge sets itself")
        # Plain public attributes are what tells one judge from another when a run resumes.
        self.base_url = self._client.url
        self.model = model
        self.show_reference = show_reference
        self.similarity_baseline = float(baseline) if show_reference else None
        self.scale = float(scale)
        self.instructions = instructions or (AGREEMENT if show_reference else QUALITY)
        self.send_images = send_images
        self.max_image_side = max_image_side
        options = {"max_tokens": max_tokens, "temperature": temperature, "seed": seed}
        sent = {name: value for name, value in options.items() if value is not None}
        self.options = json.dumps(sent | (extra_body or {}))

    def __call__(self, requests: Sequence[RewardRequest], answers: Sequence[str]) -> list[float | None]:
        """Grades each answer.

        Returns:
            A grade in [0, scale] for each answer, 0 for an empty one; None where the judge gave no verdict, and with
            `show_reference` where the request has no reference.
        """
        items, places = distinct(requests, answers)
        lacking = [self.show_reference and not item.request.truth.strip() for item in items]
        scores: list[float | None] = [None if lacks else 0.0 for lacks in lacking]
        asked = [i for i, item in enumerate(items) if item.answer.strip() and not lacking[i]]
        images = EncodedImages("JPEG", [items[i] for i in asked], max_side=self.max_image_side)
        bodies = [partial(self._body, items[i], images) for i in asked]
        replies = self._client.post_many("/chat/completions", bodies)
        unread: list[str] = []
        for i, reply in zip(asked, replies, strict=True):
            scores[i], text = (None, "") if reply is None else self._verdict(reply)
            if reply is not None and scores[i] is None:
                unread.append(text)
        if unread:
            counts, sample = f"{len(unread)} of {len(asked)}", self._client.shown(unread[0])
            _log.warning("%s: %s replies held no verdict, such as: %s", self.model, counts, sample)
        return [scores[place] for place in places]

    def prepare(self) -> None:
        """Finds out before a run whether the judge answers, by its list of models and by one question.

        Raises:
            ValueError: If it does not; the message names the option and the remedy.
        """
        probe = _probe()
        images = EncodedImages("JPEG", [probe], max_side=self.max_image_side)
        hint = "; for a model that reads no images give --model.scorer.send_images false" if self.send_images else ""
        reply = try_out(self._client, model=self.model, body=partial(self._body, probe, images), hint=hint)
        score, text = self._verdict(reply)
        if score is None:
            raise ValueError(
                f"--model.scorer.model {self.model} gave no verdict on a question to try it out but: "
                f"{self._client.shown(text)}; raise max_tokens (a judge that thinks needs thousands) or take another"
            )

    def _body(self, item: Item, images: EncodedImages) -> dict[str, Any]:
        """The JSON of one request."""
        fields = {"question": item.request.question, "answer": item.answer}
        if self.show_reference:
            fields["reference"] = item.request.truth
        text = user_text(fields, scale=self.scale)
        urls = [f"data:image/jpeg;base64,{code}" for code in images(item)] if self.send_images else []
        parts = [*({"type": "image_url", "image_url": {"url": url}} for url in urls), {"type": "text", "text": text}]
        return {
            "model": self.model,
            "messages": [
                {"role": "system", "content": system_text(self.instructions, fields, scale=self.scale)},
                # Templates of models without vision often read nothing but a string.
                {"role": "user", "content": parts if urls else text},
            ],
            **json.loads(self.options),
        }

    def _verdict(self, reply: dict[str, Any]) -> tuple[float | None, str]:
        """The grade in a server's reply, None if there is none, and what the judge wrote."""
        text, finish = completion(reply)
        if text is None:
            return None, "(no text, or not in the form of a chat completion)"
        if finish not in (None, "stop"):  # of "10" that was cut, "1" is left
            return None, f"(ended by {finish!r}) {text}"
        return read_verdict(text, scale=self.scale), text


def _probe() -> Item:
    """A question to try the judge out."""
    from PIL import Image  # noqa: PLC0415 - together with torch slow to import

    from lit_vlaa.types import RewardRequest  # noqa: PLC0415

    request = RewardRequest(
        response="",
        kind="open_ended",
        question="What colour is the picture?",
        truth="It is white.",
        images=lambda: (Image.new("RGB", (64, 64), "white"),),
    )
    return Item(request, "White.", "probe")
