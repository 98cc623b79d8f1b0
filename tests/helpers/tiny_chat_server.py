"""An OpenAI-compatible chat server on this machine that runs the embedded tiny model; its answers are nonsense."""

from __future__ import annotations

import base64
import binascii
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from io import BytesIO
from typing import Any

import torch
from PIL import Image

from helpers.samples import tiny_backbone
from helpers.scripted_http import Reply, ScriptedServer, Seen, running
from lit_vlaa.backbone import Backbone
from lit_vlaa.generation import CachedGenerator, RolloutKey
from lit_vlaa.types import Message, Record, Sample, SamplingParams

MODEL = "tiny"
REASONING_MODEL = "tiny-reasoner"
"""The same model behind a reasoning parser: the first half of what it writes becomes `reasoning_content`."""

_MOST_TOKENS = 32


@dataclass
class TinyChat:
    """Answers `GET /v1/models` and `POST /v1/chat/completions`.

    Tags and control characters, which the model writes at random, are taken out as a real server's parser would.
    """

    backbone: Backbone
    asked: list[tuple[str, int]] = field(default_factory=list)
    """Model and number of images of each request."""
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def __call__(self, seen: Seen) -> Reply:
        if (seen.method, seen.path) == ("GET", "/v1/models"):
            names = [{"id": name, "object": "model"} for name in (MODEL, REASONING_MODEL)]
            return Reply({"object": "list", "data": names})
        if (seen.method, seen.path) != ("POST", "/v1/chat/completions"):
            return Reply({"error": {"message": "no such path"}}, status=404)
        try:
            request = seen.json
            messages, images = _messages(request["messages"])
            params = SamplingParams(
                max_new_tokens=min(request.get("max_tokens", _MOST_TOKENS), _MOST_TOKENS),
                temperature=request.get("temperature", 1.0),
            )
        except (KeyError, TypeError, ValueError, OSError) as error:
            return Reply({"error": {"message": str(error)}}, status=400)
        if request.get("model") not in {MODEL, REASONING_MODEL}:
            return Reply({"error": {"message": f"no model {request.get('model')!r}"}}, status=404)
        with self._lock:  # one model, one request at a time
            self.asked.append((request["model"], len(images)))
            return Reply(self._answer(request["model"], messages, images, params))

    def _answer(
        self, model: str, messages: tuple[Message, ...], images: tuple[Image.Image, ...], params: SamplingParams
    ) -> dict[str, Any]:
        record = Record("chat", "other", "open_ended", ("",) * len(images), "", "", None, "request:1")
        prompt = self.backbone.processor.encode(
            Sample(record=record, messages=messages, images=images, box_space="normalized")
        )
        with torch.no_grad():
            ((completion,),) = CachedGenerator().generate(
                self.backbone, [prompt], group_size=1, params=params, key=RolloutKey(seed=0, step=0)
            )
        written = self.backbone.processor.decode(completion.token_ids).replace("<", "").replace(">", "")
        text = "".join(letter if letter.isprintable() else " " for letter in written)
        words = text.split() or ["nothing"]
        message: dict[str, Any] = {"role": "assistant", "content": " ".join(words)}
        if model == REASONING_MODEL:
            half = (len(words) + 1) // 2
            message["reasoning_content"] = " ".join(words[:half])
            message["content"] = " ".join(words[half:]) or words[-1]
        count = completion.token_ids.numel()
        return {
            "object": "chat.completion",
            "model": model,
            # The model never learnt to end its turn, and a cut answer would be all that it gives.
            "choices": [{"index": 0, "message": message, "finish_reason": "stop"}],
            "usage": {"prompt_tokens": prompt.input_ids.numel(), "completion_tokens": count},
        }


@contextmanager
def tiny_chat_server() -> Iterator[tuple[str, TinyChat]]:
    """The server's address, ending in /v1, and what it was asked."""
    chat = TinyChat(tiny_backbone().eval())
    server = ScriptedServer(chat)
    with running(server):
        yield f"{server.url}/v1", chat


def _messages(given: list[dict[str, Any]]) -> tuple[tuple[Message, ...], tuple[Image.Image, ...]]:
    messages: list[Message] = []
    images: list[Image.Image] = []
    for turn in given:
        content = turn["content"]
        parts: list[Any] = []
        told: list[dict[str, Any]] = [{"type": "text", "text": content}] if isinstance(content, str) else content
        for part in told:
            if part["type"] == "text":
                parts.append({"type": "text", "text": part["text"]})
            else:
                images.append(_image(part["image_url"]["url"]))
                parts.append({"type": "image"})
        messages.append({"role": turn["role"], "content": parts})
    return tuple(messages), tuple(images)


def _image(uri: str) -> Image.Image:
    head, _, data = uri.partition(",")
    if not head.startswith("data:image/") or not head.endswith(";base64"):
        raise ValueError("images come as data URIs")
    try:
        return Image.open(BytesIO(base64.b64decode(data, validate=True))).convert("RGB")
    except binascii.Error as error:
        raise ValueError("no base64") from error
