"""Telling a verifier that is down from answers that are wrong: counts of verdicts, and when to stop a run."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from typing import get_args

from lit_vlaa.types import Kind, RewardResult, RewardStatus

STATUSES: tuple[RewardStatus, ...] = get_args(RewardStatus)
FAILURES: tuple[RewardStatus, ...] = tuple(status for status in STATUSES if status not in {"ok", "no_answer"})
"""The statuses that are no verdict."""

Tally = list[list[int]]
"""Results by kind (rows, in the order of the kinds) and by status (columns, in the order of `STATUSES`)."""


def tally(results: Sequence[RewardResult], kinds: Sequence[Kind]) -> Tally:
    """Counts results by kind and status."""
    counts = [[0] * len(STATUSES) for _ in kinds]
    for result in results:
        counts[kinds.index(result.kind)][STATUSES.index(result.status)] += 1
    return counts


def shares(counts: Tally, kinds: Sequence[Kind]) -> dict[str, float]:
    """Shares of answers without a verdict: `failed/<kind>` of the kind's own, `failed/<status>` of all.

    Completions without an answer never reach a verifier and do not count. A kind without answers is left out.
    """
    result: dict[str, float] = {}
    total = sum(map(_answered, counts))
    for kind, row in zip(kinds, counts, strict=True):
        if _answered(row):
            result[f"failed/{kind}"] = _failed(row) / _answered(row)
    for status in FAILURES:
        if total:
            result[f"failed/{status}"] = sum(row[STATUSES.index(status)] for row in counts) / total
    return result


class FailureWatch:
    """Notices when one kind's verifier fails too often to go on.

    Args:
        kinds: All kinds, in the order of the tallies.
        most: Share in [0, 1] of a kind's answers that may be without a verdict.
        window: Answers of a kind to look back on at least; with fewer, nothing is said.
    """

    def __init__(self, kinds: Sequence[Kind], *, most: float, window: int) -> None:
        self.kinds = tuple(kinds)
        self.most = most
        self.window = window
        self._recent: dict[Kind, deque[list[int]]] = {kind: deque() for kind in kinds}

    def update(self, counts: Tally) -> str | None:
        """Adds one rollout's counts.

        Returns:
            Why the run should stop, in one line; None when it should not.
        """
        reasons: list[str] = []
        for kind, row in zip(self.kinds, counts, strict=True):
            recent = self._recent[kind]
            if _answered(row):
                recent.append(list(row))
            while recent and sum(map(_answered, recent)) - _answered(recent[0]) >= self.window:
                recent.popleft()
            summed = [sum(column) for column in zip(*recent, strict=True)]
            total = _answered(summed)
            if total >= self.window and _failed(summed) > self.most * total:
                by_status = ", ".join(
                    f"{status} {summed[STATUSES.index(status)]}"
                    for status in FAILURES
                    if summed[STATUSES.index(status)]
                )
                reasons.append(f"{_failed(summed)} of the latest {total} {kind} answers had no verdict ({by_status})")
                recent.clear()  # whoever goes on from here has put it right
        if not reasons:
            return None
        return f"{'; '.join(reasons)}; more than --model.reward.max_failed {self.most} allows; put that right first"

    def state(self) -> dict[Kind, Tally]:
        """The latest counts by kind, for a checkpoint."""
        return {kind: [list(row) for row in recent] for kind, recent in self._recent.items()}

    def load_state(self, state: Mapping[Kind, Tally]) -> None:
        """Takes over what `state` gave; kinds that the interrupted run did not have start anew."""
        self._recent = {kind: deque(list(row) for row in state.get(kind, ())) for kind in self.kinds}


def _answered(row: Sequence[int]) -> int:
    return sum(count for status, count in zip(STATUSES, row, strict=False) if status != "no_answer")


def _failed(row: Sequence[int]) -> int:
    return sum(count for status, count in zip(STATUSES, row, strict=False) if status in FAILURES)
