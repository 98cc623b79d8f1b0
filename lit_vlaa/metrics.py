"""Numbers of a run: means with weights over all ranks, reward statistics for evaluation, seconds by phase."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor
from torchmetrics import Metric

from lit_vlaa.types import KINDS, Kind


class RankMeans:
    """Weighted means whose sums are reduced over ranks in one call. Every rank must know the same names in advance."""

    def __init__(self, names: Iterable[str]) -> None:
        """Starts all means of `names` at nothing."""
        self._sums: dict[str, list[Tensor]] = {name: [torch.zeros(()), torch.zeros(())] for name in names}

    def add(self, name: str, total: Tensor | float, weight: Tensor | float) -> None:
        """Adds values that sum to `total` over `weight` units; tensors may stay on their device until `reduce`."""
        pair = self._sums[name]
        for place, value in enumerate((total, weight)):
            pair[place] = pair[place] + (value.detach().float() if isinstance(value, Tensor) else value)

    def reduce(self, sum_over_ranks: Callable[[Tensor], Tensor]) -> dict[str, float]:
        """The means over all ranks; a name without any weight is left out, on every rank alike."""
        table = sum_over_ranks(self.table().flatten()).view(-1, 2)
        return {
            name: total / weight for name, (total, weight) in zip(self._sums, table.tolist(), strict=True) if weight
        }

    def merge(self, other: RankMeans) -> None:
        """Adds what another instance with the same names holds."""
        for name, pair in other._sums.items():
            self.add(name, *pair)

    def table(self) -> Tensor:
        """`[names, 2]` float32 on the CPU: this rank's total and weight of each name."""
        return torch.stack([value.cpu() for pair in self._sums.values() for value in pair]).view(-1, 2)

    def take_up(self, table: Tensor) -> None:
        """Goes on from what `table` gave, for the same names."""
        for name, (total, weight) in zip(self._sums, table, strict=True):
            self._sums[name] = [total, weight]


class RewardStats(Metric):
    """Mean reward with its standard error, over all rows and by kind; rows without a verdict are counted apart."""

    full_state_update = False

    def __init__(self, kinds: Sequence[Kind] = KINDS) -> None:
        """Starts empty.

        Args:
            kinds: Every kind that may occur, the same on every rank.
        """
        super().__init__()
        self.kinds = tuple(kinds)
        for name in ("count", "total", "squares", "failed"):
            self.add_state(name, default=torch.zeros(len(self.kinds), dtype=torch.float64), dist_reduce_fx="sum")
        self.count: Tensor
        self.total: Tensor
        self.squares: Tensor
        self.failed: Tensor

    def update(self, kind: Kind, reward: float | None) -> None:
        """Adds one row: its mean reward over samples, or None when no sample could be judged."""
        index = self.kinds.index(kind)
        if reward is None:
            self.failed[index] += 1
            return
        self.count[index] += 1
        self.total[index] += reward
        self.squares[index] += reward**2

    def compute(self) -> dict[str, float]:
        """`reward`, `stderr`, `n`, `failed`, and `reward/<kind>` and `n/<kind>` for each kind that occurred.

        `failed/<kind>` is there for each kind with failures.
        """
        count = float(self.count.sum())
        result = {"n": count, "failed": float(self.failed.sum())}
        if count:
            mean = float(self.total.sum()) / count
            variance = max(0.0, float(self.squares.sum()) - count * mean**2) / max(1.0, count - 1)
            result |= {"reward": mean, "stderr": (variance / count) ** 0.5}
        for index, kind in enumerate(self.kinds):
            if self.count[index] > 0:
                result[f"reward/{kind}"] = float(self.total[index] / self.count[index])
                result[f"n/{kind}"] = float(self.count[index])
            if self.failed[index] > 0:
                result[f"failed/{kind}"] = float(self.failed[index])
        return result


@contextmanager
def timed(seconds: dict[str, float], phase: str) -> Iterator[None]:
    """Adds the wall-clock seconds of its body to `seconds[phase]`, work on an accelerator included."""
    started = time.perf_counter()
    yield
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    seconds[phase] = seconds.get(phase, 0.0) + time.perf_counter() - started
