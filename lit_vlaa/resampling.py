"""Drawing groups again that teach nothing, because all of their completions earn the same (DAPO's dynamic sampling).

Departure from the paper: it keeps such groups. Whether completions earn the same is judged by their rewards alone,
before length penalty and divergence, which would tell apart answers that are equally right or wrong.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from lit_vlaa.advantages import zero_variance
from lit_vlaa.rollout import Sampled, table
from lit_vlaa.types import Prompt, RewardResult

Verdicts = tuple[RewardResult, ...]


def resample(
    sampled: Sampled,
    *,
    draw: Callable[[Sequence[Prompt], int], Sampled],
    verdicts_of: Callable[[Sampled], Verdicts],
    times: int,
    sum_over_ranks: Callable[[Tensor], Tensor],
) -> tuple[Sampled, Verdicts, float]:
    """Draws flat groups again until their rewards differ, or `times` times.

    Args:
        sampled: One rank's completions.
        draw: Gives completions of some prompts at the n-th attempt, n from 1; every rank calls it equally often.
        verdicts_of: Scores completions.
        times: Most attempts.
        sum_over_ranks: Adds up a tensor over all ranks.

    Returns:
        The completions with the new groups in the old ones' places, all verdicts, and the share of groups over all
        ranks that were drawn again.
    """
    results = verdicts_of(sampled)
    again = 0.0
    for attempt in range(1, times + 1):
        flat = zero_variance(*table(results, sampled.group_size))
        places = flat.nonzero().flatten().tolist()
        drawn, groups = sum_over_ranks(torch.tensor([float(len(places)), float(flat.numel())])).tolist()
        if not drawn:
            break
        again = max(again, drawn / groups)
        fresh = draw([sampled.prompts[place] for place in places], attempt)
        sampled, results = replace_groups(sampled, results, places, fresh, verdicts_of(fresh) if places else ())
    return sampled, results, again


def replace_groups(
    sampled: Sampled,
    results: Sequence[RewardResult],
    places: Sequence[int],
    fresh: Sampled,
    again: Sequence[RewardResult],
) -> tuple[Sampled, Verdicts]:
    """Puts groups that were drawn again in place of the old ones, where their rewards now differ.

    Args:
        sampled: All completions.
        results: Their verdicts.
        places: Which prompts were drawn again.
        fresh: The new completions of these prompts, in order.
        again: Their verdicts.
    """
    size = sampled.group_size
    completions, texts, verdicts = list(sampled.completions), list(sampled.texts), list(results)
    flat = zero_variance(*table(again, size)).tolist() if places else []
    for index, place in enumerate(places):
        if not flat[index]:
            old, new = slice(place * size, (place + 1) * size), slice(index * size, (index + 1) * size)
            completions[old], texts[old], verdicts[old] = fresh.completions[new], fresh.texts[new], again[new]
    return Sampled(sampled.prompts, tuple(completions), tuple(texts)), tuple(verdicts)
