"""Which tokens of a packed sequence see which: segments one after the other, some of which continue an earlier one."""

from __future__ import annotations

from functools import cached_property

import torch
from torch import Tensor

Varlen = tuple[Tensor, Tensor, int, int, Tensor | None]
"""`[S + 1]` int32 bounds of the queries and of the keys, the most of either, and where the keys come from."""


class Segments:
    """The layout of one packed sequence of T tokens.

    A token sees those before it in its own segment, and all of the segment that its own continues: a prompt and its
    completions are a segment each, and the completions continue the prompt.

    Args:
        lengths: Tokens of each segment, in order.
        continued: For each segment the number of the earlier one that it continues, or -1.

    Raises:
        ValueError: If a segment is empty, or continues one that is not there or continues another in its turn.
    """

    def __init__(self, lengths: tuple[int, ...], continued: tuple[int, ...]) -> None:
        if len(lengths) != len(continued) or not lengths or min(lengths) < 1:
            raise ValueError(f"segments of {lengths} tokens that continue {continued}")
        for number, other in enumerate(continued):
            if not -1 <= other < number or (other >= 0 and continued[other] >= 0):
                raise ValueError(f"segment {number} cannot continue segment {other}")
        self.lengths = lengths
        self.continued = continued
        self._masks: dict[tuple[int, int, torch.device], Tensor] = {}
        self._varlen: dict[torch.device, Varlen] = {}

    @cached_property
    def starts(self) -> tuple[int, ...]:
        """Place of each segment's first token."""
        starts = [0]
        for length in self.lengths[:-1]:
            starts.append(starts[-1] + length)
        return tuple(starts)

    def mask(self, number: int, device: torch.device) -> Tensor:
        """`[C, P + C]` bool: which keys a segment of C tokens sees of the P that it continues and of its own."""
        own, before = self.lengths[number], self.lengths[self.continued[number]]
        key = own, before, device
        if key not in self._masks:
            self._masks[key] = torch.ones(own, before + own, dtype=torch.bool, device=device).tril(before)
        return self._masks[key]

    def varlen(self, device: torch.device) -> Varlen:
        """What kernels for sequences of any lengths need, under a causal mask that is aligned at the last key."""
        if device not in self._varlen:
            keys = [
                length + (self.lengths[other] if other >= 0 else 0)
                for length, other in zip(self.lengths, self.continued, strict=True)
            ]
            source = None
            if max(self.continued) >= 0:
                source = torch.cat([self._places(number) for number in range(len(keys))]).to(device)
            self._varlen[device] = (
                _bounds(self.lengths).to(device),
                _bounds(tuple(keys)).to(device),
                max(self.lengths),
                max(keys),
                source,
            )
        return self._varlen[device]

    def _places(self, number: int) -> Tensor:
        """Places of the keys of one segment."""
        own = torch.arange(self.starts[number], self.starts[number] + self.lengths[number])
        other = self.continued[number]
        if other < 0:
            return own
        return torch.cat([torch.arange(self.starts[other], self.starts[other] + self.lengths[other]), own])


def _bounds(lengths: tuple[int, ...]) -> Tensor:
    return torch.tensor([0, *lengths]).cumsum(0).int()
