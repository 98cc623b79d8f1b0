"""Drawing groups again that teach nothing, because all of their completions earn the same (DAPO's dynamic sampling).

Departure from the paper: it keeps such groups. Whether completions earn the same is judged by their rewards alone,
before length penalty and divergence, which would tell apart answers that are equally right or wrong.

The first completions are scored while they are written (`lit_vlaa.streamed_reward`), those drawn again when all of them
are there.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from lit_vlaa.advantages import zero_variance
from lit_vlaa.rollout import Judged, table
from lit_vlaa.types import Prompt


def resample(
    judged: Judged,
    *,
    draw: Callable[[Sequence[Prompt], int], Judged],
    times: int,
    sum_over_ranks: Callable[[Tensor], Tensor],
) -> tuple[Judged, float]:
    """Draws flat groups again until their rewards differ, or `times` times.

    Args:
        judged: One rank's completions.
        draw: Gives completions of some prompts, or of none, at the n-th attempt, n from 1, with their verdicts; every
            rank calls it equally often.
        times: Most attempts.
        sum_over_ranks: Adds up a tensor over all ranks.

    Returns:
        The completions with the new groups in the old ones' places, and the share of groups over all ranks that were
        drawn again.
    """
    again = 0.0
    for attempt in range(1, times + 1):
        flat = zero_variance(*table(judged.results, judged.group_size))
        places = flat.nonzero().flatten().tolist()
        drawn, groups = sum_over_ranks(torch.tensor([float(len(places)), float(flat.numel())])).tolist()
        if not drawn:
            break
        again = max(again, drawn / groups)
        judged = replace_groups(judged, places, draw([judged.prompts[place] for place in places], attempt))
    return judged, again


def replace_groups(judged: Judged, places: Sequence[int], fresh: Judged) -> Judged:
    """Puts groups that were drawn again in place of the old ones, where their rewards now differ.

    Args:
        judged: All completions.
        places: Which prompts were drawn again.
        fresh: The new completions of these prompts, in order.
    """
    size = judged.group_size
    completions, texts, results = list(judged.completions), list(judged.texts), list(judged.results)
    flat = zero_variance(*table(fresh.results, size)).tolist() if places else []
    for index, place in enumerate(places):
        if not flat[index]:
            old, new = slice(place * size, (place + 1) * size), slice(index * size, (index + 1) * size)
            completions[old], texts[old], results[old] = fresh.completions[new], fresh.texts[new], fresh.results[new]
    return Judged(judged.prompts, tuple(completions), tuple(texts), tuple(results))
