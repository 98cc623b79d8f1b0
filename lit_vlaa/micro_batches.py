"""Which rows go through one forward and backward pass together, by a budget of tokens.

Every rank must run the same number of passes under FSDP2. So each says how many its rows need, the largest number is
agreed on, and each spreads its rows over that many as evenly as it can.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
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
    while len(bins) < parts:
        largest = max(
            (number for number, part in enumerate(bins) if len(part) > 1),
            key=lambda number: _cost(bins[number], sizes, batching),
        )
        bins[largest : largest + 1] = _halves(bins[largest], sizes, batching)
    return sorted(bins)


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


def _halves(rows: list[int], sizes: Sequence[RowSize], batching: Batching) -> list[list[int]]:
    cuts = ([rows[:at], rows[at:]] for at in range(1, len(rows)))
    return min(cuts, key=lambda halves: max(_cost(half, sizes, batching) for half in halves))


def _lengths(sizes: Sequence[RowSize]) -> list[int]:
    return [size.prompt + size.completion for size in sizes]


def _cost(rows: Sequence[int], sizes: Sequence[RowSize], batching: Batching) -> int:
    """Tokens of a packed sequence of these rows."""
    if batching == "packed":
        return sum(sizes[row].prompt + sizes[row].completion for row in rows)
    prompts = {sizes[row].group: sizes[row].prompt for row in rows}
    return sum(prompts.values()) + sum(sizes[row].completion for row in rows)


def _pieces(sizes: Sequence[RowSize], budget: int, batching: Batching) -> list[list[int]]:
    """Rows that stay together, the largest first."""
    pieces: list[list[int]] = []
    for row, size in enumerate(sizes):
        together = batching == "shared" and pieces and sizes[pieces[-1][-1]].group == size.group
        if together and _cost([*pieces[-1], row], sizes, batching) <= budget:
            pieces[-1].append(row)
        else:
            pieces.append([row])
    return sorted(pieces, key=lambda piece: -_cost(piece, sizes, batching))


def _first_fit(
    pieces: Sequence[Sequence[int]], sizes: Sequence[RowSize], budget: int, batching: Batching
) -> list[list[int]]:
    bins: list[list[int]] = []
    loads: list[int] = []
    for piece in pieces:
        cost = _cost(piece, sizes, batching)
        place = next((number for number, load in enumerate(loads) if load + cost <= budget), None)
        if place is None:
            bins.append(list(piece))
            loads.append(cost)
        else:
            bins[place].extend(piece)
            loads[place] += cost
    return [sorted(part) for part in bins]


def _even(pieces: Sequence[Sequence[int]], parts: int, sizes: Sequence[RowSize], batching: Batching) -> list[list[int]]:
    bins: list[list[int]] = [[] for _ in range(parts)]
    loads = [0] * parts
    for piece in pieces:
        place = loads.index(min(loads))
        bins[place].extend(piece)
        loads[place] += _cost(piece, sizes, batching)
    return [sorted(part) for part in bins if part]
