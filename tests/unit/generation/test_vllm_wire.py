"""What is sent for a prompt, and hostile replies to it."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable
from typing import Any

import pytest
import torch

from helpers.samples import image, sample
from lit_vlaa.backbone.tiny import tiny_processor
from lit_vlaa.generation import RolloutKey
from lit_vlaa.generation.vllm.wire import Question, UnfitReplyError, seed
from lit_vlaa.types import SamplingParams

PROCESSOR = tiny_processor(min_pixels=56 * 56, max_pixels=84 * 84)
VOCABULARY = len(PROCESSOR.tokenizer)
END, IMAGE = PROCESSOR.end_token_id, PROCESSOR.image_token_id
PROMPT = PROCESSOR.encode(sample("row", "Which?", (image(84, 84, 0), image(84, 56, 1))))
QUESTION = Question(PROMPT, 2, SamplingParams(max_new_tokens=3, temperature=0.8), RolloutKey(1, 2), "v1", VOCABULARY)

Spoil = Callable[[dict[str, Any]], object]


def choice(index: int, tokens: list[int], finish: str) -> dict[str, Any]:
    content = [{"token_id": token, "logprob": -0.5 * place} for place, token in enumerate(tokens)]
    return {
        "index": index,
        "finish_reason": finish,
        "token_ids": tokens,
        "logprobs": {"content": content},
        "weight_versions": [{"version": "v1", "start": 0, "end": len(tokens)}],
    }


REPLY = {
    "prompt_token_ids": PROMPT.input_ids.tolist(),
    # Out of order, as nothing promises one.
    "choices": [choice(1, [300, 301, 302], "length"), choice(0, [300, END], "stop")],
}


def spoilt(change: Spoil) -> dict[str, Any]:
    reply: dict[str, Any] = copy.deepcopy(REPLY)
    change(reply)
    return reply


def test_the_request() -> None:
    body = QUESTION.body(PROCESSOR)
    # 3 x 3 and 3 x 2 merged patches in the prompt, one place for each image in the request.
    assert PROMPT.input_ids.tolist().count(IMAGE) == 9 + 6
    assert body["token_ids"].count(IMAGE) == 2
    assert [one for one in body["token_ids"] if one != IMAGE] == [i for i in PROMPT.input_ids.tolist() if i != IMAGE]
    assert [part["type"] for part in body["content_parts"]] == ["image_url", "image_url"]
    params = body["sampling_params"]
    assert (params["n"], params["temperature"], params["max_tokens"]) == (2, 0.8, 3)
    assert params["stop_token_ids"] == list(PROCESSOR.stop_token_ids)
    assert params["logit_bias"] == {str(token): -100.0 for token in PROCESSOR.banned_token_ids}
    assert params["seed"] == seed(QUESTION.key, "row")


def test_greedy_completions_are_asked_for_once() -> None:
    # vLLM 0.33.0 (SamplingParams._verify_greedy_sampling): "n must be 1 when using greedy sampling".
    question = dataclasses.replace(QUESTION, params=SamplingParams(max_new_tokens=3, temperature=0))
    assert question.body(PROCESSOR)["sampling_params"]["n"] == 1
    reply = spoilt(lambda r: r.update(choices=[choice(0, [300, END], "stop")]))
    read = question.read(reply, PROCESSOR)
    assert read is not None
    assert [one.token_ids.tolist() for one in read] == [[300, END], [300, END]]


def test_text_alone_goes_without_parts() -> None:
    text = Question(PROCESSOR.encode(sample("t", "1 + 1?")), 1, QUESTION.params, QUESTION.key, "v1", VOCABULARY)
    body = text.body(PROCESSOR)
    assert "content_parts" not in body
    assert body["token_ids"] == text.prompt.input_ids.tolist()


def test_seeds_differ_by_everything_that_names_a_draw() -> None:
    keys = [RolloutKey(1, 2), RolloutKey(2, 2), RolloutKey(1, 3), RolloutKey(1, 2, attempt=1)]
    seeds = {seed(key, name) for key in keys for name in ("a", "b")}
    assert len(seeds) == 8
    assert all(0 <= one < 2**62 for one in seeds)


def test_completions_come_in_sample_order() -> None:
    read = QUESTION.read(REPLY, PROCESSOR)
    assert read is not None
    first, second = read
    assert first.token_ids.tolist() == [300, END]
    assert second.token_ids.tolist() == [300, 301, 302]
    assert (first.finish, second.finish) == ("stop", "length")
    assert second.logprobs.tolist() == [0.0, -0.5, -1.0]
    assert second.logprobs.dtype == torch.float32


def first_choice(name: str, value: Any) -> Spoil:
    return lambda reply: reply["choices"][0].__setitem__(name, value)


def logprob(value: Any) -> Spoil:
    return lambda reply: reply["choices"][0]["logprobs"]["content"][1].__setitem__("logprob", value)


def spans(*values: tuple[Any, Any, Any]) -> Spoil:
    keys = ("version", "start", "end")
    return first_choice("weight_versions", [dict(zip(keys, value, strict=True)) for value in values])


@pytest.mark.parametrize(
    "change",
    [first_choice("finish_reason", "abort"), spans(("v0", 0, 3)), spans(("v0", 0, 1), ("v1", 1, 3))],
    ids=["aborted", "older weights", "weights changed on the way"],
)
def test_what_is_asked_again(change: Spoil) -> None:
    assert QUESTION.read(spoilt(change), PROCESSOR) is None


BROKEN: dict[str, tuple[Spoil, str]] = {
    "no prompt": (lambda r: r.pop("prompt_token_ids"), "lacks prompt_token_ids"),
    "fewer image tokens": (lambda r: r["prompt_token_ids"].remove(IMAGE), r"84 x 84, 84 x 56 pixels.*--mm-processor"),
    "another prompt": (lambda r: r["prompt_token_ids"].insert(0, 300), "read another prompt"),
    "no choices": (lambda r: r.pop("choices"), "does not hold 2 completions"),
    "too few choices": (lambda r: r["choices"].pop(), "does not hold 2 completions"),
    "choices of no kind": (lambda r: r.update(choices=[1, None]), "not numbered"),
    "the same twice": (first_choice("index", 0), "not numbered"),
    "an index that is true": (first_choice("index", True), "not numbered"),
    "an index beyond": (first_choice("index", 2**70), "not numbered"),
    "no tokens": (first_choice("token_ids", None), "no list of 1 to 3 tokens"),
    "empty": (first_choice("token_ids", []), "no list of 1 to 3 tokens"),
    "too long": (first_choice("token_ids", [300] * 4), "no list of 1 to 3 tokens"),
    "negative token": (first_choice("token_ids", [300, -1, 302]), "beyond the vocabulary"),
    "token beyond": (first_choice("token_ids", [300, VOCABULARY, 302]), "beyond the vocabulary"),
    "token of no kind": (first_choice("token_ids", [300, "301", 302]), "beyond the vocabulary"),
    "token that is true": (first_choice("token_ids", [300, True, 302]), "beyond the vocabulary"),
    "goes on behind the end": (first_choice("token_ids", [300, END, 302]), "goes on behind its end"),
    "banned token": (first_choice("token_ids", [300, IMAGE, 302]), "a token of images"),
    "stopped without an end": (first_choice("finish_reason", "stop"), r"\(stop\) without an end-of-turn"),
    "no reason": (first_choice("finish_reason", {"a": 1}), "without an end-of-turn"),
    "cut below the limit": (
        lambda r: r["choices"].__setitem__(0, choice(1, [300, 301], "length")),
        r"2 tokens ended \(length\).*--max-model-len",
    ),
    "no log-probabilities": (first_choice("logprobs", None), "lacks the log-probabilities"),
    "too few of them": (lambda r: r["choices"][0]["logprobs"]["content"].pop(), "lacks the log-probabilities"),
    "of other tokens": (lambda r: r["choices"][0]["logprobs"]["content"].reverse(), "of other tokens"),
    "not a number": (logprob(float("nan")), "are no numbers"),
    "minus infinity": (logprob(float("-inf")), "are no numbers"),
    "vLLM's stand-in": (logprob(-9999.0), "are no numbers"),
    "a probability above one": (logprob(0.1), "are no numbers"),
    "an endless number": (logprob(10**400), "are no numbers"),
    "text": (logprob("-0.5"), "are no numbers"),
    "no versions": (first_choice("weight_versions", None), "which weights drew its tokens"),
    "versions of no kind": (first_choice("weight_versions", [1]), "which weights drew its tokens"),
    "versions with a gap": (spans(("v1", 0, 1), ("v1", 2, 3)), "no spans of its tokens"),
    "versions of text": (spans(("v1", "0", "3")), "no spans of its tokens"),
    "versions of a part": (spans(("v1", 0, 2)), "do not cover"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_hostile_replies(name: str) -> None:
    change, message = BROKEN[name]
    with pytest.raises(UnfitReplyError, match=message):
        QUESTION.read(spoilt(change), PROCESSOR)


def test_rounding_above_probability_one_is_let_through() -> None:
    read = QUESTION.read(spoilt(logprob(1e-6)), PROCESSOR)
    assert read is not None
    assert read[1].logprobs.tolist()[1] == 0.0


def test_the_bound_on_a_reply_grows_with_what_is_asked_for() -> None:
    # 65,536 + 16 a prompt token + 512 for each of 2 x 3 tokens.
    assert QUESTION.most_bytes() == 65_536 + 16 * PROMPT.input_ids.numel() + 3_072
