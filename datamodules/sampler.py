"""Which row when: one permutation an epoch, dealt to the ranks in turn, and a place in it that survives a restart.

With W ranks, rank r gets the places r, r + W, r + 2W, ... of the epoch's order, so that the local batches at one step
together are exactly the global batch. The place is counted in global batches and is thus the same on every rank, which
matters because Lightning stores the loader state of rank 0 only; and the number of ranks may change in between.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset, Sampler


class EpochSampler(Sampler[int]):
    """Deals each epoch's order to the ranks; the last incomplete global batch is left out.

    Attributes:
        epoch: Decides the order together with the seed.
        start: Global batches of this epoch to pass over.
        done: Global batches of this epoch that the training loop has been given, those passed over included.
    """

    def __init__(self, rows: int, *, batch_size: int, rank: int, world_size: int, seed: int, shuffle: bool) -> None:
        """Starts at the beginning of epoch 0.

        Args:
            rows: Length of the data set.
            batch_size: Rows in one batch of all ranks together.
            rank: This process among `world_size`.
            world_size: Number of ranks; must divide `batch_size`.
            seed: Decides the orders.
            shuffle: False keeps the file's order in every epoch.

        Raises:
            ValueError: If `batch_size` cannot be shared evenly.
        """
        if batch_size < 1 or batch_size % world_size:
            raise ValueError(
                f"batch_size={batch_size} (rows of all ranks together) must be a positive multiple of the "
                f"{world_size} rank(s)"
            )
        self.rows, self.batch_size, self.seed, self.shuffle = rows, batch_size, seed, shuffle
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
        return iter(self.order()[first + self.rank : last : self.world_size])


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
