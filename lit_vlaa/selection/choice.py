"""Which rows to keep: by perplexity averaged over models, or drawn by seed.

The paper keeps the answers of highest perplexity and averages it over two models; it does not say whether perplexities
or their logarithms. The mean of perplexities is the default here. R rows, M models.
"""

from __future__ import annotations

from typing import Literal, get_args

import numpy as np
import numpy.typing as npt

Order = Literal["highest", "lowest"]
Mean = Literal["perplexity", "log-perplexity"]
"""What is averaged over models: perplexities, or their logarithms (then one model's outliers weigh less)."""

Aha = Literal["with", "without"]
"""Whether responses have an aha cue."""

Floats = npt.NDArray[np.float64]
Integers = npt.NDArray[np.int64]


def averaged(nll: Floats, tokens: Integers, mean: Mean = "perplexity") -> Floats:
    """Perplexity of each row over all models.

    Args:
        nll: `[M, R]` sum of -log p in nats.
        tokens: `[M, R]` over how many tokens, at least one.
        mean: What is averaged.

    Returns:
        `[R]` logarithm of the averaged perplexity, which no row is too improbable for.

    Raises:
        ValueError: If there is no model, a row without tokens, or `mean` is unknown.
    """
    if mean not in get_args(Mean):
        raise ValueError(f"mean must be perplexity or log-perplexity, got {mean!r}")
    if not len(nll) or (tokens < 1).any():
        raise ValueError("every row needs a model and tokens")
    logs = nll / tokens
    if mean == "log-perplexity":
        return np.asarray(logs.mean(axis=0))
    return np.asarray(np.logaddexp.reduce(logs, axis=0) - np.log(len(logs)))


def ranked(scores: Floats, order: Order = "highest") -> Integers:
    """Rows from the first to keep to the last; those of equal score by their number.

    Args:
        scores: `[R]` finite.
        order: Which end comes first.

    Raises:
        ValueError: If `order` is unknown.
    """
    if order not in get_args(Order):
        raise ValueError(f"order must be highest or lowest, got {order!r}")
    return np.argsort(-scores if order == "highest" else scores, kind="stable").astype(np.int64)


def drawn(rows: int, seed: int) -> Integers:
    """Rows in an order drawn by seed: its first N are a random subset, and part of its first N + 1."""
    return np.random.default_rng(seed).permutation(rows).astype(np.int64)
