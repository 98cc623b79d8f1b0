"""Which completion is in which slot: a queue, two kinds of slots, and the moves that keep those in use together."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from lit_vlaa.generation.cache import Capacity


class Row(NamedTuple):
    """One completion to write."""

    prompt: int
    sample: int


class Admitted(NamedTuple):
    """What came into the slots."""

    prompts: list[tuple[int, int]]
    """Pairs of a prompt and its slot, to be read."""
    rows: list[tuple[Row, int, int]]
    """Rows with their slots and their prompts' slots."""


class Scheduler:
    """Fills freed slots from the queue, prompt by prompt."""

    def __init__(self, order: Sequence[int], group_size: int, size: Capacity) -> None:
        """Makes the queue.

        Args:
            order: Prompts in the order in which they are to be taken.
            group_size: Completions a prompt.
            size: Slots.
        """
        self.queue = [Row(prompt, sample) for prompt in reversed(order) for sample in reversed(range(group_size))]
        """The next one last."""
        self.group_size = group_size
        self.size = size
        self.rows: dict[int, Row] = {}
        """Row slots in use."""
        self.born: dict[int, int] = {}
        """Steps taken before each row came in, by slot."""
        self.prompts: dict[int, int] = {}
        """Slot of each prompt that is held."""
        self._waiting: dict[int, int] = {}
        """Completions of each held prompt that have not ended."""

    @property
    def live(self) -> int:
        """Rows that go on."""
        return len(self.rows)

    @property
    def free(self) -> int:
        """Row slots without a row."""
        return self.size.rows - len(self.rows)

    @property
    def used_rows(self) -> int:
        """Row slots up to the last one in use."""
        return max(self.rows, default=-1) + 1

    @property
    def used_prompts(self) -> int:
        """Prompt slots up to the last one in use."""
        return max(self.prompts.values(), default=-1) + 1

    def longest(self, step: int) -> int:
        """The most tokens that a row may have drawn before step `step`."""
        return step - min(self.born.values(), default=step)

    def admit(self, step: int) -> Admitted:
        """Takes as many rows from the queue as there is room for, before step `step`."""
        admitted = Admitted([], [])
        free_rows = [slot for slot in range(self.size.rows) if slot not in self.rows]
        taken = set(self.prompts.values())
        free_prompts = [slot for slot in range(self.size.prompts) if slot not in taken]
        for slot in free_rows:
            if not self.queue:
                break
            row = self.queue[-1]
            if row.prompt not in self.prompts:
                if not free_prompts:
                    break
                self.prompts[row.prompt] = free_prompts.pop(0)
                self._waiting[row.prompt] = self.group_size
                admitted.prompts.append((row.prompt, self.prompts[row.prompt]))
            self.rows[slot] = self.queue.pop()
            self.born[slot] = step
            admitted.rows.append((row, slot, self.prompts[row.prompt]))
        return admitted

    def release(self, slots: Iterable[int]) -> None:
        """Frees the slots of rows that ended, and those of prompts that no row needs any more."""
        for slot in slots:
            prompt = self.rows.pop(slot).prompt
            del self.born[slot]
            self._waiting[prompt] -= 1
            if not self._waiting[prompt]:
                del self._waiting[prompt], self.prompts[prompt]

    def compact(self) -> tuple[list[tuple[int, int]], list[tuple[int, int]]]:
        """Moves the last rows and prompts into free slots ahead of them; gives pairs of slots, from and to."""
        row_moves = _fill_holes(self.rows)
        for source, target in row_moves:
            self.rows[target], self.born[target] = self.rows.pop(source), self.born.pop(source)
        held = {slot: prompt for prompt, slot in self.prompts.items()}
        prompt_moves = _fill_holes(held)
        for source, target in prompt_moves:
            self.prompts[held[source]] = target
        return row_moves, prompt_moves

    def members(self) -> list[list[int]]:
        """The row slots of each prompt slot in use."""
        result: list[list[int]] = [[] for _ in range(self.used_prompts)]
        for slot, row in self.rows.items():
            result[self.prompts[row.prompt]].append(slot)
        return result


def _fill_holes(used: Iterable[int]) -> list[tuple[int, int]]:
    slots = set(used)
    late = sorted(slot for slot in slots if slot >= len(slots))
    holes = sorted(set(range(len(slots))) - slots)
    return list(zip(late, holes, strict=True))
