"""A reward model in the trainer's own process: a Qwen2.5-VL with a scalar head, in the layout of Skywork-VL-Reward-7B.

What is scored is the conversation user[images, question], assistant[answer], written with the reward model's own chat
template and without a system prompt of ours. The score is the head's value at the conversation's last token. The model
card of Skywork-VL-Reward-7B reads it so: template with `add_generation_prompt=False`, then the value at
`attention_mask.sum() - 1`. Qwen2.5-VL's template ends every turn with `<|im_end|>` and a newline, so the last token is
the newline; for another template it is whatever that writes after the answer.

Departures
1. The card takes images of up to 12.8 million pixels; here `max_pixels` keeps to the policy's limit.
2. Control tokens in question and answer are broken up, blanks around the answer go, and a long answer is cut.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import torch
from torch import Tensor

from lit_vlaa.prompts import IMAGE_PLACEHOLDER
from lit_vlaa.types import Message, Prompt, Record, RewardRequest, Sample

if TYPE_CHECKING:
    from lit_vlaa.backbone import Processor
    from lit_vlaa.backbone.value_head import ValueHeadModel

_FLAG, _BACKBONE_FLAG = "--model.scorer.init_args.", "--model.backbone."
_REMEDY = (
    "give a Qwen2.5-VL reward model with value_head.safetensors, a Hub id or a folder, such as "
    "Skywork/Skywork-VL-Reward-7B"
)
_LEAST_PIXELS = 56 * 56
"""`BackboneConfig.min_pixels`."""

_WINDOW = 64
"""Rows (questions) whose images are held ready at one time."""

_CHARS_PER_TOKEN = 32
"""More characters than this a token are cut off before the tokenizer sees an answer."""

_T = TypeVar("_T")

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class _Answer:
    """One distinct answer to one row."""

    prompt: Prompt
    token_ids: Tensor
    """`[C]` the answer and what the template writes after it."""
    places: list[int]
    """Where its score belongs in the call's results."""


class RewardModelScorer:
    """A reward model with a value head, such as Skywork-VL-Reward-7B; sees the images.

    Between calls the weights lie in the CPU's memory, page-locked where there is a GPU; for the time of a call copies
    of them stand on the GPU (paper, section on RL training). Without a GPU the model runs on the CPU. A row that cannot
    be read, does not fit into memory even alone, or gets a score that is not finite, gets None.

    Equal answers to one row are scored once and get the same number: rounding that differs between equal rows, even of
    one batch, would become an advantage in a group without other differences. Beyond that a score depends on the other
    rows of its call by rounding alone: by about 1e-6 of the scores' spread in float32 and 2e-3 in bfloat16 (measured on
    a tiny model).

    Args:
        path: Hub id, or a directory in the Hub's layout that also has `value_head.safetensors`.
        revision: Branch, tag or commit of a Hub id.
        dtype: Type of the trunk's weights; the head is always float32.
        max_pixels: Larger images are reduced to this many pixels.
        max_answer_tokens: Of a longer answer the end is cut off.
        max_tokens_per_batch: Padded tokens in one forward pass; when memory runs out the batch is halved.
        offload: Take the weights off the GPU after each call; false leaves them there after the first.

    Raises:
        ValueError: If a number is out of range.
    """

    uses_accelerator = True

    def __init__(
        self,
        *,
        path: str,
        revision: str | None = None,
        dtype: Literal["bfloat16", "float32"] = "bfloat16",
        max_pixels: int = 256 * 32 * 32,
        max_answer_tokens: int = 1024,
        max_tokens_per_batch: int = 8192,
        offload: bool = True,
    ) -> None:
        for name, value, least in (
            ("max_pixels", max_pixels, _LEAST_PIXELS),
            ("max_answer_tokens", max_answer_tokens, 1),
            ("max_tokens_per_batch", max_tokens_per_batch, 1),
        ):
            if value < least:
                raise ValueError(f"{_FLAG}{name} must be at least {least}, got {value}")
        self.path = path
        self.revision = revision
        self.dtype = dtype
        self.max_pixels = max_pixels
        self.max_answer_tokens = max_answer_tokens
        # Not public: these say how the work is done, and change no score. Kept scores are told apart by what is public.
        self._max_tokens_per_batch = max_tokens_per_batch
        self._offload = offload
        self._model: ValueHeadModel | None = None
        self._tail = torch.empty(0, dtype=torch.long)

    def __getstate__(self) -> dict[str, Any]:
        """The settings; a process that unpickles them loads the model again."""
        return {**self.__dict__, "_model": None}

    def prepare(self) -> None:
        """Loads the model into the CPU's memory; a second call does nothing.

        Raises:
            ValueError: If the path holds no such model; one line that names the flag and the remedy.
        """
        self._ready()

    def __call__(self, requests: Sequence[RewardRequest], answers: Sequence[str]) -> list[float | None]:
        """Scores each answer to its request's question and images.

        Returns:
            Scores in the order of the answers; None where there is none.

        Raises:
            ValueError: If the model cannot be loaded.
            torch.OutOfMemoryError: If the GPU has no room for the weights.
        """
        scores: list[float | None] = [None] * len(answers)
        rows: dict[Hashable, list[int]] = {}
        for index, request in enumerate(requests):
            rows.setdefault(_row_key(request), []).append(index)
        if not rows:
            return scores
        model = self._ready()
        from lit_vlaa.backbone.value_head import running  # noqa: PLC0415  # slow to import

        groups = list(rows.values())
        with running(model, _device(), offload=self._offload) as run:
            for start in range(0, len(groups), _WINDOW):
                found = [
                    answer
                    for row in groups[start : start + _WINDOW]
                    for answer in self._encode(model.backbone.processor, requests, answers, row)
                ]
                values = run.scores([(a.prompt, a.token_ids) for a in found], max_tokens=self._max_tokens_per_batch)
                for answer, value in zip(found, values, strict=True):
                    for place in answer.places:
                        scores[place] = value
        return scores

    def _ready(self) -> ValueHeadModel:
        if self._model is None:
            from lit_vlaa.backbone import BackboneConfig  # noqa: PLC0415  # slow to import
            from lit_vlaa.backbone.offload import pin  # noqa: PLC0415  # slow to import
            from lit_vlaa.backbone.value_head import load_value_head_model  # noqa: PLC0415

            config = BackboneConfig(
                path=self.path, revision=self.revision, dtype=self.dtype, max_pixels=self.max_pixels
            )
            try:
                with torch.inference_mode(mode=False):
                    model = load_value_head_model(config)
                    self._tail = _tail(model.backbone.processor)
            except ValueError as error:
                problem = " ".join(str(error).replace(_BACKBONE_FLAG, _FLAG).split())
                raise ValueError(f"{problem.rstrip('.')}; {_REMEDY}") from error
            if self._offload and torch.cuda.is_available():
                pin(model)
            self._model = model
        return self._model

    def _encode(
        self, processor: Processor, requests: Sequence[RewardRequest], answers: Sequence[str], row: Sequence[int]
    ) -> list[_Answer]:
        """The distinct answers to one row; those that cannot be encoded are left out."""
        request = requests[row[0]]
        prompt = _try(lambda: processor.encode(_sample(request)), request)
        if prompt is None:
            return []
        found: dict[tuple[int, ...], _Answer] = {}
        for index in row:
            ids = _try(partial(self._answer_ids, processor, answers[index]), request)
            if ids is not None:
                found.setdefault(tuple(ids.tolist()), _Answer(prompt, ids, [])).places.append(index)
        return list(found.values())

    def _answer_ids(self, processor: Processor, text: str) -> Tensor:
        most = self.max_answer_tokens
        ids = processor.encode_response(text.strip()[: _CHARS_PER_TOKEN * most])
        return torch.cat([ids[:-1][:most], ids[-1:], self._tail])


