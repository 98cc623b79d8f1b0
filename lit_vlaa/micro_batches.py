"""Which rows go through one forward and backward pass together, by a budget of tokens.

Every rank must run the same number of passes under FSDP2. So each says how many its rows need, the largest number is
agreed on, and each spreads its rows over that many as evenly as it can.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterable, Sequence
from itertools import accumulate
from typing import Literal, NamedTuple

import torch

from lit_vlaa.sequences import micro_batch_count, split_contiguous
from lit_vlaa.types import TokenScores

Batching = Literal["shared", "packed", "padded"]
"""Layout of a forward pass: one sequence without padding in which rows of a prompt share its tokens (`shared`), the
same with every row on its own (`packed`), or padded rows."""


class RowSize(NamedTuple):
    """Tokens of one row."""

    prompt: int
    completion: int
    group: int
    """Rows with the same number have the same prompt; they stand beside each other."""


def count(sizes: Sequence[RowSize], budget: int, batching: Batching) -> int:
    """How many micro-batches keep each within the budget, where no single row exceeds it.

    Args:
        sizes: The rows.
        budget: Tokens of one pass, padding included.
        batching: Layout of a pass.
    """
    if batching == "padded":
        return micro_batch_count(_lengths(sizes), budget)
    return len(_first_fit(_pieces(sizes, budget, batching), sizes, budget, batching))


def divide(sizes: Sequence[RowSize], parts: int, budget: int, batching: Batching) -> list[list[int]]:
    """Divides rows into exactly so many micro-batches, none empty, the largest as small as a simple rule can make it.

    Under `padded` they are contiguous. Otherwise rows, or under `shared` whole groups, are put one by one, large ones
    first, where there is least; where that would exceed the budget, into the first with room.

    Args:
        sizes: The rows.
        parts: Number of micro-batches; `count` of these rows or more.
        budget: Tokens of one pass. A group beyond it is cut, and its prompt computed in each part.
        batching: Layout of a pass.

    Returns:
        Row numbers, in ascending order within each.

    Raises:
        ValueError: If there are fewer rows than parts.
    """
    if batching == "padded":
        return [list(part) for part in split_contiguous(_lengths(sizes), parts)]
    if not 1 <= parts <= len(sizes):
        raise ValueError(f"cannot divide {len(sizes)} row(s) into {parts} micro-batch(es)")
    pieces = _pieces(sizes, budget, batching)
    bins = _even(pieces, parts, sizes, batching)
    if max(_cost(part, sizes, batching) for part in bins) > budget:
        bins = _first_fit(pieces, sizes, budget, batching)
    return sorted(_cut(bins, parts, sizes, batching))


def scores_by_row(
    sizes: Sequence[RowSize], parts: Iterable[Sequence[int]], score: Callable[[Sequence[int]], TokenScores]
) -> list[TokenScores]:
    """Scores rows micro-batch by micro-batch.

    Args:
        sizes: The rows.
        parts: Row numbers of each micro-batch; every row is in one.
        score: One forward pass over some rows; it scores their completions, row by row.

    Returns:
        The scores of each row's completion.
    """
    found: dict[int, TokenScores] = {}
    for part in parts:
        scores = score(part)
        lengths = [sizes[row].completion for row in part]
        columns = (torch.split(column, lengths) for column in (scores.logprobs, scores.entropy, scores.correct))
        found |= {row: TokenScores(*own) for row, *own in zip(part, *columns, strict=True)}
    return [found[row] for row in range(len(sizes))]


def _cut(bins: list[list[int]], parts: int, sizes: Sequence[RowSize], batching: Batching) -> list[list[int]]:
    """Halves the largest of several rows until there are so many parts."""

    def turn(part: list[int]) -> tuple[int, list[int]]:
        # Single rows, which cannot be halved, come last.
        return (-_cost(part, sizes, batching) if len(part) > 1 else 1), part

    queue = [turn(part) for part in bins]
    heapq.heapify(queue)
    while len(queue) < parts:
        _, largest = heapq.heappop(queue)
        for half in _halves(largest, sizes, batching):
            heapq.heappush(queue, turn(half))
    return [part for _, part in queue]


def _halves(rows: list[int], sizes: Sequence[RowSize], batching: Batching) -> tuple[list[int], list[int]]:
    ahead = _costs(rows, sizes, batching)
    behind = _costs(reversed(rows), sizes, batching)
    at = min(range(1, len(rows)), key=lambda at: max(ahead[at - 1], behind[len(rows) - at - 1]))
    return rows[:at], rows[at:]


def _lengths(sizes: Sequence[RowSize]) -> list[int]:
    return [size.prompt + size.completion for size in sizes]


def _cost(rows: Sequence[int], sizes: Sequence[RowSize], batching: Batching) -> int:
    """Tokens of a packed sequence of these rows, those of a group beside each other."""
    return _costs(rows, sizes, batching)[-1]


def _costs(rows: Iterable[int], sizes: Sequence[RowSize], batching: Batching) -> list[int]:
    """The same for the first of the rows, the first two, and so on."""
    added = []
    group = None
    for row in rows:
        size = sizes[row]
        added.append(size.completion if batching == "shared" and size.group == group else size.prompt + size.completion)
        group = size.group
    return list(accumulate(added))


def _pieces(sizes: Sequence[RowSize], budget: int, batching: Batching) -> list[list[int]]:
    """Rows that stay together, the largest first."""
    pieces: list[list[int]] = []
    costs: list[int] = []
    for row, size in enumerate(sizes):
        together = batching == "shared" and pieces and sizes[pieces[-1][-1]].group == size.group
        if together and costs[-1] + size.completion <= budget:
            pieces[-1].append(row)
            costs[-1] += size.completion
        else:
            pieces.append([row])
            costs.append(size.prompt + size.completion)
    return [pieces[number] for number in sorted(range(len(pieces)), key=lambda number: -costs[number])]


def _first_fit(
    pieces: Sequence[Sequence[int]], sizes: Sequence[RowSize], budget: int, batching: Batching
) -> list[list[int]]:
    """Each piece goes into the first bin that it fits into, or that is empty.

    Room is kept as a tree whose nodes hold the most of any bin below them, so that a bin is found without a look at
    all.
    """
    width = 1 << (len(pieces) - 1).bit_length()
    room = [budget] * (2 * width)
    bins: list[list[int]] = [[] for _ in range(width)]
    used = 0
    for piece in pieces:
        cost = _cost(piece, sizes, batching)
        node = 1
        while node < width:
            node = 2 * node if room[2 * node] >= cost else 2 * node + 1
        if cost > budget:
            node = width + used
        used = max(used, node - width + 1)
        bins[node - width].extend(piece)
        room[node] -= cost
        while node > 1:
            node //= 2
            room[node] = max(room[2 * node], room[2 * node + 1])
    return [sorted(part) for part in bins[:used]]


def _even(pieces: Sequence[Sequence[int]], parts: int, sizes: Sequence[RowSize], batching: Batching) -> list[list[int]]:
    bins: list[list[int]] = [[] for _ in range(parts)]
    loads = [(0, place) for place in range(parts)]
    for piece in pieces:
        load, place = loads[0]
        bins[place].extend(piece)
        heapq.heapreplace(loads, (load + _cost(piece, sizes, batching), place))
    return [sorted(part) for part in bins if part]
