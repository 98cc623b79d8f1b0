"""Which row when: one permutation an epoch, dealt to the ranks, and a place in it that survives a restart.

The local batches of all ranks at one step together are exactly the global batch, whichever way it is dealt, and each
has the same number of rows. In SFT, where an optimiser step waits for the rank with the most tokens, rows are dealt by
their estimated costs (`deal`). In GRPO they are dealt in turn: with W ranks, rank r gets the rows r, r + W, r + 2W, ...
of each global batch. What a rollout costs lies in completions that are still to be written, and checkpoints amid a
rollout rely on that order (`lit_vlaa.unfinished`).

The place is counted in global batches and is thus the same on every rank, which matters because Lightning stores the
loader state of rank 0 only; and the number of ranks may change in between.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, Sampler

Costs = Sequence[int] | np.ndarray[tuple[int], np.dtype[np.int64]]


def deal(costs: Sequence[int], ranks: int) -> list[list[int]]:
    """Deals rows to ranks, equally many to each, so that their costs are nearly even.

    From the dearest row to the cheapest, each goes to the rank with the least so far among those that have room
    (Graham's longest-processing-time rule with a limit on the number). Rows of equal costs are thus dealt in turn.

    Tokens of the dearest rank over the mean, in turn and dealt so, over batches of 128 rows of the log-normal
    `benchmarks/lengths.json`: 1.06 and 1.00 on 2 ranks, 1.31 and 1.00 on 8, 2.88 and 1.96 on 64, where 1.94 is the
    least that two rows a rank allow; of 512 rows on 64 ranks 1.82 and 1.01. `python -m benchmarks.dealing` measures it,
    on other lengths too, and with estimates that are off (`benchmarks/results/dealing.md`).

    Args:
        costs: One a row, none negative.
        ranks: Divides the number of rows.

    Returns:
        For each rank the places of its rows in `costs`, ascending.
    """
    room = len(costs) // ranks
    dealt: list[list[int]] = [[] for _ in range(ranks)]
    loads = [(0, rank) for rank in range(ranks)]
    for place in sorted(range(len(costs)), key=lambda place: -costs[place]):
        load, rank = heapq.heappop(loads)
        dealt[rank].append(place)
        if len(dealt[rank]) < room:
            heapq.heappush(loads, (load + costs[place], rank))
    return [sorted(places) for places in dealt]


class EpochSampler(Sampler[int]):
    """Deals each epoch's order to the ranks; the last incomplete global batch is left out.

    Attributes:
        epoch: Decides the order together with the seed.
        start: Global batches of this epoch to pass over.
        done: Global batches of this epoch that the training loop has been given, those passed over included.
    """

    def __init__(
        self,
        rows: int,
        *,
        batch_size: int,
        rank: int,
        world_size: int,
        seed: int,
        shuffle: bool,
        costs: Costs | None = None,
    ) -> None:
        """Starts at the beginning of epoch 0.

        Args:
            rows: Length of the data set.
            batch_size: Rows in one batch of all ranks together.
            rank: This process among `world_size`.
            world_size: Number of ranks; must divide `batch_size`.
            seed: Decides the orders.
            shuffle: False keeps the file's order in every epoch.
            costs: Of each row, in any unit, to be shared evenly among the ranks; None deals the rows in turn. Within
                a rank they keep the epoch's order.

        Raises:
            ValueError: If `batch_size` cannot be shared evenly, or there are not as many costs as rows.
        """
        if batch_size < 1 or batch_size % world_size:
            raise ValueError(
                f"batch_size={batch_size} (rows of all ranks together) must be a positive multiple of the "
                f"{world_size} rank(s)"
            )
        if costs is not None and len(costs) != rows:
            raise ValueError(f"{len(costs)} costs for {rows} rows")
        self.rows, self.batch_size, self.seed, self.shuffle = rows, batch_size, seed, shuffle
        self.costs = costs
        self.rank, self.world_size = rank, world_size
        self.epoch = self.start = self.done = 0

    @property
    def batches(self) -> int:
        """Global batches in a whole epoch."""
        return self.rows // self.batch_size

    def set_epoch(self, epoch: int) -> None:
        """Turns to an epoch (Lightning calls this ahead of each); one that is new starts at its beginning."""
        if epoch != self.epoch:
            self.go_to(epoch, 0)

    def go_to(self, epoch: int, batch: int) -> None:
        """Goes to a global batch of an epoch; past an epoch's last one lies the start of the next."""
        if batch >= self.batches:
            epoch, batch = epoch + 1, 0
        self.epoch, self.start, self.done = epoch, batch, batch

    def order(self) -> list[int]:
        """Returns the row numbers of the current epoch in the order of all ranks."""
        if not self.shuffle:
            return list(range(self.rows))
        generator = torch.Generator().manual_seed((self.seed * 1_000_003 + self.epoch) % 2**63)
        return torch.randperm(self.rows, generator=generator).tolist()

    def __len__(self) -> int:
        """Rows of this rank in a whole epoch, whatever the starting place."""
        return self.batches * self.batch_size // self.world_size

    def __iter__(self) -> Iterator[int]:
        """Yields this rank's rows from the starting place to the end of the epoch."""
        first, last = self.start * self.batch_size, self.batches * self.batch_size
        return self._share(self.order()[first:last])

    def _share(self, order: Sequence[int]) -> Iterator[int]:
        """This rank's rows of some global batches."""
        for start in range(0, len(order), self.batch_size):
            batch = order[start : start + self.batch_size]
            if self.costs is None or self.world_size == 1:
                yield from batch[self.rank :: self.world_size]
            else:
                costs = [int(self.costs[row]) for row in batch]
                yield from (batch[place] for place in deal(costs, self.world_size)[self.rank])


class StridedSampler(Sampler[int]):
    """Deals rows 0, 1, 2, ... to the ranks in turn, for evaluation; with `rows` a multiple of the ranks, evenly."""

    def __init__(self, rows: int, *, rank: int, world_size: int) -> None:
        self._places = range(rank, rows, world_size)

    def __len__(self) -> int:
        """Rows of this rank."""
        return len(self._places)

    def __iter__(self) -> Iterator[int]:
        """Yields this rank's rows."""
        return iter(self._places)


class ResumableLoader(DataLoader[Any]):
    """A data loader that goes on after a restart at the batch after the last one handed out.

    Its state counts batches handed out to the training loop, not those that workers have prepared ahead. A checkpoint
    written in the middle of a training step counts that step's batch as done.
    """

    def __init__(self, dataset: Dataset[Any], *, sampler: EpochSampler, **kwargs: Any) -> None:
        """Takes what `DataLoader` takes.

        Args:
            dataset: Data set with numbered rows.
            sampler: Decides the order, the local batch size and the place.
            **kwargs: Other arguments of `DataLoader`, but for those on batches and order.
        """
        # A generator of its own keeps the loader from drawing its workers' seed from the global one, which would make
        # the random numbers of a run depend on how often it was restarted.
        super().__init__(
            dataset,
            sampler=sampler,
            batch_size=sampler.batch_size // sampler.world_size,
            drop_last=True,
            generator=torch.Generator().manual_seed(sampler.seed),
            **kwargs,
        )
        self._place = sampler

    def __len__(self) -> int:
        """Batches in a whole epoch, whatever the starting place."""
        return self._place.batches

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]
        """Yields the batches from the starting place on."""
        place = self._place
        place.done = place.start
        for batch in super().__iter__():
            place.done += 1
            yield batch

    def state_dict(self) -> dict[str, int]:
        """Returns the place, and what it depends on."""
        return {
            "epoch": self._place.epoch,
            "batches": self._place.done,
            "rows": self._place.rows,
            "batch_size": self._place.batch_size,
            "seed": self._place.seed,
        }

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Goes to the place.

        Raises:
            ValueError: If the place was counted over other data, in other batches or in another order.
        """
        for name in ("rows", "batch_size", "seed"):
            here = getattr(self._place, name)
            if state[name] != here:
                raise ValueError(
                    f"the checkpoint was written with {name}={state[name]} of the training data, this run has {here}; "
                    "resume with the same data settings, or start a new run from the weights (init_from)"
                )
        self._place.go_to(state["epoch"], state["batches"])
