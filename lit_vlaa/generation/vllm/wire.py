"""One prompt to a server and its completions back: the request's JSON, and everything that can be wrong in the reply.

The endpoint is `/inference/v1/generate`, tokens in and tokens out: no chat template stands between learner and server,
and none of the model's `generation_config.json` applies (a repetition penalty of Qwen's, say). A reply is hostile.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from lit_vlaa.backbone.processor import Processor
from lit_vlaa.generation.protocol import RolloutKey
from lit_vlaa.generation.vllm.pictures import data_url, pictures
from lit_vlaa.rewards.scorers.wire import printable
from lit_vlaa.types import Completion, Prompt, SamplingParams

GENERATE = "/inference/v1/generate"

_OUT_OF_REACH = -100.0
"""Bias of banned tokens. It takes their probability below the smallest float32 unless their logits lead by far, and
then the reply is refused."""

_NO_LOGPROB = -9000.0
"""vLLM writes -9999 where it has no number."""

_ABOVE_ZERO = 1e-3
"""What rounding may add to the logarithm of a probability."""

_AGAIN = frozenset({"abort", "error"})
"""Reasons to end that say nothing about the completion: paused for new weights, or shut down."""


class UnfitReplyError(ValueError):
    """A reply that cannot be used, and would be no better the next time."""


@dataclass(frozen=True, slots=True)
class Question:
    """One prompt's completions, as asked for."""

    prompt: Prompt
    group_size: int
    params: SamplingParams
    key: RolloutKey
    version: str
    """Label of the weights that must have drawn every token."""
    vocabulary: int
    """Logits of the model."""

    @property
    def asked(self) -> int:
        """Completions to ask for: vLLM refuses to write one that is greedy several times."""
        return self.group_size if self.params.temperature else 1

    def body(self, processor: Processor) -> dict[str, Any]:
        """The request's JSON."""
        images = pictures(self.prompt, processor.image_processor)
        parts = [{"type": "image_url", "url": data_url(image)} for image in images]
        return {
            "token_ids": _one_place_an_image(self.prompt, processor),
            **({"content_parts": parts} if parts else {}),
            "return_token_ids": True,
            "sampling_params": {
                "n": self.asked,
                "seed": seed(self.key, self.prompt.record.id),
                "temperature": self.params.temperature,
                "top_p": 1.0,
                "top_k": 0,
                "max_tokens": self.params.max_new_tokens,
                "logprobs": 0,
                # The model's own tokens to end at may be others.
                "ignore_eos": True,
                "stop_token_ids": list(processor.stop_token_ids),
                "logit_bias": {str(token): _OUT_OF_REACH for token in processor.banned_token_ids},
                "detokenize": False,
            },
        }

    def most_bytes(self) -> int:
        """What a reply may take: vLLM writes about 150 bytes a token, and more than three times that is let through."""
        return 2**16 + 16 * self.prompt.input_ids.numel() + 512 * self.asked * self.params.max_new_tokens

    def read(self, reply: Mapping[str, Any], processor: Processor) -> list[Completion] | None:
        """The completions in sample order; None where the server should be asked again.

        That is so if it was interrupted, or other weights drew some of the tokens.

        Raises:
            UnfitReplyError: If the reply is not what was asked for; the message says why and what to look at.
        """
        self._check_prompt(reply.get("prompt_token_ids"), processor.image_token_id)
        choices = reply.get("choices")
        if not isinstance(choices, list) or len(choices) != self.asked:
            raise UnfitReplyError(f"the reply does not hold {self.asked} completions")
        by_index = {
            choice["index"]: choice
            for choice in choices
            if isinstance(choice, dict) and type(choice.get("index")) is int and 0 <= choice["index"] < len(choices)
        }
        if len(by_index) != self.asked:
            raise UnfitReplyError("the completions of the reply are not numbered")
        read = [self._completion(by_index[index], processor) for index in range(self.asked)]
        complete = [completion for completion in read if completion is not None]
        return complete * (self.group_size // self.asked) if len(complete) == self.asked else None

    def _check_prompt(self, given: object, image_token: int) -> None:
        if not isinstance(given, list):
            raise UnfitReplyError("the reply lacks prompt_token_ids")
        own = self.prompt.input_ids.tolist()
        if given == own:
            return
        if [token for token in given if token != image_token] == [token for token in own if token != image_token]:
            sizes = ", ".join(f"{wide} x {high}" for wide, high in self.prompt.image_sizes)
            raise UnfitReplyError(
                f"the server made {len(given)} tokens of a prompt of {len(own)} with images of {sizes} pixels: start "
                "it with the limits of --model.backbone.min_pixels and max_pixels as its --mm-processor-kwargs"
            )
        raise UnfitReplyError(
            f"the server read another prompt ({len(given)} tokens) than was sent ({len(own)}): is its model that of "
            "--model.backbone.path?"
        )

    def _completion(self, choice: Mapping[str, Any], processor: Processor) -> Completion | None:
        finish, tokens = choice.get("finish_reason"), choice.get("token_ids")
        if isinstance(finish, str) and finish in _AGAIN:
            return None
        limit = self.params.max_new_tokens
        if not isinstance(tokens, list) or not 1 <= len(tokens) <= limit:
            raise UnfitReplyError(f"a completion has no list of 1 to {limit} tokens")
        if not all(type(token) is int and 0 <= token < self.vocabulary for token in tokens):
            raise UnfitReplyError(f"a completion holds tokens beyond the vocabulary of {self.vocabulary}")
        if not self._drawn_by_these_weights(choice.get("weight_versions"), len(tokens)):
            return None
        stops = [place for place, token in enumerate(tokens) if token in processor.stop_token_ids]
        if stops and stops[0] != len(tokens) - 1:
            raise UnfitReplyError("a completion goes on behind its end-of-turn token")
        if not stops and (finish != "length" or len(tokens) != limit):
            shown = printable(str(finish))[:40]
            raise UnfitReplyError(
                f"a completion of {len(tokens)} tokens ended ({shown}) without an end-of-turn token, below "
                f"max_new_tokens {limit}: is the server's --max-model-len large enough?"
            )
        if set(tokens) & set(processor.banned_token_ids):
            raise UnfitReplyError("a completion holds a token of images, which was biased out of reach")
        return Completion(
            token_ids=torch.tensor(tokens, dtype=torch.long),
            logprobs=torch.tensor(_logprobs(choice.get("logprobs"), tokens), dtype=torch.float32).clamp(max=0.0),
            finish="stop" if stops else "length",
        )

    def _drawn_by_these_weights(self, spans: object, count: int) -> bool:
        """Whether the server says that these weights drew all tokens.

        Raises:
            UnfitReplyError: If it says nothing of the kind.
        """
        if not isinstance(spans, list) or not spans or not all(isinstance(span, dict) for span in spans):
            raise UnfitReplyError("the reply does not say which weights drew its tokens (weight_versions)")
        ends = [0]
        for span in spans:
            start, end = span.get("start"), span.get("end")
            if type(start) is not int or type(end) is not int or start != ends[-1] or end < start:
                raise UnfitReplyError("the reply's weight_versions are no spans of its tokens")
            ends.append(end)
        if ends[-1] != count:
            raise UnfitReplyError("the reply's weight_versions do not cover its tokens")
        return all(span.get("version") == self.version for span in spans)


def seed(key: RolloutKey, prompt_id: str) -> int:
    """A prompt's seed, below 2**62; vLLM adds the number of the sample."""
    name = f"{key.seed}\x00{key.step}\x00{key.attempt}\x00{prompt_id}".encode()
    return int.from_bytes(hashlib.blake2b(name, digest_size=8).digest(), "little") >> 2


def _one_place_an_image(prompt: Prompt, processor: Processor) -> list[int]:
    """The prompt's tokens with one for each image, which the server expands by itself."""
    grids = [] if prompt.image_grid_thw is None else prompt.image_grid_thw.tolist()
    sizes = iter([math.prod(grid) // processor.image_processor.merge_size**2 for grid in grids])
    result: list[int] = []
    skip = 0
    for token in prompt.input_ids.tolist():
        if skip:
            skip -= 1
            continue
        result.append(token)
        if token == processor.image_token_id:
            skip = next(sizes) - 1
    return result


def _logprobs(given: object, tokens: Sequence[int]) -> list[float]:
    content = given.get("content") if isinstance(given, dict) else None
    if not isinstance(content, list) or len(content) != len(tokens):
        raise UnfitReplyError("a completion lacks the log-probabilities of its tokens")
    result = []
    for entry, token in zip(content, tokens, strict=True):
        value: Any = entry.get("logprob") if isinstance(entry, dict) and entry.get("token_id") == token else None
        if type(value) not in {int, float} or not _NO_LOGPROB < value <= _ABOVE_ZERO:
            raise UnfitReplyError("a completion's log-probabilities are no numbers, or of other tokens")
        result.append(float(value))
    return result
