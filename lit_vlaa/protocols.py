"""What the parts of the project ask of each other, and of parts that users bring."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Protocol, runtime_checkable

from torch import Tensor, nn

from lit_vlaa.types import BoxSpace, Completion, Prompt, RewardRequest, Sample, SamplingParams


class ChatProcessor(Protocol):
    """What the data modules need of a backbone's processor: `Sample` in, tokens out. Survives pickling to workers."""

    box_space: BoxSpace
    """How the backbone was pretrained to write boxes."""

    def encode(self, sample: Sample) -> Prompt:
        """Applies the chat template, tokenises, prepares the images."""

    def encode_response(self, text: str) -> Tensor:
        """`[C]` tokens of an assistant's response, the end-of-turn token last."""


class AnsweringProcessor(ChatProcessor, Protocol):
    """A processor that also reads what a model wrote."""

    @property
    def settings(self) -> str:
        """Everything that decides `encode` besides the sample, as text: to know prompts of the same settings again."""

    def decode(self, token_ids: Tensor) -> str:
        """Text of sampled tokens without control tokens."""


class AnsweringModule(Protocol):
    """What evaluation needs of a module: prompts in, completions out, the same under every strategy."""

    @property
    def processor(self) -> AnsweringProcessor:
        """Chat template, tokenizer and image processing."""

    @property
    def backbone(self) -> nn.Module:
        """The model; its parameters are whole while `rollout_mode` is open."""

    @property
    def engine(self) -> object:
        """What completes prompts; its class and its public settings belong to what an answer depends on."""

    def rollout_mode(self) -> AbstractContextManager[None]:
        """The model whole on every rank, in evaluation mode and without gradients; opened on all ranks together."""

    def complete(
        self, prompts: Sequence[Prompt], *, group_size: int, step: int, params: SamplingParams
    ) -> list[list[Completion]]:
        """Samples completions; within `rollout_mode` a rank may call it any number of times."""

    def step_boundary(self) -> None:
        """Gives callbacks their turn where all ranks are between two optimiser steps: they may save and stop."""


class Scorer(Protocol):
    """A model of answer quality for open-ended questions.

    In training it is called in a thread, while other completions are being written: an answer's score may not depend on
    the other answers of the call. With an attribute `uses_accelerator` that is true it is called once, when the rollout
    is over.
    """

    def __call__(self, requests: Sequence[RewardRequest], answers: Sequence[str]) -> list[float | None]:
        """Scores `answers[i]` for `requests[i]`; None where this scorer failed."""


ScoreFunction = Callable[[Sequence[RewardRequest], Sequence[str]], list[float | None]]
"""What a `Scorer` does, as a plain function or the instance of any class."""


@runtime_checkable
class Preparable(Protocol):
    """A scorer or a rollout engine that can tell before the run whether it will work."""

    def prepare(self) -> None:
        """Loads, connects or looks whether that is possible.

        Raises:
            ValueError: If it cannot be used; the message names the flag and the remedy.
        """


Verifier = Callable[[str, RewardRequest], float]
"""Judges one answer of its kind: (content of the answer block, request) -> value in [0, 1].

Raises `rewards.errors.UnparsableTruthError` for a ground truth that it cannot read. Any other exception and any other
value count as a failed verification, never as a wrong answer. It runs in a thread of the trainer's process, on hostile
text.
"""
