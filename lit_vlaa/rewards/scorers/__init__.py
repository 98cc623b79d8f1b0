"""Judges of open-ended answers behind the protocol `lit_vlaa.protocols.Scorer`."""

from __future__ import annotations

from typing import Any

from lit_vlaa.rewards.scorers.judge import ChatJudge
from lit_vlaa.rewards.scorers.lexical import LexicalScorer
from lit_vlaa.rewards.scorers.remote import RemoteScorer
from lit_vlaa.rewards.scorers.reward_model import RewardModelScorer

__all__ = ["ChatJudge", "LexicalScorer", "RemoteScorer", "RewardModelScorer", "similarity_baseline"]


def similarity_baseline(scorer: Any) -> float | None:
    """What stands for `s(y)` in the reward's formula for a scorer that measures *similarity to* the reference.

    Such a scorer can never rate an answer above the reference itself. It says so by an attribute `similarity_baseline`
    (a number); a scorer of quality has none, or None.
    """
    value: float | None = getattr(scorer, "similarity_baseline", None)
    return value
