"""What the parts of the project ask of each other, and of parts that users bring."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol, runtime_checkable

from torch import Tensor

from lit_vlaa.types import BoxSpace, Prompt, RewardRequest, Sample


class ChatProcessor(Protocol):
    """What the data modules need of a backbone's processor: `Sample` in, tokens out. Survives pickling to workers."""

    box_space: BoxSpace
    """How the backbone was pretrained to write boxes."""

    def encode(self, sample: Sample) -> Prompt:
        """Applies the chat template, tokenises, prepares the images."""

    def encode_response(self, text: str) -> Tensor:
        """`[C]` tokens of an assistant's response, the end-of-turn token last."""


class Scorer(Protocol):
    """A model of answer quality for open-ended questions."""

    def __call__(self, requests: Sequence[RewardRequest], answers: Sequence[str]) -> list[float | None]:
        """Scores `answers[i]` for `requests[i]`; None where this scorer failed."""


ScoreFunction = Callable[[Sequence[RewardRequest], Sequence[str]], list[float | None]]
"""What a `Scorer` does, as a plain function or the instance of any class."""


@runtime_checkable
class Preparable(Protocol):
    """A scorer that can tell before the run whether it will work."""

    def prepare(self) -> None:
        """Loads, connects or looks whether that is possible.

        Raises:
            ValueError: If the scorer cannot be used; the message names the flag and the remedy.
        """


Verifier = Callable[[str, RewardRequest], float]
"""Judges one answer of its kind: (content of the answer block, request) -> value in [0, 1].

Raises `rewards.errors.UnparsableTruthError` for a ground truth that it cannot read. Any other exception and any other
value count as a failed verification, never as a wrong answer. It runs in the trainer's process on hostile text.
"""
