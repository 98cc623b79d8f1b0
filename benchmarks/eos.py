"""Ends every completion at its planned length, in both engines, at next to no cost.

Random weights end a completion once in hundreds of tokens, wherever chance has it. Ours draws each token from a uniform
number that is known in advance, taking the first token up to which the probabilities add up to more than it. The token
with id 0 ends completions, so a number of zero ends one, and numbers from a tenth on end none: the probabilities of the
ids up to the last that ends completions add up to far less. transformers draws on the device, so there the logits are
overruled. Whoever measures checks the lengths that come out.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from transformers import LogitsProcessor, LogitsProcessorList

import lit_vlaa.generation.sampling
from lit_vlaa.generation import RolloutKey

Plan = Mapping[tuple[str, int], int]
"""Completion length by prompt id and sample number."""

_LEAST = 0.1
_CERTAIN = 1e4


@contextmanager
def planned_uniforms(plan: Plan) -> Iterator[None]:
    """While open, this project's engines write completions of the planned lengths, all tokens else being random."""
    drawn = lit_vlaa.generation.sampling.uniforms
    replaced = planned(drawn, plan)
    places = [module for name, module in sys.modules.items() if name.startswith("lit_vlaa.generation")]
    places = [module for module in places if getattr(module, "uniforms", None) is drawn]
    for module in places:
        module.uniforms = replaced  # type: ignore[attr-defined]
    try:
        yield
    finally:
        for module in places:
            module.uniforms = drawn  # type: ignore[attr-defined]


def planned(drawn: Callable[..., Tensor], plan: Plan) -> Callable[..., Tensor]:
    """`drawn` with its numbers changed so that completions end as planned."""

    def uniforms(key: RolloutKey, prompt_id: str, sample: int, count: int) -> Tensor:
        numbers = _LEAST + (0.99 - _LEAST) * drawn(key, prompt_id, sample, count)
        numbers[plan[prompt_id, sample] - 1] = 0.0
        return numbers

    return uniforms


class PlannedEnds(LogitsProcessor):
    """The same for transformers' `generate`: an end token is certain at the planned step, and impossible before."""

    def __init__(self, lengths: list[int], stop_token_ids: tuple[int, ...]) -> None:
        """Plans `lengths`, one a row of the batch."""
        self.lengths = torch.tensor(lengths)
        self.stops = list(stop_token_ids)
        self.width: int | None = None

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """`[R, V]` scores of the next token."""
        if self.width is None:
            self.width = input_ids.shape[1]
            self.lengths = self.lengths.to(scores.device)
        step = input_ids.shape[1] - self.width + 1
        scores[:, self.stops] = -torch.inf
        scores[:, self.stops[0]] = torch.where(self.lengths == step, _CERTAIN, -torch.inf).to(scores.dtype)
        return scores


@contextmanager
def planned_generate(model: Any, lengths: list[int], stop_token_ids: tuple[int, ...]) -> Iterator[None]:
    """While open, `model.generate` writes completions of the planned lengths, row by row."""
    generate = model.generate

    def with_plan(*args: Any, **kwargs: Any) -> Any:
        hook = PlannedEnds(lengths, stop_token_ids)
        return generate(*args, logits_processor=LogitsProcessorList([hook]), **kwargs)

    model.generate = with_plan
    try:
        yield
    finally:
        del model.generate