def _device() -> torch.device:
    return torch.device("cuda", torch.cuda.current_device()) if torch.cuda.is_available() else torch.device("cpu")


def _try(encode: Callable[[], _T], request: RewardRequest) -> _T | None:
    try:
        return encode()
    except Exception as error:  # noqa: BLE001 - images and texts can be broken in any way; the row counts as failed
        _log.warning("row %s gets no score from the reward model: %s", request.id or "without id", error)
        return None


def _row_key(request: RewardRequest) -> Hashable:
    """Tells rows apart; without an id, two requests share their images only if they share the opener."""
    if request.id:
        return request.source, request.id, request.question
    return request.question, id(request.images)


def _sample(request: RewardRequest) -> Sample:
    images = () if request.images is None else request.images()
    record = Record(
        id=request.id,
        source=request.source,
        kind=request.kind,
        images=("",) * len(images),
        question=request.question,
        truth=request.truth,
        response=None,
        origin=request.id or "row without id",
    )
    question = request.question.replace(IMAGE_PLACEHOLDER, "").strip()
    user: Message = {"role": "user", "content": [{"type": "image"} for _ in images]}
    user["content"].append({"type": "text", "text": question})
    return Sample(record=record, messages=(user,), images=images, box_space=request.box_space)


def _tail(processor: Processor) -> Tensor:
    """Tokens that the chat template writes after an answer's end-of-turn token: a newline, for Qwen's own.

    Raises:
        ValueError: If the template does not end an answer with that token.
    """
    turns = [{"role": role, "content": [{"type": "text", "text": role}]} for role in ("user", "assistant")]
    text = processor.tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=False)
    end = processor.tokenizer.convert_ids_to_tokens(processor.end_token_id)
    before, _, after = text.rpartition(end)
    if not before.endswith("assistant"):
        raise ValueError(f"{_BACKBONE_FLAG}path: its chat template does not end an answer with {end}")
    return torch.tensor(processor.tokenizer(after, add_special_tokens=False)["input_ids"], dtype=torch.long)
