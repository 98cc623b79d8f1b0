"""The boundaries between stages: what each stage hands to the next.

Shape legend, used across the project: B prompts (or sequences), G completions a prompt, P prompt tokens,
C completion tokens, T tokens of a padded row, N scored tokens of a batch, V vocabulary, I images, D patch values.

The path: a file's row -> `Record` -> `Sample` -> `Prompt` -> `Completion` -> `RewardResult` -> `ModelInputs` -> loss.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal, TypedDict

import torch
from torch import Tensor

if TYPE_CHECKING:
    from PIL.Image import Image

Kind = str
"""Names the verifier that scores a row: one of `KINDS`, or one that the user adds (`--model.verifiers`)."""

KINDS: tuple[Kind, ...] = ("digit", "mcq", "math", "iou", "open_ended")
"""The five verifiers of the mixed reward (paper, section on mixed reward)."""

BoxSpace = Literal["normalized", "qwen2_5_vl", "qwen2_vl"]
"""How a policy writes boxes: fractions of the image, pixels of the image as fed, or thousandths."""

RewardStatus = Literal["ok", "no_answer", "unparsable_gt", "verifier_error", "timeout"]
"""`ok` and `no_answer` are verdicts; the other three say that no verdict was reached."""

FinishReason = Literal["stop", "length"]


class TextPart(TypedDict):
    """A piece of text in a chat message."""

    type: Literal["text"]
    text: str


class ImagePart(TypedDict):
    """The place of the next image in a chat message."""

    type: Literal["image"]


class Message(TypedDict):
    """One chat turn in the form that transformers' chat templates read."""

    role: Literal["system", "user", "assistant"]
    content: list[TextPart | ImagePart]


@dataclass(frozen=True, slots=True)
class Record:
    """One row of a VLAA-Thinking file, whatever form it was stored in."""

    id: str
    """Unique in its split; made from the file and the row number when the file has none."""
    source: str
    """One of the nine sources (`datamodules.sources`), or `other`."""
    kind: Kind
    """Which verifier scores this row."""
    images: tuple[str, ...]
    """Paths below the image root, without a leading slash; empty for a text-only row."""
    question: str
    truth: str
    """Ground truth as text: a number, a letter, an expression, `[x1, y1, x2, y2]` or prose; empty when absent."""
    response: str | None
    """The full target response for SFT, `<think>...</think><answer>...</answer>`; None when the row has none."""
    origin: str
    """`file:row` (rows counted from 1), for messages to the user."""


@dataclass(frozen=True, slots=True)
class Sample:
    """A record made ready for the chat template."""

    record: Record
    messages: tuple[Message, ...]
    images: tuple[Image, ...]
    """RGB images in the order of the messages' image parts."""
    box_space: BoxSpace


