"""The mixed reward (paper, section on mixed reward): routes every response to the verifier of its kind.

Departures
1. A verifier that fails (timeout, scorer down, unreadable truth) gives no verdict instead of a 0; the status tells.
2. An explicit format reward can be mixed in; its weight is 0 by default, as in the paper.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

from lit_vlaa.answers import extract_answer
from lit_vlaa.protocols import Preparable, ScoreFunction, Verifier
from lit_vlaa.rewards import digit, iou, math, mcq
from lit_vlaa.rewards.config import RewardConfig
from lit_vlaa.rewards.errors import UnparsableTruthError
from lit_vlaa.rewards.quality import OpenEndedVerifier
from lit_vlaa.rewards.scorers import LexicalScorer
from lit_vlaa.rewards.workers import MathPool
from lit_vlaa.types import KINDS, Kind, RewardRequest, RewardResult, RewardStatus

_log = logging.getLogger(__name__)

Verdict = tuple[float, RewardStatus]

_KIND = re.compile(r"[a-z][a-z0-9_]{0,39}")


def _digit(answer: str, request: RewardRequest) -> float:
    return digit.score(answer, request.truth)


def _mcq(answer: str, request: RewardRequest) -> float:
    return mcq.score(answer, request.truth, question=request.question)


def _iou(answer: str, request: RewardRequest) -> float:
    return iou.score(answer, request.truth, box_space=request.box_space, image_size=request.image_size)


VERIFIERS: Mapping[Kind, Verifier] = MappingProxyType({"digit": _digit, "mcq": _mcq, "iou": _iou})
"""The kinds that judge one answer at a time; `math` and `open_ended` judge batches."""


class MixedReward:
    """Scores batches of responses of any kind. Holds the Math-Verify processes; close it when done.

    Args:
        config: Settings; the defaults when left out.
        scorer: Judge of open-ended answers; `LexicalScorer` when left out.
        verifiers: Kinds beside the five, each with the function that judges it; a name of the five replaces it.

    Raises:
        ValueError: If the settings cannot work together.
    """

    def __init__(
        self,
        config: RewardConfig | None = None,
        scorer: ScoreFunction | None = None,
        verifiers: Mapping[Kind, Verifier] | None = None,
    ) -> None:
        self.config = config or RewardConfig()
        for name in verifiers or ():
            if not _KIND.fullmatch(name):
                raise ValueError(f"--model.verifiers: {name!r} is no name for a kind: a-z, 0-9 and _ , at most 40")
        self.verifiers = {**VERIFIERS, **(verifiers or {})}
        self.kinds: tuple[Kind, ...] = tuple(dict.fromkeys((*KINDS, *self.verifiers)))
        """Every kind that can be scored."""
        self.open_ended = OpenEndedVerifier(scorer or LexicalScorer(), self.config)
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
        batched: dict[Kind, list[int]] = {"math": [], "open_ended": []}
        for index, (request, answer) in enumerate(zip(requests, answers, strict=True)):
            self._check(request)
            if answer is None:
                verdicts[index] = (0.0, "no_answer")
            elif request.kind in self.verifiers:
                verdicts[index] = _judge(self.verifiers[request.kind], answer, request)
            else:
                batched[request.kind].append(index)
        verdicts.update(self._math(requests, answers, batched["math"]))
        asked = batched["open_ended"]
        judged = self.open_ended([requests[i] for i in asked], [answers[i] or "" for i in asked])
        verdicts.update(zip(asked, judged, strict=True))
        return [self._result(requests[i], answers[i], verdicts[i]) for i in range(len(requests))]

    def prepare(self) -> None:
        """Finds out before a run whether the scorer will work.

        Raises:
            ValueError: If it cannot; the message names the flag and the remedy.
        """
        if isinstance(self.open_ended.scorer, Preparable):
            self.open_ended.scorer.prepare()

    def close(self) -> None:
        """Ends the worker processes; a later call starts new ones."""
        self._pool.close()

    def _check(self, request: RewardRequest) -> None:
        """Refuses requests that the caller, not the policy, got wrong."""
        if request.kind not in self.kinds:
            raise ValueError(f"kind must be one of {', '.join(self.kinds)}, got {request.kind!r}")
        if request.kind == "iou":
            iou.to_normalized((0.0, 0.0, 1.0, 1.0), request.box_space, request.image_size)

    def _result(self, request: RewardRequest, answer: str | None, verdict: Verdict) -> RewardResult:
        value, status = verdict
        weight = self.config.format_weight
        if status == "ok":
            value = (1 - weight) * value + weight
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


def _judge(verifier: Verifier, answer: str, request: RewardRequest) -> Verdict:
    try:
        value: Any = verifier(answer, request)
        if 0 <= value <= 1:
            return float(value), "ok"
        _log.warning("the %s verifier gave %r, which is not in [0, 1]", request.kind, value)
    except UnparsableTruthError:
        return 0.0, "unparsable_gt"
    except Exception:  # noqa: BLE001 - hostile text must not stop the run; the failure is counted by status
        _log.warning("the %s verifier failed on a response", request.kind, exc_info=True)
    return 0.0, "verifier_error"
