"""The mixed reward (paper, section on mixed reward): routes every response to the verifier of its kind.

Departures
1. A verifier that fails (timeout, scorer down, unreadable truth) gives no verdict instead of a 0; the status tells.
2. An explicit format reward can be mixed in; its weight is 0 by default, as in the paper.
"""

from __future__ import annotations

import logging
import math as stdlib_math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

from lit_vlaa.answers import extract_answer
from lit_vlaa.rewards import digit, iou, math, mcq, open_ended
from lit_vlaa.rewards.errors import UnparsableTruthError
from lit_vlaa.rewards.scorers import LexicalScorer, similarity_baseline
from lit_vlaa.rewards.workers import MathPool
from lit_vlaa.types import KINDS, RewardRequest, RewardResult, RewardStatus, Scorer

_log = logging.getLogger(__name__)

Verdict = tuple[float, RewardStatus]


@dataclass(frozen=True, kw_only=True)
class RewardConfig:
    """Settings of the mixed reward."""

    open_ended_scale: float = 0.2
    """b of the open-ended formula, per unit of the scorer's values. The paper does not state it."""
    open_ended_baseline: Literal["auto", "reference"] | float = "auto"
    """What stands for s(y): the reference answer's own score (`reference`), or a fixed number. `auto` takes the
    reference's score, except for a scorer of similarity to the reference, which brings a number of its own."""
    math_workers: int = 2
    """Math-Verify processes on each rank."""
    math_timeout_s: float = 4.0
    """Seconds for one comparison before its process is killed."""
    math_memory_mb: int = 2048
    """Address space of one Math-Verify process in MiB."""
    format_weight: float = 0.0
    """Share of the reward in [0, 1] that any response with an extractable answer gets, right or wrong."""

    def __post_init__(self) -> None:
        if not self.open_ended_scale > 0:
            raise ValueError(f"open_ended_scale must be positive, got {self.open_ended_scale}")
        if isinstance(self.open_ended_baseline, float) and not stdlib_math.isfinite(self.open_ended_baseline):
            raise ValueError(f"open_ended_baseline must be finite, got {self.open_ended_baseline}")
        if self.math_workers < 1:
            raise ValueError(f"math_workers must be at least 1, got {self.math_workers}")
        if not self.math_timeout_s > 0:
            raise ValueError(f"math_timeout_s must be positive, got {self.math_timeout_s}")
        if self.math_memory_mb < 256:
            raise ValueError(
                f"math_memory_mb must be at least 256, Math-Verify needs that to start, got {self.math_memory_mb}"
            )
        if not 0 <= self.format_weight <= 1:
            raise ValueError(f"format_weight must lie in [0, 1], got {self.format_weight}")


