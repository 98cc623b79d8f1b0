"""Exact sums over ranks: one counter a row, so that no row counts twice whoever scored it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torchmetrics import Metric

COUNTERS = ("seen", "hit", "undecided", "failed", "truncated", "tokens", "judge_calls")
"""What is known of each row: scored, right, without a verdict, without an answer, cut off by the length limit."""


@dataclass(frozen=True, slots=True)
class Verdicts:
    """What all ranks together know of a benchmark's rows; each tuple has one entry a row."""

    seen: tuple[bool, ...]
    hit: tuple[bool | None, ...]
    """None without a verdict, also where the row was not scored."""
    failed: tuple[bool, ...]
    """True where no rank could answer the row."""
    truncated: tuple[bool, ...]
    tokens: tuple[int, ...]
    judge_calls: tuple[int, ...]


class RowVerdicts(Metric):
    """Collects `COUNTERS` by row."""

    full_state_update = False

    def __init__(self, rows: int) -> None:
        """Starts with nothing known.

        Args:
            rows: Of the benchmark, the same on every rank.
        """
        super().__init__()
        for name in COUNTERS:
            self.add_state(name, default=torch.zeros(rows, dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, places: Sequence[int], counters: Mapping[str, Sequence[int]]) -> None:
        """Adds what this rank found out.

        Args:
            places: Rows.
            counters: By name, one number for each of `places`; what is left out is 0.
        """
        for name, values in counters.items():
            state: Tensor = getattr(self, name)
            state.index_add_(
                0, torch.tensor(places, device=state.device).long(), torch.tensor(values, device=state.device).long()
            )

    def compute(self) -> dict[str, Tensor]:
        """`COUNTERS` summed over all ranks, each `[rows]` int64."""
        return {name: getattr(self, name) for name in COUNTERS}


def read_counters(counters: Mapping[str, Tensor]) -> Verdicts:
    """What counters say of the rows; of a row that several ranks scored, the majority and the mean."""
    # torchmetrics makes a number of a tensor with one element.
    seen, hit, undecided, failed, truncated, tokens, calls = (counters[name].reshape(-1).tolist() for name in COUNTERS)
    times = [max(1, count) for count in seen]
    return Verdicts(
        seen=tuple(count > 0 for count in seen),
        hit=tuple(
            None if lost == count else 2 * right >= count - lost
            for count, right, lost in zip(seen, hit, undecided, strict=True)
        ),
        failed=tuple(count > 0 and not scored for count, scored in zip(failed, seen, strict=True)),
        truncated=tuple(count > 0 for count in truncated),
        tokens=tuple(count // time for count, time in zip(tokens, times, strict=True)),
        judge_calls=tuple(count // time for count, time in zip(calls, times, strict=True)),
    )
