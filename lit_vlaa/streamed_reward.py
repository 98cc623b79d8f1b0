"""Verdicts on a rollout's completions while the device still writes others.

Verifiers work in processes and over networks. A thread of their own takes each prompt's completions as soon as all of
them have ended; all that wait when it is free go to the reward together, as its processes and scorers like batches.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from queue import Empty, SimpleQueue
from types import TracebackType
from typing import Self

import torch

from lit_vlaa.generation.protocol import Generator, announces_groups
from lit_vlaa.rollout import Judged, Sampled, flatten
from lit_vlaa.tasks import Task, Tasks
from lit_vlaa.types import Completion, Prompt, RewardResult

_log = logging.getLogger(__name__)

Group = tuple[Completion, ...]


def can_stream(generator: Generator, *, needs_device: bool) -> bool:
    """Whether completions can be scored while others are written; logs why not.

    Args:
        generator: The rollout engine.
        needs_device: Whether the scorer works on the device that writes completions.
    """
    if needs_device:
        _log.info("the scorer works on the training device: completions are scored once the rollout is over")
    elif not announces_groups(generator):
        name = type(generator).__name__
        _log.info("%s.generate names no on_group: completions are scored once the rollout is over", name)
    else:
        return True
    return False


class StreamedVerdicts:
    """Judges one rollout's completions, group by group; a context around the rollout and all that waits for verdicts.

    What comes out does not depend on when groups come in, for a reward whose verdict on an answer does not depend on
    the other answers of its call. Left by an exception it waits for nothing: its thread ends with the call that it is
    in.
    """

    def __init__(
        self, prompts: Sequence[Prompt], group_size: int, judge: Callable[[Sampled], Judged], device: torch.device
    ) -> None:
        """Makes the thread; it starts with the context.

        Args:
            prompts: B prompts.
            group_size: Completions a prompt.
            judge: Decodes and scores completions of some of them.
            device: This rank's device.
        """
        self._prompts = tuple(prompts)
        self._group_size = group_size
        self._judge = judge
        self._device = device
        self._given: dict[int, Group] = {}
        self._waiting: SimpleQueue[dict[int, Group]] = SimpleQueue()
        """Of what was given, what the thread has not taken."""
        self._verdicts: dict[int, tuple[tuple[str, ...], tuple[RewardResult, ...]]] = {}
        """Texts and results of prompts."""
        self._seconds = 0.0
        self._sampled: Sampled | None = None
        """Everything, once no more groups come."""
        self._error: BaseException | None = None
        """What the reward raised; it is not asked again."""
        self._thread = Tasks(1, "reward")
        self._calls: list[Task[None]] = []

    def __enter__(self) -> Self:
        """Starts the thread."""
        self._thread.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Lets the thread end. What it raised is logged where another error keeps `result` from raising it."""
        self._thread.__exit__(kind, error, trace)
        failed = self._error
        if failed is not None and error is not failed:
            _log.error("the reward had failed as well", exc_info=failed)

    def add(self, index: int, completions: Sequence[Completion]) -> None:
        """Hands over the completions of the prompt with this index, in sample order.

        Raises:
            ValueError: If they are not the whole group.
        """
        if len(completions) != self._group_size:
            raise ValueError(
                f"on_group was told of {len(completions)} completions of prompt {index}; call it once for each prompt, "
                f"with all {self._group_size}"
            )
        self._given[index] = tuple(completions)
        self._hand_over({index: self._given[index]})

    def finish(self, groups: Sequence[Sequence[Completion]], *, wait: bool = False) -> Sampled:
        """Says that the rollout is over, and hands over what `add` was not given, or not as it now is.

        Args:
            groups: The completions of each prompt.
            wait: Return no earlier than when all are judged.

        Returns:
            The completions, to work with until there are verdicts.
        """
        sampled = flatten(self._prompts, groups)
        left = {
            index: tuple(group) for index, group in enumerate(groups) if not _same(self._given.get(index, ()), group)
        }
        self._sampled = sampled
        if left:
            self._hand_over(left)
        for call in self._calls if wait else ():
            call.wait()
        return sampled

    def result(self) -> tuple[Judged, float]:
        """Waits for the verdicts on what `finish` was given; gives them, and the seconds that the thread worked.

        Raises:
            BaseException: Whatever the reward raised.
        """
        sampled = self._sampled
        assert sampled is not None  # noqa: S101  # there would not be all verdicts
        for call in self._calls:
            call.result()
        each = [self._verdicts[index] for index in range(len(self._prompts))]
        texts = tuple(text for own, _ in each for text in own)
        results = tuple(result for _, own in each for result in own)
        return Judged(sampled.prompts, sampled.completions, texts, results), self._seconds

    def _hand_over(self, groups: dict[int, Group]) -> None:
        self._waiting.put(groups)
        self._calls.append(self._thread.begin(self._judge_waiting))

    def _judge_waiting(self) -> None:
        """Judges all groups that wait: those of later calls too, which then find none."""
        batch: dict[int, Group] = {}
        with suppress(Empty):
            while True:
                batch |= self._waiting.get_nowait()
        if not batch or self._error is not None:
            return
        try:
            if self._device.type == "cuda":
                torch.cuda.set_device(self._device)  # a new thread would take the first
            started = time.perf_counter()
            judged = self._judge(flatten([self._prompts[index] for index in batch], list(batch.values())))
            for place, index in enumerate(batch):
                own = slice(place * self._group_size, (place + 1) * self._group_size)
                self._verdicts[index] = judged.texts[own], judged.results[own]
            self._seconds += time.perf_counter() - started
        except BaseException as error:
            self._error = error
            raise


def _same(one: Sequence[Completion], other: Sequence[Completion]) -> bool:
    return len(one) == len(other) and all(
        torch.equal(a.token_ids, b.token_ids) for a, b in zip(one, other, strict=True)
    )