@dataclass(frozen=True, slots=True)
class Prompt:
    """One encoded prompt with everything that generation and scoring need of its record."""

    record: Record
    input_ids: Tensor
    """`[P]` int64, chat template applied, each image placeholder expanded to its true number of tokens."""
    position_ids: Tensor
    """`[3, P]` int64, multimodal rotary positions (temporal, height, width)."""
    pixel_values: Tensor | None
    """`[patches, D]` float32, the patches of all images one after the other; None without images."""
    image_grid_thw: Tensor | None
    """`[I, 3]` int64, the patch grid of each image (time, height, width); None without images."""
    image_sizes: tuple[tuple[int, int], ...]
    """(width, height) in pixels of each image as fed to the model."""
    box_space: BoxSpace = "normalized"
    padding: bool = False
    """True for a row repeated only to give all ranks the same number; metrics leave it out."""

    @property
    def next_position(self) -> int:
        """Rotary position of the first completion token; the later ones count on from it."""
        return int(self.position_ids.max()) + 1 if self.position_ids.numel() else 0

    def to(self, device: torch.device | str, non_blocking: bool = False) -> Prompt:
        """Returns the prompt with its pixel values on `device`; its token ids stay on the CPU, where rows are built."""
        if self.pixel_values is None:
            return self
        return replace(self, pixel_values=self.pixel_values.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> Prompt:
        """Returns the prompt with its pixel values in page-locked memory."""
        if self.pixel_values is None:
            return self
        return replace(self, pixel_values=self.pixel_values.pin_memory())


def _pack(prompts: Sequence[Prompt]) -> tuple[list[tuple[Any, ...]], Tensor | None]:
    """Prompts for the way from a worker process: one tensor for all pixels, arrays for the rest.

    Every tensor that crosses takes a file descriptor, of which a process has about a thousand; arrays take none.
    """
    rows = [
        (
            p.record,
            p.input_ids.numpy(),
            p.position_ids.numpy(),
            0 if p.pixel_values is None else p.pixel_values.shape[0],
            None if p.image_grid_thw is None else p.image_grid_thw.numpy(),
            (p.image_sizes, p.box_space, p.padding),
        )
        for p in prompts
    ]
    pixels = [p.pixel_values for p in prompts if p.pixel_values is not None]
    return rows, torch.cat(pixels) if pixels else None


def _unpack(rows: list[tuple[Any, ...]], pixels: Tensor | None) -> tuple[Prompt, ...]:
    """The prompts of `_pack`; their pixel values are views of one tensor."""
    prompts = []
    start = 0
    for record, ids, positions, patches, grids, rest in rows:
        own = None if pixels is None or not patches else pixels[start : start + patches]
        start += patches
        grid = None if grids is None else torch.from_numpy(grids)
        prompts.append(Prompt(record, torch.from_numpy(ids), torch.from_numpy(positions), own, grid, *rest))
    return tuple(prompts)


def _prompt_batch(rows: list[tuple[Any, ...]], pixels: Tensor | None) -> PromptBatch:
    return PromptBatch(_unpack(rows, pixels))


def _sft_batch(rows: list[tuple[Any, ...]], pixels: Tensor | None, responses: list[Any]) -> SFTBatch:
    return SFTBatch(_unpack(rows, pixels), tuple(torch.from_numpy(ids) for ids in responses))


@dataclass(frozen=True, slots=True)
class PromptBatch:
    """The prompts of one rollout on this rank."""

    prompts: tuple[Prompt, ...]

    def __reduce__(self) -> tuple[Any, ...]:
        """Packs the prompts for the way between processes."""
        return _prompt_batch, _pack(self.prompts)

    def __len__(self) -> int:
        return len(self.prompts)

    def to(self, device: torch.device | str, non_blocking: bool = False) -> PromptBatch:
        """Moves the pixel values (Lightning calls this)."""
        return PromptBatch(tuple(p.to(device, non_blocking) for p in self.prompts))

    def pin_memory(self) -> PromptBatch:
        """Pins the pixel values (the data loader calls this)."""
        return PromptBatch(tuple(p.pin_memory() for p in self.prompts))


@dataclass(frozen=True, slots=True)
class SFTBatch:
    """This rank's share of one SFT batch: prompts and, beside each, the tokens to learn."""

    prompts: tuple[Prompt, ...]
    responses: tuple[Tensor, ...]
    """Per prompt `[C]` int64: response tokens with the end-of-turn token last."""

    def __reduce__(self) -> tuple[Any, ...]:
        """Packs prompts and responses for the way between processes."""
        return _sft_batch, (*_pack(self.prompts), [ids.numpy() for ids in self.responses])

    def __len__(self) -> int:
        return len(self.prompts)

    def to(self, device: torch.device | str, non_blocking: bool = False) -> SFTBatch:
        """Moves the pixel values (Lightning calls this)."""
        return SFTBatch(tuple(p.to(device, non_blocking) for p in self.prompts), self.responses)

    def pin_memory(self) -> SFTBatch:
        """Pins the pixel values (the data loader calls this)."""
        return SFTBatch(tuple(p.pin_memory() for p in self.prompts), self.responses)


@dataclass(frozen=True, slots=True)
class ModelInputs:
    """Right-padded rows for one forward pass. Padding needs no mask: causal attention never looks ahead to it."""

    input_ids: Tensor
    """`[B, T]` int64."""
    position_ids: Tensor
    """`[3, B, T]` int64."""
    target_mask: Tensor
    """`[B, T]` bool, True at the tokens to score (the completion); never True in column 0."""
    pixel_values: Tensor | None
    """`[patches, D]`, each distinct image once."""
    image_grid_thw: Tensor | None
    """`[I, 3]`, the distinct images."""
    image_slots: Tensor | None
    """`[S]` int64: for each image place in row-major order, which distinct image stands there."""


@dataclass(frozen=True, slots=True)
class TokenScores:
    """What one forward pass says of its N target tokens, in row-major order."""

    logprobs: Tensor
    """`[N]` float32 log-probability of each target token."""
    entropy: Tensor
    """`[N]` float32 entropy of each target's distribution in nats, without gradient."""
    correct: Tensor
    """`[N]` bool, True where the target is the most probable token."""


@dataclass(frozen=True, slots=True)
class Completion:
    """One sampled answer."""

    token_ids: Tensor
    """`[C]` int64 on the CPU, the end-of-turn token included when the policy wrote it."""
    logprobs: Tensor
    """`[C]` float32 on the CPU, log-probability of each token under the sampling distribution
    (temperature and bans applied, top-k and top-p not)."""
    finish: FinishReason


@dataclass(frozen=True)
class SamplingParams:
    """How completions are drawn."""

    max_new_tokens: int
    """Most tokens of a completion, the end of turn included."""
    temperature: float = 0.8
    """Divides the logits; 0 means greedy."""
    top_p: float = 1.0
    """Draw from the most probable tokens that together have this probability; 1 means all."""
    top_k: int = 0
    """Draw from so many of the most probable tokens; 0 means no limit."""

    def __post_init__(self) -> None:
        if self.max_new_tokens < 1:
            raise ValueError(f"--model.sampling.max_new_tokens must be at least 1, got {self.max_new_tokens}")
        if not 0 <= self.temperature < math.inf:
            raise ValueError(f"--model.sampling.temperature must be 0 (greedy) or positive, got {self.temperature}")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"--model.sampling.top_p must lie in (0, 1], got {self.top_p}")
        if self.top_k < 0:
            raise ValueError(f"--model.sampling.top_k must be 0 (no limit) or positive, got {self.top_k}")


