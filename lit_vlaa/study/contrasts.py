"""Numbers of arms and differences between them, always on the same rows and seeds."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lit_vlaa.study.job_files import Curve
from lit_vlaa.study.quantities import (
    BENCHMARKS,
    TEST,
    End,
    Quantity,
    curve_end,
    doubt_strata,
    value_of,
    variance_without_difference,
)
from lit_vlaa.study.responses import ScoredResponse
from lit_vlaa.study.results import Arm, Key, Study
from lit_vlaa.study.statistics import Estimate, Values, estimate, estimate_of_seeds, pooled
from lit_vlaa.study.tables import risk_difference

REWARD = "reward/mean"


@dataclass(frozen=True, slots=True)
class Contrast:
    """A difference between arms, or one arm's mean, with what went into it."""

    found: Estimate
    arms: tuple[str, ...]
    seeds: tuple[int, ...]
    left_out: int
    """Rows without a value in one of the arms and seeds; they are left out of all."""


class Absent(Exception):  # noqa: N818 - nothing is wrong: the study did not ask for it
    """There is nothing to compute a number from; the message says what is missing."""


class Contrasts:
    """All that is computed from a study's responses and curves.

    Args:
        study: What was read.
        sets: Which rows count: a set's name, `benchmarks` for all sets but `test`, or None for `test` where there is
            such a set and the benchmarks elsewhere.

    Raises:
        ValueError: If there are no such rows.
    """

    def __init__(self, study: Study, sets: str | None = None) -> None:
        self.study = study
        self._arms: dict[str, Arm] = {arm.name: arm for arm in study.arms}
        first = next(iter(study.evaluations.values()), None)
        self.keys: tuple[Key, ...] = () if first is None else tuple(sorted(first.rows))
        self.rows: tuple[ScoredResponse, ...] = () if first is None else tuple(first.rows[key] for key in self.keys)
        """Of one evaluation; kind, source and question are the same in all."""
        self.sets = self._chosen(sets)
        self._cache: dict[tuple[str, int, Quantity], Values] = {}

    def _chosen(self, sets: str | None) -> tuple[str, ...]:
        there = sorted({key[0] for key in self.keys})
        others = [name for name in there if name != TEST]
        if sets is None:
            sets = TEST if TEST in there or not others else BENCHMARKS
        chosen = others if sets == BENCHMARKS else [name for name in there if name == sets]
        if self.keys and not chosen:
            raise ValueError(f"claims.sets of the study names {sets!r}; there are rows of {', '.join(there)}")
        return tuple(chosen)

    def mean(
        self,
        arm: str,
        quantity: Quantity,
        keep: Callable[[ScoredResponse], bool] | None = None,
        *,
        every_set: bool = False,
    ) -> Contrast:
        """One arm's mean, with the interval of an arm that stands alone (not to be held against another's).

        Args:
            arm: Its name.
            quantity: What of its responses.
            keep: Which rows; None for all.
            every_set: Also rows of sets on which claims are not judged.

        Raises:
            Absent: If it was not evaluated, or no row is left.
        """
        bounds = (0.0, math.inf if quantity == "tokens" else 1.0)
        return self._contrast({arm: 1.0}, quantity, self._places(keep, every_set=every_set), bounds)

    def difference(self, weights: Mapping[str, float], quantity: Quantity) -> Contrast:
        """A sum of arms' values row by row and seed by seed, as `{"rl": 1, "base": -1}`.

        Args:
            weights: Factors; they add up to 0.
            quantity: What of the responses.

        Raises:
            Absent: If an arm was not evaluated, or no row is left.
        """
        return self._contrast(weights, quantity, self._places(None), (-math.inf, math.inf))

    def by_seed(self, arm: str, quantity: Quantity) -> dict[int, float]:
        """The mean of each seed, over the rows that have a value."""
        places = self._places(None)
        found = {}
        for seed in self.seeds_of(arm):
            values = self.values(arm, seed, quantity)[places]
            if np.isfinite(values).any():
                found[seed] = self._mean_of_sets(values, places)
        return found

    def _mean_of_sets(self, values: Values, places: NDArray[np.int64]) -> float:
        """The mean of the sets' means, each of equal weight."""
        names = np.array([self.rows[place].set for place in places])
        means = [float(np.nanmean(values[names == name])) for name in dict.fromkeys(names.tolist())]
        return sum(means) / len(means)

    def _places(self, keep: Callable[[ScoredResponse], bool] | None, *, every_set: bool = False) -> NDArray[np.int64]:
        chosen = (
            place
            for place, row in enumerate(self.rows)
            if (every_set or row.set in self.sets) and (keep is None or keep(row))
        )
        return np.fromiter(chosen, dtype=np.int64)

    def _contrast(
        self,
        weights: Mapping[str, float],
        quantity: Quantity,
        places: NDArray[np.int64],
        bounds: tuple[float, float],
    ) -> Contrast:
        seeds = self.seeds_of(*weights)
        if not len(places):
            raise Absent("no row of this kind was evaluated")
        sums = sum(
            weight * np.stack([self.values(arm, seed, quantity)[places] for seed in seeds])
            for arm, weight in weights.items()
        )
        values: Values = np.asarray(sums)
        whole = np.isfinite(values).all(axis=0)
        if not whole.any():
            raise Absent("token counts are missing" if quantity == "tokens" else "no row has a verdict in all of them")
        kept = places[whole]
        found = estimate(
            values[:, whole],
            clusters=[self._cluster(place) for place in kept],
            strata=[self.rows[place].set for place in kept],
            # A share or a score of one more row can be off by 1; tokens have no such bound.
            span=0.0 if quantity == "tokens" else max(abs(weight) for weight in weights.values()),
            bounds=bounds,
        )
        return Contrast(found, tuple(weights), seeds, len(places) - len(kept))

    def seeds_of(self, *arms: str) -> tuple[int, ...]:
        """Seeds of which all arms were evaluated.

        Raises:
            Absent: If there is none.
        """
        for arm in arms:
            if arm not in self._arms:
                raise Absent(f"the study has no arm {arm}")
            if not self.study.seeds_of(arm):
                raise Absent(f"arm {arm} has not been evaluated")
        seeds = self.study.seeds_of(*arms)
        if not seeds:
            raise Absent(f"no seed of which all of {', '.join(arms)} were evaluated")
        return seeds

    def values(self, arm: str, seed: int, quantity: Quantity) -> Values:
        """`[rows]` values of one evaluation, in the order of `keys`; NaN where there is none."""
        key = arm, seed, quantity
        if key not in self._cache:
            rows = self.study.evaluations[arm, seed].rows
            self._cache[key] = np.array([value_of(rows[name], quantity) for name in self.keys], dtype=np.float64)
        return self._cache[key]

    def _cluster(self, place: int) -> tuple[object, ...]:
        """Rows about one picture belong together."""
        row = self.rows[place]
        return (row.set, row.image) if row.image else self.keys[place]

    def responses(self, arm: str, seeds: Sequence[int]) -> list[ScoredResponse]:
        """All responses of an arm to the rows that count."""
        return [
            self.study.evaluations[arm, seed].rows[key] for seed in seeds for key in self.keys if key[0] in self.sets
        ]

    def doubt(self, arm: str, keep: Callable[[ScoredResponse], bool] | None = None) -> Contrast:
        """Error rate of an arm's responses with an aha cue less that of the others, of the same set, kind and source.

        Each seed's is Mantel and Haenszel's; its variance takes rows for independent and is the larger one of that of
        the rates found and that of equal rates. Seeds answer the same rows, and are put together as `pooled` says.

        Args:
            arm: Its name.
            keep: Which responses; None for all.

        Raises:
            Absent: If the arm was not evaluated, or nowhere both sorts of responses occur.
        """
        found = {}
        for seed in self.seeds_of(arm):
            strata = doubt_strata(row for row in self.responses(arm, (seed,)) if keep is None or keep(row))
            result = risk_difference(strata)
            if result is not None:
                found[seed] = result, variance_without_difference(strata)
        if not found:
            raise Absent(f"{arm} has no responses of one kind of which some hold an aha cue and some do not")
        rows_used = min(result.rows for result, _ in found.values())
        differences = [result.difference for result, _ in found.values()]
        # That of what was found is too small where few responses, all of them wrong, hold a cue.
        variances = [max(result.variance, without) for result, without in found.values()]
        return Contrast(pooled(differences, variances, rows=rows_used), (arm,), tuple(found), 0)

    def curve_difference(self, first: str, second: str, end: End) -> Contrast:
        """Training reward of the last stage of two arms: the first less the second, in the first or last tenth.

        Raises:
            Absent: If one of them was not trained with rewards.
        """
        both = {seed: [self.curve(arm, seed, REWARD) for arm in (first, second)] for seed in self.study.seeds}
        ends = {seed: [curve_end(curve, end) for curve in own if curve is not None] for seed, own in both.items()}
        pairs = {seed: own[0] - own[1] for seed, own in ends.items() if len(own) == 2}
        if not pairs:
            for arm in (first, second):
                if arm not in self._arms:
                    raise Absent(f"the study has no arm {arm}")
            raise Absent(f"no seed has a training curve of the reward for both {first} and {second}")
        return Contrast(estimate_of_seeds(list(pairs.values())), (first, second), tuple(pairs), 0)

    def curve(self, arm: str, seed: int, name: str) -> Curve | None:
        """A number that the arm's last stage logged, if it did."""
        known = self._arms.get(arm)
        job = self.study.training(known, known.steps[-1], seed) if known and known.steps else None
        return None if job is None else self.study.curves.get(job.id, {}).get(name)