class MixedReward:
    """Scores batches of responses of any kind. Holds the Math-Verify processes; close it when done.

    Args:
        config: Settings; the defaults when left out.
        scorer: Judge of open-ended answers; `LexicalScorer` when left out.
    """

    def __init__(self, config: RewardConfig | None = None, scorer: Scorer | None = None) -> None:
        self.config = config or RewardConfig()
        self.scorer: Scorer = scorer or LexicalScorer()
        baseline = self.config.open_ended_baseline
        similarity = similarity_baseline(self.scorer)
        if similarity is not None and baseline == "reference":
            raise ValueError(
                f"open_ended_baseline='reference' would pay nothing with {type(self.scorer).__name__}, which measures "
                "similarity to the reference; use 'auto' or a number"
            )
        if baseline == "auto":
            baseline = "reference" if similarity is None else similarity
        self._baseline: float | None = None if baseline == "reference" else float(baseline)
        """The fixed baseline, None for the reference's own score."""
        self._pool = MathPool(
            workers=self.config.math_workers,
            timeout_s=self.config.math_timeout_s,
            memory_mb=self.config.math_memory_mb,
        )

    def __call__(self, requests: Sequence[RewardRequest]) -> list[RewardResult]:
        """Scores the responses; math runs in the worker processes, open-ended answers go to the scorer in one call.

        Returns:
            One result a request, in order. No text of the policy makes this raise.

        Raises:
            ValueError: A request itself is wrong (unknown kind, missing image size); the message says how.
        """
        answers = [extract_answer(request.response) for request in requests]
        verdicts: dict[int, Verdict] = {}
        deferred: dict[str, list[int]] = {"math": [], "open_ended": []}
        for index, (request, answer) in enumerate(zip(requests, answers, strict=True)):
            _check(request)
            if answer is None:
                verdicts[index] = (0.0, "no_answer")
            elif request.kind in deferred:
                deferred[request.kind].append(index)
            else:
                verdicts[index] = _judge(request, answer)
        verdicts.update(self._math(requests, answers, deferred["math"]))
        verdicts.update(self._open_ended(requests, answers, deferred["open_ended"]))
        return [self._result(requests[i], answers[i], verdicts[i]) for i in range(len(requests))]

    def close(self) -> None:
        """Ends the worker processes; a later call starts new ones."""
        self._pool.close()

    def _result(self, request: RewardRequest, answer: str | None, verdict: Verdict) -> RewardResult:
        value, status = verdict
        weight = self.config.format_weight
        if status == "ok":
            value = (1 - weight) * min(max(value, 0.0), 1.0) + weight
        return RewardResult(value=value, kind=request.kind, extracted=answer, status=status)

    def _math(
        self, requests: Sequence[RewardRequest], answers: Sequence[str | None], indices: Sequence[int]
    ) -> dict[int, Verdict]:
        verdicts: dict[int, Verdict] = {}
        plans: dict[int, math.Plan] = {}
        for index in indices:
            try:
                plans[index] = math.plan(answers[index] or "", requests[index].truth)
            except UnparsableTruthError:
                verdicts[index] = (0.0, "unparsable_gt")
            except Exception:  # noqa: BLE001 - hostile text must not stop the run; the failure is counted by status
                _log.warning("the math front end failed on a response", exc_info=True)
                verdicts[index] = (0.0, "verifier_error")
        pairs = [pair for plan in plans.values() for pair in plan.pairs]
        found = iter(self._pool.verify_many(pairs) if pairs else [])
        for index, plan in plans.items():
            verdicts[index] = math.conclude(plan, [next(found) for _ in plan.pairs])
        return verdicts

    def _open_ended(
        self, requests: Sequence[RewardRequest], answers: Sequence[str | None], indices: Sequence[int]
    ) -> dict[int, Verdict]:
        """One call of the scorer for all answers and, where the baseline needs them, all distinct references."""
        verdicts: dict[int, Verdict] = {}
        chosen: list[RewardRequest] = []
        texts: list[str] = []
        places: dict[int, int] = {}
        references: dict[int, int] = {}
        seen: dict[RewardRequest, int] = {}
        for index in indices:
            request = requests[index]
            if not request.truth.strip() and self._baseline is None:
                verdicts[index] = (0.0, "unparsable_gt")
                continue
            places[index] = len(texts)
            chosen.append(request)
            texts.append(open_ended.escape_template_tokens(answers[index] or ""))
            if self._baseline is None:
                key = replace(request, response="")
                if key not in seen:
                    seen[key] = len(texts)
                    chosen.append(request)
                    texts.append(open_ended.escape_template_tokens(request.truth))
                references[index] = seen[key]
        if not texts:
            return verdicts
        scores = self.scorer(chosen, texts)
        if len(scores) != len(texts):
            raise ValueError(f"{type(self.scorer).__name__} gave {len(scores)} scores for {len(texts)} answers")
        for index, place in places.items():
            candidate = scores[place]
            baseline = scores[references[index]] if self._baseline is None else self._baseline
            try:
                if candidate is None or baseline is None:
                    verdicts[index] = (0.0, "verifier_error")
                else:
                    verdicts[index] = (open_ended.score(candidate, baseline, self.config.open_ended_scale), "ok")
            except ValueError:  # NaN or infinity
                verdicts[index] = (0.0, "verifier_error")
        return verdicts


def _check(request: RewardRequest) -> None:
    """Refuses requests that the caller, not the policy, got wrong."""
    if request.kind not in KINDS:
        raise ValueError(f"kind must be one of {', '.join(KINDS)}, got {request.kind!r}")
    if request.kind == "iou":
        iou.to_normalized((0.0, 0.0, 1.0, 1.0), request.box_space, request.image_size)


def _judge(request: RewardRequest, answer: str) -> Verdict:
    try:
        if request.kind == "digit":
            return digit.score(answer, request.truth), "ok"
        if request.kind == "mcq":
            return mcq.score(answer, request.truth, question=request.question), "ok"
        return iou.score(answer, request.truth, box_space=request.box_space, image_size=request.image_size), "ok"
    except UnparsableTruthError:
        return 0.0, "unparsable_gt"
    except Exception:  # noqa: BLE001 - hostile text must not stop the run; the failure is counted by status
        _log.warning("the %s verifier failed on a response", request.kind, exc_info=True)
        return 0.0, "verifier_error"