@dataclass(frozen=True, slots=True)
class RewardRequest:
    """One response to score."""

    response: str
    """The policy's decoded text, hostile input."""
    kind: Kind
    truth: str
    question: str = ""
    source: str = ""
    box_space: BoxSpace = "normalized"
    image_size: tuple[int, int] | None = None
    """(width, height) in pixels of the image as fed to the model."""
    id: str = ""
    """Of the row: tells rows with the same question and other images apart."""
    images: Callable[[], tuple[Image, ...]] | None = field(default=None, compare=False, repr=False)
    """Opens the row's images, for scorers that look at them; None where no images are at hand."""


@dataclass(frozen=True, slots=True)
class RewardResult:
    """The verdict on one response."""

    value: float
    """In [0, 1]; 0 when no verdict was reached."""
    kind: Kind
    extracted: str | None
    """The answer that was judged, None when none could be extracted."""
    status: RewardStatus

    @property
    def judged(self) -> bool:
        """True when `value` is a verdict; a sample that could not be judged is left out of its group's statistics."""
        return self.status in ("ok", "no_answer")


@dataclass(frozen=True, slots=True)
class ScoredGroup:
    """One prompt's completions with their rewards, for logging and for callbacks."""

    record: Record
    texts: tuple[str, ...]
    results: tuple[RewardResult, ...]
    advantages: tuple[float, ...]
    lengths: tuple[int, ...]
    """Completion tokens."""
