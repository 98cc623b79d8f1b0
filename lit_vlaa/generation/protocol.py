"""What every rollout engine offers."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from lit_vlaa.backbone.model import Backbone
from lit_vlaa.checks import RunStoppedError
from lit_vlaa.types import Completion, Prompt, SamplingParams


@dataclass(frozen=True, slots=True)
class RolloutKey:
    """Names the randomness of one rollout; with a prompt's id and a sample's number it fixes every draw."""

    seed: int
    """The run's seed."""
    step: int
    """Optimiser steps taken before the rollout."""
    attempt: int = 0
    """How often these prompts were drawn before at this step."""


OnGroup = Callable[[int, list[Completion]], None]
"""Is told of a prompt, by its index, and its completions in sample order."""


class EngineLostError(RunStoppedError):
    """An engine outside of this process that cannot be used (any more); the message says why, and the remedy.

    An engine that may raise it, on one rank alone perhaps, has an attribute `may_be_lost` that is true. Then training
    saves a checkpoint and stops on all ranks.
    """


class Generator(Protocol):
    """A rollout engine.

    Up to rounding, a completion depends on the weights, the key, the prompt and the sample number alone: not on the
    other prompts, their order, the rank or the number of ranks.

    `generate` may also take `on_group: OnGroup | None = None`. It is then to be called in this thread, once for each
    prompt and as soon as all its completions have ended, so that they are scored while others are written. Without
    this argument everything is scored at the end. `--model.generator` takes a class whose `generate` has these
    arguments with these annotations.
    """

    def generate(
        self,
        backbone: Backbone,
        prompts: Sequence[Prompt],
        *,
        group_size: int,
        params: SamplingParams,
        key: RolloutKey,
    ) -> list[list[Completion]]:
        """Samples `group_size` completions for each prompt.

        Args:
            backbone: The policy, whole (a sharded one is gathered by the caller).
            prompts: Encoded prompts of any lengths, with images or without.
            group_size: Completions a prompt.
            params: How to sample.
            key: Fixes the randomness.

        Returns:
            For each prompt its completions, in sample order.
        """


def announces_groups(generator: Generator) -> bool:
    """Whether `generate` names `on_group` among its parameters.

    Keywords that it only passes on (`**options`) do not count: nobody knows whether what they reach takes this one, or
    whether the completions are changed afterwards.
    """
    return "on_group" in inspect.signature(generator.generate).parameters


def check_sampling(generator: Generator, params: SamplingParams) -> None:
    """Asks an engine with a method `check_sampling` whether it can sample so.

    Raises:
        ValueError: If it cannot; the message names the flag.
    """
    check = getattr(generator, "check_sampling", None)
    if check is not None:
        check(params)


def may_be_lost(generator: Generator) -> bool:
    """Whether `generate` may raise `EngineLostError`."""
    return bool(getattr(generator, "may_be_lost", False))
