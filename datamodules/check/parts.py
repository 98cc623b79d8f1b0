"""Parts of the library that the check needs and a data module must not import: they are reached by name."""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from lit_vlaa.protocols import ChatProcessor, Verifier
from lit_vlaa.types import Kind, Message, Record


class CountingProcessor(ChatProcessor, Protocol):
    """A processor that tells lengths without pixels."""

    def prompt_lengths(self, messages: Sequence[Message], sizes: Sequence[tuple[int, int]]) -> tuple[int, int]:
        """Tokens of a prompt beside its images, and those of its images of (width, height) pixels."""


class Verdict(Protocol):
    """What is wrong with one truth."""

    problem: str
    row: int
    detail: str
    truth: str
    answer: str


class Truths:
    """Scores ground truths against themselves (`lit_vlaa.rewards_check`) in a process of its own.

    Args:
        verifiers: Reward kinds of the user's own.
    """

    def __init__(self, verifiers: Mapping[Kind, Verifier]) -> None:
        config = importlib.import_module("lit_vlaa.rewards.config").RewardConfig(math_workers=1)
        self._reward: Any = importlib.import_module("lit_vlaa.rewards.mixed").MixedReward(
            config, verifiers=dict(verifiers)
        )
        self._check = importlib.import_module("lit_vlaa.rewards_check").check_batch

    @property
    def kinds(self) -> tuple[Kind, ...]:
        """The kinds that are scored."""
        return tuple(self._reward.kinds)

    def __call__(self, records: Sequence[Record]) -> list[Verdict]:
        """Judges records of these kinds, whose origins differ."""
        found: list[Verdict] = self._check(records, self._reward)
        return found

    def close(self) -> None:
        """Ends the processes that compare expressions."""
        self._reward.close()


def read_config(words: Sequence[str]) -> Any:
    """The configuration that flags of `lit-vlaa fit` give (`lit_vlaa.run_config`)."""
    return importlib.import_module("lit_vlaa.run_config").read_config(words)


def backbone_of(model: Any) -> Any:
    """The settings of the backbone of a parsed model; those of the embedded tiny one for None."""
    if model is None:
        return importlib.import_module("lit_vlaa.backbone.config").BackboneConfig()
    return importlib.import_module("lit_vlaa.run_config").backbone_of(model["backbone"])


def processor_of(backbone: Any) -> CountingProcessor:
    """Loads the processor of a backbone.

    Raises:
        ValueError: If it cannot be loaded; the message names the flag.
    """
    made: CountingProcessor = importlib.import_module("lit_vlaa.backbone.processor").load_processor(backbone)
    return made


def context_of(backbone: Any) -> int | None:
    """Positions that a backbone knows; None where its configuration does not say.

    Raises:
        ValueError: If there is no configuration; the message names the flag.
    """
    found: int | None = importlib.import_module("lit_vlaa.run_config").context_of(backbone)
    return found
