"""Choosing part of a benchmark: in proportion to its strata, whole groups only, the same on every machine."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from fractions import Fraction

from callbacks.benchmarks.interface import EvalRecord

Shares = Callable[[Mapping[str, int]], Mapping[str, int]]
"""How many units to take of each stratum, made of how many there are."""


def stratified(records: Sequence[EvalRecord], rows: int, seed: int, shares_of: Shares | None = None) -> list[int]:
    """Chooses about `rows` rows.

    A unit is a group (`EvalRecord.group[0]`), or a row without one. As many units as come nearest to `rows` rows are
    spread over the strata (values of the first tag) in proportion to the units there, by largest remainders; which
    units of a stratum are taken depends on the seed and their names alone, neither on their order nor on the machine.
    A larger subset with the same seed mostly contains a smaller one.

    Args:
        records: The benchmark.
        rows: How many rows to choose; exact where all units have one row.
        seed: Of the choice.
        shares_of: Another way to share out the subset over the strata.

    Returns:
        Places in `records`, ascending; all of them when `rows` is not less than their number.

    Raises:
        ValueError: If `rows` is not positive.
    """
    if rows < 1:
        raise ValueError(f"a subset needs at least 1 row, got {rows}")
    if rows >= len(records):
        return list(range(len(records)))
    units: dict[tuple[str, str], list[int]] = {}
    for place, record in enumerate(records):
        name = ("row", record.id) if record.group is None else ("group", record.group[0])
        units.setdefault(name, []).append(place)
    strata: dict[str, list[tuple[str, str]]] = {}
    for name, places in units.items():
        strata.setdefault(_stratum(records[places[0]]), []).append(name)
    sizes = {stratum: len(names) for stratum, names in strata.items()}
    wanted = max(1, (2 * rows * len(units) + len(records)) // (2 * len(records)))
    shares = _largest_remainders(sizes, wanted) if shares_of is None else shares_of(sizes)
    chosen: list[int] = []
    for stratum, names in strata.items():
        drawn = sorted(names, key=lambda name: _lot(seed, *name))[: shares[stratum]]
        chosen += (place for name in drawn for place in units[name])
    return sorted(chosen)


def _stratum(record: EvalRecord) -> str:
    return next(iter(record.tags.values()), "")


def _lot(seed: int, kind: str, name: str) -> bytes:
    return hashlib.sha256(f"{seed}\0{kind}\0{name}".encode("utf-8", "surrogatepass")).digest()


def _largest_remainders(sizes: Mapping[str, int], total: int) -> dict[str, int]:
    """Splits `total` in proportion to `sizes`; equal remainders go to the larger, then the alphabetically first."""
    whole = sum(sizes.values())
    exact = {name: Fraction(total * size, whole) for name, size in sizes.items()}
    shares = {name: int(share) for name, share in exact.items()}
    order = sorted(sizes, key=lambda name: (shares[name] - exact[name], -sizes[name], name))
    for name in order[: total - sum(shares.values())]:
        shares[name] += 1
    return shares
