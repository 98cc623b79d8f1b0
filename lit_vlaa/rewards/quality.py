"""The open-ended reward over batches: the paper's formula on top of a `Scorer`, with the references' scores kept."""

from __future__ import annotations

import hashlib
import json
import logging
import math
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import PurePath
from typing import Any

from lit_vlaa.protocols import ScoreFunction
from lit_vlaa.rewards import open_ended
from lit_vlaa.rewards.config import RewardConfig
from lit_vlaa.rewards.scorers import similarity_baseline
from lit_vlaa.types import RewardRequest, RewardStatus

_log = logging.getLogger(__name__)

_KEPT = 2**18
"""References whose scores are kept."""


class OpenEndedVerifier:
    """Scores answers, and where the baseline needs them their references, in one call of the scorer.

    Args:
        scorer: Judge of answers; one that fails gives no verdict.
        config: Scale and baseline.

    Raises:
        ValueError: If the baseline cannot work with this scorer.
    """

    def __init__(self, scorer: ScoreFunction, config: RewardConfig) -> None:
        similarity = similarity_baseline(scorer)
        baseline = config.open_ended_baseline
        if similarity is not None and baseline == "reference":
            raise ValueError(
                f"--model.reward.open_ended_baseline reference would pay nothing with {type(scorer).__name__}, which "
                "measures similarity to the reference; use auto or a number"
            )
        if baseline == "auto":
            baseline = "reference" if similarity is None else similarity
        self.scorer = scorer
        self.scale = config.open_ended_scale
        self.baseline: float | None = None if baseline == "reference" else float(baseline)
        """The fixed baseline, None for the reference's own score."""
        self._references: OrderedDict[str, float] = OrderedDict()

    def __call__(self, requests: Sequence[RewardRequest], answers: Sequence[str]) -> list[tuple[float, RewardStatus]]:
        """Judges `answers[i]` for `requests[i]`: (value in [0, 1), status)."""
        keys = [None if self.baseline is not None else _key(request) for request in requests]
        judged = [i for i, request in enumerate(requests) if self.baseline is not None or request.truth.strip()]
        chosen = [requests[i] for i in judged]
        texts = [answers[i] for i in judged]
        missing: dict[str, int] = {}
        for i in judged:
            key = keys[i]
            if key is not None and key not in self._references and key not in missing:
                missing[key] = len(texts)
                chosen.append(requests[i])
                texts.append(requests[i].truth)
        # The truth too: a scorer that compares both must find a verbatim copy to be one.
        asked = [replace(request, truth=open_ended.escape_template_tokens(request.truth)) for request in chosen]
        scores = self._scores(asked, [open_ended.escape_template_tokens(text) for text in texts])
        fresh = {key: scores[place] for key, place in missing.items()}
        verdicts: list[tuple[float, RewardStatus]] = [(0.0, "unparsable_gt")] * len(requests)
        for place, i in enumerate(judged):
            key = keys[i]
            baseline = self.baseline if key is None else fresh.get(key, self._references.get(key))
            verdicts[i] = self._verdict(scores[place], baseline)
        self._keep(fresh)
        return verdicts

    def state(self) -> dict[str, Any]:
        """The references' scores, for a checkpoint: an interrupted run goes on with the same numbers."""
        return {"scorer": _fingerprint(self.scorer), "references": dict(self._references)}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Takes over the scores of `state`, unless another scorer gave them."""
        if state.get("scorer") == _fingerprint(self.scorer):
            self._keep(state["references"])

    def _verdict(self, candidate: float | None, baseline: float | None) -> tuple[float, RewardStatus]:
        if candidate is None or baseline is None:
            return 0.0, "verifier_error"
        try:
            return open_ended.score(candidate, baseline, self.scale), "ok"
        except ValueError:  # NaN or infinity
            return 0.0, "verifier_error"

    def _scores(self, requests: Sequence[RewardRequest], answers: Sequence[str]) -> list[float | None]:
        if not answers:
            return []
        try:
            given: Any = self.scorer(requests, answers)
            if isinstance(given, str | Mapping):
                raise TypeError(f"it gave a {type(given).__name__} in place of a list of scores")  # noqa: TRY301
            scores: list[float | None] = list(given)
        except Exception:  # noqa: BLE001 - a scorer that breaks is counted as failed, and the run stops if it stays so
            _log.warning("%s failed on %d answers", type(self.scorer).__name__, len(answers), exc_info=True)
            return [None] * len(answers)
        if len(scores) != len(answers):
            _log.error("%s gave %d scores for %d answers", type(self.scorer).__name__, len(scores), len(answers))
            return [None] * len(answers)
        return scores

    def _keep(self, scores: Mapping[str, float | None]) -> None:
        for key, score in scores.items():
            try:
                value = float("nan") if score is None else float(score)
            except (TypeError, ValueError, OverflowError):  # a scorer of the user's may give anything
                continue
            if math.isfinite(value):
                self._references[key] = value
        while len(self._references) > _KEPT:
            self._references.popitem(last=False)


def _key(request: RewardRequest) -> str:
    text = "\0".join((request.source, request.id, request.question, request.truth))
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).hexdigest()


def _fingerprint(scorer: ScoreFunction) -> str:
    """Tells scorers apart: a digest of class and settings, or of what the scorer gives as its `fingerprint`.

    A digest, because settings of a scorer of the user's may hold secrets, and checkpoints travel.
    """
    settings = getattr(scorer, "fingerprint", None)
    if settings is None:
        own: dict[str, Any] = getattr(scorer, "__dict__", {})
        settings = {name: value for name, value in own.items() if not name.startswith("_")}
    kind = scorer if hasattr(scorer, "__qualname__") else type(scorer)
    text = json.dumps([kind.__module__, kind.__qualname__, settings], sort_keys=True, default=_plain, skipkeys=True)
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).hexdigest()


def _plain(value: Any) -> Any:
    """A setting that JSON has no form for; of objects only their class counts."""
    if isinstance(value, set | frozenset):
        return sorted(map(str, value))
    return str(value) if isinstance(value, PurePath) else f"{type(value).__module__}.{type(value).__qualname__}"
