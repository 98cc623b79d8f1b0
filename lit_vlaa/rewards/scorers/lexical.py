"""The cheap scorer of open-ended answers that needs no model."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lit_vlaa.types import RewardRequest

MAX_CHARS = 4000
"""What is compared of a text; the rest is cut."""


class LexicalScorer:
    """chrF (overlap of character and word n-grams, case ignored) with the row's truth.

    Scores go from 0 (nothing shared) to `scale` (the same text), as a share of what a verbatim copy gets.

    A stand-in where no reward model is at hand: it sees neither image nor meaning. Unrelated English sentences share
    about 0.2 of their n-grams; the default baseline sits there, so that only more than that is paid. With the reward's
    default b of 0.2 a chrF of 0.3 then pays 0.33, 0.5 pays 0.70 and a verbatim copy 0.96.

    Args:
        scale: Score of a verbatim copy.
        baseline: Score up to which nothing is paid, in units of `scale`.
    """

    def __init__(self, *, scale: float = 20.0, baseline: float = 4.0) -> None:
        if not 0 <= baseline < scale:
            raise ValueError(f"baseline must lie in [0, scale), got baseline={baseline}, scale={scale}")
        self.scale = scale
        self.similarity_baseline = baseline

    def __call__(self, requests: Sequence[RewardRequest], answers: Sequence[str]) -> list[float | None]:
        """Scores each answer against its request's truth.

        Returns:
            A score in [0, scale] for each answer, 0 for an empty one; None where the request has no truth.
        """
        scores: list[float | None] = []
        for request, answer in zip(requests, answers, strict=True):
            truth, text = request.truth.strip()[:MAX_CHARS], answer.strip()[:MAX_CHARS]
            if not truth:
                scores.append(None)
            elif not text:
                scores.append(0.0)
            else:
                # A text of a few letters has no long n-grams, and so less than 1 even with itself.
                similar, most = _chrf(text, truth), _chrf(truth, truth)
                scores.append(self.scale * min(max(similar / most, 0.0), 1.0) if most > 0 else 0.0)
        return scores


@lru_cache(maxsize=2**14)
def _chrf(given: str, truth: str) -> float:
    """Sentence chrF; kept, because a policy that converges repeats itself and torchmetrics takes milliseconds."""
    import torch  # noqa: PLC0415
    from torchmetrics.functional.text import chrf_score  # noqa: PLC0415 - slow to import

    return float(torch.as_tensor(chrf_score([given], [[truth]], lowercase=True)))
